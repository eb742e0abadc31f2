"""Buyers' rows and orders as they lie in Redis: the layouts of `includes/buyer.lua` and `includes/order.lua`, read."""

from typing import Any, NamedTuple

import msgspec

from engine.domain.identifiers import ORDER_PART_LENGTH
from engine.domain.orders import RECORD_FORMAT, OrderRecord, OrderStatus, PaymentFate

ENDED_FORMAT = 3
"""Of an order that has ended: what repeats need of it."""
MS_PER_SECOND = 1000

_decode = msgspec.msgpack.Decoder().decode


class RowUnreadable(Exception):
    """The bytes are no row, or no order, of this version."""


class BuyerRow(NamedTuple):
    """One buyer's orders."""

    orders: list[tuple[str, OrderRecord]]
    """(digest, order) of the newest, oldest first."""
    moved: list[str]
    """Digests of those before them, which lie by themselves; the newest of these, oldest first."""
    moved_units: dict[str, int]
    """Units by SKU of the moved ones that count for the buyer's limits."""

    def digests(self) -> list[str]:
        """The buyer's orders that are listed, oldest first."""
        return [*self.moved, *(digest for digest, _ in self.orders)]

    def units(self) -> dict[str, int]:
        """What the buyer holds and has bought, by SKU."""
        units = dict(self.moved_units)
        for _, order in self.orders:
            if order.status in (OrderStatus.HELD, OrderStatus.SETTLED):
                for line in order.lines:
                    units[line.sku] = units.get(line.sku, 0) + line.quantity
        return units


def decode_row(buyer_part: str, packed: bytes, currency: str) -> BuyerRow:
    """The row of a buyer in a sale of this currency. Raises RowUnreadable."""
    try:
        kept = _decode(packed)
        moved_parts, moved_units = kept.pop(0) if isinstance(kept[0], list) else ("", {})
        if not kept:
            raise RowUnreadable("a buyer's row without an order in it")
        parts, records = kept[::2], kept[1::2]
        orders = [(buyer_part + part, _order(record, currency)) for part, record in zip(parts, records, strict=True)]
        moved = [
            buyer_part + moved_parts[at : at + ORDER_PART_LENGTH]
            for at in range(0, len(moved_parts), ORDER_PART_LENGTH)
        ]
        return BuyerRow(orders, moved, dict(moved_units))  # an empty table is packed as a list
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError, LookupError) as error:
        raise RowUnreadable(f"not a buyer's row: {error}") from error


def decode_order(packed: bytes, currency: str) -> OrderRecord:
    """An order that lies by itself. Raises RowUnreadable."""
    try:
        return _order(_decode(packed), currency)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError, LookupError) as error:
        raise RowUnreadable(f"not an order: {error}") from error


def _order(kept: list[Any], currency: str) -> OrderRecord:
    return msgspec.convert(_whole(kept, currency) if kept[0] == ENDED_FORMAT else kept, OrderRecord)


def _whole(kept: list[Any], currency: str) -> list[Any]:
    """The record of an order that has ended, as it was before it was made small."""
    (
        _,
        status,
        channel,
        buyer_id,
        reference,
        body_digest,
        sequence,
        created_at,
        held_seconds,
        discount,
        freight,
        amount,
        flat_lines,
        version,
        changes_until_last,
        payment_id,
        until_settled,
    ) = kept
    settled_at = created_at + until_settled if payment_id else 0
    return [
        RECORD_FORMAT,
        status,
        channel,
        buyer_id,
        reference,
        body_digest,
        sequence,
        created_at,
        int(created_at + held_seconds * MS_PER_SECOND),
        discount,
        freight,
        amount,
        currency,
        [flat_lines[at : at + 4] for at in range(0, len(flat_lines), 4)],
        [],
        version,
        sequence + changes_until_last,
        settled_at,
        [[payment_id, amount, currency, int(PaymentFate.SETTLED), settled_at]] if payment_id else [],
    ]
