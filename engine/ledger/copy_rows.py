"""Rows as PostgreSQL's binary COPY takes them, packed as they are made: no tuple of values for each row, no `datetime`.

A row is the number of its columns, and each value behind its length in bytes; -1 stands for NULL. Fixed columns come
first, so that one call packs a whole row. The order of columns is COPY's alone: the tables may have another.

What cannot be packed (a number beyond its column) raises struct.error; text with lone surrogates, UnicodeEncodeError.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from functools import lru_cache
from struct import Struct
from typing import Any
from zlib import crc32

from engine.domain.orders import OrderLine, OrderRecord, Payment
from engine.ledger.search_keys import text_number

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
NULL = -1
_BYTEA = 17
"""The number that PostgreSQL knows the type by, in every database."""
_ARRAY_HEAD_BYTES = 20
"""Of an array of one dimension: its dimensions, whether there are NULLs, the type, how many elements, from which on."""
POSTGRES_EPOCH_MS = 946_684_800_000
"""2000-01-01, from which PostgreSQL counts a timestamptz in microseconds."""
FORMATS_MAX = 4096
"""Row formats kept compiled: one for each combination of text lengths."""

JOURNAL_COLUMNS = ("partition_id", "epoch", "at", "first_sequence", "last_sequence", "entries")
ORDER_COLUMNS = (
    "partition_id", "sequence", "created_at", "held_until", "digest_key", "buyer_key", "digest", "buyer_id",
    "reference_key", "reference", "discount_minor", "freight_minor", "amount_minor", "channel", "currency",
    "sku_key", "quantity", "unit_price_minor", "paid_minor", "line_id", "sku", "outer_code",
)  # fmt: skip
LINE_COLUMNS = (
    "partition_id", "order_sequence", "position", "sku_key", "quantity", "unit_price_minor", "paid_minor", "line_id",
    "sku", "outer_code",
)  # fmt: skip
CHANGE_COLUMNS = (
    "partition_id", "order_sequence", "version", "sequence", "status", "at", "fate", "amount_minor", "payment_key",
    "currency", "payment_id",
)  # fmt: skip
FEED_COLUMNS = ("partition_id", "change", "sale_id", "version", "order_id", "feed_sequence", "row")

_Pack = Callable[..., bytes]
_partition = Struct(">hii").pack
_journal_head = Struct(">hiiiqiq").pack
_slice_head = Struct(">iqiqiiiiii").pack
_line_order = Struct(">iqih").pack
_line_numbers = Struct(">iqiiiqiq").pack
_order_amounts = Struct(">iqiqiq").pack
_reference_key = Struct(">iq").pack
_NO_REFERENCE = Struct(">ii").pack(NULL, NULL)
_unpaid_change = Struct(">10siqiiiqihiqiiiii").pack
_feed_number = Struct(">iqi").pack


def microseconds(at_ms: int) -> int:
    """A time in milliseconds since 1970 as a timestamptz has it."""
    return (at_ms - POSTGRES_EPOCH_MS) * 1000


def row_head(columns: tuple[str, ...], partition_id: int) -> bytes:
    """What all rows of one partition begin with; `columns` is the table's tuple of them."""
    return _partition(len(columns), 4, partition_id)


def journal_head(partition_id: int, epoch: int, at_ms: int) -> bytes:
    """What the slices of one record begin with."""
    return _journal_head(len(JOURNAL_COLUMNS), 4, partition_id, 8, epoch, 8, microseconds(at_ms))


def journal_slice(first_sequence: int, entries: int, entries_bytes: int) -> bytes:
    """What stands between the head and a slice's entries, each behind its length; that is, the head of an array.

    `entries_bytes`: of the entries with their lengths.
    """
    return _slice_head(
        8, first_sequence, 8, first_sequence + entries - 1,
        _ARRAY_HEAD_BYTES + entries_bytes, 1, 0, _BYTEA, entries, 1,
    )  # fmt: skip


@lru_cache(FORMATS_MAX)
def _order_format(digest: int, buyer: int) -> _Pack:
    return Struct(f">10siqiqiqiqiqi{digest}si{buyer}s").pack


def order_row(head: bytes, era_base: int, digest_text: str, order: OrderRecord) -> bytes:
    """What an order has for itself, up to where `order_rest` goes on; `era_base` is what its search keys begin with."""
    digest, buyer = digest_text.encode(), order.buyer_id.encode()
    row = _order_format(len(digest), len(buyer))(
        head, 8, order.sequence,
        8, (order.created_at_ms - POSTGRES_EPOCH_MS) * 1000, 8, (order.held_until_ms - POSTGRES_EPOCH_MS) * 1000,
        8, era_base | crc32(digest), 8, era_base | crc32(buyer), len(digest), digest, len(buyer), buyer,
    )  # fmt: skip
    return row + (_reference(era_base, order.reference) if order.reference else _NO_REFERENCE)


def order_rest(order: OrderRecord, first_line: bytes) -> bytes:
    """An order's row from its amounts on, with what `line_rest` says of its first line. Many orders have the same."""
    amounts = _order_amounts(8, order.discount_minor, 8, order.freight_minor, 8, order.amount_minor)
    return amounts + _text(order.channel) + _text(order.currency) + first_line


def _reference(era_base: int, text: str) -> bytes:
    return _reference_key(8, era_base | text_number(text)) + _text(text)


def line_order(sequence: int, position: int) -> bytes:
    """What stands between a further line's head and what `line_rest` answers."""
    return _line_order(8, sequence, 2, position)


def line_rest(era_base: int, line: OrderLine, paid_minor: int, outer_code: str | None) -> bytes:
    """What a line says by itself. Many orders have the same."""
    numbers = _line_numbers(
        8, era_base | text_number(line.sku), 4, line.quantity, 8, line.unit_price_minor, 8, paid_minor
    )
    return numbers + _text(line.line_id) + _text(line.sku) + _text(outer_code)


def _text(text: str | None) -> bytes:
    if text is None:
        return b"\xff\xff\xff\xff"
    encoded = text.encode()
    return len(encoded).to_bytes(4, "big") + encoded


@lru_cache(FORMATS_MAX)
def _paid_change_format(currency: int, payment_id: int) -> _Pack:
    return Struct(f">10siqiiiqihiqihiqiqi{currency}si{payment_id}s").pack


def change_row(head: bytes, order: OrderRecord, at_ms: int) -> bytes:
    """A change of an order without a payment."""
    return _unpaid_change(
        head, 8, order.sequence, 4, order.version, 8, order.changed_sequence, 2, order.status,
        8, microseconds(at_ms), NULL, NULL, NULL, NULL, NULL,
    )  # fmt: skip


def paid_change_row(head: bytes, era_base: int, order: OrderRecord, payment: Payment) -> bytes:
    """A change of an order by a payment, at its time."""
    currency, payment_id = payment.currency.encode(), payment.payment_id.encode()
    return _paid_change_format(len(currency), len(payment_id))(
        head, 8, order.sequence, 4, order.version, 8, order.changed_sequence, 2, order.status,
        8, (payment.at_ms - POSTGRES_EPOCH_MS) * 1000, 2, payment.fate, 8, payment.amount_minor,
        8, era_base | crc32(payment_id),
        len(currency), currency, len(payment_id), payment_id,
    )  # fmt: skip


def feed_head(partition_id: int, change: str, sale_id: str) -> bytes:
    """What the feed's rows of one sale and one kind of change begin with."""
    return Struct(">hii").pack(len(FEED_COLUMNS), 4, partition_id) + _text(change) + _text(sale_id)


@lru_cache(FORMATS_MAX)
def _feed_order_format(order_id: int) -> _Pack:
    return Struct(f">iii{order_id}s").pack


def feed_order(version: int, order_id: bytes) -> bytes:
    """What stands between the head and the number."""
    return _feed_order_format(len(order_id))(4, version, len(order_id), order_id)


def feed_rows(first: int, rows: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Finished rows, numbered from `first` on; each given as what comes before its number, and its JSON document
    without the opening brace. The number is the document's first member.
    """
    pieces: list[bytes] = []
    for number, (before, rest) in enumerate(rows, first):
        member = b'{"feed_sequence":%d,' % number
        pieces += (before, _feed_number(8, number, len(member) + len(rest)), member, rest)
    return b"".join(pieces)


async def copy_rows(connection: Any, table: str, columns: tuple[str, ...], chunks: Iterable[bytes], rows: int) -> None:
    """Write so many finished rows into a table, one chunk of them at a time (asyncpg waits where PostgreSQL does)."""

    async def source() -> AsyncIterator[bytes]:
        yield HEADER
        for chunk in chunks:
            yield chunk
        yield TRAILER

    done = await connection.copy_to_table(table, source=source(), columns=columns, format="binary")
    assert done == f"COPY {rows}", f"{rows} rows of {table} were packed, and it says {done}"
