"""What buyers feel while very many holds of one sale are due at once, and how soon these have ended.

Run as `python -m loadtest.bench.expiry [--json] [--holds N]`: starts an engine, makes so many holds that are all due
within about a second, and has buyers place holds at a fixed rate, in the same sale and in another, from before that
second until the last of them has ended. A buyer's time is counted from when the hold was to be sent.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from engine.backoffice.definition import define_command
from engine.backoffice.documents import SaleBody
from engine.domain.commands import Hold, Open
from engine.domain.identifiers import OrderId
from engine.domain.orders import HoldRequest
from engine.domain.outcomes import Outcome
from engine.partition.glance import Glance
from engine.partition.partitions import Partitions
from engine.settings import read_settings
from loadtest.bench.child_processes import BenchFailed
from loadtest.bench.cpu_time import process_seconds
from loadtest.bench.restart import running_engine

SALE, OTHER_SALE = "due", "other"
AT_ONCE = 2000
HOLDS_A_SECOND_LEAST = 4000
"""How fast they can be made at least, by which their deadline is chosen."""
BUYERS_A_SECOND = 100
"""In each of the two sales."""
CALM_SECONDS = 2.0
"""For so long before the deadline buyers are timed with nothing else going on."""
ENDED_SECONDS_MAX = 120.0


class Expiry:
    """One sale with holds that are due, and buyers in it and in another."""

    def __init__(self, partitions: Partitions, holds: int) -> None:
        self._partitions = partitions
        self._glance = Glance(partitions.connections)
        self._holds = holds
        self._due_at = 0.0
        """When the first of them is due, monotonic seconds."""
        self._times: dict[tuple[str, str], list[float]] = {}
        self._ended = asyncio.Event()
        self._bought = 0

    async def run(self, worker_pid: int, redis_pid: int) -> dict[str, Any]:
        """Make the holds, let them end, and say what it was like. Raises BenchFailed."""
        for sale_id in (SALE, OTHER_SALE):
            await self._partitions.register(sale_id)
            await self._define(sale_id, 86_400)
        await self._make_holds()
        await asyncio.sleep(max(self._due_at - CALM_SECONDS - time.monotonic(), 0))
        began = {"worker": process_seconds(worker_pid), "redis": process_seconds(redis_pid)}
        buying = [asyncio.create_task(self._buy_at_rate(sale_id)) for sale_id in (SALE, OTHER_SALE)]
        ended_seconds = await self._wait_until_ended()
        self._ended.set()
        await asyncio.gather(*buying)
        return {
            "holds": self._holds,
            "ended_seconds_after_first_deadline": round(ended_seconds, 3),
            "ended_a_second": round(self._holds / ended_seconds),
            "worker_cpu_seconds": round(process_seconds(worker_pid) - began["worker"], 2),
            "redis_cpu_seconds": round(process_seconds(redis_pid) - began["redis"], 2),
            "buyers_seconds": {
                sale_id: {phase: _summary(self._times.get((sale_id, phase), [])) for phase in ("before", "during")}
                for sale_id in (SALE, OTHER_SALE)
            },
        }

    async def _define(self, sale_id: str, hold_seconds: int) -> None:
        skus = [
            {"sku": sku, "style": "TEE", "unit_price_minor": 1990, "quantity": self._holds + 100_000}
            for sku in ("DUE", "WANTED")
        ]
        body = {"title": "Expiry", "currency": "CNY", "hold_seconds": hold_seconds, "skus": skus}
        await self._partitions.submit(sale_id, define_command(msgspec.convert(body, SaleBody), 0), Open())

    async def _make_holds(self) -> None:
        """The later ones for fewer seconds, so that all are due within one second."""
        seconds = max(self._holds // HOLDS_A_SECOND_LEAST, 1) + 5
        due_at = time.monotonic() + seconds
        for first in range(0, self._holds, AT_ONCE):
            left = round(due_at - time.monotonic())
            if left < CALM_SECONDS + 1:
                raise BenchFailed("the holds are made too slowly to be due together")
            await self._define(SALE, left)
            await asyncio.gather(
                *(self._hold(SALE, f"d-{number}", "DUE") for number in range(first, min(first + AT_ONCE, self._holds)))
            )
        await self._define(SALE, 86_400)
        now_ms = await self._glance.now_ms()
        earliest_ms = (await self._glance.earliest_deadlines([SALE]))[SALE]
        self._due_at = time.monotonic() + (earliest_ms - now_ms) / 1000

    async def _hold(self, sale_id: str, buyer_id: str, sku: str) -> None:
        line = {"sku": sku, "quantity": 1}
        request = msgspec.convert({"buyer_id": buyer_id, "channel": "douyin", "lines": [line]}, HoldRequest)
        order_id = OrderId.of(sale_id, request.channel, buyer_id, "key")
        (reply,) = await self._partitions.submit(sale_id, Hold.of(order_id, request))
        if reply.outcome is not Outcome.DONE:
            raise BenchFailed(f"a hold that must be possible was answered {reply.outcome.name}")

    async def _buy_at_rate(self, sale_id: str) -> None:
        """Open loop: whether the last was answered or not, the next is sent at its time."""
        began_at = time.monotonic()
        pending: set[asyncio.Task[None]] = set()
        number = 0
        while not self._ended.is_set():
            intended_at = began_at + number / BUYERS_A_SECOND
            await asyncio.sleep(max(intended_at - time.monotonic(), 0))
            pending.add(asyncio.create_task(self._buy(sale_id, number, intended_at)))
            pending = {task for task in pending if not _is_over(task)}
            number += 1
        await asyncio.gather(*pending)
        self._bought += number

    async def _buy(self, sale_id: str, number: int, intended_at: float) -> None:
        await self._hold(sale_id, f"b-{number}", "WANTED")
        phase = "before" if intended_at < self._due_at else "during"
        self._times.setdefault((sale_id, phase), []).append(time.monotonic() - intended_at)

    async def _wait_until_ended(self) -> float:
        """Seconds from the first deadline until the last of them has ended."""
        while (await self._glance.stock(SALE, 10))["DUE"].held > 0:
            if time.monotonic() > self._due_at + ENDED_SECONDS_MAX:
                raise BenchFailed(f"holds are left {ENDED_SECONDS_MAX:g} seconds after their deadline")
            await asyncio.sleep(0.02)
        return time.monotonic() - self._due_at


def _is_over(task: "asyncio.Task[None]") -> bool:
    if task.done():
        task.result()
    return task.done()


def _summary(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {"count": len(seconds)}
    hundredths = statistics.quantiles(seconds, n=100)
    return {
        "count": len(seconds),
        "p50": round(hundredths[49], 4),
        "p90": round(hundredths[89], 4),
        "p99": round(hundredths[98], 4),
        "most": round(max(seconds), 4),
    }


@contextmanager
def _engine() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="miaocang-expiry-") as own, running_engine(Path(own) / "var") as endpoints:
        yield endpoints


async def _measure(endpoints: dict[str, Any], holds: int) -> dict[str, Any]:
    settings = read_settings().model_copy(update={"redis_url": endpoints["redis_url"], "request_deadline_seconds": 30})
    processes = endpoints["processes"]
    async with Partitions.from_settings(settings) as partitions:
        return await Expiry(partitions, holds).run(processes["worker"][0], processes["redis"][0])


def _table(found: dict[str, Any]) -> str:
    lines = [
        f"{found['holds']} holds had ended {found['ended_seconds_after_first_deadline']:.2f} s after the first was due",
        f"processor time: worker {found['worker_cpu_seconds']:.2f} s, Redis {found['redis_cpu_seconds']:.2f} s",
        f"{'buyers, milliseconds':30}{'p50':>9}{'p90':>9}{'p99':>9}{'most':>9}{'count':>8}",
    ]
    for sale_id, phases in found["buyers_seconds"].items():
        for phase, row in phases.items():
            name = f"{'the same' if sale_id == SALE else 'another'} sale, {phase}"
            figures = "".join(f"{row.get(key, 0) * 1000:9.1f}" for key in ("p50", "p90", "p99", "most"))
            lines.append(f"{name:30}{figures}{row['count']:8}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--holds", type=int, default=100_000)
    arguments = parser.parse_args()
    with _engine() as endpoints:
        found = asyncio.run(_measure(endpoints, arguments.holds))
    print(json.dumps(found, indent=1) if arguments.json else _table(found))


if __name__ == "__main__":
    main()
