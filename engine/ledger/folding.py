"""What one transaction of the persister writes: journal entries folded into rows, without any I/O.

Rows are packed for COPY as they are made (copy_rows.py). Most orders of a live are alike but for who bought: what the
orders of one *basket* have in common is packed once, and counted. A SKU that a thousand orders touched becomes one
difference. Everything here is of one partition. Folding is what costs the worker most, so it goes in slices: between
two of them others may have their turn.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from struct import error as PackError  # noqa: N812 - it names a lower-case class
from typing import NamedTuple

import msgspec
from msgspec import Struct

from engine.domain import journal
from engine.domain.errors import JournalUnreadable
from engine.domain.identifiers import OrderId
from engine.domain.journal import Entry, OrderEntry, decode_record
from engine.domain.orders import SHARED_POOL, OrderRecord, UnitsTaken
from engine.domain.sales import SaleStatus
from engine.domain.stock_effects import (
    ALLOCATED,
    HELD,
    POOL,
    SETTLED,
    WITHHELD,
    StockEffect,
    order_effects,
    stock_effects,
)
from engine.ledger import copy_rows
from engine.ledger.feed_document import FeedDocuments, Times
from engine.ledger.search_keys import ERA_SHIFT

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SLICE_ENTRIES = 100
"""Entries folded in one go: half a millisecond for single lines."""
BASKETS_KEPT_MAX = 4096
"""Baskets kept for the next order that has the same."""
SLICE_BYTES_MAX = 1900
"""Of entries in one row of the journal: more, and PostgreSQL would compress the row and look for another place for it.
An entry that is larger has a row of its own."""


# --- the sale, as of some entry ----------------------------------------------------------------------------------


class _DefinedSku(Struct, frozen=True):
    sku: str
    outer_code: str | None = None


class _Definition(Struct, frozen=True):
    skus: list[_DefinedSku] = []
    labels: dict[str, str] | None = None


_definition_decoder = msgspec.json.Decoder(_Definition)


@dataclass(frozen=True)
class SaleRow:
    """A sale as its row in the ledger has it, and what of its definition the rows of orders need."""

    definition: str
    status: str
    version: int
    created_at: datetime
    changed_at: datetime
    opened_at: datetime | None
    closed_at: datetime | None
    deleted_at: datetime | None
    changed_sequence: int
    skus: frozenset[str] = field(default=frozenset(), repr=False)
    outer_codes: dict[str, str] = field(default_factory=dict, repr=False)
    labels: dict[str, str] = field(default_factory=dict, repr=False)

    def with_definition(self, definition: str) -> "SaleRow":
        """The same sale, defined by this JSON. Raises JournalUnreadable."""
        try:
            defined = _definition_decoder.decode(definition)
        except msgspec.MsgspecError as error:
            raise JournalUnreadable(f"not a sale's definition: {error}") from error
        return replace(
            self,
            definition=definition,
            skus=frozenset(sku.sku for sku in defined.skus),
            outer_codes={sku.sku: sku.outer_code for sku in defined.skus if sku.outer_code is not None},
            labels=defined.labels or {},
        )


# --- stock -------------------------------------------------------------------------------------------------------


class StockDifference:
    """By how much a SKU's units change in this transaction, and whether it is of the sale after it."""

    __slots__ = ("numbers", "pools", "removed")

    def __init__(self) -> None:
        self.numbers = {ALLOCATED: 0, WITHHELD: 0, HELD: 0, SETTLED: 0}
        self.pools: dict[str, int] = {}
        self.removed = False


class Place(NamedTuple):
    """Where a partition's folding may begin: behind `sequence`, with the sale as of it."""

    sale_id: str
    partition_id: int
    sequence: int
    sale: SaleRow | None


class _Basket:
    """Orders that are alike but for who bought, when, and under which numbers."""

    __slots__ = ("further_lines", "orders", "row_rest", "units")

    def __init__(self, units: list[UnitsTaken], row_rest: bytes, further_lines: list[bytes]) -> None:
        self.units = units
        """Of one of them."""
        self.row_rest = row_rest
        self.further_lines = further_lines
        """From the second on, each without its order."""
        self.orders = 0


# --- rows --------------------------------------------------------------------------------------------------------


class TableRows:
    """Finished rows of one table: a chunk of bytes for each slice."""

    __slots__ = ("chunks", "count")

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.count = 0

    def add(self, pieces: list[bytes], rows: int) -> None:
        """Take in a slice's rows, in as many pieces as they came in."""
        if rows:
            self.chunks.append(b"".join(pieces))
            self.count += rows


class _Slice:
    """The rows of one slice in the making."""

    __slots__ = ("changes", "lines", "orders")

    def __init__(self) -> None:
        self.orders: list[bytes] = []
        self.lines: list[bytes] = []
        self.changes: list[bytes] = []


# --- the fold ----------------------------------------------------------------------------------------------------

_decode_entry = msgspec.msgpack.Decoder(Entry).decode


class Folding:
    """Folds a partition's journal records, from the entry behind `start` on, into the rows to write.

    Raises JournalUnreadable where a record cannot be read, leaves a gap, speaks of what was never made, or holds what
    the ledger cannot.
    """

    def __init__(self, place: Place, era: int) -> None:
        """`era` is what rows of orders are found by (search_keys.py)."""
        self.sale_id, self.partition_id, self.start, sale = place
        self.sequence = self.start
        """The last entry that was folded."""
        self.size_bytes = 0
        """Of the records that were taken in."""
        self.epoch = 0
        self.at_ms = 0
        self.sale = sale
        self.sale_changed = False
        self.repeated: tuple[int, bytes] | None = None
        """The last of the entries that the ledger held already, with its bytes."""
        self.journal = TableRows()
        self.orders = TableRows()
        self.lines = TableRows()
        self.changes = TableRows()
        self.feed: list[tuple[bytes, bytes]] = []
        """Rows without their numbers: see copy_rows.feed_rows."""
        self._era_base = era << ERA_SHIFT
        self._order_head = copy_rows.row_head(copy_rows.ORDER_COLUMNS, self.partition_id)
        self._line_head = copy_rows.row_head(copy_rows.LINE_COLUMNS, self.partition_id)
        self._change_head = copy_rows.row_head(copy_rows.CHANGE_COLUMNS, self.partition_id)
        self._feed_heads = {
            change: copy_rows.feed_head(self.partition_id, change, self.sale_id) for change in ("settled", "refund_due")
        }
        self._slice = _Slice()
        self._stock: dict[str, StockDifference] = {}
        self._units: dict[tuple[type[OrderEntry], bool, str, str], int] = {}
        self._baskets: dict[tuple[object, ...], _Basket] = {}
        self._times = Times()
        self._use_sale(sale)

    @property
    def entries(self) -> int:
        """How many entries were folded."""
        return self.sequence - self.start

    @property
    def end(self) -> Place:
        """From where the next may go on."""
        return Place(self.sale_id, self.partition_id, self.sequence, self.sale)

    def add(self, record_sequence: int, encoded: bytes) -> None:
        """Fold one record, whose place in the stream says that its last number is `record_sequence`."""
        for _ in self.add_in_slices(record_sequence, encoded):
            pass

    def add_in_slices(self, record_sequence: int, encoded: bytes) -> Iterator[None]:
        """As `add`, pausing behind each slice."""
        record = decode_record(encoded)
        if record.last_sequence != record_sequence or not record.entries:
            raise JournalUnreadable(
                f"the record at {record_sequence} says that it holds {record.first_sequence} to {record.last_sequence}"
            )
        entries: Sequence[msgspec.Raw] = record.entries
        known = self.sequence - record.first_sequence + 1
        if known < 0:
            raise JournalUnreadable(f"a gap: {record.first_sequence} follows {self.sequence}")
        if known > 0:
            last_known = min(known, len(entries))
            self.repeated = (record.first_sequence + last_known - 1, bytes(entries[last_known - 1]))
            entries = entries[last_known:]
        self.size_bytes += len(encoded)
        if entries:
            self.epoch, self.at_ms = max(self.epoch, record.epoch), record.at_ms
        head = copy_rows.journal_head(self.partition_id, record.epoch, record.at_ms)
        for first in range(0, len(entries), SLICE_ENTRIES):
            try:
                self._fold(head, record.at_ms, entries[first : first + SLICE_ENTRIES])
            except (msgspec.MsgspecError, UnicodeError, PackError, OverflowError) as error:
                raise JournalUnreadable(f"entry {self.sequence + 1} or one soon after it: {error}") from error
            yield

    def _fold(self, journal_head: bytes, at_ms: int, entries: Sequence[msgspec.Raw]) -> None:
        sequence = self.sequence
        for raw in entries:
            sequence += 1
            entry = _decode_entry(raw)
            _APPLY[type(entry)](self, sequence, at_ms, entry)
        self._put_journal(journal_head, entries)
        made, self._slice = self._slice, _Slice()
        self.orders.add(made.orders, len(made.orders) // 2)  # each in two pieces
        self.lines.add(made.lines, len(made.lines) // 3)  # each in three pieces
        self.changes.add(made.changes, len(made.changes))
        self.sequence = sequence

    def _put_journal(self, head: bytes, entries: Sequence[msgspec.Raw]) -> None:
        """Put entries behind one another into rows, as many into each as fit."""
        rows: list[bytes] = []
        pieces: list[bytes] = []
        first = self.sequence + 1
        size_bytes = rows_count = 0
        for sequence, raw in enumerate(entries, first):
            entry_bytes = len(raw) + 4
            if pieces and size_bytes + entry_bytes > SLICE_BYTES_MAX:
                rows += (head, copy_rows.journal_slice(first, sequence - first, size_bytes), *pieces)
                rows_count, first, size_bytes = rows_count + 1, sequence, 0
                pieces.clear()
            pieces += (len(raw).to_bytes(4, "big"), raw)
            size_bytes += entry_bytes
        rows += (head, copy_rows.journal_slice(first, self.sequence + len(entries) + 1 - first, size_bytes), *pieces)
        self.journal.add(rows, rows_count + 1)

    def stock(self) -> dict[str, StockDifference]:
        """By how much each SKU's units change."""
        self._count_baskets()
        for (kind, returned, sku, pool), quantity in self._units.items():
            self._move(order_effects(kind, [UnitsTaken(sku, pool, quantity)], returned=returned))
        self._units.clear()
        return self._stock

    def _move(self, effects: Iterator[StockEffect]) -> None:
        for sku, account, pool, quantity in effects:
            difference = self._difference(sku)
            if account == POOL:
                difference.pools[pool] = difference.pools.get(pool, 0) + quantity
            else:
                difference.numbers[account] += quantity

    def _difference(self, sku: str) -> StockDifference:
        found = self._stock.get(sku)
        if found is None:
            found = self._stock[sku] = StockDifference()
        return found

    def _known_sale(self, sequence: int) -> SaleRow:
        if self.sale is None:
            raise JournalUnreadable(f"entry {sequence} is of a sale that no entry defined")
        return self.sale

    def _use_sale(self, sale: SaleRow | None) -> None:
        self._count_baskets()  # they hold outer codes
        self._outer_codes = sale.outer_codes if sale is not None else {}
        self._documents = None if sale is None else FeedDocuments(self.sale_id, sale.labels, sale.outer_codes)

    # orders

    def _count_units(self, kind: type[OrderEntry], order: OrderRecord, returned: bool = True) -> None:
        """Add an order's units to those of its kind; what they do to stock is the same for all of them together."""
        counted = self._units
        if order.own_units:
            for units in order.own_units:
                key = (kind, returned, units.sku, units.pool)
                counted[key] = counted.get(key, 0) + units.quantity
        else:
            for line in order.lines:
                key = (kind, returned, line.sku, SHARED_POOL)
                counted[key] = counted.get(key, 0) + line.quantity

    def _held(self, sequence: int, _at_ms: int, entry: journal.Held) -> None:
        order = entry.order
        if order.sequence != sequence:
            raise JournalUnreadable(f"the order held in entry {sequence} says that it was in {order.sequence}")
        basket = self._basket(sequence, order)
        basket.orders += 1
        own = copy_rows.order_row(self._order_head, self._era_base, entry.digest, order)
        self._slice.orders += (own, basket.row_rest)
        for position, line in enumerate(basket.further_lines, 2):
            self._slice.lines += (self._line_head, copy_rows.line_order(sequence, position), line)

    def _basket(self, sequence: int, order: OrderRecord) -> _Basket:
        """That which an order belongs to."""
        amounts = (order.channel, order.currency, order.discount_minor, order.freight_minor, order.amount_minor)
        key = (*amounts, *order.lines, *order.own_units)
        found = self._baskets.get(key)
        if found is None:
            if len(self._baskets) == BASKETS_KEPT_MAX:
                self._count_baskets()
            found = self._baskets[key] = self._make_basket(sequence, order)
        return found

    def _make_basket(self, sequence: int, order: OrderRecord) -> _Basket:
        self._known_sale(sequence)
        if not order.lines:
            raise JournalUnreadable(f"the order held in entry {sequence} has no line")
        shares, codes = order.paid_minor_by_line(), self._outer_codes
        first, *further = [
            (self._era_base, line, paid_minor, codes.get(line.sku))
            for line, paid_minor in zip(order.lines, shares, strict=True)
        ]
        row_rest = copy_rows.order_rest(order, copy_rows.line_rest(*first))
        return _Basket(order.units, row_rest, [copy_rows.line_rest(*each) for each in further])

    def _count_baskets(self) -> None:
        """Take over what the baskets counted, and begin with new ones."""
        for basket in self._baskets.values():
            for sku, pool, quantity in ((units.sku, units.pool, units.quantity) for units in basket.units):
                key = (journal.Held, True, sku, pool)
                self._units[key] = self._units.get(key, 0) + quantity * basket.orders
        self._baskets.clear()

    def _put_change(self, sequence: int, at_ms: int, order: OrderRecord, *, paid: bool = False) -> None:
        if order.changed_sequence != sequence or not 0 < order.sequence < sequence:
            raise JournalUnreadable(
                f"the order in entry {sequence} says that it was held in {order.sequence} and changed in "
                f"{order.changed_sequence}"
            )
        if not paid:
            row = copy_rows.change_row(self._change_head, order, at_ms)
        elif not order.payments:
            raise JournalUnreadable(f"entry {sequence} is of a payment and holds none")
        else:
            new = order.payments[-1]  # each such entry adds one
            row = copy_rows.paid_change_row(self._change_head, self._era_base, order, new)
        self._slice.changes.append(row)

    def _put_feed_row(self, change: str, sequence: int, entry: OrderEntry) -> None:
        if self._documents is None:
            self._known_sale(sequence)
            return
        order_id = str(OrderId(self.sale_id, entry.digest)).encode()
        before = self._feed_heads[change] + copy_rows.feed_order(entry.order.version, order_id)
        self.feed.append((before, self._documents.encode(change, order_id, entry.order, self._times)))

    def _settled(self, sequence: int, at_ms: int, entry: journal.Settled | journal.Reinstated) -> None:
        self._put_change(sequence, at_ms, entry.order, paid=True)
        self._put_feed_row("settled", sequence, entry)
        self._count_units(type(entry), entry.order)

    def _given_back(self, sequence: int, at_ms: int, entry: journal.Cancelled | journal.Expired) -> None:
        self._put_change(sequence, at_ms, entry.order)
        self._count_units(type(entry), entry.order, entry.returned)

    def _refund_due(self, sequence: int, at_ms: int, entry: journal.PaymentTooLate | journal.DuplicatePayment) -> None:
        self._put_change(sequence, at_ms, entry.order, paid=True)
        self._put_feed_row("refund_due", sequence, entry)

    # sales

    def _change_sale(self, sequence: int, at_ms: int, sale: SaleRow) -> None:
        self.sale = replace(sale, changed_at=_time(at_ms), changed_sequence=sequence)
        self.sale_changed = True
        self._use_sale(self.sale)

    def _sale_defined(self, sequence: int, at_ms: int, entry: journal.SaleDefined) -> None:
        if entry.created or self.sale is None:
            sale = SaleRow("", SaleStatus.DRAFT.value, 0, _time(at_ms), _time(at_ms), None, None, None, sequence)
        else:
            sale = self.sale
        sale = replace(sale, version=entry.version).with_definition(entry.definition)
        self._change_sale(sequence, at_ms, sale)
        self._move(stock_effects(entry))
        for sku in entry.removed:
            self._difference(sku).removed = True
        for sku in sale.skus:
            self._difference(sku).removed = False  # so that a SKU of no units has its row as well

    def _stock_changed(self, sequence: int, at_ms: int, entry: journal.StockChanged) -> None:
        self._change_sale(sequence, at_ms, replace(self._known_sale(sequence), version=entry.version))
        self._move(stock_effects(entry))

    def _sale_opened(self, sequence: int, at_ms: int, entry: journal.SaleOpened) -> None:
        sale = replace(self._known_sale(sequence), version=entry.version, status=SaleStatus.OPEN.value)
        self._change_sale(sequence, at_ms, replace(sale, opened_at=_time(at_ms)))

    def _sale_paused(self, sequence: int, at_ms: int, entry: journal.SalePaused) -> None:
        sale = replace(self._known_sale(sequence), version=entry.version, status=SaleStatus.PAUSED.value)
        self._change_sale(sequence, at_ms, sale)

    def _sale_resumed(self, sequence: int, at_ms: int, entry: journal.SaleResumed) -> None:
        sale = replace(self._known_sale(sequence), version=entry.version, status=SaleStatus.OPEN.value)
        self._change_sale(sequence, at_ms, sale)

    def _sale_closed(self, sequence: int, at_ms: int, entry: journal.SaleClosed) -> None:
        sale = replace(self._known_sale(sequence), version=entry.version, status=SaleStatus.CLOSED.value)
        self._change_sale(sequence, at_ms, replace(sale, closed_at=_time(at_ms)))
        self._move(stock_effects(entry))

    def _sale_deleted(self, sequence: int, at_ms: int, entry: journal.SaleDeleted) -> None:
        sale = self._known_sale(sequence)
        self._move(stock_effects(entry))
        self._change_sale(sequence, at_ms, replace(sale, status="deleted", deleted_at=_time(at_ms)))
        for sku in sale.skus:
            self._difference(sku).removed = True

    def _partition_opened(self, _sequence: int, _at_ms: int, entry: journal.PartitionOpened) -> None:
        self.epoch = max(self.epoch, entry.epoch)


def _time(at_ms: int) -> datetime:
    return _UNIX_EPOCH + timedelta(milliseconds=at_ms)


_APPLY: dict[type[Entry], Callable[..., None]] = {
    journal.Held: Folding._held,
    journal.Settled: Folding._settled,
    journal.Cancelled: Folding._given_back,
    journal.Expired: Folding._given_back,
    journal.Reinstated: Folding._settled,
    journal.PaymentTooLate: Folding._refund_due,
    journal.DuplicatePayment: Folding._refund_due,
    journal.SaleDefined: Folding._sale_defined,
    journal.StockChanged: Folding._stock_changed,
    journal.SaleOpened: Folding._sale_opened,
    journal.SalePaused: Folding._sale_paused,
    journal.SaleResumed: Folding._sale_resumed,
    journal.SaleClosed: Folding._sale_closed,
    journal.SaleDeleted: Folding._sale_deleted,
    journal.PartitionOpened: Folding._partition_opened,
}
"""What each kind of entry changes."""
