"""The ERP's feed held against the journal, row by row and side by side, while the journal is folded."""

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from engine.audit.report import Differences
from engine.domain.identifiers import OrderId
from engine.domain.journal import DuplicatePayment, Entry, OrderEntry, PaymentTooLate, Reinstated, Settled
from engine.domain.orders import rfc3339

_CHANGES: dict[type, str] = {
    Settled: "settled",
    Reinstated: "settled",
    PaymentTooLate: "refund_due",
    DuplicatePayment: "refund_due",
}
_LEFT_OUT = ("feed_sequence", "labels")
"""Of a row, what is compared elsewhere or is not of the order."""


class FeedComparison:
    """Each entry that belongs in the feed is there exactly once, whole, and in the journal's order.

    A row that is missing, or one too many, sets the two off against each other; what is not matched yet waits in
    `_early` and `_missing`, so that one row too few is one difference.
    """

    def __init__(self, sale_id: str, rows: AsyncIterator[Any]) -> None:
        self.differences = Differences()
        self.rows_count = 0
        self.settled_count = 0
        self._sale_id = sale_id
        self._rows = rows
        self._early: dict[tuple[str, int], Any] = {}
        self._missing: dict[tuple[str, int], dict[str, Any]] = {}
        self._last_sequence = 0

    async def expect(self, entry: Entry) -> None:
        """Find the row of this entry, if it should have one."""
        change = _CHANGES.get(type(entry))
        if change is None or not isinstance(entry, OrderEntry):
            return
        self.settled_count += change == "settled"
        expected = _document(change, OrderId(self._sale_id, entry.digest), entry)
        key = (expected["order_id"], expected["version"])
        row = self._early.pop(key, None)
        if row is None:
            row = await anext(self._rows, None)
            if row is not None and _key(row) != key:
                self._put_aside(row)
                row = None
        if row is None:
            self._missing[key] = expected
        else:
            self._match(row, expected)

    async def finish(self) -> None:
        """Take what is left of the feed: after it every row has its entry, or is a difference."""
        async for row in self._rows:
            self._put_aside(row)
        for order_id, version in self._missing:
            self.differences.add(f"order {order_id} of version {version} is not in the feed")
        for order_id, version in self._early:
            self.differences.add(f"order {order_id} of version {version} is in the feed, and not in the journal")

    def _put_aside(self, row: Any) -> None:
        key = _key(row)
        expected = self._missing.pop(key, None)
        if expected is not None:
            self._match(row, expected)
        elif key in self._early:
            self.differences.add(f"order {key[0]} of version {key[1]} is in the feed twice")
        else:
            self._early[key] = row

    def _match(self, row: Any, expected: dict[str, Any]) -> None:
        self.rows_count += 1
        if row["feed_sequence"] < self._last_sequence:
            self.differences.add(f"row {row['feed_sequence']} stands before one of an earlier entry")
        self._last_sequence = row["feed_sequence"]
        try:
            found = msgspec.json.decode(row["row"])
            sequence = found.pop("feed_sequence", row["feed_sequence"])
            for line in found["lines"]:
                line.pop("outer_code", None)
        except (msgspec.MsgspecError, KeyError, AttributeError, TypeError):
            self.differences.add(f"row {row['feed_sequence']} is not the document of an order")
            return
        for name in _LEFT_OUT:
            found.pop(name, None)
        if found != expected or row["change"] != expected["change"] or sequence != row["feed_sequence"]:
            names = [name for name in expected if found.get(name) != expected[name]] or ["its number or its change"]
            self.differences.add(f"row {row['feed_sequence']} differs in {', '.join(names)}")


def _key(row: Any) -> tuple[str, int]:
    return row["order_id"], row["version"]


def _document(change: str, order_id: OrderId, entry: OrderEntry) -> dict[str, Any]:
    """What the feed's row must say of the order, as of this entry."""
    order = entry.order
    settling = order.settling_payment()
    return {
        "change": change,
        "version": order.version,
        "order_id": str(order_id),
        "sale_id": order_id.sale_id,
        "channel": order.channel,
        "buyer_id": order.buyer_id,
        "reference": order.reference or None,
        "status": order.status.word,
        "payment_id": None if settling is None else settling.payment_id,
        "created_at": rfc3339(order.created_at_ms),
        "settled_at": rfc3339(order.settled_at_ms) if order.settled_at_ms else None,
        "amount_minor": order.amount_minor,
        "discount_minor": order.discount_minor,
        "freight_minor": order.freight_minor,
        "currency": order.currency,
        "payments_due_for_refund": [
            {
                "payment_id": payment.payment_id,
                "amount_minor": payment.amount_minor,
                "currency": payment.currency,
                "code": "PAYMENT_TOO_LATE" if payment.fate.name == "TOO_LATE" else "DUPLICATE_PAYMENT",
                "received_at": rfc3339(payment.at_ms),
            }
            for payment in order.payments_due_for_refund()
        ],
        "lines": [
            {
                "line_id": line.line_id,
                "sku": line.sku,
                "quantity": line.quantity,
                "unit_price_minor": line.unit_price_minor,
                "paid_minor": paid_minor,
            }
            for line, paid_minor in zip(order.lines, order.paid_minor_by_line(), strict=True)
        ],
    }
