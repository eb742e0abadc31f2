"""A long journal and a worker that is killed again and again: the ledger has each entry exactly once."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import msgspec
import pytest

from engine.backoffice.definition import define_command
from engine.backoffice.documents import SaleBody
from engine.domain.commands import Open
from engine.domain.outcomes import Outcome
from engine.partition.partitions import Partitions
from engine.runtime.child import die_with_parent
from engine.worker.crash import POINTS
from tests.faults.conftest import Report
from tests.faults.running_engine import eventually, sale_body
from tests.lua.shop import Shop

ORDERS = 20_000
ORDERS_FULL = 200_000
UNITS = 1_000_000
AT_ONCE = 1_024
ORDERS_PER_LIFE = 1_500
KILLS = 10
ENTRIES_PER_TRANSACTION = 200
CRASH_AT_PASS = 3
WORKER_ENDS_SECONDS_MAX = 30.0
CAUGHT_UP_SECONDS_MAX = 240.0


@asynccontextmanager
async def worker(directory: Path, redis_url: str, database_url: str, **settings: str | int) -> AsyncIterator["Life"]:
    """One worker as a process on these stores."""
    told = {"redis_url": redis_url, "database_url": database_url, "journal_keep_entries": 0, **settings}
    environment = {**os.environ, **{f"MIAOCANG_{name.upper()}": str(value) for name, value in told.items()}}
    with (directory / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "engine", "worker", "--data-dir", str(directory)],
            env=environment,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - it only calls prctl
        )
    try:
        yield Life(process)
    finally:
        process.kill()
        process.wait()


class Life:
    """One worker's life."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    async def has_ended(self) -> bool:
        return self._process.poll() is not None

    async def end(self, number: signal.Signals | None = None) -> int:
        """Signal it, or wait for its own end; how it ended."""
        if number is not None:
            self._process.send_signal(number)
        await eventually(self.has_ended, WORKER_ENDS_SECONDS_MAX)
        return self._process.returncode


async def sell(shop: Shop, name: str, orders: int) -> None:
    """Hold so many orders, merged into large batches, and settle each fourth."""

    async def buy(first: int) -> None:
        for number in range(first, orders, AT_ONCE):
            order_id, command = shop.hold_command(f"u-{name}-{number}", "key", ("TEE", 1))
            await shop.ask(command)
            if number % 4 == 0:
                await shop.settle(order_id, f"p-{name}-{number}", 1990)

    await asyncio.gather(*map(buy, range(min(AT_ONCE, orders))))


def entries_of(orders: int) -> int:
    """The journal entries that `sell` makes."""
    return orders + -(-orders // 4)


async def wait_until_written(shop: Shop, ledger: "asyncpg.Connection") -> float:
    """Wait until the ledger is where the partition is; seconds."""
    sequence = (await shop.sale()).state.sequence

    async def is_written() -> bool:
        return await offset(ledger) == sequence

    return await eventually(is_written, CAUGHT_UP_SECONDS_MAX)


async def offset(ledger: "asyncpg.Connection") -> int:
    return int(await ledger.fetchval("SELECT coalesce(max(persisted_sequence), 0) FROM partitions"))


async def require_each_once(shop: Shop, ledger: "asyncpg.Connection", orders: int, settled: int) -> int:
    """The journal is dense, and orders, their lines, payments, feed and levels are what was sold; the entries."""
    sequence = (await shop.sale()).state.sequence
    found = await ledger.fetchrow(
        "SELECT count(*), count(DISTINCT sequence), min(sequence), max(sequence) FROM journal"
    )
    assert tuple(found) == (sequence, sequence, 1, sequence)
    counts = {
        name: await ledger.fetchval(f"SELECT count(*) FROM {name}") for name in ("orders", "order_lines", "payments")
    }
    assert counts == {"orders": orders, "order_lines": orders, "payments": settled}
    feed = await ledger.fetchrow("SELECT count(*), count(DISTINCT order_id), max(feed_sequence) FROM feed")
    assert tuple(feed) == (settled, settled, settled)
    assert await ledger.fetchval("SELECT feed_sequence FROM counters") == settled
    levels = await ledger.fetchrow("SELECT held, settled FROM stock")
    assert tuple(levels) == (orders - settled, settled)
    in_redis = await shop.levels("TEE")
    assert (in_redis.held, in_redis.settled) == (orders - settled, settled)
    return sequence


async def require_audit(directory: Path, redis_url: str, database_url: str) -> None:
    """`miaocang audit` as a command holds."""
    stores = {"MIAOCANG_REDIS_URL": redis_url, "MIAOCANG_DATABASE_URL": database_url}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "engine", "audit", "--data-dir", str(directory)),
        env={**os.environ, **stores},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()


@pytest.fixture
async def ledger(database_url: str) -> AsyncIterator["asyncpg.Connection"]:
    """A connection of the test's own to the ledger."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def shop(partitions: Partitions) -> Shop:
    """An open sale with more units than will be sold."""
    opened = Shop(partitions)
    await partitions.register(opened.sale_id)
    body = msgspec.convert(sale_body({"TEE": UNITS}), SaleBody)
    replies = await opened.ask(define_command(body, 0), Open())
    assert [reply.outcome for reply in replies] == [Outcome.DONE, Outcome.DONE], replies
    return opened


@pytest.mark.timeout(300)
async def test_a_long_journal_is_carried_into_the_ledger(
    tmp_path: Path, shop: Shop, redis_server: str, database_url: str, ledger: "asyncpg.Connection", full: bool,
    report: Report,
) -> None:  # fmt: skip
    orders = ORDERS_FULL if full else ORDERS
    started_at = time.monotonic()
    await sell(shop, "long", orders)
    sold_seconds = time.monotonic() - started_at
    async with worker(tmp_path, redis_server, database_url) as life:

        async def has_begun() -> bool:
            return await offset(ledger) > 0

        await eventually(has_begun, CAUGHT_UP_SECONDS_MAX)
        begun = await offset(ledger)
        seconds = await wait_until_written(shop, ledger)
        sequence = await require_each_once(shop, ledger, orders, -(-orders // 4))
        assert await life.end(signal.SIGTERM) == 0
    await require_audit(tmp_path, redis_server, database_url)
    report("orders, seconds to sell them", f"{orders}, {sold_seconds:.1f}")
    report("journal entries a second into the ledger", f"{(sequence - begun) / max(seconds, 0.001):,.0f}")


async def test_a_worker_killed_at_each_point_and_at_any_moment_writes_each_entry_once(
    tmp_path: Path, shop: Shop, redis_server: str, database_url: str, ledger: "asyncpg.Connection", report: Report
) -> None:
    chance = random.Random(3)
    orders = 0
    for point in POINTS:
        await sell(shop, point, ORDERS_PER_LIFE)
        orders += ORDERS_PER_LIFE
        settings: dict[str, str | int] = {
            "persist_batch_entries": ENTRIES_PER_TRANSACTION,
            "crash_at": f"{point}:{CRASH_AT_PASS}",
        }
        async with worker(tmp_path, redis_server, database_url, **settings) as life:
            assert await life.end() == -signal.SIGKILL, point
    killed_at = []
    for kill in range(KILLS):
        before = await offset(ledger)
        async with worker(tmp_path, redis_server, database_url, persist_batch_entries=ENTRIES_PER_TRANSACTION) as life:
            selling = asyncio.create_task(sell(shop, f"kill-{kill}", ORDERS_PER_LIFE))

            async def has_begun(before: int = before) -> bool:
                return await offset(ledger) > before

            await eventually(has_begun, CAUGHT_UP_SECONDS_MAX)
            await asyncio.sleep(chance.uniform(0, 0.15))
            assert await life.end(signal.SIGKILL) == -signal.SIGKILL
            await selling
        orders += ORDERS_PER_LIFE
        killed_at.append((await shop.sale()).state.sequence - await offset(ledger))
    async with worker(tmp_path, redis_server, database_url) as life:
        await wait_until_written(shop, ledger)
        sequence = await require_each_once(shop, ledger, orders, (orders // ORDERS_PER_LIFE) * -(-ORDERS_PER_LIFE // 4))
        assert await life.end(signal.SIGTERM) == 0
    await require_audit(tmp_path, redis_server, database_url)
    report("points, kills, entries", f"{len(POINTS)}, {KILLS}, {sequence}")
    report("entries that were left behind at each kill", killed_at)
