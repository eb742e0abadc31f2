"""Sales: what an operator defines, and a sale with its levels as callers see it."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from engine.domain.identifiers import (
    HOLD_SECONDS_MAX,
    PRICE_MINOR_MAX,
    SKU_QUANTITY_MAX,
    TEXT_PATTERN,
    Channel,
    Currency,
    Name,
    Pool,
)

SALE_SKUS_MAX = 20_000
SALE_SKU_CHARACTERS_MAX = 1_000_000
"""Of all SKUs' names together. Redis' Lua hashes long strings by a few of their characters, so that many long names
that are much alike make its tables slow, and the script holds up every other sale meanwhile."""
STOCK_CHANGES_MAX = 50_000
LABELS_MAX = 64

Text = Annotated[str, Meta(max_length=1024, pattern=TEXT_PATTERN)]
"""Free text for people: a title, a colour, the address of a picture."""
Moment = Annotated[datetime, Meta(tz=True)]
Limit = Annotated[int, Meta(ge=1, le=SKU_QUANTITY_MAX)]
Quantity = Annotated[int, Meta(ge=0, le=SKU_QUANTITY_MAX)]
PriceMinor = Annotated[int, Meta(ge=0, le=PRICE_MINOR_MAX)]


class SaleStatus(StrEnum):
    """`draft` → `open` ⇄ `paused` → `closed`."""

    DRAFT = "draft"
    OPEN = "open"
    PAUSED = "paused"
    CLOSED = "closed"


class SkuDefinition(Struct, frozen=True, omit_defaults=True):
    """One SKU of a sale as an operator defines it."""

    sku: Name
    style: Name
    unit_price_minor: PriceMinor
    quantity: Quantity
    colour: Text | UnsetType = UNSET
    size: Text | UnsetType = UNSET
    link_no: Annotated[int, Meta(ge=0, le=10**9)] | Text | UnsetType = UNSET
    image_url: Text | UnsetType = UNSET
    outer_code: Text | UnsetType = UNSET
    unit_cost_minor: PriceMinor | UnsetType = UNSET
    withheld: Quantity | UnsetType = UNSET
    channels: dict[Channel, Quantity] | UnsetType = UNSET
    buyer_limit: Limit | UnsetType = UNSET


class SaleDefinition(Struct, frozen=True, omit_defaults=True):
    """The body of `PUT /ops/v1/sales/{sale_id}`."""

    title: Text
    currency: Currency
    hold_seconds: Annotated[int, Meta(ge=1, le=HOLD_SECONDS_MAX)]
    skus: list[SkuDefinition]
    buyer_limit: Limit | UnsetType = UNSET
    style_limits: dict[Name, Limit] | UnsetType = UNSET
    opens_at: Moment | UnsetType = UNSET
    closes_at: Moment | UnsetType = UNSET
    labels: Annotated[dict[Name, Text], Meta(max_length=LABELS_MAX)] | UnsetType = UNSET


class Allocate(Struct, frozen=True, tag_field="kind", tag="allocate"):
    """Give `quantity` units to a pool from outside the sale, or take them out where it is negative."""

    sku: Name
    quantity: Annotated[int, Meta(ge=-SKU_QUANTITY_MAX, le=SKU_QUANTITY_MAX)]
    pool: Pool = "shared"


class Move(Struct, frozen=True, tag_field="kind", tag="move", rename={"source": "from", "target": "to"}):
    """Move `quantity` units from one pool to another."""

    sku: Name
    quantity: Annotated[int, Meta(ge=1, le=SKU_QUANTITY_MAX)]
    source: Pool
    target: Pool


class StockDocument(Struct, frozen=True):
    """The body of `POST /ops/v1/sales/{sale_id}/stock`: applied once for its `document_id`, all or none."""

    document_id: Name
    changes: Annotated[list[Allocate | Move], Meta(min_length=1, max_length=STOCK_CHANGES_MAX)]


Transition = Literal["open", "pause", "resume", "close"]


class StockLevels(Struct, array_like=True):
    """A SKU's units at one sequence number: `allocated = withheld + available + held + settled`.

    The layout is shared with `scripts/lua/includes/stock.lua`.
    """

    allocated: int
    withheld: int
    held: int
    settled: int
    unit_price_minor: int
    buyer_limit: int
    """0 where there is none."""
    style: str
    pools: dict[str, int]

    @property
    def available(self) -> int:
        """Units that can be held now, in all pools."""
        return sum(self.pools.values())

    def available_to(self, channel: str) -> int:
        """Units that this channel can buy: its own pool and the shared one."""
        return self.pools.get(channel, 0) + self.pools.get("shared", 0)
