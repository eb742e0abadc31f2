"""Buyers' rows and orders as they lie in Redis: the layouts of `includes/buyer.lua` and `includes/order.lua`, read."""

from typing import Any, NamedTuple

import msgspec

from engine.domain.identifiers import ORDER_PART_LENGTH
from engine.domain.orders import RECORD_FORMAT, OrderRecord, OrderStatus, PaymentFate

ENDED_FORMAT = 4
"""Of an order that has ended: what repeats need of it."""
MS_PER_SECOND = 1000
OPEN_FIELDS, ENDED_FIELDS, RECORD_FIELDS = 15, 15, 19

_decode = msgspec.msgpack.Decoder().decode
_decode_raw = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError, LookupError)


class RowUnreadable(Exception):
    """The bytes are no row, or no order, of this version."""


class SaleFacts(NamedTuple):
    """What all orders of a partition share, so that those that have ended do not repeat it."""

    currency: str
    made_at_ms: int
    """When the partition was made."""


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


def split_row(packed: bytes) -> tuple[list[Any] | None, list[tuple[str, bytes]]]:
    """What a row says of the orders that moved out of it, if any did; (part of the digest, what is kept) of the others.

    Raises: RowUnreadable.
    """
    try:
        pieces = [bytes(piece) for piece in _decode_raw(packed)]
        moved = _decode(pieces.pop(0)) if _is_array(pieces[0]) else None
        orders = [_bytes_of_string(piece) for piece in pieces]
        return moved, [(order[:ORDER_PART_LENGTH].decode(), order[ORDER_PART_LENGTH:]) for order in orders]
    except _UNREADABLE as error:
        raise RowUnreadable(f"not a buyer's row: {error}") from error


def kept_fields(kept: bytes) -> list[Any]:
    """The fields of what is kept of an order, which lie there one behind the other. Raises RowUnreadable."""
    if kept[:1] == bytes([ENDED_FORMAT]):
        count = ENDED_FIELDS
    elif kept[:1] == bytes([RECORD_FORMAT]):
        count = OPEN_FIELDS if kept[1:2] == bytes([OrderStatus.HELD]) else RECORD_FIELDS
    else:
        raise RowUnreadable("an order of another format")
    try:
        return list(_decode(b"\xdc" + count.to_bytes(2, "big") + kept))
    except _UNREADABLE as error:
        raise RowUnreadable(f"not an order: {error}") from error


def decode_row(buyer_part: str, packed: bytes, facts: SaleFacts) -> BuyerRow:
    """The row of a buyer. Raises RowUnreadable."""
    moved, kept = split_row(packed)
    if not kept:
        raise RowUnreadable("a buyer's row without an order in it")
    orders = [(buyer_part + part, decode_order(order, facts)) for part, order in kept]
    try:
        parts, units = moved or ("", {})
        starts = range(0, len(parts), ORDER_PART_LENGTH)
        digests = [buyer_part + parts[at : at + ORDER_PART_LENGTH] for at in starts]
        return BuyerRow(orders, digests, dict(units))  # an empty table is packed as a list
    except _UNREADABLE as error:
        raise RowUnreadable(f"not a buyer's row: {error}") from error


def decode_order(kept: bytes, facts: SaleFacts) -> OrderRecord:
    """An order, by what is kept of it. Raises RowUnreadable."""
    fields = kept_fields(kept)
    try:
        if fields[0] == ENDED_FORMAT:
            fields = _whole(fields, facts)
        elif len(fields) == OPEN_FIELDS:
            sequence = fields[6]
            fields += [1, sequence, 0, []]  # nothing has happened since
        return msgspec.convert(fields, OrderRecord)
    except _UNREADABLE as error:
        raise RowUnreadable(f"not an order: {error}") from error


def _is_array(packed: bytes) -> bool:
    return packed[0] & 0xF0 == 0x90


def _bytes_of_string(packed: bytes) -> bytes:
    """A MessagePack string's bytes, which need not be text."""
    header_length = {0xD9: 2, 0xDA: 3, 0xDB: 5}.get(packed[0], 1)
    return packed[header_length:]


def _whole(kept: list[Any], facts: SaleFacts) -> list[Any]:
    """The record of an order that has ended, as it was before it was made small."""
    (
        _,
        status,
        channel,
        buyer_id,
        reference,
        amount_expected,
        sequence,
        since_made_ms,
        held_seconds,
        discount,
        freight,
        changes_until_ended,
        payment_id,
        until_settled,
        flat_lines,
    ) = kept
    created_at = facts.made_at_ms + since_made_ms
    settled_at = created_at + until_settled if payment_id else 0
    lines = [
        [line_id or str(position), sku, quantity, price]
        for position, (line_id, sku, quantity, price) in enumerate(_quadruples(flat_lines), 1)
    ]
    amount = sum(quantity * price for _, _, quantity, price in lines) - discount + freight
    return [
        RECORD_FORMAT,
        status,
        channel,
        buyer_id,
        reference,
        amount_expected,
        sequence,
        created_at,
        int(created_at + held_seconds * MS_PER_SECOND),
        discount,
        freight,
        amount,
        facts.currency,
        lines,
        [],
        2,
        sequence + changes_until_ended,
        settled_at,
        [[payment_id, amount, facts.currency, int(PaymentFate.SETTLED), settled_at]] if payment_id else [],
    ]


def _quadruples(flat: list[Any]) -> list[list[Any]]:
    return [flat[at : at + 4] for at in range(0, len(flat), 4)]
