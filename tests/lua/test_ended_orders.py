"""An order that has ended is kept in less room, and reads as it did before."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from engine.domain.commands import Cancel, Close, Expire, GetOrder, ListBuyerOrders, Settle
from engine.domain.identifiers import OrderId
from engine.domain.journal import OrderEntry
from engine.domain.orders import RECORD_FORMAT, HoldRequest, OrderRecord, OrderStatus, RequestedLine
from engine.domain.outcomes import Outcome
from engine.partition.inspection import PartitionInspection
from engine.partition.keyspace import partition_keys
from engine.partition.rows import ENDED_FORMAT, split_row
from tests.lua.shop import SALE, Shop, sku

HOLD_MS = 1000
ONE_LINE: dict[str, Any] = {"lines": [RequestedLine("A", 1)]}
CARTS: dict[str, dict[str, Any]] = {
    "one_line": ONE_LINE,
    "reference": {**ONE_LINE, "reference": "订单-0042"},
    "discount_and_freight": {"lines": [RequestedLine("A", 3)], "discount_minor": 1, "freight_minor": 1500},
    "nothing_to_pay": {**ONE_LINE, "discount_minor": 1990},
    "default_line_ids": {"lines": [RequestedLine("A", 1), RequestedLine("B", 2), RequestedLine("A", 4)]},
    "own_line_ids": {"lines": [RequestedLine("A", 1, "x" * 128), RequestedLine("B", 9999, "2")]},
    "two_hundred_lines": {"lines": [RequestedLine("A", 1 + n % 3, f"line {n}") for n in range(200)]},
    "large_amounts": {"lines": [RequestedLine("DEAR", 9999)], "freight_minor": 10**9},
}


class Kept:
    """One order, and how its partition keeps it."""

    def __init__(self, shop: Shop, buyer: str = "买家 u", channel: str = "tmall") -> None:
        self.shop = shop
        self.buyer = buyer
        self.channel = channel
        self.order_id = OrderId.of(SALE, channel, buyer, "k")
        self.open_bytes = b""
        self.amount_minor = 0

    async def hold(self, cart: dict[str, Any]) -> None:
        lines = [(line.sku, line.quantity) for line in cart["lines"]]
        _, command = self.shop.hold_command(self.buyer, "k", *lines, channel=self.channel)
        request = HoldRequest(self.buyer, self.channel, **cart)
        command = type(command).of(self.order_id, request)
        reply = (await self.shop.ask(command))[0]
        assert reply.outcome is Outcome.DONE, reply
        self.amount_minor = reply.held().amount_minor
        self.open_bytes = await self.bytes()

    async def row(self) -> list[tuple[str, bytes]]:
        """What is kept of each order beside its part of the digest."""
        key, part = partition_keys(SALE).buyers, self.order_id.buyer_part
        return split_row(await self.shop.partitions.connections.execute("HGET", key, part))[1]

    async def bytes(self) -> bytes:
        """What is kept of the order in its buyer's row, in which it is the only one."""
        ((_, kept),) = await self.row()
        return kept

    async def format(self) -> int:
        return (await self.bytes())[0]

    async def pay(self, payment_id: str, amount_minor: int | None = None, currency: str = "CNY") -> Outcome:
        amount = self.amount_minor if amount_minor is None else amount_minor
        return (await self.shop.settle(self.order_id, payment_id, amount, currency)).outcome

    async def cancel(self) -> None:
        assert (await self.shop.ask(Cancel(self.order_id.digest)))[0].outcome is Outcome.DONE

    async def in_journal(self) -> OrderRecord:
        """The order as its last journal entry has it, which never was made small."""
        entries = [entry for _, _, entry in await self.shop.journal() if isinstance(entry, OrderEntry)]
        assert {entry.digest for entry in entries} == {self.order_id.digest}
        return entries[-1].order

    async def readings(self) -> list[OrderRecord]:
        """By its id, by its buyer's list, and as the audit reads it past the script."""
        digest, part = self.order_id.digest, self.order_id.buyer_part
        read, mine = await self.shop.ask(GetOrder(digest), ListBuyerOrders(part))
        (listed,) = mine.buyer_orders()
        inspection = PartitionInspection(self.shop.partitions.connections)
        rows = [row async for _, row in inspection.buyers(SALE)]
        assert rows[0] is not None
        assert [listed[0], rows[0].orders[0][0]] == [digest, digest]
        return [read.order(), listed[1], rows[0].orders[0][1]]


@pytest.fixture
async def kept(shop: Shop) -> Kept:
    await shop.open(
        sku("A", 1000, channels=[("douyin", 2)]),
        sku("B", 10_000),
        sku("DEAR", 10_000, unit_price_minor=10**9),
        hold_ms=HOLD_MS,
    )
    return Kept(shop)


async def cancelled(kept: Kept) -> OrderStatus:
    await kept.cancel()
    return OrderStatus.CANCELLED


async def expired(kept: Kept) -> OrderStatus:
    held_until_ms = (await kept.in_journal()).held_until_ms
    while await kept.shop.partitions.guarding.server_time_ms() <= held_until_ms:
        pass
    assert (await kept.shop.ask(Expire(500)))[0].detail == [1, False]
    return OrderStatus.EXPIRED


async def settled(kept: Kept) -> OrderStatus:
    assert await kept.pay("支付-1") is Outcome.DONE
    return OrderStatus.SETTLED


async def cancelled_and_settled(kept: Kept) -> OrderStatus:
    await kept.cancel()
    assert await kept.pay("p") is Outcome.DONE
    return OrderStatus.SETTLED


async def settled_twice(kept: Kept) -> OrderStatus:
    assert await kept.pay("p") is Outcome.DONE
    assert await kept.pay("q", 1, "USD") is Outcome.DUPLICATE_PAYMENT
    return OrderStatus.SETTLED


async def paid_too_late(kept: Kept) -> OrderStatus:
    await kept.cancel()
    await kept.shop.ask(Close())
    assert await kept.pay("p") is Outcome.PAYMENT_TOO_LATE
    return OrderStatus.REFUND_DUE


async def paid_too_late_twice(kept: Kept) -> OrderStatus:
    await paid_too_late(kept)
    assert await kept.pay("q") is Outcome.PAYMENT_TOO_LATE
    return OrderStatus.REFUND_DUE


End = Callable[[Kept], Awaitable[OrderStatus]]


@pytest.mark.parametrize("end", [cancelled, settled])
@pytest.mark.parametrize("cart", CARTS.values(), ids=CARTS.keys())
async def test_an_ended_order_reads_as_its_journal_has_it_and_takes_less_room(
    kept: Kept, cart: dict[str, Any], end: End
) -> None:
    await kept.hold(cart)
    status = await end(kept)
    expected = await kept.in_journal()
    assert expected.status is status
    assert await kept.readings() == [expected] * 3
    assert await kept.format() == ENDED_FORMAT
    assert len(await kept.bytes()) < len(msgspec.msgpack.encode(expected))
    if not expected.payments:
        assert len(await kept.bytes()) < len(kept.open_bytes)


@pytest.mark.parametrize(("paid", "bytes_max"), [(True, 95), (False, 84)])
async def test_an_ended_order_of_the_usual_kind_fits_into_few_bytes(shop: Shop, paid: bool, bytes_max: int) -> None:
    """The whole row. Up to 100 and 84 bytes take the same of memory; the time until it is paid may be four longer."""
    await shop.open(sku("TEE-BLK-M", 100_000), hold_ms=86_400_000)
    await shop.partitions.connections.execute("HINCRBY", partition_keys(SALE).state, "made_at", -86_400_000)
    await shop.partitions.connections.execute("HINCRBY", partition_keys(SALE).state, "sequence", 100_000)
    order_id, command = shop.hold_command("buyer-000001", "k", ("TEE-BLK-M", 1))
    await shop.ask(command)
    await shop.partitions.connections.execute("HINCRBY", partition_keys(SALE).state, "sequence", 100_000)
    end = Settle(order_id.digest, "payment-00000001", 1990, "CNY") if paid else Cancel(order_id.digest)
    assert (await shop.ask(end))[0].outcome is Outcome.DONE
    row = await shop.partitions.connections.execute("HGET", partition_keys(SALE).buyers, order_id.buyer_part)
    assert len(row) <= bytes_max


@pytest.mark.parametrize("cart", [CARTS["reference"], CARTS["default_line_ids"]])
async def test_an_expired_order_reads_as_its_journal_has_it_and_takes_less_room(
    kept: Kept, cart: dict[str, Any]
) -> None:
    await kept.hold(cart)
    status = await expired(kept)
    expected = await kept.in_journal()
    assert expected.status is status
    assert await kept.readings() == [expected] * 3
    assert len(await kept.bytes()) < len(kept.open_bytes)


@pytest.mark.parametrize("end", [cancelled, settled, cancelled_and_settled, settled_twice, paid_too_late])
async def test_an_ended_order_with_units_of_its_channels_own_pool_reads_as_its_journal_has_it(
    kept: Kept, end: End
) -> None:
    own = Kept(kept.shop, channel="douyin")
    await own.hold(CARTS["default_line_ids"])
    assert {units.pool for units in (await own.in_journal()).own_units} == {"shared", "douyin"}
    status = await end(own)
    expected = await own.in_journal()
    assert expected.status is status
    assert await own.readings() == [expected] * 3


@pytest.mark.parametrize("cart", CARTS.values(), ids=CARTS.keys())
async def test_an_order_that_was_paid_for_after_it_had_ended_is_kept_whole(kept: Kept, cart: dict[str, Any]) -> None:
    await kept.hold(cart)
    assert await cancelled_and_settled(kept) is OrderStatus.SETTLED
    expected = await kept.in_journal()
    assert await kept.readings() == [expected] * 3
    assert await kept.format() == RECORD_FORMAT


@pytest.mark.parametrize(("end", "payments"), [(settled_twice, 2), (paid_too_late, 1), (paid_too_late_twice, 2)])
async def test_payments_due_for_refund_are_kept_word_for_word(kept: Kept, end: End, payments: int) -> None:
    await kept.hold(CARTS["discount_and_freight"])
    status = await end(kept)
    expected = await kept.in_journal()
    assert (expected.status, len(expected.payments)) == (status, payments)
    assert await kept.readings() == [expected] * 3


async def test_repeats_are_answered_with_the_whole_order_from_the_little_that_is_kept(kept: Kept) -> None:
    await kept.hold(CARTS["default_line_ids"])
    await settled(kept)
    expected = await kept.in_journal()
    request = HoldRequest(kept.buyer, kept.channel, **CARTS["default_line_ids"])
    _, command = kept.shop.hold_command(kept.buyer, "k", ("A", 1), channel=kept.channel)
    hold, payment = (
        (await kept.shop.ask(type(command).of(kept.order_id, request)))[0],
        await kept.shop.settle(kept.order_id, "支付-1", kept.amount_minor),
    )
    assert [(reply.outcome, reply.order()) for reply in (hold, payment)] == [(Outcome.REPEATED, expected)] * 2
    other = await kept.shop.settle(kept.order_id, "支付-1", kept.amount_minor + 1)
    assert other.outcome is Outcome.IDEMPOTENCY_KEY_REUSED


async def test_an_ended_order_stays_as_it_is_when_its_row_is_written_again(kept: Kept) -> None:
    await kept.hold(CARTS["reference"])
    await cancelled(kept)
    before, expected = await kept.bytes(), await kept.in_journal()
    await kept.shop.hold(kept.buyer, "another", ("A", 1), channel=kept.channel)
    assert (await kept.row())[0][1] == before
    for n in range(4):
        await kept.shop.hold(kept.buyer, f"more {n}", ("A", 1), channel=kept.channel)
    moved = await kept.shop.partitions.connections.execute("HGET", partition_keys(SALE).orders, kept.order_id.digest)
    assert moved == before
    assert (await kept.shop.ask(GetOrder(kept.order_id.digest)))[0].order() == expected


async def test_an_order_that_is_paid_for_a_second_time_is_kept_whole_again(kept: Kept) -> None:
    await kept.hold(CARTS["reference"])
    await settled(kept)
    assert await kept.format() == ENDED_FORMAT
    assert await kept.pay("q") is Outcome.DUPLICATE_PAYMENT
    expected = await kept.in_journal()
    assert [payment.payment_id for payment in expected.payments] == ["支付-1", "q"]
    assert await kept.readings() == [expected] * 3


@pytest.mark.parametrize("hold_seconds", [1, 29, 61, 604_800])
async def test_the_time_of_an_ended_hold_is_exact_to_the_millisecond(shop: Shop, hold_seconds: int) -> None:
    await shop.open(sku("A", 5), hold_ms=hold_seconds * 1000)
    kept = Kept(shop)
    await kept.hold(ONE_LINE)
    await cancelled(kept)
    expected = await kept.in_journal()
    assert expected.held_until_ms - expected.created_at_ms == hold_seconds * 1000
    assert await kept.readings() == [expected] * 3
