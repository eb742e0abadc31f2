"""From carts to a sale: what is for sale, at which price, how many, and in which pools."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from engine.demo.draw import draw_one
from engine.demo.orders_data import CURRENCY, Cart, OrdersData
from engine.domain.money import split_by_value

ALLOCATED_PERCENT = 60
"""Of the units that the orders ask for: enough to sell, too few for everybody."""
WITHHELD_PERCENT = 10
"""Of a SKU's units: kept back until the host calls for more."""
OWN_POOL_PERCENT: Mapping[str, int] = {"douyin": 20, "wechat_channels": 15, "community": 10}
"""Of a SKU's units: for that channel alone. `kuaishou` has none and buys from the shared pool."""
CHANNEL_WEIGHTS: Mapping[str, int] = {"douyin": 40, "wechat_channels": 25, "kuaishou": 20, "community": 15}
STYLE_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Article:
    """One SKU of the sale."""

    sku: str
    description: str
    unit_price_minor: int
    quantity: int
    withheld: int
    channels: Mapping[str, int]

    @property
    def style(self) -> str:
        return self.sku[:STYLE_DIGITS]

    def document(self) -> dict[str, Any]:
        """The SKU's entry in `PUT /ops/v1/sales/{sale_id}`."""
        entry: dict[str, Any] = {
            "sku": self.sku,
            "style": self.style,
            "outer_code": self.sku,
            "unit_price_minor": self.unit_price_minor,
            "quantity": self.quantity,
            "withheld": self.withheld,
            "channels": dict(self.channels),
        }
        variant = self.sku[STYLE_DIGITS:]
        return {**entry, "colour": variant} if variant else entry


Catalogue = Mapping[str, Article]


def make_catalogue(data: OrdersData) -> Catalogue:
    """Every article that somebody asks for, by SKU: its median price, and its share of the units allocated."""
    prices: dict[str, list[int]] = defaultdict(list)
    asked: Counter[str] = Counter()
    for cart in data.carts:
        for line in cart.lines:
            prices[line.sku].append(line.invoice_price_minor)
            asked[line.sku] += line.quantity
    skus = sorted(asked)
    quantities = split_by_value([asked[sku] for sku in skus], asked.total() * ALLOCATED_PERCENT // 100)
    return {
        sku: Article(
            sku=sku,
            description=data.descriptions[sku],
            unit_price_minor=round(median(prices[sku])),
            quantity=quantity,
            withheld=quantity * WITHHELD_PERCENT // 100,
            channels={channel: quantity * percent // 100 for channel, percent in OWN_POOL_PERCENT.items()},
        )
        for sku, quantity in zip(skus, quantities, strict=True)
    }


def channel_of(buyer_id: str) -> str:
    """The channel on which this buyer watches; always the same."""
    return draw_one(CHANNEL_WEIGHTS, "channel", buyer_id)


def sale_document(catalogue: Catalogue, title: str, hold_seconds: int) -> dict[str, Any]:
    """The body of `PUT /ops/v1/sales/{sale_id}`."""
    return {
        "title": title,
        "currency": CURRENCY,
        "hold_seconds": hold_seconds,
        "labels": {"host": "demo", "data": "Online Retail, UCI (CC BY 4.0)"},
        "skus": [article.document() for article in catalogue.values()],
    }


def release_document(catalogue: Catalogue, document_id: str) -> dict[str, Any]:
    """The stock document by which the host gets more: all that was withheld goes to the shared pool."""
    changes = [
        {"sku": article.sku, "kind": "move", "quantity": article.withheld, "from": "withheld", "to": "shared"}
        for article in catalogue.values()
        if article.withheld
    ]
    return {"document_id": document_id, "changes": changes}


def days_of(carts: Sequence[Cart]) -> list[list[Cart]]:
    """The carts of each day, in the order of the days: each day is one rush."""
    days: dict[Any, list[Cart]] = defaultdict(list)
    for cart in carts:
        days[cart.day].append(cart)
    return [days[day] for day in sorted(days)]
