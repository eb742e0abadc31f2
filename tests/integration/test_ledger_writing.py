"""What the persister's transaction leaves in the ledger: exactly once, whatever is given to it and how often."""

import asyncio

import msgspec
import pytest
from msgspec.structs import replace

from engine.domain.errors import JournalUnreadable, LedgerUnavailable
from engine.domain.journal import JOURNAL_FORMAT, Held, JournalRecord
from engine.ledger import folding
from engine.ledger.connect import LedgerPool, open_pool
from engine.ledger.feed import Feed
from engine.ledger.persister import LedgerWriter, Passing
from engine.ledger.sales import journal_after, known_partition, levels, orders_after, retire, sale_document
from engine.ledger.search import OrderQuery, search
from tests.integration.journal_maker import JournalMaker
from tests.integration.ledger_pools import reading, writing

__all__ = ["reading", "writing"]  # fixtures


def a_busy_journal(sale_id: str = "live-1") -> JournalMaker:
    """Every kind of change, in seven records: 100 units of A, 50 of B."""
    maker = JournalMaker(sale_id)
    maker.define({"A": 100, "B": 50, "C": 0})
    maker.open()
    maker.record()
    first, second, third, fourth = (maker.hold({"A": 2, "B": 1}, f"u-{n}") for n in range(4))
    maker.record()
    maker.settle(first, "p-1")
    maker.cancel(second)
    maker.record()
    maker.expire(third)
    maker.reinstate(third, "p-3")
    maker.pay_twice(first, "p-1-again")
    maker.record()
    maker.expire(fourth)
    maker.pay_too_late(fourth, "p-4")
    fifth = maker.hold({"B": 3}, reference="6921")
    maker.settle(fifth, "p-5")
    maker.record()
    maker.change_stock([("A", "shared", -10), ("A", "withheld", 4), ("A", "douyin", 6), ("B", "shared", 5)])
    maker.record()
    sixth = maker.hold({"A": 1})
    maker.close({("A", "shared"): -85, ("A", "withheld"): -4, ("A", "douyin"): -6, ("B", "shared"): -50})
    maker.cancel(sixth, returned=False)
    maker.record()
    return maker


async def everything(pool: LedgerPool) -> dict[str, list[tuple]]:
    """All that the ledger holds of its sales, but for when it was written."""
    tables = (
        "journal", "order_states", "order_lines", "order_changes", "stock", "feed", "counters", "sales",
    )  # fmt: skip
    found = {
        table: [tuple(row) for row in await pool.fetch(f"SELECT * FROM {table} AS it ORDER BY it::text")]
        for table in tables
    }
    found["offset"] = [tuple(row) for row in await pool.fetch("SELECT sale_id, persisted_sequence FROM partitions")]
    return found


async def test_every_kind_of_change_arrives_as_it_was(writing: LedgerPool, reading: LedgerPool) -> None:
    maker = a_busy_journal()
    result = await LedgerWriter(writing).write("live-1", maker.records)
    assert (result.sequence, result.entries) == (maker.sequence, maker.sequence)
    partition = await known_partition(reading, "live-1")
    assert partition is not None and (partition.sequence, partition.epoch) == (maker.sequence, 1)
    assert {
        order.digest: order.record for order in await orders_after(reading, partition.partition_id, 0, 100)
    } == maker.orders
    found = await levels(reading, "live-1")
    assert found is not None and found.sequence == maker.sequence
    a, b = found.levels["A"], found.levels["B"]
    assert (a.allocated, a.withheld, a.available, a.held, a.settled) == (4, 0, 0, 0, 4)
    assert (b.allocated, b.withheld, b.available, b.held, b.settled) == (5, 0, 0, 0, 5)
    assert found.levels["C"].pools == {"shared": 0}
    sale = await sale_document(reading, "live-1")
    assert sale is not None and sale["status"] == "closed" and sale["definition"]["labels"] == {"host": "Lin"}
    assert sale["version"] == maker.version and sale["closed_at"] > sale["opened_at"]


async def test_the_ledger_keeps_the_exact_bytes_of_every_entry(writing: LedgerPool, reading: LedgerPool) -> None:
    maker = a_busy_journal()
    await LedgerWriter(writing).write("live-1", maker.records)
    written = [
        bytes(raw) for _, record in maker.records for raw in msgspec.msgpack.decode(record, type=JournalRecord).entries
    ]
    partition = await known_partition(reading, "live-1")
    assert partition is not None
    kept = await journal_after(reading, partition.partition_id, 0, 1000)
    assert [entry.entry for entry in kept] == written
    assert [entry.sequence for entry in kept] == list(range(1, maker.sequence + 1))


async def test_entries_that_share_a_row_are_each_found_with_their_own_bytes(
    writing: LedgerPool, reading: LedgerPool
) -> None:
    large = {f"sku-{number}-{'x' * 90}": 1 for number in range(200)}  # has a row of its own
    maker = JournalMaker("live-1")
    maker.define({"A": 1000, **large})
    maker.open()
    for number in range(50):
        maker.hold(buyer_id=f"u-{number}")
    maker.hold(large, "u-large")
    for number in range(49):
        maker.hold(buyer_id=f"u-{number}")
    maker.record()
    await LedgerWriter(writing).write("live-1", maker.records)
    ((_, encoded),) = maker.records
    written = [bytes(raw) for raw in msgspec.msgpack.decode(encoded, type=JournalRecord).entries]
    partition = await known_partition(reading, "live-1")
    assert partition is not None and await reading.fetch_value("SELECT count(*) FROM journal_slices") < 20
    for start in (0, 1, 29, 51, 52, 53, 101):
        kept = await journal_after(reading, partition.partition_id, start, 7)
        assert [entry.sequence for entry in kept] == [*range(start + 1, min(start + 7, 102) + 1)]
        assert [entry.entry for entry in kept] == written[start : start + 7]
        assert {entry.kind for entry in kept} <= {1, 8, 10}
    assert len(await orders_after(reading, partition.partition_id, 0, 1000)) == 100


async def test_lines_are_rows_wherever_they_lie_and_found_by_their_sku(
    writing: LedgerPool, reading: LedgerPool
) -> None:
    maker = JournalMaker("live-1")
    maker.define({"A": 1000, "B": 1000, "C": 1000})
    maker.open()
    maker.record()
    writer, expected, with_c, defined = LedgerWriter(writing), [], [], 1
    for number in range(12):
        if number == 8:  # between two orders that are alike, and written together
            maker.define(dict.fromkeys("ABC", 0), created=False)
            defined = maker.version
        lines = [{"A": 1}, {"B": 2, "A": 1}, {"A": 3, "B": 1, "C": 2}, {"A": 1}][number % 4]
        order = maker.orders[maker.hold(lines, f"u-{number}")]
        expected += [
            (
                order.sequence,
                at,
                line.line_id,
                line.sku,
                line.quantity,
                line.quantity * 1990,
                f"code-{line.sku}-{defined}",
            )
            for at, line in enumerate(order.lines, 1)
        ]
        with_c += [order.buyer_id] if "C" in lines else []
        maker.record()
        if number % 5 == 0:
            await writer.write("live-1", maker.records)
    await writer.write("live-1", maker.records)
    columns = "order_sequence, position, line_id, sku, quantity, paid_minor, outer_code"
    rows = await reading.fetch(f"SELECT {columns} FROM order_lines ORDER BY 1, 2")
    assert [tuple(row) for row in rows] == expected
    for found_by, buyers in (("C", with_c), ("A", [f"u-{number}" for number in range(12)]), ("D", [])):
        page = await search(reading, OrderQuery(sku=found_by), "", 100)
        assert [order["buyer_id"] for order in reversed(page.orders)] == buyers


async def test_however_many_kinds_of_baskets_there_are_their_units_are_exact(
    writing: LedgerPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folding, "BASKETS_KEPT_MAX", 3)
    maker = JournalMaker("live-1")
    maker.define({"A": 1000, "B": 1000})
    maker.open()
    for number in range(40):
        kind = number // 4  # each four times in a row
        maker.hold({"A": kind + 1} if kind % 2 else {"A": 1, "B": kind + 1}, f"u-{number}")
    maker.record()
    await LedgerWriter(writing).write("live-1", maker.records)
    units = dict.fromkeys("AB", 0)
    for order in maker.orders.values():
        for line in order.lines:
            units[line.sku] += line.quantity
    found = await levels(writing, "live-1")
    assert found is not None and {sku: row.held for sku, row in found.levels.items()} == units


async def test_any_cut_and_any_repeat_of_a_journal_leave_the_same_ledger(writing: LedgerPool) -> None:
    maker = a_busy_journal()
    found = []
    for cut in range(len(maker.records) + 1):
        writer = LedgerWriter(writing)
        await writer.write("live-1", maker.records[:cut])
        for prefix in range(len(maker.records) + 1):
            await writer.write("live-1", maker.records[:prefix])
        assert (await writer.write("live-1", maker.records)).entries == 0
        found.append(await everything(writing))
        tables = "partitions, journal_slices, orders, further_lines, order_changes, stock, feed, sales"
        await writing.execute(f"TRUNCATE {tables} RESTART IDENTITY")
        await writing.execute("UPDATE counters SET feed_sequence = 0")
    assert all(ledger == found[0] for ledger in found)
    assert len(found[0]["journal"]) == maker.sequence and len(found[0]["feed"]) == 5


async def test_an_order_changed_twice_in_one_batch_is_one_row_with_both_feed_rows(writing: LedgerPool) -> None:
    maker = JournalMaker("live-1")
    maker.define({"A": 10})
    maker.open()
    order = maker.hold({"A": 2})
    maker.settle(order, "p-1")
    maker.pay_twice(order, "p-2")
    maker.record()
    await LedgerWriter(writing).write("live-1", maker.records)
    rows = await writing.fetch("SELECT version, status, payment_id FROM order_states")
    assert [tuple(row) for row in rows] == [(3, 2, "p-1")]
    page = await Feed(writing).page("", 10)
    documents = [msgspec.json.decode(row) for row in page.rows]
    assert [(row["feed_sequence"], row["change"], row["version"]) for row in documents] == [
        (1, "settled", 2),
        (2, "refund_due", 3),
    ]
    assert documents[0]["payments_due_for_refund"] == []
    assert [due["payment_id"] for due in documents[1]["payments_due_for_refund"]] == ["p-2"]


@pytest.mark.parametrize("missing", range(6))
async def test_a_gap_is_refused_and_nothing_is_written(writing: LedgerPool, missing: int) -> None:
    maker = a_busy_journal()
    records = maker.records[:missing] + maker.records[missing + 1 :]
    writer = LedgerWriter(writing)
    with pytest.raises(JournalUnreadable, match="a gap"):
        await writer.write("live-1", records)
    assert await writing.fetch_value("SELECT count(*) FROM journal") == 0
    assert (await writer.write("live-1", maker.records)).entries == maker.sequence


async def test_a_journal_that_went_another_way_is_refused(writing: LedgerPool) -> None:
    maker, other = a_busy_journal(), a_busy_journal()
    await LedgerWriter(writing).write("live-1", maker.records[:3])
    fork = JournalMaker("live-1", sequence=maker.records[1][0], orders=dict(list(other.orders.items())[:1]))
    fork.hold(buyer_id="somebody-else")
    fork.hold()
    fork.hold()
    fork.record()
    with pytest.raises(JournalUnreadable, match="is another one in the ledger"):
        await LedgerWriter(writing).write("live-1", fork.records)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode(JournalRecord(JOURNAL_FORMAT, 1, 1, 1, [msgspec.Raw(b"\x92\x63\x01")])),
        msgspec.msgpack.encode([JOURNAL_FORMAT + 1, 1, 1, 1, []]),
        msgspec.msgpack.encode(JournalRecord(JOURNAL_FORMAT, 1, 2, 1, [msgspec.Raw(b"\x90")])),
    ],
)
async def test_bytes_that_are_no_record_are_refused(writing: LedgerPool, encoded: bytes) -> None:
    with pytest.raises(JournalUnreadable):
        await LedgerWriter(writing).write("live-1", [(1, encoded)])
    assert await known_partition(writing, "live-1") is None


@pytest.mark.parametrize("held", [{"A\0": 1}, {"A": 2**52}, {"A": 11}])
async def test_a_value_that_the_ledger_cannot_hold_is_the_journals_fault_and_no_outage(
    writing: LedgerPool, held: dict[str, int]
) -> None:
    maker = JournalMaker("live-1")
    maker.define({"A": 10})
    maker.open()
    maker.hold(held)
    maker.record()
    with pytest.raises(JournalUnreadable):
        await LedgerWriter(writing).write("live-1", maker.records)


async def test_an_order_without_a_line_is_the_journals_fault(writing: LedgerPool) -> None:
    maker = JournalMaker("live-1")
    maker.define({"A": 10})
    maker.open()
    order = maker.orders[maker.hold()]
    following = maker.sequence + 1
    empty = replace(order, sequence=following, changed_sequence=following, lines=[], own_units=[])
    maker._add(Held("d" * 24, empty))
    maker.record()
    with pytest.raises(JournalUnreadable, match="has no line"):
        await LedgerWriter(writing).write("live-1", maker.records)


async def test_a_restarted_writer_knows_the_outer_codes_and_labels_of_its_sale(writing: LedgerPool) -> None:
    maker = JournalMaker("live-1")
    maker.define({"A": 10})
    maker.open()
    maker.record()
    await LedgerWriter(writing).write("live-1", maker.records)
    order = maker.hold()
    maker.define({"A": 0}, created=False)
    maker.settle(order, "p-1")
    maker.record()
    await LedgerWriter(writing).write("live-1", maker.records)
    row = msgspec.json.decode((await Feed(writing).page("", 1)).rows[0])
    assert row["labels"] == {"host": "Lin"} and row["lines"][0]["outer_code"] == "code-A-3"
    assert await writing.fetch_value("SELECT outer_code FROM order_lines") == "code-A-1"


async def test_two_writers_on_one_partition_write_each_entry_once(writing: LedgerPool) -> None:
    maker = JournalMaker("live-1")
    maker.define({"A": 100_000})
    maker.open()
    maker.record()
    for batch in range(40):
        for _ in range(20):
            order = maker.hold()
            if batch % 2:
                maker.settle(order, f"p-{order}")
        maker.record()

    async def write(seed: int) -> None:
        writer = LedgerWriter(writing)
        for end in range(1 + seed, len(maker.records) + 1, 3):
            await writer.write("live-1", maker.records[:end])
        await writer.write("live-1", maker.records)

    await asyncio.gather(*(write(seed) for seed in range(3)))
    assert await writing.fetch_value("SELECT count(*) FROM journal") == maker.sequence
    assert await writing.fetch_value("SELECT count(*) FROM orders") == 800
    assert await writing.fetch_value("SELECT array_agg(feed_sequence ORDER BY feed_sequence) FROM feed") == list(
        range(1, 401)
    )


async def test_a_write_that_is_cut_off_before_its_commit_leaves_nothing(writing: LedgerPool) -> None:
    class CutOff(Passing):
        def at(self, point: str) -> None:
            if point == "before_commit":
                raise ConnectionResetError("cut off")

    maker = a_busy_journal()
    with pytest.raises(LedgerUnavailable):
        await LedgerWriter(writing, CutOff()).write("live-1", maker.records)
    assert await writing.fetch_value("SELECT count(*) FROM journal") == 0
    assert await writing.fetch_value("SELECT feed_sequence FROM counters") == 0
    assert (await LedgerWriter(writing).write("live-1", maker.records)).entries == maker.sequence
    assert await writing.fetch_value("SELECT feed_sequence FROM counters") == 5


async def test_a_deleted_draft_leaves_no_stock_and_may_be_made_anew(writing: LedgerPool) -> None:
    maker = JournalMaker("live-1")
    maker.define({"A": 10})
    maker.delete({("A", "shared"): -10})
    maker.record()
    await LedgerWriter(writing).write("live-1", maker.records)
    found = await levels(writing, "live-1")
    assert found is not None and found.levels == {}
    maker.define({"A": 7, "B": 1})
    maker.record()
    await LedgerWriter(writing).write("live-1", maker.records)
    found = await levels(writing, "live-1")
    assert found is not None and {sku: row.allocated for sku, row in found.levels.items()} == {"A": 7, "B": 1}


async def test_a_sku_that_leaves_with_units_in_it_is_refused(writing: LedgerPool) -> None:
    maker = JournalMaker("live-1")
    maker.define({"A": 7, "B": 1})
    maker.define({"A": 0}, created=False, removed=("B",))
    maker.record()
    with pytest.raises(JournalUnreadable, match="B left live-1 with units in it"):
        await LedgerWriter(writing).write("live-1", maker.records)


async def test_a_retired_partition_takes_no_more_entries(writing: LedgerPool) -> None:
    maker = a_busy_journal()
    await LedgerWriter(writing).write("live-1", maker.records)
    assert not await retire(writing, "live-1", maker.sequence - 1)
    assert await retire(writing, "live-1", maker.sequence)
    maker.define({"A": 1})
    maker.record()
    with pytest.raises(JournalUnreadable, match="retired"):
        await LedgerWriter(writing).write("live-1", maker.records)


async def test_an_absent_postgresql_is_said_to_be_unavailable() -> None:
    pool = await open_pool("postgresql://nobody:nothing@127.0.0.1:1/none")
    with pytest.raises(LedgerUnavailable):
        await LedgerWriter(pool).write("live-1", a_busy_journal().records)
    await pool.close()
