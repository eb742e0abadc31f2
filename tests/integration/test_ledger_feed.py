"""The feed's promises: dense, exactly once, never skipped by a reader, and cursors that cannot be made up."""

import asyncio
import random

import msgspec
import pytest

from engine.ledger.connect import LedgerPool
from engine.ledger.cursors import CursorSeal, InvalidCursor
from engine.ledger.feed import Feed, cursor_secret
from engine.ledger.persister import LedgerWriter, Passing
from engine.ledger.search import OrderQuery, search
from tests.integration.journal_maker import JournalMaker
from tests.integration.ledger_pools import reading, writing

__all__ = ["reading", "writing"]  # fixtures


def settled_orders(sale_id: str, batches: int, orders: int) -> JournalMaker:
    """A sale whose every batch holds and settles `orders` orders."""
    maker = JournalMaker(sale_id)
    maker.define({"A": batches * orders})
    maker.open()
    maker.record()
    for _ in range(batches):
        for _ in range(orders):
            order = maker.hold()
            maker.settle(order, f"p-{sale_id}-{maker.sequence}")
        maker.record()
    return maker


class SometimesFails(Passing):
    """Cuts one transaction in four off just before its commit, after it has taken its feed numbers."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def at(self, point: str) -> None:
        if point == "before_commit" and self._random.random() < 0.25:
            raise ConnectionResetError("cut off")


async def test_a_reader_never_skips_a_row_while_four_sales_settle_at_once_and_transactions_fail(
    writing: LedgerPool, reading: LedgerPool
) -> None:
    sales = [settled_orders(f"live-{n}", 30, 5) for n in range(4)]
    done = asyncio.Event()

    async def write(maker: JournalMaker, seed: int) -> None:
        writer = LedgerWriter(writing, SometimesFails(seed))
        for end in range(1, len(maker.records) + 1):
            while True:
                try:
                    await writer.write(maker.sale_id, maker.records[end - 1 : end])
                    break
                except Exception as error:
                    assert "cut off" in str(error)

    async def read() -> list[dict]:
        feed, cursor, rows = Feed(reading), "", []
        while True:
            last_look = done.is_set()
            page = await feed.page(cursor, 7)
            rows += [msgspec.json.decode(row) for row in page.rows]
            if last_look and not page.rows:
                return rows
            cursor = page.next_cursor

    async def write_all() -> None:
        await asyncio.gather(*(write(maker, seed) for seed, maker in enumerate(sales)))
        done.set()

    *readers, _ = await asyncio.gather(read(), read(), read(), write_all())
    for rows in readers:
        assert [row["feed_sequence"] for row in rows] == list(range(1, 601))
        assert len({row["order_id"] for row in rows}) == 600


async def test_a_row_is_the_whole_order_as_of_its_change(writing: LedgerPool) -> None:
    maker = JournalMaker("live-1")
    maker.define({"A": 10, "B": 10})
    maker.open()
    order = maker.hold({"A": 2, "B": 1}, reference="6921")
    maker.record()
    maker.settle(order, "p-1")
    maker.record()
    await LedgerWriter(writing).write("live-1", maker.records)
    (row,) = (await Feed(writing).page("", 10)).rows
    assert msgspec.json.decode(row) == {
        "feed_sequence": 1, "change": "settled", "version": 2, "order_id": f"{order}.live-1", "sale_id": "live-1",
        "labels": {"host": "Lin"}, "channel": "douyin", "buyer_id": "u-1", "reference": "6921", "status": "settled",
        "payment_id": "p-1", "created_at": "2026-09-21T14:13:20.000Z", "settled_at": "2026-09-21T14:13:20.010Z",
        "amount_minor": 5970, "discount_minor": 0, "freight_minor": 0, "currency": "CNY",
        "payments_due_for_refund": [],
        "lines": [
            {"line_id": "1", "sku": "A", "outer_code": "code-A-1", "quantity": 2, "unit_price_minor": 1990,
             "paid_minor": 3980},
            {"line_id": "2", "sku": "B", "outer_code": "code-B-1", "quantity": 1, "unit_price_minor": 1990,
             "paid_minor": 1990},
        ],
    }  # fmt: skip


async def test_a_late_payment_is_due_for_refund_and_a_reinstated_order_is_settled(writing: LedgerPool) -> None:
    maker = JournalMaker("live-1")
    maker.define({"A": 10})
    maker.open()
    late, anew = maker.hold(reference=""), maker.hold()
    maker.expire(late)
    maker.cancel(anew)
    maker.pay_too_late(late, "p-late")
    maker.reinstate(anew, "p-anew")
    maker.pay_too_late(late, "p-later")
    maker.record()
    await LedgerWriter(writing).write("live-1", maker.records)
    rows = [msgspec.json.decode(row) for row in (await Feed(writing).page("", 10)).rows]
    assert [(row["change"], row["status"], row["payment_id"]) for row in rows] == [
        ("refund_due", "refund_due", None), ("settled", "settled", "p-anew"), ("refund_due", "refund_due", None),
    ]  # fmt: skip
    assert rows[0]["settled_at"] is None and rows[0]["reference"] is None
    assert rows[2]["payments_due_for_refund"][1] == {
        "payment_id": "p-later", "amount_minor": 1990, "currency": "CNY", "code": "PAYMENT_TOO_LATE",
        "received_at": "2026-09-21T14:13:20.000Z",
    }  # fmt: skip
    settled = await Feed(writing).page("", 10, "settled")
    assert [msgspec.json.decode(row)["feed_sequence"] for row in settled.rows] == [2] and not settled.has_more


async def test_pages_follow_each_other_and_an_empty_page_gives_back_its_cursor(writing: LedgerPool) -> None:
    feed = Feed(writing)
    empty = await feed.page("", 10)
    assert (empty.rows, empty.next_cursor, empty.has_more) == ([], "", False)
    maker = settled_orders("live-1", 1, 5)
    await LedgerWriter(writing).write("live-1", maker.records)
    first = await feed.page("", 3)
    second = await feed.page(first.next_cursor, 3)
    third = await feed.page(second.next_cursor, 3)
    assert [len(page.rows) for page in (first, second, third)] == [3, 2, 0]
    assert [page.has_more for page in (first, second, third)] == [True, False, False]
    assert third.next_cursor == second.next_cursor != ""
    exact = await feed.page("", 5)
    assert not exact.has_more


async def test_a_cursor_that_was_never_given_is_refused(writing: LedgerPool) -> None:
    maker = settled_orders("live-1", 1, 3)
    await LedgerWriter(writing).write("live-1", maker.records)
    feed = Feed(writing)
    cursor = (await feed.page("", 1)).next_cursor
    secret = await cursor_secret(writing)
    found = await search(writing, OrderQuery(), "", 1)
    forged = [
        "1", "x" * 300, "é", "AAAA", cursor[:-1], cursor + "A", cursor + "=", cursor.swapcase(), " " + cursor,
        CursorSeal(b"another secret", b"feed").seal((1).to_bytes(8, "big")),
        CursorSeal(secret, b"feed").seal((4).to_bytes(8, "big")),  # well made, beyond the newest row
        found.next_cursor,
    ]  # fmt: skip
    for text in forged:
        with pytest.raises(InvalidCursor):
            await feed.page(text, 1)
        with pytest.raises(InvalidCursor):
            await feed.acknowledge("erp", "kingdee", text)
    with pytest.raises(InvalidCursor):
        await search(writing, OrderQuery(), cursor, 1)


async def test_an_acknowledgement_never_goes_back_and_is_each_owners_own(writing: LedgerPool) -> None:
    maker = settled_orders("live-1", 1, 4)
    await LedgerWriter(writing).write("live-1", maker.records)
    feed = Feed(writing)
    early, late = (await feed.page("", 1)).next_cursor, (await feed.page("", 3)).next_cursor
    assert await feed.acknowledged("erp", "kingdee") == ""
    assert await feed.acknowledge("erp", "kingdee", "") == ""
    assert await feed.acknowledge("erp", "kingdee", late) == late
    assert await feed.acknowledge("erp", "kingdee", early) == late
    assert await feed.acknowledge("erp", "kingdee", "") == late
    assert await feed.acknowledged("erp", "kingdee") == late
    assert await feed.acknowledge("erp", "yonyou", early) == early
