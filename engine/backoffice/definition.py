"""From an operator's definition of a sale to the command that puts it in force."""

from collections.abc import Container, Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from engine.backoffice.documents import SaleBody, SkuEntry
from engine.domain.commands import Define, DefineSku
from engine.domain.sales import SALE_SKU_CHARACTERS_MAX, SALE_SKUS_MAX
from engine.web.problems import FieldError

MOMENT_FIRST = datetime(1970, 1, 2, tzinfo=UTC)
MOMENT_LAST = datetime(9999, 1, 1, tzinfo=UTC)
"""Times outside these cannot be given back as RFC 3339 in UTC, or would read as "none" in the partition."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def definition_errors(body: SaleBody) -> Sequence[FieldError]:
    """What the types cannot say: each SKU stands once, the sale opens before it closes, nothing asks for a location."""
    errors = [*_sku_errors(body.skus)]
    for name in ("opens_at", "closes_at"):
        moment = getattr(body, name)
        if moment is not UNSET and not MOMENT_FIRST <= moment < MOMENT_LAST:
            errors.append(FieldError(name, "must be between the years 1970 and 9999"))
    if 0 < moment_ms(body.closes_at) <= moment_ms(body.opens_at):
        errors.append(FieldError("closes_at", "must be later than opens_at"))
    return errors


def _sku_errors(skus: Sequence[SkuEntry]) -> Sequence[FieldError]:
    errors: list[FieldError] = []
    seen: set[str] = set()
    for position, entry in enumerate(skus):
        if entry.sku in seen:
            errors.append(FieldError(f"skus[{position}].sku", "must be unique in the sale"))
        seen.add(entry.sku)
        if entry.location is not UNSET:
            errors.append(FieldError(f"skus[{position}].location", "cannot be used yet: locations are not built"))
    if len(skus) > SALE_SKUS_MAX:
        errors.append(FieldError("skus", f"must be {SALE_SKUS_MAX} at most"))
    if sum(map(len, seen)) > SALE_SKU_CHARACTERS_MAX:
        errors.append(FieldError("skus", f"must have {SALE_SKU_CHARACTERS_MAX} characters at most in all their names"))
    return errors


def shortage_errors(body: SaleBody, known_skus: Container[str]) -> list[FieldError]:
    """SKUs that are new to the sale and set more units apart than they have.

    For one that the sale has already, `withheld` and `channels` no longer count, and may carry old numbers.
    """
    return [
        FieldError(f"skus[{position}].quantity", "must be at least withheld and all of channels together")
        for position, entry in enumerate(body.skus)
        if entry.sku not in known_skus
        and _number(entry.withheld) + sum(units for _, units in _channels(entry)) > entry.quantity
    ]


def new_command_id() -> str:
    """An id for one request of an operator, by which its partition knows it when it comes twice."""
    return uuid4().hex


def define_command(body: SaleBody, if_match: int) -> Define:
    """The command for a definition, with an id of its own, so that one whose answer was lost can be sent again."""
    return Define(
        command_id=new_command_id(),
        if_match=if_match,
        definition=msgspec.json.encode(body).decode(),
        currency=body.currency,
        hold_ms=body.hold_seconds * 1000,
        buyer_limit=_number(body.buyer_limit),
        style_limits={} if body.style_limits is UNSET else body.style_limits,
        opens_at_ms=moment_ms(body.opens_at),
        closes_at_ms=moment_ms(body.closes_at),
        skus=[_define_sku(entry) for entry in body.skus],
    )


def _define_sku(entry: SkuEntry) -> DefineSku:
    return DefineSku(
        sku=entry.sku,
        style=entry.style,
        unit_price_minor=entry.unit_price_minor,
        buyer_limit=_number(entry.buyer_limit),
        quantity=entry.quantity,
        withheld=_number(entry.withheld),
        channels=_channels(entry),
    )


def _channels(entry: SkuEntry) -> list[tuple[str, int]]:
    return [] if entry.channels is UNSET else list(entry.channels.items())


def _number(value: int | UnsetType) -> int:
    return 0 if value is UNSET else value


def moment_ms(moment: datetime | UnsetType) -> int:
    """Milliseconds since 1970; 0 where there is none."""
    return 0 if moment is UNSET else (moment - _EPOCH) // _MILLISECOND
