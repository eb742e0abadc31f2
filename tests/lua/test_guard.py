"""The guard's script: open under the next epoch, freeze, retire; and the grace of deadlines that passed meanwhile."""

import asyncio

import msgspec

from engine.domain.commands import Cancel, Close, Expire, GetOrder, GetSale
from engine.domain.journal import Expired, Held, PartitionOpened
from engine.domain.outcomes import Outcome
from engine.partition import keyspace
from engine.partition.guarding import GRACE_MS
from engine.partition.scripts import load_script
from tests.lua.shop import SALE, Shop, order_of, sku


async def freeze_and_open(shop: Shop) -> None:
    guarding = shop.partitions.guarding
    await guarding.freeze(SALE, "doubts")
    assert await guarding.open(SALE, await guarding.look(SALE), 2, await guarding.server_run(), "no doubts")


async def test_an_opening_is_journalled_under_the_next_epoch(shop: Shop) -> None:
    await shop.open(sku("A", 1))
    await freeze_and_open(shop)
    sequence, _, entry = (await shop.journal())[-1]
    assert (sequence, entry) == (3, PartitionOpened(2, "no doubts", 0, 0))
    assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.DONE


async def test_a_partition_that_changed_meanwhile_is_not_opened(shop: Shop) -> None:
    await shop.open(sku("A", 1))
    guarding = shop.partitions.guarding
    before = await guarding.look(SALE)
    await shop.hold("u", "k", ("A", 1))
    await guarding.freeze(SALE, "doubts")
    assert not await guarding.open(SALE, before, 2, await guarding.server_run(), "no doubts")
    assert not await guarding.open(SALE, await guarding.look(SALE), 2, "another run", "no doubts")


async def test_deadlines_that_passed_while_frozen_get_thirty_seconds_and_later_ones_do_not(shop: Shop) -> None:
    await shop.open(sku("A", 2), hold_ms=200)
    passed = await shop.held_order("u", "k", ("A", 1))
    await shop.partitions.guarding.freeze(SALE, "doubts")
    await asyncio.sleep(0.3)
    await freeze_and_open(shop)
    opened = next(entry for _, _, entry in await shop.journal() if isinstance(entry, PartitionOpened))
    opened_at_ms = (await shop.journal())[-1][1]
    assert opened.grace_until_ms == opened_at_ms + GRACE_MS
    assert opened_at_ms >= passed.held_until_ms
    later_id, later = shop.hold_command("v", "k", ("A", 1))
    await shop.ask(later)
    await asyncio.sleep(0.3)
    assert (await shop.ask(Expire(10)))[0].detail == [1, False]
    assert order_of((await shop.ask(GetOrder(later_id.digest)))[0]).status.word == "expired"
    assert (await shop.hold("w", "k", ("A", 2))).outcome is Outcome.SOLD_OUT


async def test_a_frozen_partition_does_nothing_at_all(shop: Shop, redis_server: str) -> None:
    await shop.open(sku("A", 2))
    before = await shop.partitions.guarding.look(SALE)
    await shop.partitions.guarding.freeze(SALE, "doubts")
    answers = await asyncio.gather(
        shop.hold("u", "k", ("A", 1)), shop.ask(GetSale()), shop.ask(Expire(10)), return_exceptions=True
    )
    assert [type(answer).__name__ for answer in answers] == ["PartitionFrozen"] * 3
    after = await shop.partitions.guarding.look(SALE)
    assert (after.sequence, after.levels) == (before.sequence, before.levels)


async def test_a_closed_sale_leaves_redis_only_when_nothing_of_it_is_open(shop: Shop) -> None:
    await shop.open(sku("A", 2))
    order_id, command = shop.hold_command("u", "k", ("A", 1))
    guarding = shop.partitions.guarding
    await shop.ask(command)
    assert not await guarding.retire(SALE, 3)
    await shop.ask(Close())
    assert not await guarding.retire(SALE, 4)
    await shop.ask(Cancel(order_id.digest))
    assert not await guarding.retire(SALE, 4)
    assert await guarding.retire(SALE, 5)
    keys = keyspace.partition_keys(SALE)
    assert await shop.partitions.connections.execute("EXISTS", *keys) == 1
    assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.SALE_CLOSED
    assert (await shop.ask(GetOrder(order_id.digest)))[0].outcome is Outcome.ORDER_NOT_FOUND


async def test_a_grace_is_given_once_and_a_second_restart_does_not_renew_it(shop: Shop) -> None:
    await shop.open(sku("A", 2), hold_ms=200)
    await shop.hold("u", "k", ("A", 1))
    guarding, keys = shop.partitions.guarding, keyspace.partition_keys(SALE)
    run = await guarding.server_run()

    async def open_with_grace(epoch: int, grace_ms: int) -> PartitionOpened:
        await guarding.freeze(SALE, "doubts")
        words = (load_script("guard").text, len(keys), *keys, "open", epoch - 1)
        sequence = (await guarding.look(SALE)).sequence
        assert await shop.partitions.connections.execute("EVAL", *words, sequence, epoch, run, "", grace_ms) == 1
        entry = (await shop.journal())[-1][2]
        assert isinstance(entry, PartitionOpened)
        return entry

    await guarding.freeze(SALE, "doubts")
    await asyncio.sleep(0.3)
    first = await open_with_grace(2, 2000)
    assert first.grace_until_ms > 0
    assert (await shop.ask(Expire(10)))[0].detail == [0, False]
    second = await open_with_grace(3, 60_000)
    assert (second.grace_from_ms, second.grace_until_ms) == (0, 0)
    assert (await shop.ask(Expire(10)))[0].detail == [0, False]
    while (await shop.ask(Expire(10)))[0].detail[0] == 0:
        await asyncio.sleep(0.05)
    assert (await shop.journal())[-1][1] >= first.grace_until_ms


async def test_holds_between_two_graces_end_in_their_time(shop: Shop) -> None:
    """Three deadlines: one in each of two graces, and one between them, which alone is due."""
    await shop.open(sku("A", 3), hold_ms=60_000)
    orders = [await shop.held_order(f"u{n}", "k", ("A", 1)) for n in range(3)]
    journal = {entry.order.buyer_id: entry.digest for _, _, entry in await shop.journal() if isinstance(entry, Held)}
    now_ms = orders[0].created_at_ms
    keys = keyspace.partition_keys(SALE)
    deadlines = {"u0": now_ms - 900, "u1": now_ms - 600, "u2": now_ms - 300}
    for buyer, deadline in deadlines.items():
        await shop.partitions.connections.execute("ZADD", keys.due, deadline, journal[buyer])
    later = now_ms + 3_600_000
    graces = [[now_ms - 1000, now_ms - 800, later], [now_ms - 400, now_ms - 200, later]]
    await shop.partitions.connections.execute("HSET", keys.state, "graces", msgspec.msgpack.encode(graces))
    assert (await shop.ask(Expire(10)))[0].detail == [1, False]
    ended = [entry.order.buyer_id for _, _, entry in await shop.journal() if isinstance(entry, Expired)]
    assert ended == ["u1"]
