"""Groups of several sales, folded ahead of the transaction before them: nothing twice, nothing skipped, all bounded."""

import asyncio
import gc
from collections.abc import AsyncIterator

import msgspec
import pytest

from engine.domain.errors import JournalUnreadable, LedgerUnavailable
from engine.domain.journal import JOURNAL_FORMAT, JournalRecord
from engine.ledger import persister as ledger_persister
from engine.ledger.connect import LedgerPool
from engine.ledger.feed import Feed
from engine.ledger.folding import Folding
from engine.ledger.persister import LedgerWriter, Passing, WriteResult
from engine.ledger.sales import known_partition
from engine.ledger.search import OrderQuery, search
from engine.observability import metrics
from engine.partition.keyspace import partition_keys
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.worker import persist
from engine.worker.persist import Persister
from tests.integration.journal_maker import JournalMaker
from tests.integration.ledger_pools import reading, writing
from tests.lua.shop import Shop, sku

__all__ = ["reading", "writing"]  # fixtures


def an_open_sale(sale_id: str, units: int = 1000) -> JournalMaker:
    maker = JournalMaker(sale_id)
    maker.define({"A": units})
    maker.open()
    maker.record()
    return maker


async def fold(writer: LedgerWriter, maker: JournalMaker, behind: Folding | None = None) -> Folding:
    """The records that the maker made since it was folded last, behind `behind` or the ledger's offset."""
    place = behind.end if behind is not None else await writer.place(maker.sale_id)
    assert place is not None
    folding = writer.folding_from(place)
    for sequence, encoded in maker.records:
        if sequence > place.sequence:
            folding.add(sequence, encoded)
    return folding


async def offset(pool: LedgerPool, sale_id: str) -> int:
    partition = await known_partition(pool, sale_id)
    return 0 if partition is None else partition.sequence


# --- the writer --------------------------------------------------------------------------------------------------


async def test_many_sales_are_written_in_one_transaction(writing: LedgerPool) -> None:
    class Count(Passing):
        commits = 0

        def at(self, point: str) -> None:
            self.commits += point == "after_commit"

    counted = Count()
    writer = LedgerWriter(writing, counted)
    makers = [an_open_sale(f"live-{number}") for number in range(10)]
    for maker in makers:
        await writer.write(maker.sale_id, maker.records)
        for buyer in range(5):
            order = maker.hold(buyer_id=f"u-{buyer}")
        maker.settle(order, f"p-{maker.sale_id}")
        maker.record()
    counted.commits = 0
    written = await writer.write_folded([await fold(writer, maker) for maker in makers])
    assert counted.commits == 1
    assert written == {maker.sale_id: WriteResult(8, 6, maker.at_ms - 10) for maker in makers}
    rows = await writing.fetch("SELECT sku, held, settled, available FROM stock")
    assert [tuple(row) for row in rows] == [("A", 4, 1, 995)] * 10
    assert await writing.fetch_value("SELECT array_agg(feed_sequence ORDER BY feed_sequence) FROM feed") == [
        *range(1, 11)
    ]


async def test_a_sale_that_the_ledger_refuses_does_not_keep_the_others_from_it(writing: LedgerPool) -> None:
    writer = LedgerWriter(writing)
    good, oversold, also_good = an_open_sale("a"), an_open_sale("b", units=1), an_open_sale("c")
    for maker in (good, oversold, also_good):
        await writer.write(maker.sale_id, maker.records)
        maker.settle(maker.hold({"A": 2}), f"p-{maker.sale_id}")
        maker.record()
    written = await writer.write_folded([await fold(writer, maker) for maker in (good, oversold, also_good)])
    assert isinstance(written["b"], JournalUnreadable) and "below zero" in str(written["b"])
    assert [await offset(writing, sale_id) for sale_id in "abc"] == [4, 2, 4]
    assert await writing.fetch_value("SELECT feed_sequence FROM counters") == 2


async def test_what_was_folded_ahead_is_left_out_where_the_batch_before_it_was_not_written(writing: LedgerPool) -> None:
    writer = LedgerWriter(writing)
    maker = an_open_sale("live-1")
    await writer.write("live-1", maker.records)
    maker.hold()
    maker.record()
    first = await fold(writer, maker)
    maker.hold()
    maker.record()
    second = await fold(writer, maker, first)
    assert await writer.write_folded([second]) == {"live-1": None}
    assert await offset(writing, "live-1") == 2
    assert (await writer.write_folded([first]))["live-1"] == WriteResult(3, 1, maker.at_ms - 20)
    assert (await writer.write_folded([second]))["live-1"] == WriteResult(4, 1, maker.at_ms - 10)
    assert await writer.write_folded([second]) == {"live-1": None}
    assert await writing.fetch_value("SELECT array_agg(sequence ORDER BY sequence) FROM journal") == [1, 2, 3, 4]


async def test_a_group_that_is_cut_off_before_its_commit_leaves_nothing_of_any_sale(writing: LedgerPool) -> None:
    class CutOff(Passing):
        def at(self, point: str) -> None:
            if point == "before_commit":
                raise ConnectionResetError("cut off")

    makers = [an_open_sale("a"), an_open_sale("b")]
    writer = LedgerWriter(writing)
    for maker in makers:
        await writer.write(maker.sale_id, maker.records)
        maker.settle(maker.hold(), f"p-{maker.sale_id}")
        maker.record()
    foldings = [await fold(writer, maker) for maker in makers]
    with pytest.raises(LedgerUnavailable):
        await LedgerWriter(writing, CutOff()).write_folded(foldings)
    assert [await offset(writing, sale_id) for sale_id in "ab"] == [2, 2]
    assert await writing.fetch_value("SELECT feed_sequence FROM counters") == 0
    assert await writing.fetch_value("SELECT count(*) FROM journal") == 4


async def test_orders_of_every_era_are_found(
    writing: LedgerPool, reading: LedgerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_persister, "ERA_ORDERS", 3)
    writer = LedgerWriter(writing)
    maker = an_open_sale("live-1")
    await writer.write("live-1", maker.records)
    orders = []
    for number in range(12):
        orders.append(maker.hold(buyer_id=f"u-{number}", reference=f"r-{number}"))
        maker.settle(orders[-1], f"p-{number}")
        maker.record()
        await writer.write("live-1", maker.records[-1:])
    assert await writing.fetch_value("SELECT count(DISTINCT digest_key >> 32) FROM orders") == 4
    for number, order in enumerate(orders):
        for query in (
            OrderQuery(order_id=f"{order}.live-1"),
            OrderQuery(buyer_id=f"u-{number}"),
            OrderQuery(reference=f"r-{number}"),
            OrderQuery(payment_id=f"p-{number}"),
        ):
            found = (await search(reading, query, "", 10)).orders
            assert [each["order_id"] for each in found] == [f"{order}.live-1"], query
    assert len((await search(reading, OrderQuery(sku="A"), "", 100)).orders) == 12
    assert len((await search(reading, OrderQuery(sku="B"), "", 100)).orders) == 0


async def test_any_text_that_an_id_may_have_arrives_as_it_was(writing: LedgerPool, reading: LedgerPool) -> None:
    texts = ['"', "\\", '\\"}],', "秒仓" * 64, "é" * 128, "\u2028", "%d%b", "a" * 128, "𝄞"]
    maker = JournalMaker("live-1")
    maker.define(dict.fromkeys(texts, 10), labels={"host": '"\\林'})
    maker.open()
    for text in texts:
        maker.settle(maker.hold({text: 1}, buyer_id=text, reference=text), text)
    maker.record()
    await LedgerWriter(writing).write("live-1", maker.records)
    rows = [msgspec.json.decode(row) for row in (await Feed(reading).page("", 100)).rows]
    assert [(row["buyer_id"], row["reference"], row["payment_id"], row["lines"][0]["sku"]) for row in rows] == [
        (text, text, text, text) for text in texts
    ]
    assert rows[0]["labels"] == {"host": '"\\林'}
    for text in texts:
        for query in (OrderQuery(buyer_id=text), OrderQuery(payment_id=text), OrderQuery(sku=text)):
            assert [order["reference"] for order in (await search(reading, query, "", 10)).orders] == [text]


# --- the loop ----------------------------------------------------------------------------------------------------


class Recorder(Passing):
    """Remembers the points in the order in which they were passed."""

    def __init__(self) -> None:
        self.points: list[str] = []

    def at(self, point: str) -> None:
        self.points.append(point)


class WatchingWriter(LedgerWriter):
    """Remembers what each transaction held, and how many foldings there were at the same time."""

    def __init__(self, pool: LedgerPool, passing: Passing | None = None) -> None:
        super().__init__(pool, passing)
        self.groups: list[list[tuple[int, int]]] = []
        self.foldings_alive_max = 0

    async def write_folded(self, foldings):  # type: ignore[no-untyped-def]
        self.groups.append([(folding.entries, folding.size_bytes) for folding in foldings])
        written = await super().write_folded(foldings)
        alive = sum(isinstance(each, Folding) for each in gc.get_objects())
        self.foldings_alive_max = max(self.foldings_alive_max, alive)
        return written


@pytest.fixture
async def shop(partitions: Partitions) -> AsyncIterator[Shop]:
    shop = Shop(partitions)
    await shop.open(sku("A", 10_000), definition='{"skus": [{"sku": "A"}]}')
    yield shop


async def sell(shop: Shop, orders: int) -> None:
    """So many holds, each in a record of its own."""
    for at in range(orders):
        await shop.hold(f"u-{at}", "key", ("A", 1))


def make_persister(partitions: Partitions, writer: LedgerWriter, batch_entries: int, passing: Passing) -> Persister:
    return Persister(partitions, writer, Settings(journal_keep_entries=0, persist_batch_entries=batch_entries), passing)


async def test_while_a_group_is_written_the_next_is_read_and_folded(
    shop: Shop, partitions: Partitions, writing: LedgerPool
) -> None:
    await sell(shop, 200)
    recorder = Recorder()

    class Beginning(LedgerWriter):
        async def write_folded(self, foldings):  # type: ignore[no-untyped-def]
            recorder.at("begin")
            return await super().write_folded(foldings)

    persister = make_persister(partitions, Beginning(writing, recorder), 20, recorder)
    while await persister.round():
        pass
    assert await offset(writing, shop.sale_id) == 202
    groups = " ".join(recorder.points).split("begin")[1:]
    meanwhile = ["after_read" in group.split("after_commit")[0] for group in groups]
    assert len(groups) >= 8 and sum(meanwhile) >= len(groups) - 3


async def test_however_long_the_backlog_is_there_are_never_more_than_two_groups_in_memory(
    partitions: Partitions, writing: LedgerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persist, "GROUP_ENTRIES_MAX", 60)
    shops = [Shop(partitions, f"live-{number}") for number in range(6)]
    for each in shops:
        await each.open(sku("A", 10_000), definition='{"skus": [{"sku": "A"}]}')
        await sell(each, 150)
    gc.collect()
    writer = WatchingWriter(writing)
    persister = make_persister(partitions, writer, 20, Passing())
    before = metrics.BOUND_REACHED.labels(bound="persister_group")._value.get()
    while await persister.round():
        pass
    assert [await offset(writing, each.sale_id) for each in shops] == [152] * 6
    assert max(sum(entries for entries, _ in group) for group in writer.groups) <= 60 + 20
    assert max(len(group) for group in writer.groups) <= 3
    assert writer.foldings_alive_max <= 2 * 3
    assert metrics.BOUND_REACHED.labels(bound="persister_group")._value.get() > before


async def test_behind_a_restart_the_ledger_is_asked_for_many_places_at_once(
    partitions: Partitions, writing: LedgerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persist, "PLACES_AT_ONCE_MAX", 4)
    shops = [Shop(partitions, f"live-{number}") for number in range(6)]
    for each in shops:
        await each.open(sku("A", 10_000), definition='{"skus": [{"sku": "A"}]}')
    persister = make_persister(partitions, LedgerWriter(writing), 20, Passing())
    while await persister.round():
        pass
    for each in shops:
        await sell(each, 5)
    asked: list[list[str]] = []

    class Asked(LedgerWriter):
        async def places(self, sale_ids):  # type: ignore[no-untyped-def]
            asked.append(list(sale_ids))
            return await super().places(sale_ids)

    persister = make_persister(partitions, Asked(writing), 20, Passing())
    while await persister.round():
        pass
    assert [len(each) for each in asked] == [4, 2]
    assert [await offset(writing, each.sale_id) for each in shops] == [7] * 6


async def test_a_batch_is_bounded_in_bytes_too(
    shop: Shop, partitions: Partitions, writing: LedgerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persist, "BATCH_BYTES_MAX", 2000)
    await sell(shop, 100)
    writer = WatchingWriter(writing)
    persister = make_persister(partitions, writer, 10_000, Passing())
    while await persister.round():
        pass
    assert await offset(writing, shop.sale_id) == 102
    assert max(size for group in writer.groups for _, size in group) < 2500


async def test_what_comes_before_a_record_that_cannot_be_read_is_written(
    shop: Shop, partitions: Partitions, writing: LedgerPool
) -> None:
    await sell(shop, 50)
    journal, state = partition_keys(shop.sale_id).journal, partition_keys(shop.sale_id).state
    broken = msgspec.msgpack.encode(JournalRecord(JOURNAL_FORMAT, 1, 53, 1, [msgspec.Raw(b"\x91\x63")]))
    await partitions.connections.execute("XADD", journal, "53-0", "record", broken)
    await partitions.connections.execute("HSET", state, "sequence", 53)
    persister = make_persister(partitions, LedgerWriter(writing), 20, Passing())
    while await persister.round():
        pass
    assert await offset(writing, shop.sale_id) == 52
    assert "entry 53" in (await partitions.guarding.freezes([shop.sale_id]))[shop.sale_id]
    assert await partitions.connections.execute("XRANGE", journal, "53-0", "53-0")  # the bytes are kept


async def test_two_persisters_take_turns_and_neither_skips_what_the_other_wrote(
    shop: Shop, partitions: Partitions, writing: LedgerPool
) -> None:
    selling = asyncio.create_task(sell(shop, 400))
    persisters = [make_persister(partitions, LedgerWriter(writing), 20, Passing()) for _ in range(2)]
    while not selling.done():
        await asyncio.gather(*(persister.round() for persister in persisters))
    for persister in persisters:
        while await persister.round():
            pass
    assert await writing.fetch_value("SELECT array_agg(sequence ORDER BY sequence) FROM journal") == [*range(1, 403)]
    assert await writing.fetch_value("SELECT count(*) FROM orders") == 400
    assert await partitions.guarding.freezes([shop.sale_id]) == {}


async def test_after_a_write_that_was_cut_off_everything_is_asked_of_the_ledger_again(
    shop: Shop, partitions: Partitions, writing: LedgerPool
) -> None:
    class CutOff(Passing):
        """The third commit is cut off before it happens, the sixth behind it."""

        def at(self, point: str) -> None:
            seen.append(point)
            commits = seen.count(point)
            if (point, commits) in {("before_commit", 3), ("after_commit", 6)}:
                raise ConnectionResetError("cut off")

    seen: list[str] = []
    await sell(shop, 200)
    persister = make_persister(partitions, LedgerWriter(writing, CutOff()), 20, Passing())
    task = asyncio.create_task(persister.run())
    async with asyncio.timeout(20):
        while await offset(writing, shop.sale_id) < 202:
            await asyncio.sleep(0.02)
    persister.stop()
    await task
    assert seen.count("after_commit") > 6
    assert await writing.fetch_value("SELECT array_agg(sequence ORDER BY sequence) FROM journal") == [*range(1, 203)]
