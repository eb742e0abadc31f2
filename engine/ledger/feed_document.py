"""The document of a feed row (contract §5): the whole order as of one change, but for its number.

There are as many as orders are settled, so what all of a sale's have in common is written once, and a line that many
orders have is, too; the rest is put in between. The audit makes each document anew, from the journal and in the plain
way, and compares.
"""

import msgspec

from engine.domain.orders import OrderLine, OrderRecord, OrderStatus, Payment, PaymentFate, rfc3339

LINES_KEPT_MAX = 4096
"""Lines' documents kept for the next order that has the same."""

_PAYMENT_CODES = {PaymentFate.TOO_LATE: "PAYMENT_TOO_LATE", PaymentFate.DUPLICATE: "DUPLICATE_PAYMENT"}
_STATUS_WORDS = [b"", *(status.word.encode() for status in sorted(OrderStatus))]
_json = msgspec.json.Encoder().encode
_DOCUMENT = (
    b'%b"version":%d,"order_id":"%b"%b,"channel":%b,"buyer_id":%b,"reference":%b,"status":"%b","payment_id":%b,'
    b'"created_at":%b,"settled_at":%b,"amount_minor":%d,"discount_minor":%d,"freight_minor":%d,"currency":%b,'
    b'"payments_due_for_refund":%b,"lines":[%b]}'
)
_NULL = b"null"


def payment_code(fate: PaymentFate) -> str | None:
    """The code under which a payment was recorded as due for refund; None for the one that settled its order."""
    return _PAYMENT_CODES.get(fate)


class Times(dict[int, bytes]):
    """Times in milliseconds as JSON: a batch has few different ones, and finding one costs less than making it."""

    def __missing__(self, at_ms: int) -> bytes:
        self[at_ms] = text = _json(rfc3339(at_ms))
        return text


class FeedDocuments:
    """Writes the documents of one sale's orders, as long as the sale is as it is."""

    def __init__(self, sale_id: str, labels: dict[str, str], outer_codes: dict[str, str]) -> None:
        self._of_sale = b',"sale_id":%b,"labels":%b' % (_json(sale_id), _json(labels))
        self._outer_codes = outer_codes
        self._lines: dict[tuple[OrderLine, int], bytes] = {}
        self._changes = {change: b'"change":%b,' % _json(change) for change in ("settled", "refund_due")}

    def encode(self, change: str, order_id: bytes, order: OrderRecord, times: Times) -> bytes:
        """The finished JSON, but for its opening brace and the `feed_sequence` that comes first.

        `order_id` has no character that JSON would write otherwise.
        """
        payments = order.payments
        only = len(payments) == 1 and payments[0].fate is PaymentFate.SETTLED  # as with almost all
        settling = payments[0] if only else order.settling_payment()
        return _DOCUMENT % (
            self._changes[change],
            order.version,
            order_id,
            self._of_sale,
            _json(order.channel),
            _json(order.buyer_id),
            _json(order.reference) if order.reference else _NULL,
            _STATUS_WORDS[order.status],
            _NULL if settling is None else _json(settling.payment_id),
            times[order.created_at_ms],
            times[order.settled_at_ms] if order.settled_at_ms else _NULL,
            order.amount_minor,
            order.discount_minor,
            order.freight_minor,
            _json(order.currency),
            b"[]" if only else _payments_due(order.payments_due_for_refund(), times),
            b",".join(map(self._line, order.lines, order.paid_minor_by_line())),
        )

    def _line(self, line: OrderLine, paid_minor: int) -> bytes:
        found = self._lines.get((line, paid_minor))
        if found is None:
            outer_code = self._outer_codes.get(line.sku)
            found = _json(
                {
                    "line_id": line.line_id,
                    "sku": line.sku,
                    "outer_code": outer_code,
                    "quantity": line.quantity,
                    "unit_price_minor": line.unit_price_minor,
                    "paid_minor": paid_minor,
                }
            )
            if len(self._lines) < LINES_KEPT_MAX:
                self._lines[line, paid_minor] = found
        return found


def _payments_due(payments: list[Payment], times: Times) -> bytes:
    return _json(
        [
            {
                "payment_id": payment.payment_id,
                "amount_minor": payment.amount_minor,
                "currency": payment.currency,
                "code": payment_code(payment.fate),
                "received_at": msgspec.Raw(times[payment.at_ms]),
            }
            for payment in payments
        ]
    )
