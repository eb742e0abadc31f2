"""Commands: what a partition can be asked, imperative, as they travel to the script.

Each is encoded as its verb and its fields, one behind the other; `scripts/lua/commands/VERB.lua` applies it. Questions
travel the same way as changes, so that the checks of run, epoch and freeze hold for both.
"""

from typing import Annotated

from msgspec import UNSET, Meta, Struct

from engine.domain.identifiers import BUYER_PART_LENGTH, OrderId
from engine.domain.orders import HoldRequest, SettleRequest

EXPIRE_ORDERS_MAX = 500
"""Holds that one `expire` may end, so that the script stays within a few milliseconds."""


class Hold(Struct, tag="hold", array_like=True, frozen=True):
    """Set units aside for one buyer."""

    digest: str
    channel: str
    buyer_id: str
    reference: str
    """Empty where there is none."""
    discount_minor: int
    freight_minor: int
    expected_amount_minor: int
    """-1 where none was given."""
    lines: list[tuple[str, str, int]]
    """(line_id, sku, quantity)"""

    def flat(self) -> list[str | int]:
        """As it travels: the two parts of the digest, and the lines' fields one behind the other."""
        fields: list[str | int] = [
            "hold",
            self.digest[:BUYER_PART_LENGTH],
            self.digest[BUYER_PART_LENGTH:],
            self.channel,
            self.buyer_id,
            self.reference,
            self.discount_minor,
            self.freight_minor,
            self.expected_amount_minor,
        ]
        for line in self.lines:
            fields += line
        return fields

    @classmethod
    def of(cls, order_id: OrderId, request: HoldRequest) -> "Hold":
        """The command that a checkout's request asks for."""
        return cls(
            digest=order_id.digest,
            channel=request.channel,
            buyer_id=request.buyer_id,
            reference="" if request.reference is UNSET else request.reference,
            discount_minor=request.discount_minor,
            freight_minor=request.freight_minor,
            expected_amount_minor=-1 if request.expected_amount_minor is UNSET else request.expected_amount_minor,
            lines=request.numbered_lines(),
        )


class Settle(Struct, tag="settle", array_like=True, frozen=True):
    """Confirm an order's payment."""

    digest: str
    payment_id: str
    amount_minor: int
    currency: str

    @classmethod
    def of(cls, order_id: OrderId, request: SettleRequest) -> "Settle":
        """The command that a payment's report asks for."""
        return cls(order_id.digest, request.payment_id, request.amount_minor, request.currency)


class Cancel(Struct, tag="cancel", array_like=True, frozen=True):
    """Give a hold back because its buyer asked for it."""

    digest: str


class CheckShort(Struct, tag="check_short", array_like=True, frozen=True):
    """For many buyers at once: would a cart of one line be refused for want of stock?

    Answers ([verdict for each thing wanted], [positions, from 1, of the buyers who have orders in the sale]); a verdict
    is [outcome, available, unit price] of SOLD_OUT, [outcome] of what refuses every hold of the sale, or [] where only
    a hold can tell.
    """

    wanted: tuple[tuple[str, str, int], ...]
    """(channel, sku, quantity)"""
    buyers: tuple[str, ...]
    """The buyers' parts of the orders' digests."""
    places: tuple[int, ...]
    """For each buyer the place of what they want, from 0."""


class Expire(Struct, tag="expire", array_like=True, frozen=True):
    """Give back holds whose deadline has passed. Answers (count, more)."""

    orders_max: Annotated[int, Meta(ge=1, le=EXPIRE_ORDERS_MAX)]


class GetOrder(Struct, tag="get_order", array_like=True, frozen=True):
    """Read one order."""

    digest: str


class ListBuyerOrders(Struct, tag="list_buyer_orders", array_like=True, frozen=True):
    """Read a buyer's orders of this sale, newest first, at most 100. Answers ([[digest, order], …])."""

    buyer: str
    """The buyer's part of their orders' digests."""


class GetAvailability(Struct, tag="get_availability", array_like=True, frozen=True):
    """Read what can be bought: (status, at_ms, [[sku, available], …]), by one channel or in all where it is empty."""

    channel: str


class GetSale(Struct, tag="get_sale", array_like=True, frozen=True):
    """Read the sale: (state, definition, [[sku, levels], …]); see SaleState."""


class DefineSku(Struct, array_like=True, frozen=True):
    """What the script needs to know of a SKU."""

    sku: str
    style: str
    unit_price_minor: int
    buyer_limit: int
    """0 where there is none."""
    quantity: int
    withheld: int
    channels: list[tuple[str, int]]


class Define(Struct, tag="define", array_like=True, frozen=True):
    """Create the sale, or change it. Answers (created)."""

    command_id: str
    """Unique to this request: it is remembered for a while, so that one whose answer was lost can be sent again as it
    was, and one that was held up on its way does nothing when it comes after all."""
    if_match: int
    """The version it must have; 0 for any; -1 for any but existing."""
    definition: str
    """The definition as JSON, opaque to the script."""
    currency: str
    hold_ms: int
    buyer_limit: int
    """0 where there is none."""
    style_limits: dict[str, int]
    opens_at_ms: int
    """0 where there is none."""
    closes_at_ms: int
    """0 where there is none."""
    skus: list[DefineSku]


class StockChange(Struct, array_like=True, frozen=True):
    """`quantity` units of a SKU from one pool to another; an empty pool is outside the sale."""

    sku: str
    source: str
    target: str
    quantity: int
    """More than zero."""


class ChangeStock(Struct, tag="change_stock", array_like=True, frozen=True):
    """Apply a stock document."""

    document_id: str
    body_digest: str
    changes: list[StockChange]


class Open(Struct, tag="open", array_like=True, frozen=True):
    """draft → open."""

    command_id: str = ""
    """As in Define; empty where it does not matter whether it is applied once or twice."""


class Pause(Struct, tag="pause", array_like=True, frozen=True):
    """open → paused."""

    command_id: str = ""
    """As in Define; empty where it does not matter whether it is applied once or twice."""


class Resume(Struct, tag="resume", array_like=True, frozen=True):
    """paused → open."""

    command_id: str = ""
    """As in Define; empty where it does not matter whether it is applied once or twice."""


class Close(Struct, tag="close", array_like=True, frozen=True):
    """any → closed."""

    command_id: str = ""
    """As in Define; empty where it does not matter whether it is applied once or twice."""


class Delete(Struct, tag="delete", array_like=True, frozen=True):
    """Delete a draft."""

    command_id: str = ""
    """As in Define; empty where it does not matter whether it is applied once or twice."""


class ApplySchedule(Struct, tag="apply_schedule", array_like=True, frozen=True):
    """Open or close the sale if its time has come; every batch does so first, so this only gives it a batch."""


class NotePersisted(Struct, tag="note_persisted", array_like=True, frozen=True):
    """The ledger holds everything up to `sequence`: trim the stream behind it, but for the last `keep_entries`."""

    sequence: int
    keep_entries: int


Command = (
    Hold
    | Settle
    | Cancel
    | CheckShort
    | Expire
    | GetOrder
    | ListBuyerOrders
    | GetAvailability
    | GetSale
    | Define
    | ChangeStock
    | Open
    | Pause
    | Resume
    | Close
    | Delete
    | ApplySchedule
    | NotePersisted
)

QUESTIONS = (CheckShort, GetOrder, ListBuyerOrders, GetAvailability, GetSale)
"""Commands that change nothing: one that lost its answer has no outcome that could be unknown."""
