"""The help desk finds an order by whatever a buyer can name, newest first, and keeps its place while more arrive."""

import pytest

from engine.domain.orders import OrderStatus
from engine.ledger.connect import LedgerPool
from engine.ledger.persister import LedgerWriter
from engine.ledger.search import OrderQuery, search
from tests.integration.journal_maker import JournalMaker
from tests.integration.ledger_pools import reading, writing

__all__ = ["reading", "writing"]  # fixtures


@pytest.fixture
async def digests(writing: LedgerPool) -> dict[str, str]:
    """Two sales with four orders each; each order's digest by a name."""
    found = {}
    for at, sale_id in enumerate(("live-1", "live-2")):
        maker = JournalMaker(sale_id, at_ms=1_790_000_000_000 + at * 5)
        maker.define({"A": 10, "B": 10})
        maker.open()
        maker.record()
        for name, channel in (("first", "douyin"), ("second", "jd"), ("third", "douyin"), ("fourth", "jd")):
            lines = {"B": 2} if name == "third" else {"A": 1, "B": 1}
            found[f"{sale_id} {name}"] = maker.hold(lines, f"u-{name}", channel, f"r-{sale_id}-{name}")
            maker.record()
        maker.settle(found[f"{sale_id} first"], f"p-{sale_id}")
        maker.pay_twice(found[f"{sale_id} first"], f"p-{sale_id}-again")
        maker.expire(found[f"{sale_id} second"])
        maker.pay_too_late(found[f"{sale_id} second"], f"p-{sale_id}-late")
        maker.record()
        await LedgerWriter(writing).write(sale_id, maker.records)
    return found


@pytest.mark.parametrize(
    ("query", "names"),
    [
        (OrderQuery(sale_id="live-1"), ["live-1 fourth", "live-1 third", "live-1 second", "live-1 first"]),
        (OrderQuery(buyer_id="u-first"), ["live-2 first", "live-1 first"]),
        (OrderQuery(channel="jd", buyer_id="u-second"), ["live-2 second", "live-1 second"]),
        (OrderQuery(channel="douyin", buyer_id="u-second"), []),
        (OrderQuery(reference="r-live-2-third"), ["live-2 third"]),
        (OrderQuery(payment_id="p-live-1"), ["live-1 first"]),
        (OrderQuery(payment_id="p-live-1-again"), ["live-1 first"]),
        (OrderQuery(payment_id="p-live-2-late"), ["live-2 second"]),
        (OrderQuery(sku="A", sale_id="live-2"), ["live-2 fourth", "live-2 second", "live-2 first"]),
        (OrderQuery(status=OrderStatus.REFUND_DUE), ["live-2 second", "live-1 second"]),
        (OrderQuery(status=OrderStatus.HELD, channel="douyin"), ["live-2 third", "live-1 third"]),
        (OrderQuery(sale_id="no-such-sale"), []),
        (OrderQuery(order_id="no such id"), []),
        (OrderQuery(sku="no-such-sku"), []),
    ],
)
async def test_each_member_of_a_query_narrows_it(
    reading: LedgerPool, digests: dict[str, str], query: OrderQuery, names: list[str]
) -> None:
    page = await search(reading, query, "", 100)
    assert [order["order_id"] for order in page.orders] == [f"{digests[name]}.{name.split()[0]}" for name in names]
    assert not page.has_more


async def test_an_order_is_found_by_its_id_with_everything_that_happened_to_it(
    reading: LedgerPool, digests: dict[str, str]
) -> None:
    order_id = f"{digests['live-1 first']}.live-1"
    (order,) = (await search(reading, OrderQuery(order_id=order_id), "", 10)).orders
    assert (order["status"], order["version"], order["payment_id"]) == ("settled", 3, "p-live-1")
    assert [(payment["payment_id"], payment["code"]) for payment in order["payments"]] == [
        ("p-live-1", None), ("p-live-1-again", "DUPLICATE_PAYMENT"),
    ]  # fmt: skip
    assert [payment["payment_id"] for payment in order["payments_due_for_refund"]] == ["p-live-1-again"]
    assert order["labels"] == {"host": "Lin"} and order["held_until"] == "2026-09-21T14:14:20.010Z"
    assert [(line["sku"], line["outer_code"], line["paid_minor"]) for line in order["lines"]] == [
        ("A", "code-A-1", 1990), ("B", "code-B-1", 1990),
    ]  # fmt: skip
    assert (await search(reading, OrderQuery(order_id=order_id, sale_id="live-2"), "", 10)).orders == []


@pytest.mark.parametrize("query", [OrderQuery(), OrderQuery(sku="B"), OrderQuery(sale_id="live-1")])
async def test_pages_hold_each_order_once_newest_first_while_new_ones_arrive(
    writing: LedgerPool, reading: LedgerPool, digests: dict[str, str], query: OrderQuery
) -> None:
    whole = [order["order_id"] for order in (await search(reading, query, "", 100)).orders]
    seen, cursor = [], ""
    for step in range(20):
        page = await search(reading, query, cursor, 2)
        seen += [order["order_id"] for order in page.orders]
        if not page.orders:
            assert page.next_cursor == cursor
            break
        cursor = page.next_cursor
        newcomer = JournalMaker(f"later-{step}", at_ms=1_800_000_000_000)
        newcomer.define({"B": 1})
        newcomer.hold({"B": 1})
        newcomer.record()
        await LedgerWriter(writing).write(newcomer.sale_id, newcomer.records)
    assert seen == whole
