"""A buyer's orders beyond what their row keeps: found, listed, counted and changed like the others."""

import random

import pytest

from engine.domain.commands import Cancel, Expire, GetOrder, ListBuyerOrders
from engine.domain.identifiers import OrderId
from engine.domain.journal import OrderEntry
from engine.domain.orders import OrderRecord, OrderStatus
from engine.domain.outcomes import Outcome
from engine.partition.codec import Reply
from engine.partition.inspection import PartitionInspection
from engine.partition.keyspace import partition_keys
from engine.partition.rows import BuyerRow
from tests.lua.shop import SALE, Shop, sku

PRICE = 1990
IN_ROW = 4
COUNTING = (OrderStatus.HELD, OrderStatus.SETTLED)


def id_of(buyer: str, key: str) -> OrderId:
    return OrderId.of(SALE, "douyin", buyer, key)


async def listed(shop: Shop, buyer: str) -> list[tuple[str, OrderRecord]]:
    part = OrderId.buyer_part_of(SALE, "douyin", buyer)
    return (await shop.ask(ListBuyerOrders(part)))[0].buyer_orders()


async def row_of(shop: Shop, buyer: str) -> BuyerRow:
    """As it lies in Redis."""
    part = OrderId.buyer_part_of(SALE, "douyin", buyer)
    rows = {at: row async for at, row in PartitionInspection(shop.partitions.connections).buyers(SALE)}
    row = rows[part]
    assert row is not None
    return row


async def orders_in_redis(shop: Shop) -> dict[str, OrderRecord]:
    """Every order as it lies in Redis, whether in a row or by itself, read past the script; none lies there twice."""
    inspection = PartitionInspection(shop.partitions.connections)
    found: list[tuple[str, OrderRecord | None]] = []
    async for _, row in inspection.buyers(SALE):
        assert row is not None
        assert 1 <= len(row.orders) <= IN_ROW
        found += row.orders
    found += [moved async for moved in inspection.moved_orders(SALE)]
    orders = {digest: order for digest, order in found if order is not None}
    assert len(orders) == len(found)
    return orders


async def orders_in_journal(shop: Shop) -> dict[str, OrderRecord]:
    """The last state of every order."""
    return {entry.digest: entry.order for _, _, entry in await shop.journal() if isinstance(entry, OrderEntry)}


async def hold_twelve(shop: Shop, buyer: str = "u") -> list[OrderId]:
    """Twelve orders of one unit of A, the first eight of which have moved out of the row."""
    for n in range(12):
        assert (await shop.hold(buyer, f"k{n}", ("A", 1))).outcome is Outcome.DONE
    return [id_of(buyer, f"k{n}") for n in range(12)]


async def test_all_of_a_buyers_many_orders_are_found_by_id_and_listed_newest_first(shop: Shop) -> None:
    await shop.open(sku("A", 20))
    ids = await hold_twelve(shop)
    await shop.hold("another", "k", ("A", 1))
    replies = await shop.ask(*(GetOrder(order_id.digest) for order_id in ids))
    assert [reply.order().sequence for reply in replies] == list(range(3, 15))
    found = await listed(shop, "u")
    assert [digest for digest, _ in found] == [order_id.digest for order_id in reversed(ids)]
    assert [order for _, order in found] == [reply.order() for reply in reversed(replies)]
    assert await orders_in_redis(shop) == await orders_in_journal(shop)


async def test_a_row_keeps_the_four_newest_and_the_others_lie_by_themselves(shop: Shop) -> None:
    await shop.open(sku("A", 20))
    ids = await hold_twelve(shop)
    row = await row_of(shop, "u")
    assert [digest for digest, _ in row.orders] == [order_id.digest for order_id in ids[-IN_ROW:]]
    assert row.moved == [order_id.digest for order_id in ids[:-IN_ROW]]
    assert row.moved_units == {"A": 8}
    assert await shop.partitions.connections.execute("HLEN", partition_keys(SALE).orders) == 8


async def test_many_orders_of_one_batch_move_out_like_those_of_many_batches(shop: Shop) -> None:
    await shop.open(sku("A", 20))
    commands = [shop.hold_command("u", f"k{n}", ("A", 1)) for n in range(12)]
    first, second = commands[0][0], commands[1][0]
    replies = await shop.ask(
        *(command for _, command in commands), Cancel(first.digest), GetOrder(second.digest), commands[1][1]
    )
    assert [reply.outcome for reply in replies] == [Outcome.DONE] * 14 + [Outcome.REPEATED]
    row = await row_of(shop, "u")
    assert [digest for digest, _ in row.orders] == [order_id.digest for order_id, _ in commands[-IN_ROW:]]
    assert row.moved_units == {"A": 7}
    assert await orders_in_redis(shop) == await orders_in_journal(shop)


async def test_an_order_changed_and_moved_out_in_one_batch_is_kept_as_changed(shop: Shop) -> None:
    await shop.open(sku("A", 20))
    for n in range(IN_ROW):
        await shop.hold("u", f"k{n}", ("A", 1))
    first = id_of("u", "k0")
    replies = await shop.ask(Cancel(first.digest), shop.hold_command("u", "k4", ("A", 1))[1], GetOrder(first.digest))
    assert [reply.outcome for reply in replies] == [Outcome.DONE] * 3
    assert replies[2].order().status is OrderStatus.CANCELLED
    assert (await row_of(shop, "u")).moved_units == {}
    assert await orders_in_redis(shop) == await orders_in_journal(shop)


@pytest.mark.parametrize(
    ("limits", "refusal"),
    [
        ({"sku": 12}, ["sku", 12, 12]),
        ({"style_limits": {"TEE": 12}}, ["style", 12, 12]),
        ({"buyer_limit": 12}, ["sale", 12, 12]),
    ],
)
async def test_moved_orders_count_for_every_limit(shop: Shop, limits: dict[str, int], refusal: list[object]) -> None:
    fields = dict(limits)
    await shop.open(sku("A", 99, buyer_limit=fields.pop("sku", 0)), sku("B", 99), **fields)
    ids = await hold_twelve(shop)
    refused = await shop.hold("u", "k12", ("A", 1))
    assert (refused.outcome, refused.detail) == (Outcome.BUYER_LIMIT_REACHED, refusal)
    await shop.ask(Cancel(ids[0].digest))
    assert (await shop.hold("u", "k13", ("A", 2))).detail == [*refusal[:2], 11]
    assert (await shop.hold("u", "k14", ("A", 1))).outcome is Outcome.DONE
    assert (await shop.hold("u", "k15", ("A", 1))).detail == refusal


async def bought(shop: Shop, buyer: str = "u") -> int:
    """What the limit of the sale, 99 units, says that this buyer has."""
    refused = await shop.hold(buyer, "too many", ("B", 100))
    assert refused.outcome is Outcome.BUYER_LIMIT_REACHED
    count: int = refused.detail[2]
    return count


async def test_a_moved_order_that_is_cancelled_no_longer_counts_and_is_cancelled_once(shop: Shop) -> None:
    await shop.open(sku("A", 20), sku("B", 1000), buyer_limit=99)
    ids = await hold_twelve(shop)
    assert (await shop.ask(Cancel(ids[0].digest)))[0].outcome is Outcome.DONE
    assert (await shop.ask(Cancel(ids[0].digest)))[0].outcome is Outcome.REPEATED
    assert await bought(shop) == 11
    assert (await shop.levels("A")).held == 11
    assert (await row_of(shop, "u")).moved_units == {"A": 7}


async def test_a_moved_order_that_is_settled_counts_on_and_one_that_comes_back_counts_again(shop: Shop) -> None:
    await shop.open(sku("A", 20), sku("B", 1000), buyer_limit=99)
    ids = await hold_twelve(shop)
    assert (await shop.settle(ids[0], "p0", PRICE)).outcome is Outcome.DONE
    assert await bought(shop) == 12
    await shop.ask(Cancel(ids[1].digest))
    assert await bought(shop) == 11
    assert (await shop.settle(ids[1], "p1", PRICE)).outcome is Outcome.DONE
    assert await bought(shop) == 12
    assert (await shop.settle(ids[1], "p2", PRICE)).outcome is Outcome.DUPLICATE_PAYMENT
    assert await bought(shop) == 12
    levels = await shop.levels("A")
    assert (levels.held, levels.settled, levels.available) == (10, 2, 8)
    assert await orders_in_redis(shop) == await orders_in_journal(shop)


async def test_a_moved_order_that_expires_gives_its_units_back_and_no_longer_counts(shop: Shop) -> None:
    await shop.open(sku("A", 20), sku("B", 1000), buyer_limit=99, hold_ms=1000)
    ids = await hold_twelve(shop)
    await shop.settle(ids[0], "p0", PRICE)
    order = (await shop.ask(GetOrder(ids[-1].digest)))[0].order()
    while await shop.partitions.guarding.server_time_ms() <= order.held_until_ms:
        pass
    assert (await shop.ask(Expire(500)))[0].detail == [11, False]
    assert await bought(shop) == 1
    assert (await row_of(shop, "u")).moved_units == {"A": 1}
    assert (await shop.levels("A")).pools == {"shared": 19}
    assert await orders_in_redis(shop) == await orders_in_journal(shop)


async def test_a_repeat_of_a_moved_orders_hold_is_answered_with_that_order(shop: Shop) -> None:
    await shop.open(sku("A", 20))
    ids = await hold_twelve(shop)
    await shop.ask(Cancel(ids[1].digest))
    for n, status in ((0, OrderStatus.HELD), (1, OrderStatus.CANCELLED)):
        repeated = await shop.hold("u", f"k{n}", ("A", 1))
        assert repeated.outcome is Outcome.REPEATED
        assert (repeated.order().sequence, repeated.order().status) == (3 + n, status)
        assert (await shop.hold("u", f"k{n}", ("A", 2))).outcome is Outcome.IDEMPOTENCY_KEY_REUSED
    assert (await shop.levels("A")).held == 11


async def test_more_than_a_hundred_orders_are_all_counted_and_found_though_not_all_are_listed(shop: Shop) -> None:
    await shop.open(sku("A", 500), sku("B", 1000), buyer_limit=999)
    await shop.ask(*(shop.hold_command("u", f"k{n}", ("A", 1))[1] for n in range(130)))
    found = await listed(shop, "u")
    assert [digest for digest, _ in found] == [id_of("u", f"k{n}").digest for n in range(129, 29, -1)]
    assert (await shop.hold("u", "too many", ("B", 900))).detail == ["sale", 999, 130]
    assert (await shop.ask(Cancel(id_of("u", "k0").digest)))[0].outcome is Outcome.DONE
    assert (await shop.hold("u", "too many", ("B", 900))).detail == ["sale", 999, 129]
    assert len(await orders_in_redis(shop)) == 130


async def test_a_hundred_large_orders_are_listed_though_but_one_lies_in_the_row(shop: Shop) -> None:
    names = [f"{number:02}-" + "x" * 100 for number in range(45)]
    await shop.open(*(sku(name, 500) for name in names))
    for first in range(0, 110, 10):
        lines = [(name, 1) for name in names]
        await shop.ask(*(shop.hold_command("u", f"k{n}", *lines)[1] for n in range(first, first + 10)))
    found = await listed(shop, "u")
    assert [digest for digest, _ in found] == [id_of("u", f"k{n}").digest for n in range(109, 9, -1)]


async def step(shop: Shop, chance: random.Random, made: list[tuple[str, str]]) -> Reply:
    """One of the things that can happen to a buyer's orders."""
    what = chance.random()
    if what < 0.5 or not made:
        buyer, key = chance.choice("uvw"), f"k{len(made)}"
        made.append((buyer, key))
        return await shop.hold(buyer, key, (chance.choice("AB"), chance.randint(1, 2)), ("A", 1))
    order_id = id_of(*chance.choice(made))
    if what < 0.7:
        return (await shop.ask(Cancel(order_id.digest)))[0]
    read = (await shop.ask(GetOrder(order_id.digest)))[0]
    if read.outcome is not Outcome.DONE:
        return read
    return await shop.settle(order_id, f"p{chance.randint(0, 3)}", read.order().amount_minor)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_to_buyers_with_many_orders_redis_is_what_the_journal_says(
    shop: Shop, seed: int
) -> None:
    await shop.open(sku("A", 60, channels=[("douyin", 5)]), sku("B", 40))
    chance = random.Random(seed)
    made: list[tuple[str, str]] = []
    outcomes = {(await step(shop, chance, made)).outcome for _ in range(150)}
    assert {Outcome.DONE, Outcome.REPEATED, Outcome.ORDER_NOT_HELD, Outcome.DUPLICATE_PAYMENT} <= outcomes
    in_journal = await orders_in_journal(shop)
    assert await orders_in_redis(shop) == in_journal
    for buyer in "uvw":
        assert len((await row_of(shop, buyer)).moved) >= IN_ROW
        own = [order for order in in_journal.values() if order.buyer_id == buyer]
        counted: dict[str, int] = {}
        for order in own:
            for line in order.lines if order.status in COUNTING else []:
                counted[line.sku] = counted.get(line.sku, 0) + line.quantity
        assert (await row_of(shop, buyer)).units() == counted
        assert [order for _, order in await listed(shop, buyer)] == sorted(own, key=lambda order: -order.sequence)
