"""The persister's loop between a real Redis and a real PostgreSQL."""

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from engine.domain.journal import JOURNAL_FORMAT, JournalRecord
from engine.domain.outcomes import Outcome
from engine.ledger.connect import LedgerPool, open_pool
from engine.ledger.feed import Feed
from engine.ledger.persister import LedgerWriter, Passing
from engine.ledger.sales import known_partition, levels
from engine.observability import metrics
from engine.partition.keyspace import partition_keys
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.worker.persist import (
    CALM_ENTRIES_PER_SECOND,
    FULL_ENTRIES_PER_SECOND,
    Persister,
    pause_seconds_behind,
)
from tests.integration.ledger_pools import reading, writing
from tests.lua.shop import Shop, sku

__all__ = ["reading", "writing"]  # fixtures


def make_persister(partitions: Partitions, writing: LedgerPool, **settings) -> Persister:
    settings = {"journal_keep_entries": 0, **settings}
    return Persister(partitions, LedgerWriter(writing), Settings(**settings), Passing())


@pytest.fixture
async def shop(partitions: Partitions) -> Shop:
    shop = Shop(partitions)
    await shop.open(sku("A", 1000), definition='{"skus": [{"sku": "A"}]}')
    return shop


@pytest.fixture
async def persisting(partitions: Partitions, writing: LedgerPool) -> AsyncIterator[Persister]:
    persister = make_persister(partitions, writing)
    task = asyncio.create_task(persister.run())
    yield persister
    persister.stop()
    await asyncio.wait_for(task, 10)


async def ledger_reaches(pool: LedgerPool, sale_id: str, sequence: int, seconds: float = 10) -> None:
    """Wait until the ledger holds a sale's entries up to `sequence`."""
    deadline = time.monotonic() + seconds
    while True:
        partition = await known_partition(pool, sale_id)
        if partition is not None and partition.sequence >= sequence:
            assert partition.sequence == sequence
            return
        assert time.monotonic() < deadline, partition
        await asyncio.sleep(0.01)


@pytest.mark.alone
async def test_a_settled_order_is_in_the_feed_within_two_seconds(
    shop: Shop, persisting: Persister, reading: LedgerPool
) -> None:
    order_id, command = shop.hold_command("u-1", "key", ("A", 2))
    await shop.ask(command)
    await asyncio.sleep(1.0)  # the persister has gone back to its slower pace
    await shop.settle(order_id, "p-1", 3980)
    settled_at = time.monotonic()
    while not (await Feed(reading).page("", 1)).rows:
        assert time.monotonic() - settled_at < 2
        await asyncio.sleep(0.01)
    found = await levels(reading, shop.sale_id)
    assert found is not None
    in_redis = await shop.levels("A")
    a = found.levels["A"]
    assert (a.allocated, a.withheld, a.held, a.settled, a.pools) == (1000, 0, 0, 2, in_redis.pools)


async def test_the_journal_is_trimmed_only_behind_what_the_ledger_holds(
    shop: Shop, partitions: Partitions, writing: LedgerPool, reading: LedgerPool
) -> None:
    for at in range(300):
        await shop.hold(f"u-{at}", "key", ("A", 1))
    sequence = (await shop.sale()).state.sequence
    journal = partition_keys(shop.sale_id).journal
    assert await partitions.connections.execute("XLEN", journal) >= 300
    persister = make_persister(partitions, writing, persist_batch_entries=50)
    while await persister.round():
        partition = await known_partition(reading, shop.sale_id)
        first = await partitions.connections.execute("XRANGE", journal, "-", "+", "COUNT", 1)
        assert partition is not None
        assert not first or int(first[0][0].split(b"-")[0]) <= partition.sequence + 1
    await ledger_reaches(reading, shop.sale_id, sequence, 0)
    assert (await shop.sale()).state.persisted == sequence
    assert await partitions.connections.execute("XLEN", journal) < 150  # Redis trims whole nodes of the stream


async def test_a_trim_that_was_missed_after_a_commit_is_made_up_for(
    shop: Shop, partitions: Partitions, writing: LedgerPool
) -> None:
    sequence = (await shop.sale()).state.sequence
    await LedgerWriter(writing).write(shop.sale_id, await partitions.journals.records_after(shop.sale_id, 0, 100))
    assert (await shop.sale()).state.persisted == 0
    persister = make_persister(partitions, writing)
    assert not await persister.round()
    assert (await shop.sale()).state.persisted == sequence


async def test_a_journal_that_cannot_be_read_freezes_its_partition_and_no_other(
    shop: Shop, partitions: Partitions, persisting: Persister, reading: LedgerPool
) -> None:
    other = Shop(partitions, "live-2")
    await other.open(sku("A", 10), definition='{"skus": [{"sku": "A"}]}')
    await ledger_reaches(reading, shop.sale_id, 2)
    journal, state = partition_keys(shop.sale_id).journal, partition_keys(shop.sale_id).state
    broken = msgspec.msgpack.encode(JournalRecord(JOURNAL_FORMAT, 1, 3, 1, [msgspec.Raw(b"\x91\x63")]))
    await partitions.connections.execute("XADD", journal, "3-0", "record", broken)
    await partitions.connections.execute("HSET", state, "sequence", 3)
    deadline = time.monotonic() + 5
    while not (await partitions.guarding.freezes([shop.sale_id])):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    await other.hold("u-1", "key", ("A", 1))
    await ledger_reaches(reading, "live-2", 3)
    partition = await known_partition(reading, shop.sale_id)
    assert partition is not None and partition.sequence == 2
    assert await partitions.connections.execute("XLEN", journal) >= 1  # the bytes are kept
    assert await partitions.guarding.freezes(["live-2"]) == {}


async def test_a_partition_that_fell_behind_the_ledger_is_frozen(
    shop: Shop, partitions: Partitions, writing: LedgerPool, reading: LedgerPool
) -> None:
    persister = make_persister(partitions, writing)
    while await persister.round():
        pass
    await partitions.connections.execute("HSET", partition_keys(shop.sale_id).state, "sequence", 1)
    await asyncio.sleep(0.31)
    await persister.round()
    assert "the ledger holds 2" in (await partitions.guarding.freezes([shop.sale_id]))[shop.sale_id]


async def test_twenty_sales_at_once_arrive_whole_and_a_backlog_starves_nobody(
    partitions: Partitions, shop: Shop, writing: LedgerPool, reading: LedgerPool
) -> None:
    await asyncio.gather(*(shop.hold(f"u-{at}", "key", ("A", 1)) for at in range(900)))
    small = [Shop(partitions, f"small-{n}") for n in range(20)]
    for each in small:
        await each.open(sku("A", 5), definition='{"skus": [{"sku": "A"}]}')
        await each.hold("u-1", "key", ("A", 1))
    persister = make_persister(partitions, writing, persist_batch_entries=100)
    await persister.round()
    behind = await known_partition(reading, shop.sale_id)
    assert behind is not None and behind.sequence < 902  # a record may be as large as a batch of the gateway
    for each in small:
        await ledger_reaches(reading, each.sale_id, 3, 0)
    while await persister.round():
        pass
    await ledger_reaches(reading, shop.sale_id, 902, 0)


async def test_draining_writes_what_is_left(shop: Shop, partitions: Partitions, writing: LedgerPool) -> None:
    persister = make_persister(partitions, writing)
    task = asyncio.create_task(persister.run())
    replies = await asyncio.gather(*(shop.hold(f"u-{at}", "key", ("A", 1)) for at in range(500)))
    assert all(reply.outcome is Outcome.DONE for reply in replies)
    persister.stop()
    await asyncio.wait_for(task, 10)
    await persister.finish(time.monotonic() + 10)
    await ledger_reaches(writing, shop.sale_id, 502, 0)


async def test_while_postgresql_is_away_the_lag_is_seen_to_grow(shop: Shop, partitions: Partitions) -> None:
    pool = await open_pool("postgresql://nobody:nothing@127.0.0.1:1/none", 1)
    task = asyncio.create_task(make_persister(partitions, pool).run())
    seen = []
    for buyer in range(3):
        await shop.hold(f"u-{buyer}", "key", ("A", 1))
        await asyncio.sleep(1.2 if buyer else 0.5)
        seen.append((metrics.PERSISTER_LAG_ENTRIES._value.get(), metrics.PERSISTER_LAG_SECONDS._value.get()))
    task.cancel()
    await pool.close()
    assert [entries for entries, _ in seen][-1] == 5
    assert seen[-1][1] > 1.0 and seen == sorted(seen)


def test_the_pause_behind_a_group_is_short_while_there_is_time_and_long_when_all_is_wanted() -> None:
    rates = (0.0, CALM_ENTRIES_PER_SECOND, 17_000, FULL_ENTRIES_PER_SECOND, 10**9)
    pauses = [pause_seconds_behind(rate) for rate in rates]
    assert pauses == [0.04, 0.04, pytest.approx(0.27), 0.5, 0.5]
