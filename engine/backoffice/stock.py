"""From an operator's stock document to the command that applies it."""

from collections.abc import Sequence

import msgspec

from engine.domain.commands import ChangeStock, StockChange
from engine.domain.identifiers import body_digest
from engine.domain.sales import Allocate, Move, StockDocument
from engine.web.problems import FieldError

OUTSIDE = ""
"""Where units come from that are allocated, and go to that are taken out of the sale."""


def stock_errors(document: StockDocument) -> Sequence[FieldError]:
    """What the types cannot say: a change changes something."""
    errors: list[FieldError] = []
    for position, change in enumerate(document.changes):
        if isinstance(change, Allocate) and change.quantity == 0:
            errors.append(FieldError(f"changes[{position}].quantity", "must not be zero"))
        if isinstance(change, Move) and change.source == change.target:
            errors.append(FieldError(f"changes[{position}].to", "must be another pool than from"))
    return errors


def change_stock_command(document: StockDocument) -> ChangeStock:
    """The command for a document; its digest covers the changes as they will be applied, defaults filled in."""
    changes = [_stock_change(change) for change in document.changes]
    return ChangeStock(document.document_id, body_digest(msgspec.msgpack.encode(changes)), changes)


def _stock_change(change: Allocate | Move) -> StockChange:
    if isinstance(change, Move):
        return StockChange(change.sku, change.source, change.target, change.quantity)
    if change.quantity > 0:
        return StockChange(change.sku, OUTSIDE, change.pool, change.quantity)
    return StockChange(change.sku, change.pool, OUTSIDE, -change.quantity)
