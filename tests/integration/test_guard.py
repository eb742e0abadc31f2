"""The guard: after a restart nothing is sold before Redis and the ledger were compared; what differs stays frozen."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from engine.domain.commands import Cancel, Close, GetOrder, NotePersisted
from engine.domain.errors import PartitionFrozen
from engine.domain.outcomes import Outcome
from engine.ledger.connect import WRITER_SETTINGS, LedgerPool, open_pool
from engine.ledger.persister import LedgerWriter
from engine.ledger.sales import known_partition, retire
from engine.partition import keyspace
from engine.partition.batcher import BatchBounds
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.worker.guard import Guard
from tests.conftest import CALL_SETTINGS, OwnRedis, own_redis, running_store
from tests.lua.shop import SALE, Shop, sku

KEYS = keyspace.partition_keys(SALE)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnRedis]:
    with own_redis(tmp_path / "redis") as started:
        yield started


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[LedgerPool]:
    opened = await open_pool(database_url, settings=WRITER_SETTINGS)
    yield opened
    await opened.close()


class House:
    """A shop on a Redis that can be restarted, a ledger, and a guard that looks when it is told to."""

    def __init__(self, server: OwnRedis, pool: LedgerPool) -> None:
        self.server = server
        self.pool = pool
        self.partitions = Partitions(server.url, CALL_SETTINGS, BatchBounds())
        self.shop = Shop(self.partitions)
        self.guard = Guard(self.partitions, pool, Settings())
        self._process = server.process
        self._restarts = ExitStack()

    async def persist(self, sale_id: str = SALE) -> int:
        writer = LedgerWriter(self.pool)
        offset = (await writer.offsets([sale_id]))[sale_id]
        written = await writer.write(sale_id, await self.partitions.journals.records_after(sale_id, offset, 10_000))
        return written.sequence

    async def kill_redis(self) -> None:
        self._process.kill()
        await asyncio.to_thread(self._process.wait)

    async def start_redis(self) -> None:
        self._process = await asyncio.to_thread(self._restarts.enter_context, running_store(self.server.plan))

    async def frozen(self) -> dict[str, str]:
        return await self.partitions.ready()

    async def close(self) -> None:
        await self.partitions.close()
        await asyncio.to_thread(self._restarts.close)


@asynccontextmanager
async def opened_house(server: OwnRedis, pool: LedgerPool) -> AsyncIterator[House]:
    house = House(server, pool)
    try:
        await house.guard.look()
        await house.shop.open(sku("A", 10, channels=[("jd", 2)], withheld=1), sku("B", 5), definition=DEFINITION)
        yield house
    finally:
        await house.close()


DEFINITION = msgspec.json.encode(
    {
        "title": "t",
        "currency": "CNY",
        "hold_seconds": 60,
        "skus": [
            {"sku": name, "style": "TEE", "unit_price_minor": 1990, "quantity": quantity}
            for name, quantity in (("A", 10), ("B", 5))
        ],
    }
).decode()


@pytest.fixture
async def house(server: OwnRedis, pool: LedgerPool) -> AsyncIterator[House]:
    async with opened_house(server, pool) as opened:
        yield opened


async def test_a_plain_restart_opens_under_the_next_epoch_with_the_backlog_still_in_redis(house: House) -> None:
    await house.shop.hold("u1", "k", ("A", 2), channel="jd")
    await house.persist()
    held_id, held = house.shop.hold_command("u2", "k", ("A", 3))
    await house.shop.ask(held)
    await house.shop.ask(Cancel(held_id.digest))
    await house.shop.hold("u3", "k", ("B", 1))
    await house.kill_redis()
    await house.start_redis()
    with pytest.raises(PartitionFrozen):
        await house.shop.hold("u4", "k", ("A", 1))
    await house.guard.look()
    assert await house.frozen() == {}
    assert (await house.shop.hold("u4", "k", ("A", 1))).outcome is Outcome.DONE
    assert (await house.shop.sale()).state.epoch == 2
    known = await known_partition(house.pool, SALE)
    assert known is not None
    assert known.epoch == 2


async def test_a_partition_without_anything_in_the_ledger_is_opened_from_its_journal_alone(house: House) -> None:
    await house.kill_redis()
    await house.start_redis()
    await house.guard.look()
    assert (await house.shop.hold("u", "k", ("A", 1))).outcome is Outcome.DONE


async def test_a_guard_that_died_after_it_noted_the_epoch_does_not_lock_itself_out(house: House) -> None:
    await house.persist()
    await house.pool.execute("UPDATE partitions SET epoch = 7 WHERE sale_id = $1", SALE)
    await house.kill_redis()
    await house.start_redis()
    await house.guard.look()
    assert (await house.shop.sale()).state.epoch == 8


async def test_an_old_append_only_file_put_back_stays_frozen_and_the_reason_is_told(
    house: House, tmp_path: Path
) -> None:
    await house.shop.hold("u1", "k", ("A", 1))
    await house.kill_redis()
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "redis" / "redis", kept)
    await house.start_redis()
    await house.guard.look()
    await house.shop.hold("u2", "k", ("A", 1))
    await house.persist()
    await house.kill_redis()
    shutil.rmtree(tmp_path / "redis" / "redis")
    shutil.copytree(kept, tmp_path / "redis" / "redis")
    await house.start_redis()
    await house.guard.look()
    reason = (await house.frozen())[SALE]
    assert reason.startswith("Redis is behind the ledger")
    with pytest.raises(PartitionFrozen, match="behind the ledger"):
        await house.shop.hold("u3", "k", ("A", 1))


async def test_a_flushed_redis_freezes_what_the_ledger_knows_and_lets_new_sales_be_made(house: House) -> None:
    await house.persist()
    await house.partitions.connections.execute("FLUSHALL")
    await house.guard.look()
    assert "lost the partition" in (await house.frozen())[SALE]
    with pytest.raises(PartitionFrozen, match="lost the partition"):
        await house.shop.hold("u", "k", ("A", 1))
    other = Shop(house.partitions, "live-2")
    await other.open(sku("A", 1), definition=DEFINITION)
    assert (await other.hold("u", "k", ("A", 1))).outcome is Outcome.DONE


async def test_a_counter_changed_by_hand_is_found_at_the_next_opening(house: House) -> None:
    row = msgspec.msgpack.decode(await house.partitions.connections.execute("HGET", KEYS.stock, "B"))
    row[0] += 1
    row[7]["shared"] += 1
    await house.partitions.connections.execute("HSET", KEYS.stock, "B", msgspec.msgpack.encode(row))
    await house.kill_redis()
    await house.start_redis()
    await house.guard.look()
    assert (await house.frozen())[SALE] == "SKU B: Redis counts 6 allocated, the journal 5"


async def test_a_gap_in_the_journal_is_found(house: House) -> None:
    await house.persist()
    for n in range(3):
        await house.shop.hold(f"u{n}", "k", ("A", 1))
    await house.partitions.connections.execute("XDEL", KEYS.journal, "4-0")
    await house.kill_redis()
    await house.start_redis()
    await house.guard.look()
    assert (await house.frozen())[SALE] == "the journal has a gap: 5 to 5 follows 3"


async def test_what_was_frozen_on_doubt_opens_once_the_ledger_has_taken_all_of_it(house: House) -> None:
    await house.shop.hold("u", "k", ("A", 1))
    await house.partitions.freeze(SALE, "the ledger cannot take its journal")
    await house.guard.look()
    assert await house.frozen() == {SALE: "the ledger cannot take its journal"}
    await house.persist()
    house.guard = Guard(house.partitions, house.pool, Settings())
    await house.guard.look()
    assert await house.frozen() == {}
    assert (await house.shop.hold("u2", "k", ("A", 1))).outcome is Outcome.DONE


async def test_one_partition_in_doubt_does_not_keep_the_others_closed(house: House) -> None:
    other = Shop(house.partitions, "live-2")
    await other.open(sku("A", 2), definition=DEFINITION)
    await house.partitions.connections.execute("HSET", KEYS.state, "sequence", 99)
    await house.kill_redis()
    await house.start_redis()
    await house.guard.look()
    assert list(await house.frozen()) == [SALE]
    assert (await other.hold("u", "k", ("A", 1))).outcome is Outcome.DONE


async def test_trimmed_journals_are_reconciled_too(house: House) -> None:
    for n in range(5):
        await house.shop.hold(f"u{n}", "k", ("A", 1))
    sequence = await house.persist()
    await house.shop.ask(NotePersisted(sequence, 0))
    await house.partitions.connections.execute("XTRIM", KEYS.journal, "MAXLEN", 0)
    await house.kill_redis()
    await house.start_redis()
    await house.guard.look()
    assert (await house.shop.hold("u9", "k", ("A", 1))).outcome is Outcome.DONE


async def test_a_retired_sale_stays_known_as_closed_through_a_restart(house: House) -> None:
    await house.shop.ask(Close())
    sequence = await house.persist()
    assert await retire(house.pool, SALE, sequence)
    assert await house.partitions.guarding.retire(SALE, sequence)
    await house.kill_redis()
    await house.start_redis()
    await house.guard.look()
    assert (await house.shop.hold("u", "k", ("A", 1))).outcome is Outcome.SALE_CLOSED
    order_id, _ = house.shop.hold_command("u", "k", ("A", 1))
    assert (await house.shop.ask(GetOrder(order_id.digest)))[0].outcome is Outcome.ORDER_NOT_FOUND


async def test_a_name_that_was_registered_without_a_sale_is_not_frozen_with_the_others(house: House) -> None:
    await house.partitions.register("never-made")
    await house.partitions.freeze("never-made", "doubts")
    await house.guard.look()
    assert await house.frozen() == {}
    await Shop(house.partitions, "never-made").open(sku("A", 1), definition=DEFINITION)


async def test_a_second_guard_still_tells_of_what_a_flushed_redis_lost(house: House) -> None:
    await house.persist()
    await house.partitions.connections.execute("FLUSHALL")
    await house.guard.look()
    house.guard = Guard(house.partitions, house.pool, Settings())
    await house.guard.look()
    assert "lost the partition" in (await house.frozen())[SALE]
