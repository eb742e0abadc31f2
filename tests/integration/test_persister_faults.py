"""Whatever is killed and whenever: every entry gets into the ledger exactly once, and the feed has no gap."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from engine.ledger.connect import WRITER_SETTINGS, LedgerPool, open_pool
from engine.ledger.feed import Feed
from engine.ledger.migrate import upgrade
from engine.ledger.persister import LedgerWriter, Passing
from engine.ledger.sales import known_partition, levels
from engine.partition.partitions import Partitions
from engine.runtime.child import ChildPlan
from engine.runtime.data_directory import open_data_directory
from engine.runtime.embedded_postgres import database_url as embedded_database_url
from engine.runtime.embedded_postgres import plan_postgres
from engine.runtime.ports import pick_free_port
from engine.settings import Settings
from engine.worker.crash import POINTS
from engine.worker.persist import Persister
from tests.integration.ledger_pools import reading, writing
from tests.lua.shop import Shop, sku

__all__ = ["reading", "writing"]  # fixtures

ORDERS = 120


def start_worker(tmp_path: Path, redis_url: str, database_url: str, crash_at: str = "") -> "subprocess.Popen[bytes]":
    environment = {
        **os.environ,
        "MIAOCANG_REDIS_URL": redis_url,
        "MIAOCANG_DATABASE_URL": database_url,
        "MIAOCANG_PERSIST_BATCH_ENTRIES": "20",
        "MIAOCANG_JOURNAL_KEEP_ENTRIES": "0",
        "MIAOCANG_CRASH_AT": crash_at,
    }
    command = [sys.executable, "-m", "engine", "worker", "--data-dir", str(tmp_path)]
    with (tmp_path / "worker.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


async def ends(process: "subprocess.Popen[bytes]", seconds: float = 20) -> int:
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        assert time.monotonic() < deadline, "the worker did not end"
        await asyncio.sleep(0.02)
    return process.returncode


async def sell(shop: Shop, name: str, orders: int) -> None:
    """Hold and settle orders, each in a record of its own."""
    for at in range(orders):
        order_id, command = shop.hold_command(f"u-{name}-{at}", "key", ("A", 1))
        await shop.ask(command)
        await shop.settle(order_id, f"p-{name}-{at}", 1990)


async def require_exactly_once(shop: Shop, reading: LedgerPool, settled: int, seconds: float = 15) -> None:
    """The ledger reaches the partition's end, and holds each entry, order and feed row once."""
    sequence = (await shop.sale()).state.sequence
    deadline = time.monotonic() + seconds
    while True:
        partition = await known_partition(reading, shop.sale_id)
        if partition is not None and partition.sequence == sequence:
            break
        assert time.monotonic() < deadline, partition
        await asyncio.sleep(0.02)
    assert await reading.fetch_value("SELECT array_agg(sequence ORDER BY sequence) FROM journal") == list(
        range(1, sequence + 1)
    )
    rows = [msgspec.json.decode(row) for row in (await Feed(reading).page("", 1000)).rows]
    assert [row["feed_sequence"] for row in rows] == list(range(1, settled + 1))
    assert len({row["order_id"] for row in rows}) == settled
    in_ledger, in_redis = await levels(reading, shop.sale_id), await shop.levels("A")
    assert in_ledger is not None
    a = in_ledger.levels["A"]
    assert (a.allocated, a.withheld, a.held, a.settled, a.pools) == (
        in_redis.allocated, in_redis.withheld, in_redis.held, in_redis.settled, in_redis.pools,
    )  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
async def test_a_worker_killed_at_any_point_repeats_nothing_and_skips_nothing(
    tmp_path: Path, partitions: Partitions, redis_server: str, database_url: str, reading: LedgerPool, point: str
) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 1000), definition='{"skus": [{"sku": "A"}]}')
    await sell(shop, "before", ORDERS)
    process = start_worker(tmp_path, redis_server, database_url, f"{point}:3")
    try:
        assert await ends(process) == -signal.SIGKILL
        process = start_worker(tmp_path, redis_server, database_url)
        await sell(shop, "after", 20)
        await require_exactly_once(shop, reading, ORDERS + 20)
        process.send_signal(signal.SIGTERM)
        assert await ends(process) == 0
    finally:
        process.kill()
        process.wait()


async def test_two_workers_on_the_same_stores_do_each_others_work_once(
    tmp_path: Path, partitions: Partitions, redis_server: str, database_url: str, reading: LedgerPool
) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 1000), definition='{"skus": [{"sku": "A"}]}')
    workers = [start_worker(tmp_path, redis_server, database_url) for _ in range(2)]
    try:
        await sell(shop, "buyer", 400)
        await require_exactly_once(shop, reading, 400)
        assert await partitions.guarding.freezes([shop.sale_id]) == {}
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


async def test_postgresql_killed_in_mid_run_and_back_costs_no_entry_and_no_buyer_an_answer(
    tmp_path: Path, partitions: Partitions
) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 1000), definition='{"skus": [{"sku": "A"}]}')
    port = pick_free_port()
    url = embedded_database_url(port, "a-password")
    plan = await plan_postgres(open_data_directory(tmp_path / "postgres"), port, "a-password")
    async with running_postgres(plan) as first:
        await upgrade(url)
        writing, reading = await open_pool(url, 4, WRITER_SETTINGS), await open_pool(url, 4)
        settings = Settings(persist_batch_entries=20)
        persister = Persister(partitions, LedgerWriter(writing), settings, Passing())
        task = asyncio.create_task(persister.run())
        await sell(shop, "before", 40)
        selling = asyncio.create_task(sell(shop, "during", 200))
        await asyncio.sleep(0.05)
        kill_with_children(first)
        await selling
    await plan.before_start()
    async with running_postgres(plan):
        await sell(shop, "after", 20)
        await require_exactly_once(shop, reading, 260)
        persister.stop()
        await asyncio.wait_for(task, 10)
        await writing.close()
        await reading.close()
    assert await partitions.guarding.freezes([shop.sale_id]) == {}


@asynccontextmanager
async def running_postgres(plan: ChildPlan) -> AsyncIterator["subprocess.Popen[bytes]"]:
    """A PostgreSQL of the test's own, which it may kill."""
    with plan.log_path.open("ab") as log:
        process = subprocess.Popen(plan.argv, env=dict(plan.environment), stdout=log, stderr=log)
    assert plan.is_ready is not None
    deadline = time.monotonic() + 30
    while not await plan.is_ready(process.pid):
        assert process.poll() is None and time.monotonic() < deadline, "PostgreSQL did not start"
        await asyncio.sleep(0.02)
    try:
        yield process
    finally:
        process.send_signal(plan.stop_signals[0])
        process.wait(20)


def kill_with_children(process: "subprocess.Popen[bytes]") -> None:
    """As a power cut does, but for the page cache."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in (process.pid, *map(int, children)):
        os.kill(pid, signal.SIGKILL)
    process.wait()
