"""What the back office takes in bodies and query strings and gives in answers, as types; OpenAPI describes these."""

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from engine.domain.identifiers import CHANNEL_PATTERN, SALE_ID_PATTERN, TEXT_PATTERN
from engine.domain.sales import SALE_SKUS_MAX, SaleDefinition, SkuDefinition

CURSOR_LENGTH_MAX = 256
LIST_LIMIT_DEFAULT = 100
SEARCH_LIMIT_DEFAULT = 100
FEED_LIMIT_DEFAULT = 500
LIMIT_MAX = 1000

Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
"""RFC 3339, in UTC with milliseconds."""
Units = Annotated[int, Meta(ge=0)]
Cursor = Annotated[str, Meta(max_length=CURSOR_LENGTH_MAX, description="A `next_cursor`; empty for the start.")]
Wanted = Annotated[str, Meta(max_length=128, pattern=TEXT_PATTERN)]
"""What to look for; empty is the same as not given, which is what an empty field of a form sends."""
NotBuilt = Annotated[Any, Meta(description="Not built yet: INVALID where given.", extra_json_schema={"not": {}})]

StatusWord = Literal["draft", "open", "paused", "closed"]
OrderStatusWord = Literal["held", "settled", "cancelled", "expired", "refund_due"]
FeedChange = Literal["settled", "refund_due", "refunded", "returned", "part_shipped", "shipped"]


def _or_empty(pattern: str) -> str:
    return f"^(?:{pattern})?\\Z"


# --- what is asked -------------------------------------------------------------------------------------------------


class SkuEntry(SkuDefinition, frozen=True, omit_defaults=True):
    """One SKU of a sale as an operator defines it."""

    location: NotBuilt | UnsetType = UNSET


class SaleBody(SaleDefinition, frozen=True, omit_defaults=True, kw_only=True):
    """A sale as an operator defines it; what only an answer has (`status`, `version`, levels) is ignored."""

    skus: Annotated[list[SkuEntry], Meta(max_length=SALE_SKUS_MAX)]  # type: ignore[assignment]  # frozen, so only read


class SalesQuery(Struct, frozen=True):
    """Which sales to list."""

    after: Cursor = ""
    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX)] = LIST_LIMIT_DEFAULT


class SearchQuery(Struct, frozen=True):
    """What the orders found have in common."""

    order_id: Wanted = ""
    channel: Annotated[str, Meta(pattern=_or_empty(CHANNEL_PATTERN))] = ""
    buyer_id: Wanted = ""
    reference: Wanted = ""
    payment_id: Wanted = ""
    sale_id: Annotated[str, Meta(pattern=_or_empty(SALE_ID_PATTERN))] = ""
    sku: Wanted = ""
    status: Literal["held", "settled", "cancelled", "expired", "refund_due", ""] = ""
    after: Cursor = ""
    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX)] = SEARCH_LIMIT_DEFAULT


class FeedQuery(Struct, frozen=True):
    """Where to read the feed on, and of which change only."""

    after: Cursor = ""
    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX)] = FEED_LIMIT_DEFAULT
    change: FeedChange | UnsetType = UNSET


class AcknowledgeBody(Struct, frozen=True):
    """How far the ERP has taken rows over."""

    up_to: Cursor


# --- what is answered ----------------------------------------------------------------------------------------------


class SkuDocument(Struct, omit_defaults=True, forbid_unknown_fields=True):
    """A SKU as it was defined, with its units now: `allocated = withheld + available + held + settled`."""

    sku: str
    style: str
    unit_price_minor: int
    quantity: Units
    """The same as `allocated`, so that the sale can be sent back as it was read."""
    allocated: Units
    withheld: Units
    available: Units
    held: Units
    settled: Units
    pools: dict[str, Units]
    colour: str | UnsetType = UNSET
    size: str | UnsetType = UNSET
    link_no: int | str | UnsetType = UNSET
    image_url: str | UnsetType = UNSET
    outer_code: str | UnsetType = UNSET
    unit_cost_minor: int | UnsetType = UNSET
    channels: dict[str, int] | UnsetType = UNSET
    """As it was defined; what is in them now stands in `pools`."""
    buyer_limit: int | UnsetType = UNSET


class SaleDocument(Struct, omit_defaults=True, forbid_unknown_fields=True):
    """A sale with its units, all at one sequence number."""

    sale_id: str
    title: str
    currency: str
    hold_seconds: int
    status: StatusWord
    version: int
    """Counts the operators' changes; the ETag is made of it."""
    sequence: int
    skus: list[SkuDocument]
    as_of: Time | UnsetType = UNSET
    """When it was looked at. Not in the answer to a change, so that a repeat of the change is answered alike."""
    buyer_limit: int | UnsetType = UNSET
    style_limits: dict[str, int] | UnsetType = UNSET
    opens_at: Time | UnsetType = UNSET
    closes_at: Time | UnsetType = UNSET
    labels: dict[str, str] | UnsetType = UNSET
    frozen: str | UnsetType = UNSET
    """In a list only: why the sale is being reconciled; its figures are the ledger's then."""


class SalesDocument(Struct, forbid_unknown_fields=True):
    """Sales in the order of their ids."""

    sales: list[SaleDocument]
    next_cursor: str
    has_more: bool
    complete: bool
    """False where the ledger could not be asked, so that sales which have left Redis for good are missing."""


class PaymentDocument(Struct, forbid_unknown_fields=True):
    """A payment that was reported for an order."""

    payment_id: str
    amount_minor: int
    currency: str
    code: str | None
    """PAYMENT_TOO_LATE or DUPLICATE_PAYMENT where it is due for refund; null for the one that settled the order."""
    received_at: Time


class FoundLineDocument(Struct, forbid_unknown_fields=True):
    """One line of an order."""

    line_id: str
    sku: str
    outer_code: str | None
    quantity: int
    unit_price_minor: int
    paid_minor: int


class FoundOrderDocument(Struct):
    """An order with everything that a help desk may ask about it."""

    order_id: str
    sale_id: str
    labels: dict[str, str]
    channel: str
    buyer_id: str
    reference: str | None
    status: OrderStatusWord
    version: int
    payment_id: str | None
    created_at: Time
    held_until: Time
    settled_at: Time | None
    discount_minor: int
    freight_minor: int
    amount_minor: int
    currency: str
    sequence: int
    lines: list[FoundLineDocument]
    payments: list[PaymentDocument]
    payments_due_for_refund: list[PaymentDocument]


class FoundOrdersDocument(Struct, forbid_unknown_fields=True):
    """Orders, newest first."""

    orders: list[FoundOrderDocument]
    next_cursor: str
    has_more: bool


class FeedRowDocument(Struct):
    """The whole order as of one change."""

    feed_sequence: int
    change: FeedChange
    version: int
    order_id: str
    sale_id: str
    labels: dict[str, str]
    channel: str
    buyer_id: str
    reference: str | None
    status: OrderStatusWord
    payment_id: str | None
    created_at: Time
    settled_at: Time | None
    amount_minor: int
    discount_minor: int
    freight_minor: int
    currency: str
    payments_due_for_refund: list[PaymentDocument]
    lines: list[FoundLineDocument]


class FeedDocument(Struct, forbid_unknown_fields=True):
    """Rows of the feed, in the order of `feed_sequence`."""

    orders: list[FeedRowDocument]
    next_cursor: str
    has_more: bool


class AcknowledgedDocument(Struct, forbid_unknown_fields=True):
    """How far this key's owner has taken rows over."""

    acknowledged: str
    """A cursor; empty where nothing was acknowledged yet."""


class CheckDocument(Struct, forbid_unknown_fields=True):
    """One promise, recomputed."""

    name: str
    holds: bool
    detail: str


class AuditDocument(Struct, forbid_unknown_fields=True):
    """What the audit of a sale found."""

    holds: bool
    checks: list[CheckDocument]
