"""What the gateway takes in query strings and gives in answers, as types; the OpenAPI document describes these.

The order is rendered by the domain's `order_document`; a test holds that and this against each other.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from engine.domain.identifiers import IDEMPOTENCY_KEY_PATTERN, Channel, Name

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


class OrderLineDocument(Struct, forbid_unknown_fields=True):
    """One line of an order."""

    line_id: str
    sku: str
    quantity: int
    unit_price_minor: int
    paid_minor: int
    """The line's share of the lines less the discount."""


class OrderDocument(Struct, forbid_unknown_fields=True):
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
