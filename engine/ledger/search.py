"""The help desk's search over every sale and channel (contract §5)."""

import struct
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from engine.domain.identifiers import OrderId
from engine.domain.orders import OrderStatus, PaymentFate, rfc3339
from engine.ledger.connect import LedgerPool
from engine.ledger.cursors import CursorSeal, InvalidCursor
from engine.ledger.feed import cursor_secret
from engine.ledger.feed_document import payment_code
from engine.ledger.queries import load
from engine.ledger.sales import known_partition
from engine.ledger.search_keys import text_number

_queries = load("search")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_POSITION = struct.Struct("!qiq")
"""What a cursor stands for: created_at in microseconds, partition_id, sequence."""

Key = tuple[int, int]
"""(partition_id, sequence of the hold): what an order is known by inside the ledger."""


@dataclass(frozen=True)
class OrderQuery:
    """What the orders found have in common; None asks for nothing."""

    order_id: str | None = None
    channel: str | None = None
    buyer_id: str | None = None
    reference: str | None = None
    payment_id: str | None = None
    sale_id: str | None = None
    sku: str | None = None
    status: OrderStatus | None = None


@dataclass(frozen=True)
class OrderPage:
    """Order documents, newest first."""

    orders: list[dict[str, Any]]
    next_cursor: str
    """Where the next page starts; the given `after` where this page is empty."""
    has_more: bool


class _Conditions:
    """A WHERE clause in the making: each condition with its arguments."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self.arguments: list[Any] = []

    def add(self, name: str, *arguments: Any) -> None:
        """Ask for the named condition as well."""
        self._texts.append(self.fill(name, *arguments))

    def fill(self, name: str, *arguments: Any) -> str:
        """The named fragment with the numbers of its arguments."""
        first = len(self.arguments) + 1
        self.arguments.extend(arguments)
        return _queries[name].format(*(f"${number}" for number in range(first, first + len(arguments))))

    def where(self) -> str:
        """The clause; empty where nothing was asked for."""
        return "\nWHERE " + "\nAND ".join(self._texts) if self._texts else ""


async def search(pool: LedgerPool, query: OrderQuery, after: str, limit: int) -> OrderPage:
    """At most `limit` orders that the query fits, newest first, behind the cursor `after` (empty for the start).

    An order as the checkout sees it (contract §4), with `version`, `labels`, `payment_id`, `created_at`, `settled_at`,
    all `payments` and `payments_due_for_refund`, and each line's `outer_code`. A page is seen at one moment, and a
    cursor keeps its place while new orders arrive.

    Raises: InvalidCursor, LedgerUnavailable.
    """
    seal = CursorSeal(await cursor_secret(pool), b"search")
    position = _position_of(seal, after) if after else None
    conditions = await _conditions_of(pool, query, position, limit + 1)
    if conditions is None:
        return OrderPage([], after, has_more=False)
    async with pool.snapshot() as connection:
        found = await connection.fetch(conditions.statement, *conditions.arguments)
        rows = found[:limit]
        keys = [row["partition_id"] for row in rows], [row["sequence"] for row in rows]
        lines = _by_order(await connection.fetch(_queries["lines_of"], *keys) if rows else [])
        payments = _by_order(await connection.fetch(_queries["payments_of"], *keys) if rows else [])
    return OrderPage(
        orders=[_document(row, lines[_key(row)], payments[_key(row)]) for row in rows],
        next_cursor=seal.seal(_POSITION.pack(_microseconds(rows[-1]["created_at"]), *_key(rows[-1])))
        if rows
        else after,
        has_more=len(found) > limit,
    )


@dataclass(frozen=True)
class _Statement:
    statement: str
    arguments: list[Any]


async def _conditions_of(
    pool: LedgerPool, query: OrderQuery, position: tuple[int, int, int] | None, limit: int
) -> _Statement | None:
    """The statement that answers the query; None where no order can fit it."""
    conditions = _Conditions()
    sale_id = query.sale_id
    if query.order_id is not None:
        order_id = OrderId.parse(query.order_id)
        if order_id is None or sale_id not in (None, order_id.sale_id):
            return None
        sale_id = order_id.sale_id
        conditions.add("if_digest", text_number(order_id.digest), order_id.digest)
    if sale_id is not None:
        partition = await known_partition(pool, sale_id)
        if partition is None:
            return None
        conditions.add("if_partition", partition.partition_id)
    for name in ("buyer_id", "reference", "payment_id", "sku"):
        if (text := getattr(query, name)) is not None:
            conditions.add(f"if_{name}", text_number(text), text)
    for name in ("channel", "status"):
        if (wanted := getattr(query, name)) is not None:
            conditions.add(f"if_{name}", wanted)
    if query.status is OrderStatus.HELD:
        conditions.add("if_held_somewhere")
    if query.status is OrderStatus.REFUND_DUE:
        conditions.add("if_due_for_refund")
    if position is not None and sale_id is not None:
        conditions.add("if_before_in_partition", position[2])
    elif position is not None:
        conditions.add("if_before", _EPOCH + timedelta(microseconds=position[0]), position[1], position[2])
    where = conditions.where()
    order = conditions.fill("newest" if sale_id is None else "newest_in_partition", limit)
    return _Statement(f"{_queries['select']}{where}\n{order}", conditions.arguments)


def _position_of(seal: CursorSeal, cursor: str) -> tuple[int, int, int]:
    payload = seal.unseal(cursor)
    if len(payload) != _POSITION.size:
        raise InvalidCursor("this cursor was never given")
    created, partition_id, sequence = _POSITION.unpack(payload)
    return created, partition_id, sequence


def _key(row: Any) -> Key:
    return row["partition_id"], row["sequence"]


def _by_order(rows: list[Any]) -> dict[Key, list[Any]]:
    grouped: dict[Key, list[Any]] = defaultdict(list)
    for row in rows:
        grouped[row["partition_id"], row["order_sequence"]].append(row)
    return grouped


def _microseconds(at: datetime) -> int:
    return (at - _EPOCH) // timedelta(microseconds=1)


def _time(at: datetime | None) -> str | None:
    return None if at is None else rfc3339(_microseconds(at) // 1000)


def _document(row: Any, lines: list[Any], payments: list[Any]) -> dict[str, Any]:
    """An order's document, ready for JSON."""
    reported = [_payment(payment) for payment in payments]
    return {
        "order_id": str(OrderId(row["sale_id"], row["digest"])),
        "sale_id": row["sale_id"],
        "labels": msgspec.json.decode(row["labels"]) if row["labels"] else {},
        "channel": row["channel"],
        "buyer_id": row["buyer_id"],
        "reference": row["reference"],
        "status": OrderStatus(row["status"]).word,
        "version": row["version"],
        "payment_id": row["payment_id"],
        "created_at": _time(row["created_at"]),
        "held_until": _time(row["held_until"]),
        "settled_at": _time(row["settled_at"]),
        "discount_minor": row["discount_minor"],
        "freight_minor": row["freight_minor"],
        "amount_minor": row["amount_minor"],
        "currency": row["currency"],
        "sequence": row["sequence"],
        "lines": [
            {
                name: line[name]
                for name in ("line_id", "sku", "outer_code", "quantity", "unit_price_minor", "paid_minor")
            }
            for line in lines
        ],
        "payments": reported,
        "payments_due_for_refund": [
            {name: payment[name] for name in ("payment_id", "amount_minor", "currency", "code", "received_at")}
            for payment in reported
            if payment["code"] is not None
        ],
    }


def _payment(row: Any) -> dict[str, Any]:
    return {
        "payment_id": row["payment_id"],
        "amount_minor": row["amount_minor"],
        "currency": row["currency"],
        "code": payment_code(PaymentFate(row["fate"])),
        "received_at": _time(row["at"]),
    }
