"""How long `miaocang up` takes on a used data directory, beside what Redis and PostgreSQL take by themselves.

Run as `python -m loadtest.bench.restart [--json] [--rounds N] [--orders N] [--data-dir DIR]`: makes a data directory
with a finished sale of so many orders (or takes the one given, which no engine may be running on), then, in turns,
starts both stores alone until they answer, and the whole engine until `ready`. Exit status 1 where the engine takes
more than the stores and 2.5 seconds.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from engine.runtime.child import ChildPlan
from engine.runtime.data_directory import clear_last_run, open_data_directory
from engine.runtime.secrets_file import read_or_make_secrets
from engine.runtime.store_servers import plan_stores
from engine.settings import read_settings
from loadtest.bench.child_processes import BenchFailed, end, start_store
from loadtest.bench.cpu_time import process_seconds, tree_of

SALE = "finished"
AT_ONCE = 64
READY_SECONDS_MAX = 120.0
LOOK_SECONDS = 0.005
MORE_SECONDS_MAX = 2.5
"""What the engine may take beyond its stores."""


def main() -> int:
    """Measure, print, and say whether the bound is kept."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="miaocang-restart-") as own:
        data_dir = arguments.data_dir or Path(own) / "var"
        if arguments.data_dir is None:
            _make_data(data_dir, arguments.orders)
        rounds = [(_start_stores(data_dir), _start_engine(data_dir)) for _ in range(arguments.rounds)]
    stores = [seconds for (seconds, _), _ in rounds]
    engine = [seconds for _, (seconds, _) in rounds]
    found = {
        "orders": arguments.orders,
        "stores_seconds": _summary(stores),
        "up_seconds": _summary(engine),
        "more_seconds": _summary([whole - alone for alone, whole in zip(stores, engine, strict=True)]),
        "stores_cpu_seconds": _summary([cpu for (_, cpu), _ in rounds]),
        "up_cpu_seconds": _summary([cpu for _, (_, cpu) in rounds]),
        "more_seconds_max": MORE_SECONDS_MAX,
    }
    holds = found["more_seconds"]["median"] <= MORE_SECONDS_MAX
    print(json.dumps({**found, "holds": holds}, indent=1) if arguments.json else _table(found, holds))
    return 0 if holds else 1


def _arguments() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--orders", type=int, default=3000)
    parser.add_argument("--data-dir", type=Path, help="an engine's data directory, which is started as it stands")
    return parser.parse_args()


def _summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def _table(found: dict[str, Any], holds: bool) -> str:
    names = {
        "stores_seconds": "Redis and PostgreSQL alone, seconds",
        "up_seconds": "miaocang up to ready, seconds",
        "more_seconds": "more, seconds",
        "stores_cpu_seconds": "processor time of the stores alone",
        "up_cpu_seconds": "processor time of up",
    }
    lines = [f"{'':38}{'median':>9}{'least':>9}{'most':>9}"]
    for key, name in names.items():
        row = found[key]
        lines.append(f"{name:38}{row['median']:9.3f}{row['least']:9.3f}{row['most']:9.3f}")
    lines.append(f"{'holds' if holds else 'DOES NOT HOLD'}: at most {found['more_seconds_max']:g} seconds more")
    return "\n".join(lines)


def _start_stores(data_dir: Path) -> tuple[float, float]:
    """Start both stores at once until both answer, and end them; wall-clock and processor seconds until then."""
    directory = open_data_directory(data_dir)
    clear_last_run(directory)
    secrets = read_or_make_secrets(directory)
    started_at = time.monotonic()
    stores = asyncio.run(plan_stores(read_settings(data_dir), directory, secrets))
    plans = [plan for plan in (stores.redis, stores.postgres) if plan]
    for plan in plans:
        asyncio.run(_before_start(plan))
    processes = [start_store(plan) for plan in plans]
    try:
        for plan, process in zip(plans, processes, strict=True):
            while not asyncio.run(_is_ready(plan, process.pid)):
                if process.poll() is not None or time.monotonic() - started_at > READY_SECONDS_MAX:
                    raise BenchFailed(f"{plan.kind} does not start")
                time.sleep(LOOK_SECONDS)
        return time.monotonic() - started_at, sum(map(_tree_seconds, [process.pid for process in processes]))
    finally:
        for plan, process in zip(plans, processes, strict=True):
            end(process, plan.stop_signals[0])


async def _before_start(plan: ChildPlan) -> None:
    await plan.before_start()


async def _is_ready(plan: ChildPlan, pid: int) -> bool:
    assert plan.is_ready is not None
    return await plan.is_ready(pid)


def _start_engine(data_dir: Path) -> tuple[float, float]:
    """Start the engine until it says `ready`, and end it; wall-clock and processor seconds until then."""
    process, seconds = _up(data_dir)
    try:
        return seconds, _tree_seconds(process.pid)
    finally:
        _end_engine(process)


def _up(data_dir: Path) -> tuple["subprocess.Popen[bytes]", float]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MIAOCANG_")}
    ports = ("--gateway-port", "0", "--backoffice-port", "0")
    argv = [sys.executable, "-P", "-m", "engine", "up", "--data-dir", str(data_dir), *ports]
    started_at = time.monotonic()
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None
    if not process.stdout.readline().startswith(b"ready "):
        process.kill()
        process.wait()
        process.stdout.close()
        raise BenchFailed("the engine does not become ready")
    return process, time.monotonic() - started_at


def _end_engine(process: "subprocess.Popen[bytes]") -> None:
    end(process)
    assert process.stdout is not None
    process.stdout.close()


def _tree_seconds(pid: int) -> float:
    return sum(process_seconds(each, with_ended_children=True) for each in tree_of(pid))


@contextmanager
def running_engine(data_dir: Path) -> Iterator[dict[str, Any]]:
    """An engine on a data directory; its endpoints. At its end it carries the journal's rest to the ledger."""
    process, _ = _up(data_dir)
    try:
        yield json.loads((data_dir / "endpoints.json").read_text())
    finally:
        _end_engine(process)


def _make_data(data_dir: Path, orders: int) -> None:
    with running_engine(data_dir) as endpoints:
        asyncio.run(_sell(endpoints, orders))


async def _sell(endpoints: dict[str, Any], orders: int) -> None:
    """A sale in which each order is settled, closed at its end."""
    skus = [{"sku": "TEE", "style": "TEE", "unit_price_minor": 1990, "quantity": orders}]
    sale = {"title": "A live that is over", "currency": "CNY", "hold_seconds": 3600, "skus": skus}
    numbers = iter(range(orders))

    async def ask(method: str, path: str, body: object = None, key: str = "") -> Any:
        role = "ops" if path.startswith("/ops") else "checkout"
        side = "backoffice" if role == "ops" else "gateway"
        headers = {"Authorization": f"Bearer {endpoints['keys'][role]}", **({"Idempotency-Key": key} if key else {})}
        async with session.request(method, endpoints[f"{side}_url"] + path, json=body, headers=headers) as answer:
            if answer.status not in {200, 201}:
                raise BenchFailed(f"{method} {path} was answered {answer.status}: {await answer.text()}")
            return await answer.json()

    async def buy() -> None:
        for number in numbers:
            lines = [{"sku": "TEE", "quantity": 1}]
            cart = {"buyer_id": f"buyer-{number}", "channel": "douyin", "lines": lines}
            order = await ask("POST", f"/v1/sales/{SALE}/orders", cart, "order")
            payment = {"payment_id": f"pay-{number}", "amount_minor": order["amount_minor"], "currency": "CNY"}
            await ask("POST", f"/v1/orders/{order['order_id']}/settle", payment)

    async with aiohttp.ClientSession() as session:
        await ask("PUT", f"/ops/v1/sales/{SALE}", sale)
        await ask("POST", f"/ops/v1/sales/{SALE}/open")
        await asyncio.gather(*(buy() for _ in range(AT_ONCE)))
        await ask("POST", f"/ops/v1/sales/{SALE}/close")


if __name__ == "__main__":
    raise SystemExit(main())
