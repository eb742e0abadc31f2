"""Orders: what a checkout asks for, the record a partition keeps, and the order as callers see it."""

from datetime import UTC, datetime
from enum import IntEnum
from functools import lru_cache
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from engine.domain.identifiers import (
    DISCOUNT_MINOR_MAX,
    FREIGHT_MINOR_MAX,
    LINE_QUANTITY_MAX,
    LINES_MAX,
    ORDER_MINOR_MAX,
    Channel,
    Currency,
    Name,
    OrderId,
)
from engine.domain.money import split_by_value

RECORD_FORMAT = 3
TIMES_MAX = 4096
"""Times whose text is remembered: all orders of a batch share a few."""
SHARED_POOL = "shared"


class OrderStatus(IntEnum):
    """An order's state. Numbers are part of the record's format: never reuse one."""

    HELD = 1
    SETTLED = 2
    CANCELLED = 3
    EXPIRED = 4
    REFUND_DUE = 5

    @property
    def word(self) -> str:
        """The word that callers see."""
        return self.name.lower()


class PaymentFate(IntEnum):
    """What became of a payment. Numbers are part of the record's format."""

    SETTLED = 1
    """It settled the order."""
    TOO_LATE = 2
    """The order had ended and could not be had anew: due for refund."""
    DUPLICATE = 3
    """The order was settled already: due for refund."""


# --- what a checkout sends ---------------------------------------------------------------------------------------


class RequestedLine(Struct, frozen=True):
    """One line of a cart."""

    sku: Name
    quantity: Annotated[int, Meta(ge=1, le=LINE_QUANTITY_MAX)]
    line_id: Name | UnsetType = UNSET


class HoldRequest(Struct, frozen=True):
    """The body of `POST /v1/sales/{sale_id}/orders`."""

    buyer_id: Name
    channel: Channel
    lines: Annotated[list[RequestedLine], Meta(min_length=1, max_length=LINES_MAX)]
    discount_minor: Annotated[int, Meta(ge=0, le=DISCOUNT_MINOR_MAX)] = 0
    freight_minor: Annotated[int, Meta(ge=0, le=FREIGHT_MINOR_MAX)] = 0
    expected_amount_minor: Annotated[int, Meta(ge=0, le=ORDER_MINOR_MAX)] | UnsetType = UNSET
    reference: Name | UnsetType = UNSET

    def numbered_lines(self) -> list[tuple[str, str, int]]:
        """The lines as (line_id, sku, quantity), a missing `line_id` being the line's position from 1."""
        return [
            (str(position) if line.line_id is UNSET else line.line_id, line.sku, line.quantity)
            for position, line in enumerate(self.lines, 1)
        ]


class SettleRequest(Struct, frozen=True):
    """The body of `POST /v1/orders/{order_id}/settle`."""

    payment_id: Name
    amount_minor: Annotated[int, Meta(ge=0, le=ORDER_MINOR_MAX)]
    currency: Currency


# --- what a partition keeps --------------------------------------------------------------------------------------


class OrderLine(Struct, array_like=True, frozen=True):
    """A commercial line: what was asked for, at the price of that moment."""

    line_id: str
    sku: str
    quantity: int
    unit_price_minor: int


class UnitsTaken(Struct, array_like=True, frozen=True):
    """Units an order took out of one pool: where they go back to if its hold is given back."""

    sku: str
    pool: str
    quantity: int


class Payment(Struct, array_like=True, frozen=True):
    """A payment that was reported for an order, in the order of arrival."""

    payment_id: str
    amount_minor: int
    currency: str
    fate: PaymentFate
    at_ms: int


class OrderRecord(Struct, array_like=True, frozen=True):
    """An order as its partition keeps it; the layout is shared with `scripts/lua/includes/order.lua`."""

    format: int
    status: OrderStatus
    channel: str
    buyer_id: str
    reference: str
    """The caller's own order number; empty where none was given."""
    amount_expected: bool
    """Whether the request said what it would be: all that a repeat must share with it is here (§3 of the contract)."""
    sequence: int
    """The hold's sequence number."""
    created_at_ms: int
    held_until_ms: int
    discount_minor: int
    freight_minor: int
    amount_minor: int
    currency: str
    lines: list[OrderLine]
    own_units: list[UnitsTaken]
    """Where the units come from; empty where each line's are from `shared`, as almost all are: see `units`."""
    version: int
    """1 for the hold, one more for each state change of this order since."""
    changed_sequence: int
    """The sequence number of this order's last state change."""
    settled_at_ms: int
    """0 while it has not been settled."""
    payments: list[Payment]

    @property
    def units(self) -> list[UnitsTaken]:
        """Where the units come from, and go back to if the hold is given back."""
        return self.own_units or [UnitsTaken(line.sku, SHARED_POOL, line.quantity) for line in self.lines]

    def paid_minor_by_line(self) -> list[int]:
        """Each line's share of the lines less the discount; freight belongs to no line."""
        values = [line.quantity * line.unit_price_minor for line in self.lines]
        if not self.discount_minor:
            return values  # as the split would, for a tenth of its cost: most orders have no discount
        return split_by_value(values, sum(values) - self.discount_minor)

    def settling_payment(self) -> Payment | None:
        """The payment that settled this order, if one did."""
        return next((payment for payment in self.payments if payment.fate is PaymentFate.SETTLED), None)

    def payments_due_for_refund(self) -> list[Payment]:
        """The payments that were recorded as too late or as duplicates."""
        return [payment for payment in self.payments if payment.fate is not PaymentFate.SETTLED]


@lru_cache(TIMES_MAX)
def rfc3339(at_ms: int) -> str:
    """A time in milliseconds since 1970 as RFC 3339, in UTC with milliseconds."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{at_ms % 1000:03d}Z"


def order_document(order_id: OrderId, record: OrderRecord) -> dict[str, Any]:
    """The order as a checkout sees it (contract §4), ready for JSON."""
    return {
        "order_id": str(order_id),
        "sale_id": order_id.sale_id,
        "buyer_id": record.buyer_id,
        "channel": record.channel,
        "reference": record.reference or None,
        "status": record.status.word,
        "lines": [
            {
                "line_id": line.line_id,
                "sku": line.sku,
                "quantity": line.quantity,
                "unit_price_minor": line.unit_price_minor,
                "paid_minor": paid_minor,
            }
            for line, paid_minor in zip(record.lines, record.paid_minor_by_line(), strict=True)
        ],
        "discount_minor": record.discount_minor,
        "freight_minor": record.freight_minor,
        "amount_minor": record.amount_minor,
        "currency": record.currency,
        "held_until": rfc3339(record.held_until_ms),
        "sequence": record.sequence,
    }
