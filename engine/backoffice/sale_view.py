"""A sale as operators see it: its definition joined with its units."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from engine.backoffice.definition import moment_ms
from engine.backoffice.documents import SaleDocument, SkuDocument
from engine.domain.orders import rfc3339
from engine.domain.sales import SaleDefinition, SkuDefinition
from engine.ledger.sales import LevelsAt
from engine.partition.codec import SaleSnapshot

_definitions = msgspec.json.Decoder(SaleDefinition)


class Levels(Protocol):
    """A SKU's units, whichever store they come from."""

    @property
    def allocated(self) -> int: ...
    @property
    def withheld(self) -> int: ...
    @property
    def available(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def settled(self) -> int: ...
    @property
    def pools(self) -> dict[str, int]: ...


def sale_from_partition(sale_id: str, snapshot: SaleSnapshot) -> SaleDocument:
    """The sale as its partition has it at one sequence number."""
    state = snapshot.state
    return _sale_document(
        sale_id,
        _definitions.decode(snapshot.definition),
        dict(snapshot.levels),
        status=state.status,
        version=state.version,
        sequence=state.sequence,
        as_of=rfc3339(state.at_ms),
    )


def sale_from_ledger(
    sale_id: str, stored: Mapping[str, Any], units: LevelsAt, frozen: str | UnsetType = UNSET
) -> SaleDocument:
    """The sale as of the last entry in the ledger: for one that has left Redis, or is being reconciled."""
    return _sale_document(
        sale_id,
        msgspec.convert(stored["definition"], SaleDefinition),
        units.levels,
        status=stored["status"],
        version=stored["version"],
        sequence=units.sequence,
        as_of=_time(stored["changed_at"]),
        frozen=frozen,
    )


def _sale_document(
    sale_id: str, definition: SaleDefinition, levels: Mapping[str, Levels], **state: Any
) -> SaleDocument:
    return SaleDocument(
        sale_id=sale_id,
        title=definition.title,
        currency=definition.currency,
        hold_seconds=definition.hold_seconds,
        skus=[_sku_document(entry, levels[entry.sku]) for entry in definition.skus if entry.sku in levels],
        buyer_limit=definition.buyer_limit,
        style_limits=definition.style_limits,
        opens_at=_time(definition.opens_at),
        closes_at=_time(definition.closes_at),
        labels=definition.labels,
        **state,
    )


def _sku_document(entry: SkuDefinition, levels: Levels) -> SkuDocument:
    return SkuDocument(
        sku=entry.sku,
        style=entry.style,
        unit_price_minor=entry.unit_price_minor,
        quantity=levels.allocated,
        allocated=levels.allocated,
        withheld=levels.withheld,
        available=levels.available,
        held=levels.held,
        settled=levels.settled,
        pools=levels.pools,
        colour=entry.colour,
        size=entry.size,
        link_no=entry.link_no,
        image_url=entry.image_url,
        outer_code=entry.outer_code,
        unit_cost_minor=entry.unit_cost_minor,
        channels=entry.channels,
        buyer_limit=entry.buyer_limit,
    )


def _time(moment: datetime | UnsetType) -> Any:
    return UNSET if moment is UNSET else rfc3339(moment_ms(moment))
