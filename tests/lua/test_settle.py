"""settle and cancel: the order of decisions of contract §4."""

import asyncio

from engine.domain.commands import Cancel, Close, Expire, Pause
from engine.domain.identifiers import OrderId
from engine.domain.orders import PaymentFate
from engine.domain.outcomes import Outcome
from tests.lua.shop import Shop, definition, order_of, sku

PRICE = 1990


async def held(shop: Shop, buyer: str = "u", name: str = "A") -> OrderId:
    order_id, command = shop.hold_command(buyer, "k", (name, 1))
    assert (await shop.ask(command))[0].outcome is Outcome.DONE
    return order_id


async def test_a_payment_settles_a_hold_once(shop: Shop) -> None:
    await shop.open(sku("A", 2))
    order_id = await held(shop)
    replies = await asyncio.gather(*(shop.settle(order_id, "p", PRICE) for _ in range(10)))
    assert sorted(reply.outcome for reply in replies) == [Outcome.DONE] + [Outcome.REPEATED] * 9
    levels = await shop.levels("A")
    assert (levels.held, levels.settled, levels.available) == (0, 1, 1)


async def test_the_same_payment_with_another_amount_is_refused(shop: Shop) -> None:
    await shop.open(sku("A", 2))
    order_id = await held(shop)
    await shop.settle(order_id, "p", PRICE)
    assert (await shop.settle(order_id, "p", PRICE + 1)).outcome is Outcome.IDEMPOTENCY_KEY_REUSED
    assert (await shop.settle(order_id, "p", PRICE, "USD")).outcome is Outcome.IDEMPOTENCY_KEY_REUSED


async def test_a_second_payment_is_recorded_whatever_its_amount_and_repeated_alike(shop: Shop) -> None:
    await shop.open(sku("A", 2))
    order_id = await held(shop)
    await shop.settle(order_id, "p", PRICE)
    first = await shop.settle(order_id, "q", 5, "USD")
    again = await shop.settle(order_id, "q", 5, "USD")
    assert (first.outcome, first.recorded_before) == (Outcome.DUPLICATE_PAYMENT, False)
    assert (again.outcome, again.recorded_before) == (Outcome.DUPLICATE_PAYMENT, True)
    order = order_of(again)
    assert order.status.word == "settled"
    assert [payment.fate for payment in order.payments] == [PaymentFate.SETTLED, PaymentFate.DUPLICATE]
    assert [type(entry).__name__ for _, _, entry in await shop.journal()].count("DuplicatePayment") == 1


async def test_a_wrong_amount_changes_nothing(shop: Shop) -> None:
    await shop.open(sku("A", 2))
    order_id = await held(shop)
    before = (await shop.sale()).state.sequence
    refused = await shop.settle(order_id, "p", PRICE - 1)
    assert (refused.outcome, refused.detail) == (Outcome.AMOUNT_MISMATCH, [PRICE, "CNY"])
    assert (await shop.settle(order_id, "p", PRICE, "EUR")).outcome is Outcome.AMOUNT_MISMATCH
    assert (await shop.sale()).state.sequence == before
    assert (await shop.settle(order_id, "p", PRICE)).outcome is Outcome.DONE


async def test_a_hold_past_its_deadline_is_settled_if_nobody_ended_it(shop: Shop) -> None:
    await shop.open(sku("A", 1), hold_ms=50)
    order_id = await held(shop)
    await asyncio.sleep(0.1)
    assert (await shop.settle(order_id, "p", PRICE)).outcome is Outcome.DONE


async def test_a_late_payment_takes_units_anew_whatever_the_buyers_limit(shop: Shop) -> None:
    await shop.open(sku("A", 2, buyer_limit=1))
    order_id = await held(shop)
    await shop.ask(Cancel(order_id.digest))
    assert (await shop.hold("u", "other", ("A", 1))).outcome is Outcome.DONE
    reply = await shop.settle(order_id, "p", PRICE)
    assert (reply.outcome, order_of(reply).status.word) == (Outcome.DONE, "settled")
    assert type((await shop.journal())[-1][2]).__name__ == "Reinstated"
    assert (await shop.levels("A")).settled == 1


async def test_a_late_payment_without_units_is_due_for_refund_for_good(shop: Shop) -> None:
    await shop.open(sku("A", 1))
    order_id = await held(shop)
    await shop.ask(Cancel(order_id.digest))
    other = await held(shop, "other")
    late = await shop.settle(order_id, "p", PRICE)
    assert (late.outcome, late.recorded_before) == (Outcome.PAYMENT_TOO_LATE, False)
    assert order_of(late).status.word == "refund_due"
    await shop.ask(Cancel(other.digest))
    assert (await shop.settle(order_id, "p", PRICE)).recorded_before
    assert (await shop.settle(order_id, "q", 7)).outcome is Outcome.PAYMENT_TOO_LATE
    assert (await shop.ask(Cancel(order_id.digest)))[0].detail == ["refund_due"]


async def test_a_payment_after_the_close_settles_a_hold_but_not_an_ended_one(shop: Shop) -> None:
    await shop.open(sku("A", 2))
    open_hold, ended = await held(shop), await held(shop, "other")
    await shop.ask(Cancel(ended.digest), Close())
    levels = await shop.levels("A")
    assert (levels.allocated, levels.available, levels.held) == (1, 0, 1)
    assert (await shop.settle(ended, "p", PRICE)).outcome is Outcome.PAYMENT_TOO_LATE
    assert (await shop.settle(open_hold, "p", PRICE)).outcome is Outcome.DONE
    levels = await shop.levels("A")
    assert (levels.allocated, levels.settled) == (1, 1)


async def test_units_given_back_after_the_close_leave_the_sale(shop: Shop) -> None:
    await shop.open(sku("A", 3, withheld=1), hold_ms=50)
    cancelled, _expired = await held(shop), await held(shop, "other")
    await shop.ask(Close())
    await asyncio.sleep(0.1)
    await shop.ask(Cancel(cancelled.digest), Expire(10))
    levels = await shop.levels("A")
    assert (levels.allocated, levels.withheld, levels.available, levels.held) == (0, 0, 0, 0)


async def test_holds_are_settled_and_cancelled_while_the_sale_is_paused(shop: Shop) -> None:
    await shop.open(sku("A", 2))
    one, two = await held(shop), await held(shop, "other")
    await shop.ask(Pause())
    assert (await shop.settle(one, "p", PRICE)).outcome is Outcome.DONE
    assert (await shop.ask(Cancel(two.digest)))[0].outcome is Outcome.DONE


async def test_cancelling_twice_is_the_same_again_and_a_settled_order_is_not_held(shop: Shop) -> None:
    await shop.open(sku("A", 2))
    one, two = await held(shop), await held(shop, "other")
    assert [reply.outcome for reply in await shop.ask(Cancel(one.digest), Cancel(one.digest))] == [
        Outcome.DONE,
        Outcome.REPEATED,
    ]
    await shop.settle(two, "p", PRICE)
    assert (await shop.ask(Cancel(two.digest)))[0].outcome is Outcome.ORDER_NOT_HELD
    assert (await shop.levels("A")).available == 1


async def test_an_order_that_never_was_is_not_found(shop: Shop) -> None:
    await shop.open(sku("A", 2))
    nobody = OrderId.of(shop.sale_id, "douyin", "nobody", "k")
    assert (await shop.settle(nobody, "p", PRICE)).outcome is Outcome.ORDER_NOT_FOUND
    assert (await shop.ask(Cancel(nobody.digest)))[0].outcome is Outcome.ORDER_NOT_FOUND


async def test_a_late_payment_for_a_sku_that_has_left_the_sale_is_due_for_refund(shop: Shop) -> None:
    await shop.open(sku("A", 1), sku("B", 1))
    order_id = await held(shop)
    await shop.ask(Cancel(order_id.digest), definition(sku("B", 1), command_id="without A"))
    assert (await shop.settle(order_id, "p", PRICE)).outcome is Outcome.PAYMENT_TOO_LATE


async def test_payments_kept_with_an_order_are_bounded(shop: Shop) -> None:
    await shop.open(sku("A", 1))
    order_id = await held(shop)
    await shop.settle(order_id, "p", PRICE)
    replies = [await shop.settle(order_id, f"p{n}", PRICE) for n in range(200)]
    assert [reply.outcome for reply in replies] == [Outcome.DUPLICATE_PAYMENT] * 199 + [Outcome.CONFLICT]
