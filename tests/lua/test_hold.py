"""hold: all or none, own pool first, once for each key, and refusals in the contract's order."""

import asyncio
from typing import Any

import pytest
from msgspec import UNSET

from engine.domain.commands import Cancel, Close, Expire, GetOrder, Hold, ListBuyerOrders, NotePersisted, Pause, Settle
from engine.domain.identifiers import OrderId
from engine.domain.orders import HoldRequest, RequestedLine
from engine.domain.outcomes import Outcome
from engine.partition.batcher import BatchBounds
from engine.partition.call import CallSettings
from engine.partition.partitions import Partitions
from tests.lua.shop import SALE, Shop, definition, order_of, sku


async def test_one_unit_and_a_thousand_buyers_make_one_order(shop: Shop) -> None:
    await shop.open(sku("TEE-M", 1))
    replies = await asyncio.gather(*(shop.hold(f"buyer-{n}", "k", ("TEE-M", 1)) for n in range(1000)))
    assert sorted(reply.outcome for reply in replies) == [Outcome.DONE] + [Outcome.SOLD_OUT] * 999
    levels = await shop.levels("TEE-M")
    assert (levels.allocated, levels.available, levels.held) == (1, 0, 1)


async def test_a_cart_takes_all_of_its_lines_or_none(shop: Shop) -> None:
    await shop.open(sku("A", 5), sku("B", 1))
    refused = await shop.hold("u", "k", ("A", 2), ("B", 2))
    assert (refused.outcome, refused.detail) == (Outcome.SOLD_OUT, ["B", 1])
    assert (await shop.levels("A")).held == 0
    assert (await shop.sale()).state.sequence == 2


async def test_a_sku_in_several_lines_counts_together(shop: Shop) -> None:
    await shop.open(sku("A", 5))
    assert (await shop.hold("u", "k", ("A", 3), ("A", 3))).outcome is Outcome.SOLD_OUT
    assert (await shop.hold("u", "k", ("A", 3), ("A", 2))).outcome is Outcome.DONE


async def test_the_channels_own_pool_goes_first_and_units_return_where_they_came_from(shop: Shop) -> None:
    await shop.open(sku("A", 10, channels=[("douyin", 3)], withheld=2))
    order_id, command = shop.hold_command("u", "k", ("A", 5))
    held, read = await shop.ask(command, GetOrder(order_id.digest))
    assert held.outcome is Outcome.DONE
    assert [tuple(vars_of(units)) for units in order_of(read).units] == [("A", "douyin", 3), ("A", "shared", 2)]
    assert (await shop.levels("A")).pools == {"shared": 3, "douyin": 0}  # its own, and empty
    await shop.ask(Cancel(order_id.digest))
    levels = await shop.levels("A")
    assert (levels.pools, levels.withheld, levels.held) == ({"shared": 5, "douyin": 3}, 2, 0)


def vars_of(units: object) -> list[object]:
    return [getattr(units, name) for name in units.__struct_fields__]  # type: ignore[attr-defined]


async def test_another_channels_pool_is_not_for_sale(shop: Shop) -> None:
    await shop.open(sku("A", 3, channels=[("douyin", 3)]))
    refused = await shop.hold("u", "k", ("A", 1), channel="tmall")
    assert (refused.outcome, refused.detail) == (Outcome.SOLD_OUT, ["A", 0])


async def test_the_same_key_holds_once_and_another_body_is_refused(shop: Shop) -> None:
    await shop.open(sku("A", 10))
    replies = await asyncio.gather(*(shop.hold("u", "k", ("A", 2)) for _ in range(20)))
    assert sorted(reply.outcome for reply in replies) == [Outcome.DONE] + [Outcome.REPEATED] * 19
    repeated = {order_of(reply).sequence for reply in replies if reply.outcome is Outcome.REPEATED}
    assert repeated == {reply.held().sequence for reply in replies if reply.outcome is Outcome.DONE}
    assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.IDEMPOTENCY_KEY_REUSED
    assert (await shop.levels("A")).held == 2


WHOLE_REQUEST: dict[str, Any] = {
    "lines": [RequestedLine("A", 2, "x"), RequestedLine("B", 1)],
    "discount_minor": 10,
    "freight_minor": 500,
    "expected_amount_minor": 6460,
    "reference": "r-1",
}
OTHER_REQUESTS: list[dict[str, Any]] = [
    {"reference": "r-2"},
    {"reference": UNSET},
    {"discount_minor": 9},
    {"freight_minor": 501},
    {"discount_minor": 11, "freight_minor": 501},  # for the same amount
    {"expected_amount_minor": UNSET},
    {"expected_amount_minor": 6461},
    {"lines": [RequestedLine("A", 2, "y"), RequestedLine("B", 1)]},
    {"lines": [RequestedLine("A", 2), RequestedLine("B", 1)]},
    {"lines": [RequestedLine("A", 2, "x"), RequestedLine("A", 1)]},
    {"lines": [RequestedLine("A", 1, "x"), RequestedLine("B", 2)]},
    {"lines": [RequestedLine("B", 1, "2"), RequestedLine("A", 2, "x")]},
    {"lines": [RequestedLine("A", 2, "x")]},
    {"lines": [RequestedLine("A", 2, "x"), RequestedLine("B", 1), RequestedLine("B", 1)]},
]


@pytest.mark.parametrize("end", [None, Cancel, Settle])
async def test_a_repeat_is_told_from_another_request_by_each_of_its_parts(shop: Shop, end: Any) -> None:
    """Open, or kept small: and the default line id is the same as that id given."""
    await shop.open(sku("A", 10), sku("B", 10))
    order_id = OrderId.of(SALE, "douyin", "u", "k")

    async def hold(**changes: Any) -> Outcome:
        request = HoldRequest("u", "douyin", **{**WHOLE_REQUEST, **changes})
        return (await shop.ask(Hold.of(order_id, request)))[0].outcome

    assert await hold() is Outcome.DONE
    if end is not None:
        ending = Cancel(order_id.digest) if end is Cancel else Settle(order_id.digest, "p", 6460, "CNY")
        assert (await shop.ask(ending))[0].outcome is Outcome.DONE
    assert await hold() is Outcome.REPEATED
    assert await hold(lines=[RequestedLine("A", 2, "x"), RequestedLine("B", 1, "2")]) is Outcome.REPEATED
    assert [await hold(**other) for other in OTHER_REQUESTS] == [Outcome.IDEMPOTENCY_KEY_REUSED] * len(OTHER_REQUESTS)


async def test_a_repeat_that_expects_what_was_not_said_before_is_another_request(shop: Shop) -> None:
    await shop.open(sku("A", 10))
    assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.DONE
    assert (await shop.hold("u", "k", ("A", 1), expected_amount_minor=1990)).outcome is Outcome.IDEMPOTENCY_KEY_REUSED
    assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.REPEATED


async def test_a_key_whose_hold_has_ended_stays_used(shop: Shop) -> None:
    await shop.open(sku("A", 1))
    order_id, command = shop.hold_command("u", "k", ("A", 1))
    await shop.ask(command, Cancel(order_id.digest))
    repeated = (await shop.ask(command))[0]
    assert repeated.outcome is Outcome.REPEATED
    assert order_of(repeated).status.word == "cancelled"
    assert (await shop.levels("A")).available == 1


async def test_a_refusal_is_not_remembered(shop: Shop) -> None:
    await shop.open(sku("A", 0))
    assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.SOLD_OUT
    await shop.move("d", ("A", "", "shared", 1))
    assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.DONE


async def test_limits_are_tried_by_sku_then_style_then_sale(shop: Shop) -> None:
    await shop.open(
        sku("A", 99, buyer_limit=2), sku("B", 99), sku("C", 99, style="CAP"), style_limits={"TEE": 3}, buyer_limit=4
    )
    assert (await shop.hold("u", "1", ("A", 2))).outcome is Outcome.DONE
    assert (await shop.hold("u", "2", ("A", 1))).detail == ["sku", 2, 2]
    assert (await shop.hold("u", "3", ("B", 2))).detail == ["style", 3, 2]
    assert (await shop.hold("u", "4", ("B", 1))).outcome is Outcome.DONE
    assert (await shop.hold("u", "5", ("C", 2))).detail == ["sale", 4, 3]
    assert (await shop.hold("u", "6", ("C", 1))).outcome is Outcome.DONE
    assert (await shop.hold("other", "1", ("A", 2))).outcome is Outcome.DONE
    assert (await shop.hold("u", "1", ("A", 1), channel="tmall")).outcome is Outcome.DONE  # a buyer is of a channel


async def test_units_given_back_no_longer_count_for_the_limit(shop: Shop) -> None:
    await shop.open(sku("A", 9), buyer_limit=1)
    order_id, command = shop.hold_command("u", "1", ("A", 1))
    await shop.ask(command)
    assert (await shop.hold("u", "2", ("A", 1))).outcome is Outcome.BUYER_LIMIT_REACHED
    await shop.ask(Cancel(order_id.digest))
    assert (await shop.hold("u", "2", ("A", 1))).outcome is Outcome.DONE


async def test_the_expected_amount_must_be_what_is_computed(shop: Shop) -> None:
    await shop.open(sku("A", 9), sku("B", 9, unit_price_minor=333))
    lines = (("A", 1), ("B", 2))
    refused = await shop.hold("u", "k", *lines, discount_minor=10, freight_minor=600, expected_amount_minor=1)
    assert (refused.outcome, refused.detail) == (Outcome.PRICE_CHANGED, [1990 + 666 - 10 + 600])
    held = await shop.hold("u", "k", *lines, discount_minor=10, freight_minor=600, expected_amount_minor=3246)
    assert held.held().amount_minor == 3246
    assert sum((await shop.order("u", "k")).paid_minor_by_line()) == 2646


async def test_a_discount_above_the_lines_is_invalid(shop: Shop) -> None:
    await shop.open(sku("A", 9))
    refused = await shop.hold("u", "k", ("A", 1), discount_minor=1991)
    assert (refused.outcome, refused.detail[0]) == (Outcome.INVALID, "discount_minor")
    assert (await shop.hold("u", "k", ("A", 1), discount_minor=1990)).outcome is Outcome.DONE
    await shop.ask(definition(sku("A", 9, unit_price_minor=5), command_id="cheaper"), Pause())
    assert (await shop.hold("u", "k", ("A", 1), discount_minor=1990)).outcome is Outcome.REPEATED
    assert (await shop.hold("u", "k", ("A", 1), discount_minor=1991)).outcome is Outcome.INVALID
    assert (await shop.hold("v", "k", ("A", 1), discount_minor=6)).outcome is Outcome.INVALID
    assert (await shop.hold("v", "k", ("A", 1), discount_minor=5)).outcome is Outcome.SALE_NOT_OPEN


async def test_refusals_come_in_the_contracts_order(shop: Shop, partitions: Partitions, redis_server: str) -> None:
    await shop.open(sku("A", 1, buyer_limit=1))
    assert (await shop.hold("u", "0", ("A", 1))).outcome is Outcome.DONE
    everything_wrong = {"expected_amount_minor": 1}
    assert (await shop.hold("u", "1", ("A", 9), ("X", 1), **everything_wrong)).detail == ["X"]
    assert (await shop.hold("u", "1", ("A", 9), **everything_wrong)).outcome is Outcome.PRICE_CHANGED
    assert (await shop.hold("u", "1", ("A", 9))).outcome is Outcome.SOLD_OUT
    await shop.move("d", ("A", "", "shared", 99))
    assert (await shop.hold("u", "1", ("A", 9))).outcome is Outcome.BUYER_LIMIT_REACHED
    async with Partitions(redis_server, CallSettings(5, 20, 1, 10**9), BatchBounds()) as behind:
        assert (await Shop(behind).hold("u", "1", ("X", 9))).outcome is Outcome.LEDGER_BEHIND
        await shop.ask(Pause())
        assert (await Shop(behind).hold("u", "1", ("X", 9))).outcome is Outcome.SALE_NOT_OPEN
        await shop.ask(Close())
        assert (await Shop(behind).hold("u", "1", ("X", 9))).outcome is Outcome.SALE_CLOSED
        assert (await Shop(behind).hold("u", "0", ("A", 1))).outcome is Outcome.REPEATED
        assert (await Shop(behind).hold("u", "0", ("A", 2))).outcome is Outcome.IDEMPOTENCY_KEY_REUSED


async def test_a_ledger_that_has_caught_up_lets_holds_go_on(shop: Shop, redis_server: str) -> None:
    await shop.open(sku("A", 9))
    async with Partitions(redis_server, CallSettings(5, 20, 2, 10**9), BatchBounds()) as behind:
        assert (await Shop(behind).hold("u", "1", ("A", 1))).outcome is Outcome.LEDGER_BEHIND
        assert (await shop.ask(NotePersisted(2, 10)))[0].outcome is Outcome.DONE
        assert (await Shop(behind).hold("u", "1", ("A", 1))).outcome is Outcome.DONE


async def test_whoever_wants_a_unit_of_a_due_hold_gets_it_without_a_sweeper(shop: Shop) -> None:
    await shop.open(sku("A", 1), hold_ms=1000)
    first = await shop.held_order("first", "k", ("A", 1))
    while (reply := await shop.hold("second", "k", ("A", 1))).outcome is Outcome.SOLD_OUT:
        await asyncio.sleep(0.05)
    assert reply.outcome is Outcome.DONE
    assert (await shop.order("second", "k")).created_at_ms >= first.held_until_ms
    kinds = [type(entry).__name__ for _, _, entry in await shop.journal()]
    assert kinds[-3:] == ["Held", "Expired", "Held"]


async def test_a_unit_behind_a_thousand_due_holds_of_another_sku_is_still_found(shop: Shop) -> None:
    await shop.open(sku("A", 1000), sku("B", 1), hold_ms=300)
    await asyncio.gather(*(shop.hold(f"u{n}", "k", ("A", 1)) for n in range(1000)))
    await shop.hold("first", "k", ("B", 1))
    await asyncio.sleep(0.5)
    assert (await shop.hold("second", "k", ("B", 1))).outcome is Outcome.DONE  # at the first try


async def test_a_hold_is_never_ended_early(shop: Shop) -> None:
    await shop.open(sku("A", 5), hold_ms=500)
    for n in range(5):
        await shop.hold(f"u{n}", "k", ("A", 1))
    deadline = asyncio.get_running_loop().time() + 5
    expired = 0
    while expired < 5:
        expired += (await shop.ask(Expire(2)))[0].detail[0]
        assert asyncio.get_running_loop().time() < deadline
    held_until = {}
    for _, at_ms, entry in await shop.journal():
        if type(entry).__name__ == "Held":
            held_until[entry.digest] = entry.order.held_until_ms  # type: ignore[union-attr]
        if type(entry).__name__ == "Expired":
            assert at_ms >= held_until[entry.digest]  # type: ignore[union-attr]
    assert (await shop.levels("A")).available == 5


async def test_a_buyers_orders_come_newest_first_and_at_most_a_hundred(shop: Shop) -> None:
    await shop.open(sku("A", 200))
    for n in range(120):
        await shop.hold("u", f"k{n}", ("A", 1))
    orders = (await shop.ask(ListBuyerOrders(OrderId.buyer_part_of(shop.sale_id, "douyin", "u"))))[0].buyer_orders()
    sequences = [order.sequence for _, order in orders]
    assert len(orders) == 100
    assert sequences == sorted(sequences, reverse=True)
    assert (await shop.ask(GetOrder(orders[0][0])))[0].order() == orders[0][1]


@pytest.mark.parametrize("quantity", [1, 10**9])
async def test_numbers_stay_exact_at_the_contracts_limits(shop: Shop, quantity: int) -> None:
    await shop.open(*(sku(f"S{n}", quantity, unit_price_minor=10**9) for n in range(2)))
    held = await shop.hold("u", "k", ("S0", 1), ("S1", 1), freight_minor=10**12, discount_minor=1)
    assert held.held().amount_minor == (await shop.order("u", "k")).amount_minor == 2 * 10**9 - 1 + 10**12
    assert (await shop.levels("S0")).available == quantity - 1


async def test_an_order_above_ten_to_the_thirteen_is_invalid(shop: Shop) -> None:
    await shop.open(sku("A", 10**6, unit_price_minor=10**9))
    refused = await shop.hold("u", "k", ("A", 9999), ("A", 9999))
    assert refused.outcome is Outcome.INVALID


async def test_orders_leave_the_gateways_sight_when_their_time_is_over(shop: Shop, redis_server: str) -> None:
    await shop.open(sku("A", 3))
    order_id, command = shop.hold_command("u", "k", ("A", 1))
    await shop.ask(command, Close())
    assert (await shop.ask(GetOrder(order_id.digest)))[0].outcome is Outcome.DONE
    async with Partitions(redis_server, CallSettings(5, 20, 10**6, 0), BatchBounds()) as later:
        assert (await later.submit(SALE, GetOrder(order_id.digest)))[0].outcome is Outcome.ORDER_NOT_FOUND
        assert (await later.submit(SALE, Settle(order_id.digest, "p", 1990, "CNY")))[0].outcome is Outcome.DONE
        assert (await later.submit(SALE, Settle(order_id.digest, "p", 1990, "CNY")))[
            0
        ].outcome is Outcome.ORDER_NOT_FOUND
        assert (await later.submit(SALE, command))[0].outcome is Outcome.SALE_CLOSED


async def test_a_draft_sells_nothing(shop: Shop) -> None:
    await shop.partitions.submit(SALE, definition(sku("A", 1)))
    assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.SALE_NOT_OPEN


async def test_a_buyers_own_due_hold_does_not_count_for_their_limit(shop: Shop) -> None:
    await shop.open(sku("A", 9), buyer_limit=1, hold_ms=1000)
    first = await shop.held_order("u", "1", ("A", 1))
    while (reply := await shop.hold("u", "2", ("A", 1))).outcome is Outcome.BUYER_LIMIT_REACHED:
        await asyncio.sleep(0.05)
    assert reply.outcome is Outcome.DONE
    assert (await shop.order("u", "2")).created_at_ms >= first.held_until_ms


async def test_a_journal_entry_keeps_the_order_as_it_was_though_its_batch_changed_it_again(shop: Shop) -> None:
    await shop.open(sku("A", 9))
    order_id, command = shop.hold_command("u", "1", ("A", 1))
    _, held, settled = await shop.ask(command, GetOrder(order_id.digest), Settle(order_id.digest, "p", 1990, "CNY"))
    assert (order_of(held).status.word, order_of(settled).status.word) == ("held", "settled")
    entries = [entry for _, _, entry in await shop.journal() if hasattr(entry, "order")]
    assert [(entry.order.status.word, entry.order.version) for entry in entries] == [("held", 1), ("settled", 2)]
    assert entries[0].order.payments == []
