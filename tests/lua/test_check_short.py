"""check_short refuses as a hold would be refused, in the same words, and leaves to the hold what it cannot tell."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from engine.domain.commands import Cancel, CheckShort, Close, Delete, Expire, NotePersisted, Open, Pause, Resume
from engine.domain.errors import MiaocangError, PartitionFrozen
from engine.domain.identifiers import OrderId
from engine.domain.outcomes import Outcome
from engine.partition import sold_out as sold_out_memory
from engine.partition.batcher import BatchBounds
from engine.partition.codec import Reply
from engine.partition.partitions import Partitions
from tests.conftest import CALL_SETTINGS
from tests.lua.shop import SALE, Shop, definition, sku

PRICE = 1990


class Cart(NamedTuple):
    """One line, and whose it is."""

    buyer: str = "nobody yet"
    name: str = "A"
    quantity: int = 1
    channel: str = "douyin"
    key: str = "k"


Answer = Reply | MiaocangError | None


def asking(shop: Shop, cart: Cart) -> asyncio.Future[Answer]:
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    digest = OrderId.of(shop.sale_id, cart.channel, cart.buyer, cart.key).digest
    shop.partitions.post_if_short(shop.sale_id, digest, cart.channel, cart.name, cart.quantity, answer.set_result)
    return answer


def holding(shop: Shop, cart: Cart) -> asyncio.Future[Reply | MiaocangError]:
    answer: asyncio.Future[Reply | MiaocangError] = asyncio.get_running_loop().create_future()
    _, command = shop.hold_command(cart.buyer, cart.key, (cart.name, cart.quantity), channel=cart.channel)
    shop.partitions.post(shop.sale_id, command, answer.set_result)
    return answer


async def asked(shop: Shop, cart: Cart) -> Answer:
    return await asking(shop, cart)


async def ask_and_hold(shop: Shop, cart: Cart) -> tuple[Answer, Reply | MiaocangError]:
    """The answer to the question, and to the hold in the same atom."""
    question, hold = asking(shop, cart), holding(shop, cart)
    return await question, await hold


async def sell(shop: Shop, buyer: str, name: str = "A", quantity: int = 1, **fields: Any) -> OrderId:
    order_id, command = shop.hold_command(buyer, "k", (name, quantity), **fields)
    reply = (await shop.ask(command))[0]
    assert reply.outcome is Outcome.DONE
    assert (await shop.settle(order_id, f"p-{buyer}", reply.held().amount_minor)).outcome is Outcome.DONE
    return order_id


async def pass_deadline(shop: Shop, buyer: str) -> None:
    held_until_ms = (await shop.order(buyer, "k")).held_until_ms
    while await shop.partitions.guarding.server_time_ms() < held_until_ms:
        pass


# --- situations: what is done before, and the cart ---------------------------------------------------------------


async def stock_for_it(shop: Shop) -> Cart:
    await shop.open(sku("A", 1))
    return Cart()


async def sold_out(shop: Shop) -> Cart:
    await shop.open(sku("A", 1))
    await sell(shop, "u")
    return Cart()


async def all_held_and_none_due(shop: Shop) -> Cart:
    await shop.open(sku("A", 2), sku("B", 5))
    await shop.hold("u", "k", ("A", 2))
    return Cart()


async def fewer_than_wanted(shop: Shop) -> Cart:
    await shop.open(sku("A", 3, unit_price_minor=7))
    await sell(shop, "u")
    return Cart(quantity=3)


async def a_price_above_two_to_the_32(shop: Shop) -> Cart:
    await shop.open(sku("A", 0, unit_price_minor=10**9), currency="JPY")
    return Cart(quantity=9999)


async def a_pool_of_another_channel(shop: Shop) -> Cart:
    await shop.open(sku("A", 3, channels=[("douyin", 3)]))
    return Cart(channel="tmall")


async def a_pool_of_its_own(shop: Shop) -> Cart:
    await shop.open(sku("A", 3, channels=[("douyin", 3)]))
    return Cart(quantity=3)


async def its_own_pool_and_the_shared_one_together(shop: Shop) -> Cart:
    await shop.open(sku("A", 5, channels=[("douyin", 3)]))
    return Cart(quantity=5)


async def its_own_pool_and_the_shared_one_too_small(shop: Shop) -> Cart:
    await shop.open(sku("A", 5, channels=[("douyin", 3), ("tmall", 1)]))
    return Cart(quantity=5)


async def withheld_units(shop: Shop) -> Cart:
    await shop.open(sku("A", 5, withheld=5))
    return Cart()


async def a_draft(shop: Shop) -> Cart:
    await shop.partitions.register(SALE)
    await shop.ask(definition(sku("A", 0)))
    return Cart()


async def a_draft_with_stock(shop: Shop) -> Cart:
    await shop.partitions.register(SALE)
    await shop.ask(definition(sku("A", 5)))
    return Cart()


async def a_paused_sale(shop: Shop) -> Cart:
    await sold_out(shop)
    await shop.ask(Pause())
    return Cart()


async def a_paused_sale_with_stock(shop: Shop) -> Cart:
    await shop.open(sku("A", 5))
    await shop.ask(Pause())
    return Cart()


async def a_closed_sale(shop: Shop) -> Cart:
    await shop.open(sku("A", 5))
    await shop.ask(Close())
    return Cart()


async def a_sale_that_closes_at_this_moment(shop: Shop) -> Cart:
    closes_at_ms = await shop.partitions.guarding.server_time_ms() + 300
    await shop.open(sku("A", 5), closes_at_ms=closes_at_ms)
    while await shop.partitions.guarding.server_time_ms() < closes_at_ms:
        pass
    return Cart()


async def a_sale_that_opens_at_this_moment(shop: Shop) -> Cart:
    opens_at_ms = await shop.partitions.guarding.server_time_ms() + 300
    await shop.partitions.register(SALE)
    await shop.ask(definition(sku("A", 5), opens_at_ms=opens_at_ms))
    assert await asked(shop, Cart()) == Reply(Outcome.SALE_NOT_OPEN, [])
    while await shop.partitions.guarding.server_time_ms() < opens_at_ms:
        pass
    return Cart()


async def an_unknown_sku(shop: Shop) -> Cart:
    await shop.open(sku("A", 0))
    return Cart(name="no such SKU")


async def an_unknown_sku_of_a_closed_sale(shop: Shop) -> Cart:
    await a_closed_sale(shop)
    return Cart(name="no such SKU")


async def due_holds_of_it(shop: Shop) -> Cart:
    await shop.open(sku("A", 1), hold_ms=1000)
    await shop.hold("u", "k", ("A", 1))
    await pass_deadline(shop, "u")
    return Cart()


async def due_holds_of_others_alone(shop: Shop) -> Cart:
    await shop.open(sku("A", 1), sku("B", 1), hold_ms=1000)
    await sell(shop, "v")
    await shop.hold("u", "k", ("B", 1))
    await pass_deadline(shop, "u")
    return Cart()


async def holds_of_it_whose_deadline_passed_while_frozen(shop: Shop) -> Cart:
    await shop.open(sku("A", 1), hold_ms=1000)
    held_until_ms = (await shop.hold("u", "k", ("A", 1))).held().held_until_ms
    guarding = shop.partitions.guarding
    await guarding.freeze(SALE, "a drill")
    while await guarding.server_time_ms() <= held_until_ms:
        pass
    assert await guarding.open(SALE, await guarding.look(SALE), 2, await guarding.server_run(), "reconciled")
    return Cart()


async def a_buyer_who_has_the_order(shop: Shop) -> Cart:
    await sold_out(shop)
    return Cart("u")


async def a_buyer_who_has_another_order(shop: Shop) -> Cart:
    await sold_out(shop)
    return Cart("u", key="another")


async def a_buyer_whose_order_was_cancelled(shop: Shop) -> Cart:
    await shop.open(sku("A", 1))
    order_id, command = shop.hold_command("u", "k", ("A", 1))
    await shop.ask(command, Cancel(order_id.digest))
    await sell(shop, "v")
    return Cart("u")


async def a_buyer_who_has_the_order_and_a_closed_sale(shop: Shop) -> Cart:
    await sold_out(shop)
    await shop.ask(Close())
    return Cart("u")


async def a_buyer_of_the_same_name_in_another_channel(shop: Shop) -> Cart:
    await sold_out(shop)
    return Cart("u", channel="tmall")


async def no_such_sale(shop: Shop) -> Cart:
    return Cart()


async def a_deleted_draft(shop: Shop) -> Cart:
    await a_draft(shop)
    await shop.ask(Delete())
    return Cart()


async def a_frozen_partition(shop: Shop) -> Cart:
    await sold_out(shop)
    await shop.partitions.freeze(SALE, "a drill")
    return Cart()


Situation = Callable[[Shop], Awaitable[Cart]]
SITUATIONS: list[tuple[Situation, Outcome | None, Outcome]] = [
    (stock_for_it, None, Outcome.DONE),
    (sold_out, Outcome.SOLD_OUT, Outcome.SOLD_OUT),
    (all_held_and_none_due, Outcome.SOLD_OUT, Outcome.SOLD_OUT),
    (fewer_than_wanted, Outcome.SOLD_OUT, Outcome.SOLD_OUT),
    (a_price_above_two_to_the_32, Outcome.SOLD_OUT, Outcome.SOLD_OUT),
    (a_pool_of_another_channel, Outcome.SOLD_OUT, Outcome.SOLD_OUT),
    (a_pool_of_its_own, None, Outcome.DONE),
    (its_own_pool_and_the_shared_one_together, None, Outcome.DONE),
    (its_own_pool_and_the_shared_one_too_small, Outcome.SOLD_OUT, Outcome.SOLD_OUT),
    (withheld_units, Outcome.SOLD_OUT, Outcome.SOLD_OUT),
    (a_draft, Outcome.SALE_NOT_OPEN, Outcome.SALE_NOT_OPEN),
    (a_draft_with_stock, Outcome.SALE_NOT_OPEN, Outcome.SALE_NOT_OPEN),
    (a_paused_sale, Outcome.SALE_NOT_OPEN, Outcome.SALE_NOT_OPEN),
    (a_paused_sale_with_stock, Outcome.SALE_NOT_OPEN, Outcome.SALE_NOT_OPEN),
    (a_closed_sale, Outcome.SALE_CLOSED, Outcome.SALE_CLOSED),
    (a_sale_that_closes_at_this_moment, Outcome.SALE_CLOSED, Outcome.SALE_CLOSED),
    (a_sale_that_opens_at_this_moment, None, Outcome.DONE),
    (an_unknown_sku, None, Outcome.SKU_NOT_FOUND),
    (an_unknown_sku_of_a_closed_sale, Outcome.SALE_CLOSED, Outcome.SALE_CLOSED),
    (due_holds_of_it, None, Outcome.DONE),
    (due_holds_of_others_alone, Outcome.SOLD_OUT, Outcome.SOLD_OUT),
    (holds_of_it_whose_deadline_passed_while_frozen, Outcome.SOLD_OUT, Outcome.SOLD_OUT),
    (a_buyer_who_has_the_order, None, Outcome.REPEATED),
    (a_buyer_who_has_another_order, None, Outcome.SOLD_OUT),
    (a_buyer_whose_order_was_cancelled, None, Outcome.REPEATED),
    (a_buyer_who_has_the_order_and_a_closed_sale, None, Outcome.REPEATED),
    (a_buyer_of_the_same_name_in_another_channel, Outcome.SOLD_OUT, Outcome.SOLD_OUT),
    (no_such_sale, Outcome.SALE_NOT_FOUND, Outcome.SALE_NOT_FOUND),
    (a_deleted_draft, Outcome.SALE_NOT_FOUND, Outcome.SALE_NOT_FOUND),
]


@pytest.mark.parametrize(
    ("situation", "refusal", "outcome"), SITUATIONS, ids=[situation.__name__ for situation, _, _ in SITUATIONS]
)
async def test_a_check_refuses_as_the_hold_of_its_moment_would_be_or_leaves_it_to_the_hold(
    shop: Shop, situation: Situation, refusal: Outcome | None, outcome: Outcome
) -> None:
    cart = await situation(shop)
    for checked, held in (await ask_and_hold(shop, cart), await ask_and_hold(shop, cart._replace(key="once more"))):
        assert isinstance(held, Reply)
        if checked is not None:
            assert isinstance(checked, Reply)
            assert checked.outcome is held.outcome
            assert checked.detail[:2] == held.detail
        if held.outcome is Outcome.SOLD_OUT and checked is not None:
            assert isinstance(checked, Reply)
            assert checked.detail[2] == (await shop.levels(cart.name)).unit_price_minor


@pytest.mark.parametrize(
    ("situation", "refusal", "outcome"), SITUATIONS, ids=[situation.__name__ for situation, _, _ in SITUATIONS]
)
async def test_a_check_tells_what_it_can_tell_and_nothing_else(
    shop: Shop, situation: Situation, refusal: Outcome | None, outcome: Outcome
) -> None:
    cart = await situation(shop)
    checked, held = await ask_and_hold(shop, cart)
    assert isinstance(held, Reply)
    assert held.outcome is outcome
    assert (checked.outcome if isinstance(checked, Reply) else checked) is refusal


async def test_a_ledger_that_is_behind_refuses_checks_as_it_does_holds(shop: Shop, redis_server: str) -> None:
    cart = await sold_out(shop)
    async with Partitions(redis_server, replace_backlog(2), BatchBounds()) as strict:
        behind = Shop(strict)
        answers = await ask_and_hold(behind, cart)
        assert answers == (Reply(Outcome.LEDGER_BEHIND, []), Reply(Outcome.LEDGER_BEHIND, []))
        sequence = (await shop.sale()).state.sequence
        await behind.ask(NotePersisted(sequence, 0))
        assert await asked(behind, cart) == Reply(Outcome.SOLD_OUT, ["A", 0, PRICE])


def replace_backlog(entries: int) -> Any:
    calls = CALL_SETTINGS
    return type(calls)(calls.call_timeout_seconds, calls.request_deadline_seconds, entries, calls.retention_ms)


async def test_a_frozen_partition_answers_checks_as_it_does_holds(shop: Shop) -> None:
    checked, held = await ask_and_hold(shop, await a_frozen_partition(shop))
    assert isinstance(checked, PartitionFrozen)
    assert isinstance(held, PartitionFrozen)
    assert str(checked) == str(held) == "a drill"


async def test_a_check_changes_nothing(shop: Shop) -> None:
    await due_holds_of_it(shop)
    before = await shop.journal()
    await asked(shop, Cart())
    assert await shop.journal() == before
    assert (await shop.levels("A")).held == 1


async def test_different_questions_of_one_tick_each_get_their_own_answer(shop: Shop) -> None:
    await shop.open(sku("A", 2, channels=[("tmall", 1)]), sku("B", 0, unit_price_minor=5), sku("C", 9))
    carts = [
        Cart("u1", "A", 1), Cart("u2", "A", 2), Cart("u3", "A", 2, "tmall"), Cart("u4", "A", 3, "tmall"),
        Cart("u5", "B", 1), Cart("u6", "C", 9), Cart("u7", "C", 10), Cart("u8", "D", 1), Cart("u9", "A", 2),
    ]  # fmt: skip
    answers = await asyncio.gather(*(asking(shop, cart) for cart in carts))
    short = [None if answer is None else answer.detail for answer in answers if not isinstance(answer, MiaocangError)]
    assert short == [
        None, ["A", 1, PRICE], None, ["A", 2, PRICE], ["B", 0, 5], None, ["C", 9, PRICE], None, ["A", 1, PRICE],
    ]  # fmt: skip


async def test_of_three_hundred_buyers_in_one_tick_those_with_orders_are_told_apart(shop: Shop) -> None:
    await shop.open(sku("A", 60), sku("B", 1))
    known = {f"u{n}" for n in range(0, 300, 7)}
    await asyncio.gather(*(shop.hold(buyer, "first", ("A", 1)) for buyer in known))
    await sell(shop, "rest", quantity=60 - len(known))
    carts = [Cart(f"u{n}", "A" if n % 3 else "B", 1 + n % 2) for n in range(300)]
    answers = await asyncio.gather(*(asking(shop, cart) for cart in carts))
    for cart, answer in zip(carts, answers, strict=True):
        in_stock = cart.name == "B" and cart.quantity == 1
        if cart.buyer in known or in_stock:
            assert answer is None, cart
        else:
            assert answer == Reply(Outcome.SOLD_OUT, [cart.name, 1 if cart.name == "B" else 0, PRICE]), cart


async def test_a_buyer_who_asks_twice_in_one_tick_is_answered_twice(shop: Shop) -> None:
    await shop.open(sku("A", 1))
    await sell(shop, "u")
    carts = [Cart("u"), Cart("v"), Cart("u", key="b"), Cart("v", key="b")]
    refused = Reply(Outcome.SOLD_OUT, ["A", 0, PRICE])
    assert await asyncio.gather(*(asking(shop, cart) for cart in carts)) == [None, refused, None, refused]


# --- stock that comes back ---------------------------------------------------------------------------------------


async def cancel(shop: Shop) -> None:
    await shop.ask(Cancel(OrderId.of(SALE, "douyin", "u", "k").digest))


async def become_due(shop: Shop) -> None:
    await pass_deadline(shop, "u")


async def expire(shop: Shop) -> None:
    await pass_deadline(shop, "u")
    assert (await shop.ask(Expire(10)))[0].detail == [1, False]


async def allocate(shop: Shop) -> None:
    assert (await shop.move("S1", ("A", "", "shared", 1))).outcome is Outcome.DONE


async def allocate_to_the_channel(shop: Shop) -> None:
    assert (await shop.move("S1", ("A", "", "douyin", 1))).outcome is Outcome.DONE


async def move_from_withheld(shop: Shop) -> None:
    assert (await shop.move("S1", ("A", "withheld", "shared", 1))).outcome is Outcome.DONE


async def move_from_another_channel(shop: Shop) -> None:
    assert (await shop.move("S1", ("A", "tmall", "douyin", 1))).outcome is Outcome.DONE


async def define_more(shop: Shop) -> None:
    more = definition(sku("A", 4, withheld=1, channels=[("tmall", 1)]), hold_ms=1000, command_id="more")
    assert (await shop.ask(more))[0].outcome is Outcome.DONE


WAYS_BACK = [
    cancel, become_due, expire, allocate, allocate_to_the_channel, move_from_withheld, move_from_another_channel,
    define_more,
]  # fmt: skip


@pytest.mark.parametrize("come_back", WAYS_BACK)
async def test_stock_that_comes_back_is_seen_by_the_very_next_question(
    shop: Shop, come_back: Callable[[Shop], Awaitable[None]]
) -> None:
    await shop.open(sku("A", 3, withheld=1, channels=[("tmall", 1)]), hold_ms=1000)
    assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.DONE
    assert await asked(shop, Cart()) == Reply(Outcome.SOLD_OUT, ["A", 0, PRICE])
    await come_back(shop)
    checked, held = await ask_and_hold(shop, Cart())
    assert checked is None
    assert isinstance(held, Reply)
    assert held.outcome is Outcome.DONE


async def test_a_sale_that_goes_on_is_seen_by_the_very_next_question(shop: Shop) -> None:
    await shop.open(sku("A", 1))
    await shop.ask(Pause())
    assert await asked(shop, Cart()) == Reply(Outcome.SALE_NOT_OPEN, [])
    await shop.ask(Resume())
    assert await asked(shop, Cart()) is None


async def test_a_draft_that_is_opened_is_seen_by_the_very_next_question(shop: Shop) -> None:
    cart = await a_draft_with_stock(shop)
    assert await asked(shop, cart) == Reply(Outcome.SALE_NOT_OPEN, [])
    await shop.ask(Open())
    assert await asked(shop, cart) is None


async def buy(shop: Shop, cart: Cart) -> Reply | MiaocangError:
    """As a checkout does: ask first where a moment ago there was too little, and hold where that cannot tell."""
    if shop.partitions.is_short(shop.sale_id, cart.channel, cart.name, cart.quantity):
        checked = await asking(shop, cart)
        if checked is not None:
            return checked
    return await holding(shop, cart)


@pytest.fixture
def long_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was short once is remembered for the whole test, unless an answer says otherwise."""
    monkeypatch.setattr(sold_out_memory, "SHORT_SECONDS_MAX", 60.0)


@pytest.mark.usefixtures("long_memory")
async def test_the_last_unit_is_sold_whatever_was_remembered(shop: Shop) -> None:
    await shop.open(sku("A", 1))
    for turn in range(20):
        carts = [Cart(f"u{turn}-{n}") for n in range(30)]
        replies = await asyncio.gather(*(buy(shop, cart) for cart in carts))
        outcomes = [reply.outcome for reply in replies if isinstance(reply, Reply)]
        assert sorted(outcomes) == [Outcome.DONE] + [Outcome.SOLD_OUT] * 29
        assert shop.partitions.is_short(SALE, "douyin", "A", 1)
        winner = carts[outcomes.index(Outcome.DONE)]
        await shop.ask(Cancel(OrderId.of(SALE, "douyin", winner.buyer, "k").digest))


@pytest.mark.usefixtures("long_memory")
async def test_buyers_who_are_turned_away_while_units_come_and_go_never_leave_one_unsold(shop: Shop) -> None:
    await shop.open(sku("A", 5))
    left = asyncio.Semaphore(40)

    async def insist(n: int) -> OrderId:
        """Until there is a unit; then it is given back, for the next."""
        cart = Cart(f"u{n}")
        async with left:
            while True:
                reply = await buy(shop, cart)
                assert isinstance(reply, Reply)
                if reply.outcome is Outcome.DONE:
                    break
                assert reply.outcome is Outcome.SOLD_OUT
            order_id = OrderId.of(SALE, "douyin", cart.buyer, cart.key)
            assert (await shop.ask(Cancel(order_id.digest)))[0].outcome is Outcome.DONE
            return order_id

    async with asyncio.timeout(30):
        assert len(set(await asyncio.gather(*(insist(n) for n in range(200))))) == 200
    levels = await shop.levels("A")
    assert (levels.pools, levels.held) == ({"shared": 5}, 0)


async def test_a_question_put_by_hand_answers_with_positions_and_verdicts(shop: Shop) -> None:
    await shop.open(sku("A", 0), sku("B", 1))
    await shop.hold("u", "k", ("B", 1))
    parts = tuple(OrderId.buyer_part_of(SALE, "douyin", buyer) for buyer in ("v", "u", "w", "u"))
    question = CheckShort((("douyin", "A", 1), ("douyin", "B", 1), ("douyin", "C", 1)), parts, (0, 1, 2, 0))
    (reply,) = await shop.ask(question)
    verdicts = [[Outcome.SOLD_OUT, 0, PRICE], [Outcome.SOLD_OUT, 0, PRICE], []]
    assert (reply.outcome, reply.detail) == (Outcome.DONE, [verdicts, [2, 4]])
    assert (await shop.ask(replace(question, wanted=(), buyers=(), places=())))[0].detail == [[], []]
