"""What one transaction of the persister writes: journal entries folded into rows, without any I/O.

An order that is held and then settled within one batch becomes one row; a SKU that a thousand orders touched becomes
one difference. Everything here is of one partition.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct

from engine.domain import journal
from engine.domain.errors import JournalUnreadable
from engine.domain.identifiers import OrderId
from engine.domain.journal import Entry, OrderEntry, decode_entry, decode_record
from engine.domain.orders import OrderRecord, OrderStatus, PaymentFate, rfc3339
from engine.domain.sales import SaleStatus
from engine.domain.stock_effects import ALLOCATED, HELD, POOL, SETTLED, WITHHELD, stock_effects

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SHARED = "shared"


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


# --- the feed ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeedRow:
    """A row of the feed that has no number yet."""

    change: str
    order_id: str
    version: int
    document: bytes
    """The finished JSON, but for `feed_sequence`, which comes first."""

    def numbered(self, feed_sequence: int) -> str:
        """The finished JSON document."""
        return f'{{"feed_sequence":{feed_sequence},{self.document[1:].decode()}'


_PAYMENT_CODES = {PaymentFate.TOO_LATE: "PAYMENT_TOO_LATE", PaymentFate.DUPLICATE: "DUPLICATE_PAYMENT"}


def payment_code(fate: PaymentFate) -> str | None:
    """The code under which a payment was recorded as due for refund; None for the one that settled its order."""
    return _PAYMENT_CODES.get(fate)


def _feed_row(change: str, order_id: OrderId, order: OrderRecord, sale: SaleRow, text: Callable[[int], str]) -> FeedRow:
    """`text` writes a time in milliseconds."""
    settling = order.settling_payment()
    document: dict[str, Any] = {
        "change": change,
        "version": order.version,
        "order_id": str(order_id),
        "sale_id": order_id.sale_id,
        "labels": sale.labels,
        "channel": order.channel,
        "buyer_id": order.buyer_id,
        "reference": order.reference or None,
        "status": order.status.word,
        "payment_id": None if settling is None else settling.payment_id,
        "created_at": text(order.created_at_ms),
        "settled_at": text(order.settled_at_ms) if order.settled_at_ms else None,
        "amount_minor": order.amount_minor,
        "discount_minor": order.discount_minor,
        "freight_minor": order.freight_minor,
        "currency": order.currency,
        "payments_due_for_refund": [
            {
                "payment_id": payment.payment_id,
                "amount_minor": payment.amount_minor,
                "currency": payment.currency,
                "code": payment_code(payment.fate),
                "received_at": text(payment.at_ms),
            }
            for payment in order.payments_due_for_refund()
        ],
        "lines": [
            {
                "line_id": line.line_id,
                "sku": line.sku,
                "outer_code": sale.outer_codes.get(line.sku),
                "quantity": line.quantity,
                "unit_price_minor": line.unit_price_minor,
                "paid_minor": paid_minor,
            }
            for line, paid_minor in zip(order.lines, order.paid_minor_by_line(), strict=True)
        ],
    }
    return FeedRow(change, str(order_id), order.version, msgspec.json.encode(document))


# --- the fold ----------------------------------------------------------------------------------------------------


class Folding:
    """Folds a partition's journal records, from the entry behind `sequence` on, into the rows to write.

    Raises JournalUnreadable where a record cannot be read, leaves a gap, or speaks of what was never made.
    """

    def __init__(self, sale_id: str, partition_id: int, sequence: int, sale: SaleRow | None) -> None:
        self.sale_id = sale_id
        self.partition_id = partition_id
        self.sequence = sequence
        """The last entry that was folded."""
        self.epoch = 0
        self.at_ms = 0
        self.sale = sale
        self.sale_changed = False
        self.repeated: tuple[int, bytes] | None = None
        """The last of the entries that the ledger held already, with its bytes."""
        self.journal_rows: list[tuple[Any, ...]] = []
        self.line_rows: list[tuple[Any, ...]] = []
        self.payment_rows: list[tuple[Any, ...]] = []
        self.feed_rows: list[FeedRow] = []
        self.stock: dict[str, StockDifference] = {}
        self._held: dict[int, tuple[str, OrderRecord]] = {}
        self._changed: dict[int, OrderRecord] = {}
        self._times: dict[int, datetime] = {}
        self._texts: dict[int, str] = {}

    def add(self, record_sequence: int, encoded: bytes) -> None:
        """Fold one record, whose place in the stream says that its last number is `record_sequence`."""
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
        if entries:
            self.epoch, self.at_ms = max(self.epoch, record.epoch), record.at_ms
            self._fold(record.epoch, record.at_ms, entries)

    def _fold(self, epoch: int, at_ms: int, entries: Sequence[msgspec.Raw]) -> None:
        sequence, at, rows, stock = self.sequence, self._time(at_ms), self.journal_rows, self.stock
        for raw in entries:
            sequence += 1
            entry = decode_entry(raw)
            kind, apply = _APPLY[type(entry)]
            digest = entry.digest if isinstance(entry, OrderEntry) else None
            rows.append((self.partition_id, sequence, epoch, at, kind, digest, bytes(raw)))
            apply(self, sequence, at, entry)
            for sku, account, pool, quantity in stock_effects(entry):
                difference = stock.get(sku) or self._difference(sku)
                if account == POOL:
                    difference.pools[pool] = difference.pools.get(pool, 0) + quantity
                else:
                    difference.numbers[account] += quantity
        self.sequence = sequence

    def order_rows(self) -> list[tuple[Any, ...]]:
        """The rows of orders that were held in this transaction, as of their last change in it."""
        time = self._time
        return [
            (
                self.partition_id,
                sequence,
                order.version,
                order.status,
                order.changed_sequence,
                order.discount_minor,
                order.freight_minor,
                order.amount_minor,
                time(order.created_at_ms),
                time(order.held_until_ms),
                time(order.settled_at_ms) if order.settled_at_ms else None,
                digest,
                order.channel,
                order.buyer_id,
                order.currency,
                order.reference or None,
                _settling_payment_id(order),
            )
            for sequence, (digest, order) in self._held.items()
        ]

    def changed_order_columns(self) -> list[list[Any]]:
        """Orders of earlier transactions as of their last change, by columns; no columns where there are none."""
        if not self._changed:
            return []
        rows = [
            (
                sequence,
                order.status,
                order.version,
                order.changed_sequence,
                self._time(order.held_until_ms),
                self._time(order.settled_at_ms) if order.settled_at_ms else None,
                _settling_payment_id(order),
            )
            for sequence, order in self._changed.items()
        ]
        return [list(column) for column in zip(*rows, strict=True)]

    def _time(self, at_ms: int) -> datetime:
        """Few different times stand in one batch, and making one costs more than finding it."""
        found = self._times.get(at_ms)
        if found is None:
            found = self._times[at_ms] = _UNIX_EPOCH + timedelta(milliseconds=at_ms)
        return found

    def _text(self, at_ms: int) -> str:
        """As `_time`, in words."""
        found = self._texts.get(at_ms)
        if found is None:
            found = self._texts[at_ms] = rfc3339(at_ms)
        return found

    def _difference(self, sku: str) -> StockDifference:
        found = self.stock.get(sku)
        if found is None:
            found = self.stock[sku] = StockDifference()
        return found

    def _known_sale(self, sequence: int) -> SaleRow:
        if self.sale is None:
            raise JournalUnreadable(f"entry {sequence} is of a sale that no entry defined")
        return self.sale

    # orders

    def _put_order(self, sequence: int, entry: OrderEntry) -> None:
        order = entry.order
        if order.changed_sequence != sequence:
            raise JournalUnreadable(f"the order in entry {sequence} says that it changed in {order.changed_sequence}")
        if order.sequence in self._held:
            self._held[order.sequence] = (entry.digest, order)
        else:
            self._changed[order.sequence] = order

    def _put_payment(self, sequence: int, entry: OrderEntry) -> None:
        if not entry.order.payments:
            raise JournalUnreadable(f"entry {sequence} is of a payment and holds none")
        new = entry.order.payments[-1]  # each such entry adds one
        self.payment_rows.append(
            (
                self.partition_id,
                entry.order.sequence,
                sequence,
                new.amount_minor,
                new.fate,
                self._time(new.at_ms),
                new.payment_id,
                new.currency,
            )
        )

    def _put_feed_row(self, change: str, sequence: int, entry: OrderEntry) -> None:
        order_id = OrderId(self.sale_id, entry.digest)
        self.feed_rows.append(_feed_row(change, order_id, entry.order, self._known_sale(sequence), self._text))

    def _held_entry(self, sequence: int, _at: datetime, entry: journal.Held) -> None:
        order, outer_codes = entry.order, self._known_sale(sequence).outer_codes
        if order.sequence != sequence:
            raise JournalUnreadable(f"the order held in entry {sequence} says that it was in {order.sequence}")
        self._held[sequence] = (entry.digest, order)
        for position, (line, paid_minor) in enumerate(zip(order.lines, order.paid_minor_by_line(), strict=True), 1):
            self.line_rows.append(
                (
                    self.partition_id,
                    sequence,
                    position,
                    line.quantity,
                    line.unit_price_minor,
                    paid_minor,
                    line.line_id,
                    line.sku,
                    outer_codes.get(line.sku),
                )
            )

    def _settled(self, sequence: int, _at: datetime, entry: journal.Settled) -> None:
        self._put_order(sequence, entry)
        self._put_payment(sequence, entry)
        self._put_feed_row("settled", sequence, entry)

    def _given_back(self, sequence: int, _at: datetime, entry: journal.Cancelled | journal.Expired) -> None:
        self._put_order(sequence, entry)

    def _reinstated(self, sequence: int, _at: datetime, entry: journal.Reinstated) -> None:
        self._put_order(sequence, entry)
        self._put_payment(sequence, entry)
        self._put_feed_row("settled", sequence, entry)

    def _refund_due(
        self, sequence: int, _at: datetime, entry: journal.PaymentTooLate | journal.DuplicatePayment
    ) -> None:
        self._put_order(sequence, entry)
        self._put_payment(sequence, entry)
        self._put_feed_row("refund_due", sequence, entry)

    # sales

    def _change_sale(self, sequence: int, at: datetime, sale: SaleRow) -> None:
        self.sale = replace(sale, changed_at=at, changed_sequence=sequence)
        self.sale_changed = True

    def _sale_defined(self, sequence: int, at: datetime, entry: journal.SaleDefined) -> None:
        if entry.created or self.sale is None:
            sale = SaleRow("", SaleStatus.DRAFT.value, 0, at, at, None, None, None, sequence)
        else:
            sale = self.sale
        sale = replace(sale, version=entry.version).with_definition(entry.definition)
        self._change_sale(sequence, at, sale)
        for sku in entry.removed:
            self._difference(sku).removed = True
        for sku in sale.skus:
            self._difference(sku).removed = False  # so that a SKU of no units has its row as well

    def _stock_changed(self, sequence: int, at: datetime, entry: journal.StockChanged) -> None:
        self._change_sale(sequence, at, replace(self._known_sale(sequence), version=entry.version))

    def _sale_opened(self, sequence: int, at: datetime, entry: journal.SaleOpened) -> None:
        sale = replace(self._known_sale(sequence), version=entry.version, status=SaleStatus.OPEN.value, opened_at=at)
        self._change_sale(sequence, at, sale)

    def _sale_paused(self, sequence: int, at: datetime, entry: journal.SalePaused) -> None:
        sale = replace(self._known_sale(sequence), version=entry.version, status=SaleStatus.PAUSED.value)
        self._change_sale(sequence, at, sale)

    def _sale_resumed(self, sequence: int, at: datetime, entry: journal.SaleResumed) -> None:
        sale = replace(self._known_sale(sequence), version=entry.version, status=SaleStatus.OPEN.value)
        self._change_sale(sequence, at, sale)

    def _sale_closed(self, sequence: int, at: datetime, entry: journal.SaleClosed) -> None:
        sale = replace(self._known_sale(sequence), version=entry.version, status=SaleStatus.CLOSED.value, closed_at=at)
        self._change_sale(sequence, at, sale)

    def _sale_deleted(self, sequence: int, at: datetime, _entry: journal.SaleDeleted) -> None:
        sale = self._known_sale(sequence)
        self._change_sale(sequence, at, replace(sale, status="deleted", deleted_at=at))
        for sku in sale.skus:
            self._difference(sku).removed = True

    def _partition_opened(self, _sequence: int, _at: datetime, entry: journal.PartitionOpened) -> None:
        self.epoch = max(self.epoch, entry.epoch)


def _settling_payment_id(order: OrderRecord) -> str | None:
    if order.status is not OrderStatus.SETTLED:
        return None
    settling = order.settling_payment()
    return None if settling is None else settling.payment_id


def _tag(entry: type[Struct]) -> int:
    tag = entry.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


_APPLY: dict[type[Entry], tuple[int, Callable[..., None]]] = {
    entry: (_tag(entry), apply)
    for entry, apply in (
        (journal.Held, Folding._held_entry),
        (journal.Settled, Folding._settled),
        (journal.Cancelled, Folding._given_back),
        (journal.Expired, Folding._given_back),
        (journal.Reinstated, Folding._reinstated),
        (journal.PaymentTooLate, Folding._refund_due),
        (journal.DuplicatePayment, Folding._refund_due),
        (journal.SaleDefined, Folding._sale_defined),
        (journal.StockChanged, Folding._stock_changed),
        (journal.SaleOpened, Folding._sale_opened),
        (journal.SalePaused, Folding._sale_paused),
        (journal.SaleResumed, Folding._sale_resumed),
        (journal.SaleClosed, Folding._sale_closed),
        (journal.SaleDeleted, Folding._sale_deleted),
        (journal.PartitionOpened, Folding._partition_opened),
    )
}
"""Each kind of entry: the number it is written under, and what it changes."""
