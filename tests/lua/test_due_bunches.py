"""The index of deadlines: one bunch a batch, of which each hold that is still open ends in its time, once."""

import asyncio

import pytest

from engine.domain.commands import Cancel, CheckShort, Close, Expire, Settle
from engine.domain.identifiers import OrderId
from engine.domain.journal import Expired
from engine.domain.outcomes import Outcome
from engine.partition.glance import Glance
from engine.partition.inspection import BUNCHES_AT_ONCE, PartitionInspection
from engine.partition.keyspace import partition_keys
from tests.lua.shop import SALE, Shop, definition, sku

KEYS = partition_keys(SALE)
PRICE = 1990
HOLD_MS = 1000


async def bunches(shop: Shop) -> list[tuple[list[str], int]]:
    """Each bunch's digests with its deadline."""
    found = await shop.partitions.connections.execute("ZRANGE", KEYS.due, 0, -1, "WITHSCORES")
    flat = [piece for pair in found for piece in pair] if found and isinstance(found[0], list) else found
    texts = [bunch.decode() for bunch in flat[::2]]
    digests = [[text[at : at + 24] for at in range(0, len(text), 24)] for text in texts]
    return list(zip(digests, [int(float(score)) for score in flat[1::2]], strict=True))


async def hold_together(shop: Shop, count: int, prefix: str = "u", units: int = 1) -> list[OrderId]:
    """So many holds in one batch."""
    commands = [shop.hold_command(f"{prefix}{n}", "k", ("A", units)) for n in range(count)]
    replies = await shop.ask(*(command for _, command in commands))
    assert {reply.outcome for reply in replies} == {Outcome.DONE}
    return [order_id for order_id, _ in commands]


async def wait_until_due(shop: Shop) -> None:
    last = (await bunches(shop))[-1][1]
    while await shop.partitions.guarding.server_time_ms() <= last:
        await asyncio.sleep(0.01)


async def expired_digests(shop: Shop) -> list[str]:
    return [entry.digest for _, _, entry in await shop.journal() if isinstance(entry, Expired)]


async def test_the_holds_of_one_batch_are_one_bunch(shop: Shop) -> None:
    await shop.open(sku("A", 100))
    first, second = await hold_together(shop, 30, "u"), await hold_together(shop, 5, "v")
    found = await bunches(shop)
    assert [digests for digests, _ in found] == [[each.digest for each in first], [each.digest for each in second]]
    order = await shop.order("u29", "k")
    assert found[0][1] == order.held_until_ms


async def test_holds_of_one_batch_with_two_deadlines_are_two_bunches_and_none_ends_early(shop: Shop) -> None:
    await shop.open(sku("A", 100), hold_ms=HOLD_MS)
    long, command = shop.hold_command("long", "k", ("A", 1))
    short, sooner = shop.hold_command("short", "k", ("A", 1))
    replies = await shop.ask(sooner, definition(sku("A", 100), hold_ms=60_000), command)
    assert [reply.outcome for reply in replies] == [Outcome.DONE] * 3
    (one, at), (other, later) = await bunches(shop)
    assert (one, other, later - at) == ([short.digest], [long.digest], 60_000 - HOLD_MS)
    assert (await shop.ask(Expire(10)))[0].detail == [0, False]
    while await shop.partitions.guarding.server_time_ms() <= at:
        await asyncio.sleep(0.01)
    assert (await shop.ask(Expire(10)))[0].detail == [1, False]
    assert await expired_digests(shop) == [short.digest]


async def test_a_bunch_is_taken_piece_by_piece_in_its_order_and_each_hold_ends_once(shop: Shop) -> None:
    await shop.open(sku("A", 100), hold_ms=HOLD_MS)
    ids = [*await hold_together(shop, 25, "u"), *await hold_together(shop, 15, "v")]
    ((_, first_deadline), (_, second_deadline)) = await bunches(shop)
    await wait_until_due(shop)
    assert (await shop.ask(Expire(10)))[0].detail == [10, True]
    left = await bunches(shop)
    assert [len(digests) for digests, _ in left] == [15, 15]
    assert [deadline for _, deadline in left] == [first_deadline, second_deadline]
    replies = await shop.ask(Expire(10), Expire(10), Expire(4))
    assert [reply.detail for reply in replies] == [[10, True], [10, True], [4, True]]
    assert [len(digests) for digests, _ in await bunches(shop)] == [6]
    assert (await shop.ask(Expire(10)))[0].detail == [6, False]
    assert await expired_digests(shop) == [order_id.digest for order_id in ids]
    assert await bunches(shop) == []
    assert (await shop.levels("A")).pools == {"shared": 100}


async def test_orders_that_ended_before_are_passed_over_when_their_bunch_comes_due(shop: Shop) -> None:
    await shop.open(sku("A", 100), hold_ms=HOLD_MS)
    ids = await hold_together(shop, 40)
    settled, cancelled, rest = ids[:20], ids[20:30], ids[30:]
    await shop.ask(*(Settle(each.digest, f"p-{each.digest}", PRICE, "CNY") for each in settled))
    await shop.ask(*(Cancel(each.digest) for each in cancelled))
    assert [len(digests) for digests, _ in await bunches(shop)] == [40]
    await wait_until_due(shop)
    replies = await shop.ask(Settle(rest[0].digest, "late", PRICE, "CNY"), Expire(20))
    assert [reply.outcome for reply in replies] == [Outcome.DONE] * 2
    assert replies[1].detail == [9, False]
    assert await expired_digests(shop) == [each.digest for each in rest[1:]]
    assert await bunches(shop) == []
    levels = await shop.levels("A")
    assert (levels.held, levels.settled, levels.pools) == (0, 21, {"shared": 79})


async def test_a_bunch_of_one_goes_with_its_hold_so_that_quiet_times_leave_nothing(shop: Shop) -> None:
    await shop.open(sku("A", 100))
    for n, end in enumerate([Cancel, None, Settle]):
        (order_id,) = await hold_together(shop, 1, f"u{n}-")
        if end is not None:
            await shop.ask(Cancel(order_id.digest) if end is Cancel else Settle(order_id.digest, "p", PRICE, "CNY"))
        else:
            still_open = order_id
    ids = await hold_together(shop, 3, "v")
    await shop.ask(Cancel(ids[1].digest))
    found = [digests for digests, _ in await bunches(shop)]
    assert found == [[still_open.digest], [each.digest for each in ids]]


async def test_a_call_that_only_passes_over_is_bounded_too(shop: Shop) -> None:
    await shop.open(sku("A", 1000), hold_ms=HOLD_MS)
    ids = await hold_together(shop, 200)
    await shop.ask(*(Cancel(each.digest) for each in ids))
    await wait_until_due(shop)
    assert (await shop.ask(Expire(10)))[0].detail == [0, True]
    left = sum(len(digests) for digests, _ in await bunches(shop))
    assert 110 < left < 200


async def test_whoever_wants_a_unit_of_a_due_hold_gets_it_from_behind_many_settled_ones(shop: Shop) -> None:
    await shop.open(sku("A", 1001), hold_ms=HOLD_MS)
    for n in range(4):
        ids = await hold_together(shop, 250, f"batch{n}-")
        await shop.ask(*(Settle(each.digest, f"p-{each.digest}", PRICE, "CNY") for each in ids))
    (last,) = await hold_together(shop, 1, "last")
    assert (await shop.hold("w", "k", ("A", 1))).outcome is Outcome.SOLD_OUT
    await wait_until_due(shop)
    check = CheckShort((("douyin", "A", 1),), ("b" * 12,), (0,))
    assert (await shop.ask(check))[0].detail[0] == [[]]  # only a hold can tell
    assert (await shop.hold("w", "k", ("A", 1))).outcome is Outcome.DONE
    assert await expired_digests(shop) == [last.digest]


async def test_a_closed_sale_whose_holds_are_all_settled_is_swept_at_the_deadline(shop: Shop) -> None:
    await shop.open(sku("A", 10), hold_ms=HOLD_MS)
    ids = await hold_together(shop, 4)
    await shop.ask(*(Settle(each.digest, f"p-{each.digest}", PRICE, "CNY") for each in ids), Close())
    glance = Glance(shop.partitions.connections)
    assert list(await glance.earliest_deadlines([SALE])) == [SALE]
    await wait_until_due(shop)
    assert (await shop.ask(Expire(10)))[0].detail == [0, False]
    assert await glance.earliest_deadlines([SALE]) == {}


async def test_a_sale_leaves_redis_when_nothing_is_held_although_deadlines_are_to_come(shop: Shop) -> None:
    await shop.open(sku("A", 10))
    ids = await hold_together(shop, 2)
    guarding, glance = shop.partitions.guarding, Glance(shop.partitions.connections)
    await shop.ask(Settle(ids[0].digest, "p", PRICE, "CNY"), Close())
    sequence = (await shop.sale()).state.sequence
    assert await glance.with_open_holds([SALE]) == {SALE}
    assert not await guarding.retire(SALE, sequence)
    await shop.ask(Settle(ids[1].digest, "q", PRICE, "CNY"))
    assert await glance.with_open_holds([SALE]) == set()
    assert len(await bunches(shop)) == 1
    assert await guarding.retire(SALE, sequence + 1)
    assert await shop.partitions.connections.execute("EXISTS", *KEYS) == 1


@pytest.mark.parametrize("deadlines", [1, 7, 3 * BUNCHES_AT_ONCE])
async def test_the_index_is_read_whole_whatever_shares_a_deadline(shop: Shop, deadlines: int) -> None:
    """Also where more bunches share a deadline than are read at once, or a group of them ends where a page does."""
    expected = {f"{n:012d}{part:012d}": 10**12 + n % deadlines for n in range(170) for part in range(3)}
    by_bunch: dict[str, str] = {}
    for digest in expected:
        by_bunch[digest[:12]] = by_bunch.get(digest[:12], "") + digest
    for head, bunch in by_bunch.items():
        await shop.partitions.connections.execute("ZADD", KEYS.due, expected[head + "0" * 12], bunch)
    found = [each async for each in PartitionInspection(shop.partitions.connections).due(SALE)]
    assert len(found) == len(expected)
    assert dict(found) == expected
