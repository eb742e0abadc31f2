"""What the gateway takes in query strings and gives in answers, as types; the OpenAPI document describes these.

The order is rendered by the domain's `order_document`, but for one that has just been held: that is rendered from the
request, because the partition does not send back what it was sent. Tests hold the two against each other.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from engine.domain.identifiers import IDEMPOTENCY_KEY_PATTERN, Channel, Name
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


HELD_FRAMES_MAX = 4096
"""Carts of one line whose documents' frames are remembered."""

_encode = msgspec.json.Encoder().encode
_MARK = "\x7f"
"""What no text of a request can contain, and what JSON leaves as it is."""
_RAW_MARK: Any = msgspec.Raw(_MARK.encode())


def held_document(sale_id: str, digest: str, request: HoldRequest, detail: Sequence[Any]) -> bytes:
    """The JSON document of an order that `request` has just made; `detail` is what came with DONE of its hold."""
    sequence, held_until_ms, amount_minor, currency, unit_prices_minor = detail
    discount_minor, freight_minor = request.discount_minor, request.freight_minor
    if len(request.lines) == 1:  # nearly all carts in a flash sale
        line, price_minor = request.lines[0], unit_prices_minor[0]
        cart = (line.line_id, line.sku, line.quantity, price_minor, discount_minor, freight_minor, amount_minor)
        frame = _held_frame(sale_id, request.channel, currency, *cart)
    else:
        lines = _held_lines(request, unit_prices_minor)
        frame = _frame(sale_id, request.channel, currency, lines, discount_minor, freight_minor, amount_minor)
    reference = b"null" if request.reference is UNSET else _encode(request.reference)
    buyer_id, held_until = _encode(request.buyer_id), rfc3339(held_until_ms).encode()
    first, after_digest, after_buyer, after_reference, after_held_until, last = frame
    return b"%b%b%b%b%b%b%b%b%b%d%b" % (
        first, digest.encode(), after_digest, buyer_id, after_buyer, reference, after_reference, held_until,
        after_held_until, sequence, last,
    )  # fmt: skip


_Frame = tuple[bytes, ...]
"""A document's bytes before, between and behind what each order has of its own: the digest, the buyer, the reference,
the deadline and the sequence number."""


def _frame(  # noqa: PLR0917 - all that orders of one cart have in common
    sale_id: str,
    channel: str,
    currency: str,
    lines: list[OrderLineDocument],
    discount_minor: int,
    freight_minor: int,
    amount_minor: int,
) -> _Frame:
    document = OrderDocument(
        order_id=f"{_MARK}.{sale_id}",
        sale_id=sale_id,
        buyer_id=_RAW_MARK,
        channel=channel,
        reference=_RAW_MARK,
        status="held",
        lines=lines,
        discount_minor=discount_minor,
        freight_minor=freight_minor,
        amount_minor=amount_minor,
        currency=currency,
        held_until=_MARK,
        sequence=_RAW_MARK,
    )
    return tuple(_encode(document).split(_MARK.encode()))


@lru_cache(HELD_FRAMES_MAX)
def _held_frame(  # noqa: PLR0917 - positional, because that is what the cache is quick with
    sale_id: str,
    channel: str,
    currency: str,
    line_id: str | UnsetType,
    sku: str,
    quantity: int,
    unit_price_minor: int,
    discount_minor: int,
    freight_minor: int,
    amount_minor: int,
) -> _Frame:
    """The frame of a cart of one line: what is split over it is all its own."""
    number = "1" if line_id is UNSET else line_id
    line = OrderLineDocument(number, sku, quantity, unit_price_minor, quantity * unit_price_minor - discount_minor)
    return _frame(sale_id, channel, currency, [line], discount_minor, freight_minor, amount_minor)


def _held_lines(request: HoldRequest, unit_prices_minor: Sequence[int]) -> list[OrderLineDocument]:
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
