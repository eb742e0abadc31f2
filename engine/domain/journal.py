"""Journal entries: a partition's state changes, in the past tense, as the script writes them.

One *record* holds the entries of one batch. Its entries take the sequence numbers `first_sequence`, `first_sequence`
+ 1, …; the stream id of the record is its last number. Every entry of an order carries the whole order as of that
change, so that a reader needs nothing but the journal. The layout is shared with `scripts/lua/includes/journal.lua`.
"""

from typing import Annotated

import msgspec
from msgspec import Meta, Raw, Struct

from engine.domain.errors import JournalUnreadable
from engine.domain.orders import OrderRecord

JOURNAL_FORMAT = 1


class OrderEntry(Struct, array_like=True, frozen=True):
    """What every entry of an order carries."""

    digest: str
    order: OrderRecord


class Held(OrderEntry, tag=1, array_like=True, frozen=True):
    """Units went from their pools to held."""


class Settled(OrderEntry, tag=2, array_like=True, frozen=True):
    """Units went from held to settled; the settling payment is in the order."""


class Cancelled(OrderEntry, tag=3, array_like=True, frozen=True):
    """A hold was given back on request; where `returned` is false its sale had closed and the units left it."""

    returned: bool


class Expired(OrderEntry, tag=4, array_like=True, frozen=True):
    """A hold was given back at its deadline; `returned` as in Cancelled."""

    returned: bool


class Reinstated(OrderEntry, tag=5, array_like=True, frozen=True):
    """A late payment took units anew: from their pools to settled."""


class PaymentTooLate(OrderEntry, tag=6, array_like=True, frozen=True):
    """A payment for an ended order was recorded as due for refund; the order is `refund_due`."""


class DuplicatePayment(OrderEntry, tag=7, array_like=True, frozen=True):
    """A second payment for a settled order was recorded as due for refund."""


class UnitsMoved(Struct, array_like=True, frozen=True):
    """A pool of a SKU (or `withheld`) gained `quantity` units, or lost them where it is negative."""

    sku: str
    pool: str
    quantity: int


class SaleDefined(Struct, tag=8, array_like=True, frozen=True):
    """A sale was created, or changed."""

    version: int
    created: bool
    definition: str
    """The definition as JSON, as the operator gave it."""
    moved: list[UnitsMoved]
    removed: list[str]
    """SKUs that left the sale."""


class StockChanged(Struct, tag=9, array_like=True, frozen=True):
    """A stock document was applied."""

    version: int
    document_id: str
    moved: list[UnitsMoved]


class SaleOpened(Struct, tag=10, array_like=True, frozen=True):
    """draft → open; `scheduled` where its time had come rather than an operator asked."""

    version: int
    scheduled: bool


class SalePaused(Struct, tag=11, array_like=True, frozen=True):
    """open → paused."""

    version: int


class SaleResumed(Struct, tag=12, array_like=True, frozen=True):
    """paused → open."""

    version: int


class SaleClosed(Struct, tag=13, array_like=True, frozen=True):
    """any → closed; withheld and available units left the sale."""

    version: int
    scheduled: bool
    moved: list[UnitsMoved]


class SaleDeleted(Struct, tag=14, array_like=True, frozen=True):
    """A draft was deleted; its units left with it."""

    moved: list[UnitsMoved]


class PartitionOpened(Struct, tag=15, array_like=True, frozen=True):
    """The guard opened the partition under a new epoch, after it had been reconciled."""

    epoch: int
    reason: str
    grace_from_ms: int
    """Deadlines behind this time and up to the opening passed while the partition was frozen. 0 where none did."""
    grace_until_ms: int
    """They are extended to this time."""


Entry = (
    Held
    | Settled
    | Cancelled
    | Expired
    | Reinstated
    | PaymentTooLate
    | DuplicatePayment
    | SaleDefined
    | StockChanged
    | SaleOpened
    | SalePaused
    | SaleResumed
    | SaleClosed
    | SaleDeleted
    | PartitionOpened
)


class JournalRecord(Struct, array_like=True, frozen=True):
    """The entries of one batch, still encoded each by itself so that the ledger can keep their exact bytes."""

    format: Annotated[int, Meta(ge=JOURNAL_FORMAT, le=JOURNAL_FORMAT)]
    epoch: int
    first_sequence: int
    at_ms: int
    entries: list[Raw]

    @property
    def last_sequence(self) -> int:
        """The sequence number of the record's last entry."""
        return self.first_sequence + len(self.entries) - 1


_record_decoder = msgspec.msgpack.Decoder(JournalRecord)
_entry_decoder: msgspec.msgpack.Decoder[Entry] = msgspec.msgpack.Decoder(Entry)


def decode_record(encoded: bytes) -> JournalRecord:
    """Decode a journal record. Raises JournalUnreadable for another format or for bytes that are none."""
    try:
        return _record_decoder.decode(encoded)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise JournalUnreadable(f"not a journal record: {error}") from error


def decode_entry(encoded: bytes | Raw) -> Entry:
    """Decode one entry of a record. Raises JournalUnreadable."""
    try:
        return _entry_decoder.decode(encoded)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise JournalUnreadable(f"not a journal entry: {error}") from error
