"""The audit passes on what really happened, fails for each tampering, and cannot tell where nothing can be seen."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from engine.audit import command
from engine.audit.collect import audit_sale
from engine.audit.report import AuditReport, CannotTell, SaleUnknown
from engine.domain.commands import (
    Cancel,
    ChangeStock,
    Close,
    Define,
    DefineSku,
    Delete,
    Expire,
    GetOrder,
    GetSale,
    Hold,
    NotePersisted,
    Open,
    Pause,
    Resume,
    Settle,
    StockChange,
)
from engine.domain.errors import LedgerUnavailable
from engine.domain.identifiers import OrderId
from engine.domain.orders import HoldRequest, OrderStatus, RequestedLine
from engine.domain.outcomes import Outcome
from engine.ledger.connect import WRITER_SETTINGS, LedgerPool, open_pool
from engine.ledger.persister import LedgerWriter
from engine.ledger.sales import known_partition, retire
from engine.partition import keyspace
from engine.partition.batcher import BatchBounds
from engine.partition.partitions import Partitions
from engine.partition.rows import kept_fields, split_row
from engine.settings import Settings
from tests.conftest import CALL_SETTINGS
from tests.lua.shop import purge

SALE = "drop-1"
KEYS = keyspace.partition_keys(SALE)


class Live:
    """One sale in both stores."""

    def __init__(self, partitions: Partitions, pool: LedgerPool) -> None:
        self.partitions = partitions
        self.pool = pool
        self.writer = LedgerWriter(pool)
        self.defined = 0
        self.holds = 0

    async def ask(self, asked: Any, outcome: Outcome = Outcome.DONE) -> Any:
        (reply,) = await self.partitions.submit(SALE, asked)
        assert reply.outcome is outcome, reply
        return reply

    async def define(self, quantity: int = 20, hold_seconds: int = 60, **more: Any) -> None:
        sku = {"sku": "TEE-M", "style": "TEE", "unit_price_minor": 1990, "quantity": quantity, "withheld": 2}
        sku |= {"channels": {"douyin": 3}}
        cap = {"sku": "CAP", "style": "CAP", "unit_price_minor": 990, "quantity": 5, "buyer_limit": 3}
        document = {"title": "Drop", "currency": "CNY", "hold_seconds": hold_seconds, "skus": [sku, cap]} | more
        self.defined += 1
        await self.partitions.register(SALE)
        await self.ask(
            Define(
                command_id=f"d{self.defined}",
                if_match=0,
                definition=msgspec.json.encode(document).decode(),
                currency="CNY",
                hold_ms=hold_seconds * 1000,
                buyer_limit=0,
                style_limits={},
                opens_at_ms=0,
                closes_at_ms=0,
                skus=[
                    DefineSku("TEE-M", "TEE", 1990, 0, quantity, 2, [("douyin", 3)]),
                    DefineSku("CAP", "CAP", 990, 3, 5, 0, []),
                ],
            )
        )

    async def hold(self, buyer: str, *lines: tuple[str, int], channel: str = "douyin") -> str:
        """The digest of a new hold."""
        self.holds += 1
        requested = [RequestedLine(sku, quantity) for sku, quantity in lines]
        request = HoldRequest(buyer, channel, requested, discount_minor=100, freight_minor=500)
        order_id = OrderId.of(SALE, channel, buyer, f"key-{self.holds}")
        await self.ask(Hold.of(order_id, request))
        return order_id.digest

    async def settle(self, digest: str, payment_id: str, outcome: Outcome = Outcome.DONE) -> None:
        order = (await self.ask(GetOrder(digest))).order()
        await self.ask(Settle(digest, payment_id, order.amount_minor, order.currency), outcome)

    async def persist(self) -> int:
        known = await known_partition(self.pool, SALE)
        records = await self.partitions.journals.records_after(SALE, known.sequence if known else 0, 10_000)
        return (await self.writer.write(SALE, records)).sequence

    async def audit(self) -> AuditReport:
        return await audit_sale(self.partitions, self.pool, SALE)

    async def redis(self, *words: str | bytes | int) -> Any:
        return await self.partitions.connections.execute(*words)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[LedgerPool]:
    opened = await open_pool(database_url, 8, WRITER_SETTINGS)
    yield opened
    await opened.close()


@pytest.fixture
async def live(partitions: Partitions, pool: LedgerPool) -> Live:
    return Live(partitions, pool)


@pytest.fixture
async def busy(live: Live) -> Live:
    """Every kind of change but the closing, all of it in the ledger but for the last hold.

    Of b0's six orders the first two, one of them cancelled, have moved out of the buyer's row in Redis.
    """
    await live.define()
    await live.ask(Open())
    settled = await live.hold("b1", ("TEE-M", 4), ("CAP", 1))
    await live.settle(settled, "p1")
    await live.settle(settled, "p2", Outcome.DUPLICATE_PAYMENT)
    cancelled = await live.hold("b2", ("TEE-M", 2), channel="tmall")
    await live.ask(Cancel(cancelled))
    again = await live.hold("b3", ("CAP", 2))
    await live.ask(Cancel(again))
    await live.settle(again, "p3")
    await live.ask(ChangeStock("S1", "digest", [StockChange("TEE-M", "withheld", "tmall", 2)]))
    await live.ask(Pause())
    await live.ask(Resume())
    await live.define(quantity=22)
    await live.hold("b4", ("TEE-M", 1), channel="tmall")
    many = [await live.hold("b0", ("TEE-M", 1)) for _ in range(6)]
    await live.ask(Cancel(many[0]))
    await live.ask(Cancel(many[-1]))
    await live.persist()
    await live.hold("b5", ("TEE-M", 3))
    return live


def failing(report: AuditReport) -> set[str]:
    assert report.holds is not any(not check.holds for check in report.checks)
    return {check.name for check in report.checks if not check.holds}


def words(report: AuditReport) -> str:
    return "\n".join(f"{check.holds} {check.name} {check.detail}" for check in report.checks)


async def test_what_really_happened_holds(busy: Live) -> None:
    report = await busy.audit()
    assert report.holds, words(report)
    assert len(report.checks) > 20
    assert report.document()["checks"][0].keys() == {"name", "holds", "detail"}


async def test_an_order_that_ended_before_its_deadline_may_be_in_the_index_until_then(live: Live) -> None:
    await live.define()
    await live.ask(Open())
    ids = [OrderId.of(SALE, "douyin", f"b{n}", "k") for n in range(3)]
    holds = [Hold.of(each, HoldRequest(f"b{n}", "douyin", [RequestedLine("TEE-M", 1)])) for n, each in enumerate(ids)]
    await live.partitions.submit(SALE, *holds)
    await live.ask(Cancel(ids[0].digest))
    await live.persist()
    assert await live.redis("ZRANGE", KEYS.due, 0, -1) == ["".join(each.digest for each in ids).encode()]
    report = await live.audit()
    assert report.holds, words(report)


async def test_a_draft_with_nothing_but_its_definition_holds(live: Live) -> None:
    await live.define()
    await live.persist()
    assert (await live.audit()).holds


async def test_a_deleted_draft_holds_and_so_does_one_made_anew(live: Live) -> None:
    await live.define()
    await live.ask(Delete())
    await live.persist()
    assert (await live.audit()).holds
    await live.define()
    await live.ask(Open())
    await live.hold("b1", ("CAP", 1))
    report = await live.audit()
    assert report.holds, words(report)


async def test_expired_and_late_orders_of_a_closed_sale_hold(live: Live) -> None:
    await live.define(hold_seconds=1)
    await live.ask(Open())
    digests = [await live.hold(f"b{number}", ("TEE-M", 1)) for number in range(5)]
    await asyncio.sleep(1.1)
    await live.ask(Expire(2))
    await live.ask(Close())
    await live.ask(Expire(2))
    by_status = {(await live.ask(GetOrder(digest))).order().status: digest for digest in digests}
    await live.settle(by_status[OrderStatus.EXPIRED], "p1", Outcome.PAYMENT_TOO_LATE)
    await live.settle(by_status[OrderStatus.EXPIRED], "p2", Outcome.PAYMENT_TOO_LATE)
    await live.settle(by_status[OrderStatus.HELD], "p3")
    await live.persist()
    report = await live.audit()
    assert report.holds, words(report)


async def test_a_buyer_with_many_orders_holds_whatever_became_of_the_older_ones(live: Live) -> None:
    await live.define(quantity=50, hold_seconds=1)
    await live.ask(Open())
    digests = [await live.hold("b0", ("TEE-M", 1 + number % 2)) for number in range(12)]
    await live.settle(digests[0], "p0")
    await live.settle(digests[0], "p1", Outcome.DUPLICATE_PAYMENT)
    await live.ask(Cancel(digests[1]))
    await live.ask(Cancel(digests[2]))
    await live.settle(digests[2], "p2")
    await live.settle(digests[-1], "p3")
    await asyncio.sleep(1.1)
    await live.ask(Expire(5))
    await live.persist()
    await live.ask(Expire(5))
    for _ in range(3):
        await live.hold("b0", ("TEE-M", 1))
    report = await live.audit()
    assert report.holds, words(report)
    assert len(await moved_digests(live)) == 11


async def test_a_trimmed_journal_holds(busy: Live) -> None:
    sequence = await busy.persist()
    await busy.ask(NotePersisted(sequence, 0))
    await busy.hold("b6", ("TEE-M", 1), channel="tmall")
    assert (await busy.audit()).holds
    await busy.redis("XTRIM", KEYS.journal, "MINID", sequence + 1)
    assert (await busy.audit()).holds


async def test_a_partition_opened_anew_holds(busy: Live) -> None:
    guarding = busy.partitions.guarding
    await guarding.freeze(SALE, "a drill")
    assert await guarding.open(SALE, await guarding.look(SALE), 2, await guarding.server_run(), "reconciled")
    await busy.hold("b6", ("TEE-M", 1))
    report = await busy.audit()
    assert report.holds, words(report)


async def test_the_audit_is_exact_while_buyers_buy(live: Live) -> None:
    await live.define(quantity=1_000_000)
    await live.ask(Open())
    await live.hold("first", ("TEE-M", 1))
    await live.persist()
    stopped = asyncio.Event()

    async def buy(number: int) -> None:
        for turn in range(1_000_000):
            if stopped.is_set():
                return
            digest = await live.hold(f"b{number}-{turn % 3}", ("TEE-M", 1 + turn % 2), ("TEE-M", 1 + turn % 7))
            await (live.settle(digest, f"p{turn}") if turn % 3 == 0 else live.ask(Cancel(digest)))

    async def persist() -> None:
        while not stopped.is_set():
            await live.ask(NotePersisted(await live.persist(), 10))
            await asyncio.sleep(0.02)

    running = [asyncio.create_task(work) for work in (buy(1), buy(2), buy(3), persist())]
    try:
        for _ in range(8):
            report = await live.audit()
            assert report.holds, words(report)
            await asyncio.sleep(0.05)
    finally:
        stopped.set()
        await asyncio.gather(*running)
    await live.persist()
    report = await live.audit()
    assert report.holds, words(report)


async def test_the_audit_is_exact_while_every_audit_is_overtaken_by_buyers_and_the_persister(live: Live) -> None:
    await live.define(quantity=100_000)
    await live.ask(Open())
    over = asyncio.Event()

    async def buy(buyer: str) -> None:
        while not over.is_set():
            digest = await live.hold(buyer, ("TEE-M", 1))
            await live.ask(Cancel(digest))

    async def keep_persisting() -> None:
        while not over.is_set():
            await live.persist()

    for _ in range(300):  # records enough for several reads, between which others go on
        await live.ask(Cancel(await live.hold("b0", ("TEE-M", 1))))
    await live.persist()
    busy_ones = [asyncio.create_task(work) for work in (*(buy(f"b{n}") for n in range(4)), keep_persisting())]
    try:
        for _ in range(30):
            report = await live.audit()
            assert report.holds, words(report)
    finally:
        over.set()
        await asyncio.gather(*busy_ones)


async def test_a_sale_is_answered_as_of_its_place_in_the_batch(live: Live) -> None:
    """The audit rests on it: levels and sequence number of one moment, whatever else is in the batch."""
    await live.define()
    await live.ask(Open())
    request = HoldRequest("b1", "tmall", [RequestedLine("CAP", 1)])
    hold = Hold.of(OrderId.of(SALE, "tmall", "b1", "k"), request)
    before, _, after = await live.partitions.submit(SALE, GetSale(), hold, GetSale())
    assert [dict(reply.sale().levels)["CAP"].held for reply in (before, after)] == [0, 1]
    assert after.sale().state.sequence == before.sale().state.sequence + 1


SLICE_OF_6 = "6 BETWEEN first_sequence AND last_sequence"
LEDGER_TAMPERINGS = [
    ("DELETE FROM orders WHERE sequence = 3", {"orders-ledger-equal-journal", "order-lines-ledger-equal-journal"}),
    ("UPDATE orders SET amount_minor = amount_minor + 1 WHERE sequence = 3", {"orders-ledger-equal-journal"}),
    ("UPDATE order_changes SET status = 3 WHERE order_sequence = 3", {"orders-ledger-equal-journal"}),
    ("UPDATE order_changes SET version = version + 5", {"orders-ledger-equal-journal"}),
    ("DELETE FROM order_changes WHERE payment_id IS NULL AND version = 2", {"orders-ledger-equal-journal"}),
    (
        'INSERT INTO orders SELECT (jsonb_populate_record(orders, \'{"sequence": 1, "digest": "other"}\')).* '
        "FROM orders LIMIT 1",
        {"orders-ledger-equal-journal", "order-lines-ledger-equal-journal"},
    ),
    ("DELETE FROM further_lines WHERE position = 2", {"order-lines-ledger-equal-journal"}),
    ("UPDATE further_lines SET paid_minor = paid_minor - 1", {"order-lines-ledger-equal-journal"}),
    ("UPDATE orders SET paid_minor = paid_minor - 1", {"order-lines-ledger-equal-journal"}),
    ("UPDATE orders SET sku = 'other' WHERE sequence = 3", {"order-lines-ledger-equal-journal"}),
    (
        "DELETE FROM order_changes WHERE payment_id = 'p2'",
        {"payments-ledger-equal-journal", "orders-ledger-equal-journal"},
    ),
    ("UPDATE order_changes SET fate = 1 WHERE fate = 3", {"payments-ledger-equal-journal"}),
    ("UPDATE order_changes SET amount_minor = 1 WHERE fate = 1", {"payments-ledger-equal-journal"}),
    ("DELETE FROM stock WHERE sku = 'CAP'", {"stock-ledger-equals-journal"}),
    (
        "UPDATE stock SET available = available + 1, allocated = allocated + 1 WHERE sku = 'CAP'",
        {"stock-ledger-equals-journal"},
    ),
    ("UPDATE stock SET pools = pools || '{\"jd\": 1}'", {"stock-ledger-equals-journal"}),
    ("UPDATE sales SET status = 'paused'", {"sale-ledger-equals-journal"}),
    ('UPDATE sales SET definition = definition || \'{"title": "x"}\'', {"sale-ledger-equals-journal"}),
    ("DELETE FROM feed WHERE feed_sequence = 2", {"feed-equals-journal", "feed-dense"}),
    ("DELETE FROM feed WHERE feed_sequence = 3", {"feed-equals-journal", "feed-dense"}),
    ("UPDATE feed SET row = replace(row, '\"settled\"', '\"cancelled\"')", {"feed-equals-journal"}),
    ("UPDATE feed SET feed_sequence = feed_sequence + 10", {"feed-dense", "feed-equals-journal"}),
    (
        "INSERT INTO feed SELECT 4, partition_id, version, change, sale_id, order_id, row FROM feed "
        "WHERE feed_sequence = 1",
        {"feed-equals-journal", "feed-dense"},
    ),
    ("UPDATE counters SET feed_sequence = 7", {"feed-dense"}),
    (
        f"UPDATE journal_slices SET at = at - interval '1 day' WHERE {SLICE_OF_6}",
        {"journal-complete", "sequence-dense"},
    ),
    (
        f"UPDATE journal_slices SET entries[6 - first_sequence + 1] = '\\x00' WHERE {SLICE_OF_6}",
        {"journal-complete", "sequence-dense"},
    ),
    (f"UPDATE journal_slices SET epoch = 9 WHERE {SLICE_OF_6}", {"journal-complete"}),
    (f"DELETE FROM journal_slices WHERE {SLICE_OF_6}", {"journal-complete", "sequence-dense"}),
    (
        "DELETE FROM journal_slices WHERE last_sequence = (SELECT max(sequence) FROM journal)",
        {"journal-complete"},
    ),
    ("DELETE FROM journal_slices", {"journal-complete"}),
    ("UPDATE partitions SET persisted_sequence = persisted_sequence - 1", {"journal-complete"}),
    ("UPDATE partitions SET persisted_sequence = persisted_sequence + 1", {"journal-complete"}),
]


@pytest.mark.parametrize(("statement", "expected"), LEDGER_TAMPERINGS)
async def test_a_ledger_that_was_tampered_with_fails(busy: Live, statement: str, expected: set[str]) -> None:
    assert (await busy.audit()).holds
    assert not (await busy.pool.execute(statement)).endswith(" 0")
    report = await busy.audit()
    assert expected <= failing(report), words(report)
    if "journal" not in statement:
        assert failing(report) == expected, words(report)


async def tamper_level(live: Live) -> set[str]:
    packed = msgspec.msgpack.decode(await live.redis("HGET", KEYS.stock, "CAP"))
    packed[0] += 1
    packed[7]["shared"] += 1
    await live.redis("HSET", KEYS.stock, "CAP", msgspec.msgpack.encode(packed))
    return {"stock-redis-equals-journal"}


async def tamper_level_unreadable(live: Live) -> set[str]:
    await live.redis("HSET", KEYS.stock, "CAP", b"\xc1")
    return {"partition-open"}


async def remove_sku(live: Live) -> set[str]:
    await live.redis("HDEL", KEYS.stock, "CAP")
    return {"stock-redis-equals-journal"}


async def moved_digests(live: Live) -> list[bytes]:
    """The orders that do not lie in their buyer's row, the oldest first: those of b0."""
    row = await read_row(live, "b0")
    part, moved = OrderId.buyer_part_of(SALE, "douyin", "b0"), row[0][0]
    return [f"{part}{moved[at : at + 12]}".encode() for at in range(0, len(moved), 12)]


async def read_row(live: Live, buyer: str, channel: str = "douyin") -> list[Any]:
    """[what it says of moved orders, if any moved, part of the digest, fields, part of the digest, fields, …]"""
    part = OrderId.buyer_part_of(SALE, channel, buyer)
    moved, orders = split_row(await live.redis("HGET", KEYS.buyers, part))
    return [*([moved] if moved else []), *(piece for part, kept in orders for piece in (part, kept_fields(kept)))]


async def write_row(live: Live, buyer: str, row: list[Any], channel: str = "douyin") -> None:
    moved = row[: len(row) % 2]
    pairs = zip(row[len(moved) :: 2], row[len(moved) + 1 :: 2], strict=True)
    pieces = [part.encode() + kept_of(fields) for part, fields in pairs]
    strings = b"".join(b"\xda" + len(piece).to_bytes(2, "big") + piece for piece in pieces)
    head = bytes([0x90 + len(moved) + len(pieces)]) + b"".join(map(msgspec.msgpack.encode, moved))
    await live.redis("HSET", KEYS.buyers, OrderId.buyer_part_of(SALE, channel, buyer), head + strings)


def kept_of(fields: list[Any]) -> bytes:
    return b"".join(map(msgspec.msgpack.encode, fields))


async def remove_order(live: Live) -> set[str]:
    await live.redis("HDEL", KEYS.orders, (await moved_digests(live))[0])
    return {"orders-redis-equal-journal"}


async def change_order(live: Live) -> set[str]:
    digest = (await moved_digests(live))[1]
    order = kept_fields(await live.redis("HGET", KEYS.orders, digest))
    order[3] = "somebody else"
    await live.redis("HSET", KEYS.orders, digest, kept_of(order))
    return {"orders-redis-equal-journal"}


async def change_ended_order(live: Live) -> set[str]:
    digest = (await moved_digests(live))[0]
    order = kept_fields(await live.redis("HGET", KEYS.orders, digest))
    order[1] = OrderStatus.EXPIRED
    await live.redis("HSET", KEYS.orders, digest, kept_of(order))
    return {"orders-redis-equal-journal"}


async def spoil_order(live: Live) -> set[str]:
    await live.redis("HSET", KEYS.orders, (await moved_digests(live))[0], b"\xc1")
    return {"orders-redis-equal-journal"}


async def add_order(live: Live) -> set[str]:
    order = await live.redis("HGET", KEYS.orders, (await moved_digests(live))[0])
    await live.redis("HSET", KEYS.orders, "another", order)
    return {"orders-redis-equal-journal"}


async def remove_order_from_row(live: Live) -> set[str]:
    row = await read_row(live, "b0")
    await write_row(live, "b0", row[:1] + row[3:])
    return {"orders-redis-equal-journal", "buyer-counters"}


async def change_order_in_row(live: Live) -> set[str]:
    part, order = await read_row(live, "b1")
    order[4] = "another reference"
    await write_row(live, "b1", [part, order])
    return {"orders-redis-equal-journal"}


async def change_ended_order_in_row(live: Live) -> set[str]:
    part, order = await read_row(live, "b2", "tmall")
    order[8] += 1  # seconds held for
    await write_row(live, "b2", [part, order], "tmall")
    return {"orders-redis-equal-journal"}


async def change_quantity_in_row(live: Live) -> set[str]:
    part, order = await read_row(live, "b5")
    order[13][0][2] += 1
    await write_row(live, "b5", [part, order])
    return {"orders-redis-equal-journal", "buyer-counters"}


async def add_order_to_row(live: Live) -> set[str]:
    row = await read_row(live, "b5")
    await write_row(live, "b5", ["another-part", row[1], *row])
    return {"orders-redis-equal-journal", "buyer-counters"}


async def swap_orders_in_row(live: Live) -> set[str]:
    moved, *row = await read_row(live, "b0")
    await write_row(live, "b0", [moved, *row[2:4], *row[:2], *row[4:]])
    return {"buyer-counters"}


async def spoil_row(live: Live) -> set[str]:
    await live.redis("HSET", KEYS.buyers, OrderId.buyer_part_of(SALE, "douyin", "b1"), b"\xc1")
    return {"orders-redis-equal-journal", "buyer-counters"}


async def empty_row(live: Live) -> set[str]:
    await write_row(live, "b0", (await read_row(live, "b0"))[:1])
    return {"orders-redis-equal-journal", "buyer-counters"}


async def last_bunch(live: Live) -> bytes:
    """Of the index: the digest of b5's open hold."""
    bunch: bytes = (await live.redis("ZRANGE", KEYS.due, -1, -1))[0]
    return bunch


async def remove_due(live: Live) -> set[str]:
    await live.redis("ZREM", KEYS.due, await last_bunch(live))
    return {"due-index"}


async def postpone_due(live: Live) -> set[str]:
    await live.redis("ZINCRBY", KEYS.due, 1, await last_bunch(live))
    return {"due-index"}


async def name_another_in_a_bunch(live: Live) -> set[str]:
    bunch = await last_bunch(live)
    deadline = await live.redis("ZSCORE", KEYS.due, bunch)
    await live.redis("ZREM", KEYS.due, bunch)
    await live.redis("ZADD", KEYS.due, deadline, bunch + b"-" * 24)
    return {"due-index"}


async def put_in_two_bunches(live: Live) -> set[str]:
    bunch = await last_bunch(live)
    deadline = await live.redis("ZSCORE", KEYS.due, bunch)
    await live.redis("ZADD", KEYS.due, deadline, bunch + (await live.redis("ZRANGE", KEYS.due, 0, 0))[0])
    return {"due-index"}


async def add_due(live: Live) -> set[str]:
    await live.redis("ZADD", KEYS.due, 10**13, "another")
    return {"due-index"}


async def remove_buyer(live: Live) -> set[str]:
    await live.redis("HDEL", KEYS.buyers, OrderId.buyer_part_of(SALE, "douyin", "b1"))
    return {"buyer-counters", "orders-redis-equal-journal"}


async def change_buyer(live: Live) -> set[str]:
    row = await read_row(live, "b0")
    row[0][1]["TEE-M"] += 1
    await write_row(live, "b0", row)
    return {"buyer-counters"}


async def forget_buyers_counts(live: Live) -> set[str]:
    row = await read_row(live, "b0")
    row[0][1] = {}
    await write_row(live, "b0", row)
    return {"buyer-counters"}


async def forget_buyers_order(live: Live) -> set[str]:
    row = await read_row(live, "b0")
    row[0][0] = row[0][0][12:]
    await write_row(live, "b0", row)
    return {"buyer-counters"}


async def remove_last_entry(live: Live) -> set[str]:
    await live.redis("XDEL", KEYS.journal, (await live.redis("XREVRANGE", KEYS.journal, "+", "-", "COUNT", 1))[0][0])
    return {"journal-complete", "stock-redis-equals-journal"}


async def remove_persisted_entry(live: Live) -> set[str]:
    await live.redis("XDEL", KEYS.journal, "5-0")
    return {"journal-complete"}


async def change_status(live: Live) -> set[str]:
    await live.redis("HSET", KEYS.state, "status", "paused")
    return {"sale-redis-equals-journal"}


async def change_definition(live: Live) -> set[str]:
    await live.redis("SET", KEYS.definition, "{}")
    return {"sale-redis-equals-journal"}


async def step_back(live: Live) -> set[str]:
    await live.redis("HSET", KEYS.state, "sequence", 4)
    return {"journal-complete"}


async def lose_partition(live: Live) -> set[str]:
    await live.redis("DEL", *KEYS)
    return {"partition-open"}


async def freeze(live: Live) -> set[str]:
    await live.partitions.freeze(SALE, "the drill of today")
    return {"partition-open"}


async def lose_marker(live: Live) -> set[str]:
    await live.redis("FLUSHALL")
    return {"partition-open"}


@pytest.mark.parametrize(
    "tamper",
    [
        tamper_level, tamper_level_unreadable, remove_sku, remove_order, change_order, spoil_order, add_order,
        change_ended_order, remove_order_from_row, change_order_in_row, change_ended_order_in_row,
        change_quantity_in_row, add_order_to_row, swap_orders_in_row, spoil_row, empty_row, remove_due, postpone_due,
        put_in_two_bunches, name_another_in_a_bunch,
        add_due, remove_buyer, change_buyer, forget_buyers_counts, forget_buyers_order, remove_last_entry,
        remove_persisted_entry, change_status, change_definition, step_back, lose_partition, freeze, lose_marker,
    ],
)  # fmt: skip
async def test_a_redis_that_was_tampered_with_fails(busy: Live, tamper: Any) -> None:
    assert (await busy.audit()).holds
    expected = await tamper(busy)
    report = await busy.audit()
    assert failing(report) == expected, words(report)


async def test_the_reason_of_a_frozen_partition_is_in_the_audit(busy: Live) -> None:
    await freeze(busy)
    assert "the drill of today" in words(await busy.audit())


async def test_a_retired_sale_is_compared_in_the_ledger_alone_and_says_so(busy: Live) -> None:
    sequence = await busy.persist()
    await retire(busy.pool, SALE, sequence)
    await busy.redis("DEL", *KEYS)
    report = await busy.audit()
    assert report.holds, words(report)
    assert "the ledger alone" in words(report)
    await busy.pool.execute("DELETE FROM orders WHERE sequence = 3")
    assert failing(await busy.audit()) == {"orders-ledger-equal-journal", "order-lines-ledger-equal-journal"}


async def test_a_sale_that_is_purged_while_it_is_looked_at_is_compared_in_the_ledger_alone(busy: Live) -> None:
    sequence = await busy.persist()

    async def retire_and_purge() -> None:
        await retire(busy.pool, SALE, sequence)
        await purge(busy.partitions, SALE)

    purging = asyncio.create_task(retire_and_purge())
    report = await busy.audit()
    assert report.holds, words(report)
    await purging
    assert "the ledger alone" in words(await busy.audit())


async def test_a_sale_purged_from_redis_and_not_retired_in_the_ledger_fails(busy: Live) -> None:
    await purge(busy.partitions, SALE)
    assert not (await busy.audit()).holds


async def test_a_partition_that_the_guard_opens_in_time_holds(busy: Live) -> None:
    guarding = busy.partitions.guarding
    await guarding.freeze(SALE, "a drill")
    auditing = asyncio.create_task(busy.audit())
    await asyncio.sleep(0.3)
    assert await guarding.open(SALE, await guarding.look(SALE), 2, await guarding.server_run(), "reconciled")
    report = await auditing
    assert report.holds, words(report)


async def test_a_sale_that_nobody_knows_cannot_be_told(live: Live) -> None:
    with pytest.raises(SaleUnknown):
        await live.audit()


async def test_a_sale_that_the_ledger_has_nothing_of_cannot_be_told(live: Live) -> None:
    await live.define()
    with pytest.raises(CannotTell, match="is the worker running"):
        await live.audit()


async def test_a_ledger_that_was_emptied_cannot_be_told(busy: Live) -> None:
    await busy.pool.execute(
        "TRUNCATE partitions, journal_slices, orders, stock, sales, feed, order_changes, further_lines"
    )
    with pytest.raises(CannotTell):
        await busy.audit()


async def test_a_redis_that_is_away_cannot_be_told(busy: Live) -> None:
    async with Partitions("redis://127.0.0.1:1/0", short(CALL_SETTINGS), BatchBounds()) as nowhere:
        with pytest.raises(CannotTell):
            await audit_sale(nowhere, busy.pool, SALE)


def short(calls: Any) -> Any:
    return type(calls)(0.2, 0.4, calls.backlog_max_entries, calls.retention_ms)


async def test_a_postgres_that_is_away_cannot_be_told(busy: Live) -> None:
    nowhere = await open_pool("postgresql://nobody@127.0.0.1:1/nothing")
    with pytest.raises(LedgerUnavailable):
        await audit_sale(busy.partitions, nowhere, SALE)
    await nowhere.close()


def settings_of(redis_url: str, database_url: str) -> Settings:
    return Settings(redis_url=redis_url, database_url=database_url, request_deadline_seconds=0.5)


async def run_command(redis_url: str, database_url: str, sale_id: str | None) -> int:
    return await asyncio.to_thread(command.main, settings_of(redis_url, database_url), sale_id)


async def test_the_command_says_each_check_and_ends_with_the_verdict(
    busy: Live, redis_server: str, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run_command(redis_server, database_url, None) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("audit: holds, ")
    assert any(line.startswith(f"ok   {SALE}  never-oversold  ") for line in lines)
    await remove_due(busy)
    assert await run_command(redis_server, database_url, SALE) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines if not line.startswith("ok")] == [
        ["FAIL", SALE, "due-index"],
        ["audit:", "FAILED,", "1"],
    ]


@pytest.mark.parametrize(
    ("redis", "postgres", "sale_id"),
    [
        (None, None, "no-such-sale"),
        ("redis://127.0.0.1:1/0", None, SALE),
        ("redis://127.0.0.1:1/0", None, None),
        (None, "postgresql://nobody@127.0.0.1:1/nothing", SALE),
        (None, "postgresql://nobody@127.0.0.1:1/nothing", None),
    ],
)
async def test_the_command_cannot_tell(
    busy: Live, redis_server: str, database_url: str, redis: str | None, postgres: str | None, sale_id: str | None
) -> None:
    assert await run_command(redis or redis_server, postgres or database_url, sale_id) == 2


async def test_an_engine_that_never_had_a_sale_cannot_be_told(
    partitions: Partitions, redis_server: str, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run_command(redis_server, database_url, None) == 2
    assert "never been a sale" in capsys.readouterr().out
