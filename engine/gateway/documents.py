"""What the gateway takes in query strings and gives in answers, as types; the OpenAPI document describes these.

The order is rendered by the domain's `order_document`, but for one that has just been held: that is rendered from the
request, because the partition does not send back what it was sent. Tests hold the two against each other.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from engine.domain.identifiers import IDEMPOTENCY_KEY_PATTERN, Channel, Name, OrderId
from engine.domain.money import split_by_value
from engine.domain.orders import HoldRequest, rfc3339

StatusWord = Literal["held", "settled", "cancelled", "expired", "refund_due"]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""RFC 3339, in UTC with milliseconds."""


class BuyerOrdersQuery(Struct, frozen=True):
    """Whose orders, and of which key."""

    channel: Channel
    buyer_id: Name
    idempotency_key: Annotated[str, Meta(pattern=IDEMPOTENCY_KEY_PATTERN)] | UnsetType = UNSET


class AvailabilityQuery(Struct, frozen=True):
    """Available to whom; to all where no channel is given."""

    channel: Channel | UnsetType = UNSET


class OrderLineDocument(Struct, forbid_unknown_fields=True, gc=False):
    """One line of an order."""

    line_id: str
    sku: str
    quantity: int
    unit_price_minor: int
    paid_minor: int
    """The line's share of the lines less the discount."""


class OrderDocument(Struct, forbid_unknown_fields=True, gc=False):
    """An order as a checkout sees it."""

    order_id: str
    sale_id: str
    buyer_id: str
    channel: str
    reference: str | None
    status: StatusWord
    lines: list[OrderLineDocument]
    discount_minor: int
    freight_minor: int
    amount_minor: int
    currency: str
    held_until: Time
    sequence: int
    """The hold's sequence number in its sale."""


_encode = msgspec.json.Encoder().encode


def held_document(order_id: OrderId, request: HoldRequest, detail: Sequence[Any]) -> bytes:
    """The JSON document of an order that `request` has just made; `detail` is what came with DONE of its hold."""
    sequence, held_until_ms, amount_minor, currency, unit_prices_minor = detail
    return _encode(
        OrderDocument(
            f"{order_id.digest}.{order_id.sale_id}",
            order_id.sale_id,
            request.buyer_id,
            request.channel,
            None if request.reference is UNSET else request.reference,
            "held",
            _held_lines(request, unit_prices_minor),
            request.discount_minor,
            request.freight_minor,
            amount_minor,
            currency,
            rfc3339(held_until_ms),
            sequence,
        )
    )


def _held_lines(request: HoldRequest, unit_prices_minor: Sequence[int]) -> list[OrderLineDocument]:
    if len(request.lines) == 1:  # nearly all carts in a flash sale: what is split over one line is all its own
        (line,), (price_minor,) = request.lines, unit_prices_minor
        line_id = "1" if line.line_id is UNSET else line.line_id
        paid_minor = line.quantity * price_minor - request.discount_minor
        return [OrderLineDocument(line_id, line.sku, line.quantity, price_minor, paid_minor)]
    priced = list(zip(request.numbered_lines(), unit_prices_minor, strict=True))
    values_minor = [quantity * price_minor for (_, _, quantity), price_minor in priced]
    shares_minor = split_by_value(values_minor, sum(values_minor) - request.discount_minor)
    return [
        OrderLineDocument(*line, price_minor, paid_minor)
        for (line, price_minor), paid_minor in zip(priced, shares_minor, strict=True)
    ]


class OrdersDocument(Struct, forbid_unknown_fields=True):
    """A buyer's orders, newest first."""

    orders: Annotated[list[OrderDocument], Meta(max_length=100)]


class SkuAvailability(Struct, forbid_unknown_fields=True):
    """Units of a SKU that can be bought now."""

    sku: str
    available: Annotated[int, Meta(ge=0)]


class AvailabilityDocument(Struct, forbid_unknown_fields=True):
    """What can be bought in a sale."""

    sale_id: str
    status: Literal["draft", "open", "paused", "closed"]
    as_of: Time
    skus: list[SkuAvailability]
