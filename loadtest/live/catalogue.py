"""What the live sells: colours × sizes, in the proportions in which real orders ask for real articles.

The orders are the demo's (see `engine/demo/data/SOURCE.md`). They are of a shop for gifts, which has no sizes: how much
the articles differ in popularity and in price is real, the names of colours and sizes are ours.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import engine.demo
from engine.demo.orders_data import CURRENCY, FILE_NAME, read_orders
from engine.domain.money import split_by_value

ORDERS_PATH = Path(engine.demo.__file__).with_name("data") / FILE_NAME
COLOURS = ("black", "ecru", "sage", "rust", "navy")
SIZES = ("M", "L", "S", "XL")
STYLES_OF_A_LINK = 2
UNITS_A_PERSON = 3
"""Units for sale for each of the most people: enough to sell for a while, too few for everybody."""
UNITS_OF_A_SKU_MIN = 2
KEPT_BACK_PERCENT = 15
"""Of a SKU's units: kept until the host calls for more."""
OWN_POOL_CHANNEL = "douyin"
OWN_POOL_PERCENT = 20
BUYER_LIMIT_UNITS = 4


@dataclass(frozen=True, slots=True)
class Item:
    """One SKU of the live."""

    sku: str
    style: str
    colour: str
    size: str
    link: int
    popularity: int
    """How many lines of real orders ask for the article that stands behind it."""
    unit_price_minor: int
    quantity: int

    @property
    def kept_back(self) -> int:
        return self.quantity * KEPT_BACK_PERCENT // 100

    @property
    def own_pool(self) -> int:
        return self.quantity * OWN_POOL_PERCENT // 100

    def document(self) -> dict[str, Any]:
        """Its entry in `PUT /ops/v1/sales/{sale_id}`; nothing of a later link can be bought yet."""
        entry: dict[str, Any] = {
            "sku": self.sku,
            "style": self.style,
            "colour": self.colour,
            "size": self.size,
            "link_no": self.link + 1,
            "unit_price_minor": self.unit_price_minor,
            "quantity": self.quantity,
            "withheld": self.quantity if self.link else self.kept_back,
        }
        return entry if self.link else {**entry, "channels": {OWN_POOL_CHANNEL: self.own_pool}}


class Catalogue:
    """All items of one live, by link."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = {item.sku: item for item in items}
        self.links: dict[int, list[Item]] = defaultdict(list)
        for item in items:
            self.links[item.link].append(item)

    def pick(self, link: int) -> Item:
        """One item of a link, each as likely as it is popular."""
        items = self.links[link]
        return random.choices(items, [item.popularity for item in items])[0]

    def sale_document(self, title: str, hold_seconds: int) -> dict[str, Any]:
        """The body of `PUT /ops/v1/sales/{sale_id}`."""
        return {
            "title": title,
            "currency": CURRENCY,
            "hold_seconds": hold_seconds,
            "buyer_limit": BUYER_LIMIT_UNITS,
            "skus": [item.document() for item in self.items.values()],
        }

    def link_up_document(self, link: int, document_id: str) -> dict[str, Any]:
        """The stock document that puts a later link on sale, all but what is kept back of it."""
        changes = []
        for item in self.links[link]:
            pools = {OWN_POOL_CHANNEL: item.own_pool, "shared": item.quantity - item.own_pool - item.kept_back}
            changes += [_move(item, units, pool) for pool, units in pools.items() if units]
        return {"document_id": document_id, "changes": changes}

    def more_document(self, link: int, document_id: str) -> dict[str, Any]:
        """The stock document that puts on sale what was kept back; it has no changes where nothing was."""
        changes = [_move(item, item.kept_back, "shared") for item in self.links[link] if item.kept_back]
        return {"document_id": document_id, "changes": changes}


def make_catalogue(links: int, people_max: int) -> Catalogue:
    """The catalogue of a live with that many links. Raises: OSError, where the orders cannot be read."""
    variants = list(product(COLOURS, SIZES))
    styles = links * STYLES_OF_A_LINK
    ranked = _articles_by_popularity()[: styles * len(variants)]
    quantities = split_by_value([count for _, count, _ in ranked], people_max * UNITS_A_PERSON)
    items = []
    for rank, (_, popularity, _) in enumerate(ranked):
        # Dealt out like cards, so that each style has its favourites and its leftovers.
        position, style = divmod(rank, styles)
        colour, size = variants[position]
        name = f"LOOK-{style + 1:02}"
        items.append(
            Item(
                sku=f"{name}-{colour.upper()}-{size}",
                style=name,
                colour=colour,
                size=size,
                link=style // STYLES_OF_A_LINK,
                popularity=popularity,
                unit_price_minor=ranked[style][2],
                quantity=max(UNITS_OF_A_SKU_MIN, quantities[rank]),
            )
        )
    return Catalogue(items)


def _articles_by_popularity() -> list[tuple[str, int, int]]:
    """(code, lines that ask for it, median price) of every real article, the most wanted first."""
    lines: Counter[str] = Counter()
    prices: dict[str, list[int]] = defaultdict(list)
    for cart in read_orders(ORDERS_PATH).carts:
        for line in cart.lines:
            lines[line.sku] += 1
            prices[line.sku].append(line.invoice_price_minor)
    return [(code, count, round(median(prices[code]))) for code, count in lines.most_common()]


def _move(item: Item, units: int, pool: str) -> dict[str, Any]:
    return {"sku": item.sku, "kind": "move", "quantity": units, "from": "withheld", "to": pool}
