"""What each journal entry does to stock: the one place that says so outside the script."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from engine.domain.journal import (
    Cancelled,
    Entry,
    Expired,
    Held,
    OrderEntry,
    Reinstated,
    SaleClosed,
    SaleDefined,
    SaleDeleted,
    Settled,
    StockChanged,
    UnitsMoved,
)
from engine.domain.orders import UnitsTaken

ALLOCATED, HELD, SETTLED, WITHHELD = "allocated", "held", "settled", "withheld"


class StockEffect(NamedTuple):
    """One number of a SKU changes: `allocated`, `held`, `settled`, `withheld`, or the pool of that name."""

    sku: str
    account: str
    pool: str
    """The pool's name where `account` is `pool`, else empty."""
    quantity: int


POOL = "pool"


def stock_effects(entry: Entry) -> Iterator[StockEffect]:
    """The changes of one entry; nothing for an entry that moves no units."""
    match entry:
        case Cancelled() | Expired():
            return order_effects(type(entry), entry.order.units, returned=entry.returned)
        case OrderEntry():
            return order_effects(type(entry), entry.order.units)
        case SaleDefined() | StockChanged() | SaleClosed() | SaleDeleted():
            return _allocated(entry.moved)
        case _:
            return iter(())


def order_effects(
    kind: type[OrderEntry], taken: Sequence[UnitsTaken], *, returned: bool = True
) -> Iterator[StockEffect]:
    """The changes of an order's entry of this kind, or of many such entries whose units were added up.

    `returned` is the entry's own where it has one.
    """
    if kind is Held:
        return _taken(taken, HELD)
    if kind is Reinstated:
        return _taken(taken, SETTLED)
    if kind is Settled:
        return _confirmed(taken)
    if kind is Cancelled or kind is Expired:
        return _given_back(taken, returned=returned)
    return iter(())


def _taken(taken: Sequence[UnitsTaken], account: str) -> Iterator[StockEffect]:
    for units in taken:
        yield StockEffect(units.sku, POOL, units.pool, -units.quantity)
        yield StockEffect(units.sku, account, "", units.quantity)


def _confirmed(taken: Sequence[UnitsTaken]) -> Iterator[StockEffect]:
    for units in taken:
        yield StockEffect(units.sku, HELD, "", -units.quantity)
        yield StockEffect(units.sku, SETTLED, "", units.quantity)


def _given_back(taken: Sequence[UnitsTaken], *, returned: bool) -> Iterator[StockEffect]:
    for units in taken:
        yield StockEffect(units.sku, HELD, "", -units.quantity)
        if returned:
            yield StockEffect(units.sku, POOL, units.pool, units.quantity)
        else:
            yield StockEffect(units.sku, ALLOCATED, "", -units.quantity)


def _allocated(moves: Sequence[UnitsMoved]) -> Iterator[StockEffect]:
    for moved in moves:
        yield StockEffect(moved.sku, ALLOCATED, "", moved.quantity)
        if moved.pool == WITHHELD:
            yield StockEffect(moved.sku, WITHHELD, "", moved.quantity)
        else:
            yield StockEffect(moved.sku, POOL, moved.pool, moved.quantity)
