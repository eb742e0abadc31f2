"""What the engine may answer: every answer is held against the contract, and whatever is wrong is said in words."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

PROBLEM_CONTENT_TYPE = "application/problem+json"
STATUS_OF_CODE: Mapping[str, int] = {
    **dict.fromkeys(("SALE_NOT_FOUND", "SKU_NOT_FOUND", "ORDER_NOT_FOUND"), 404),
    **dict.fromkeys(("SOLD_OUT", "BUYER_LIMIT_REACHED", "PRICE_CHANGED", "SALE_NOT_OPEN", "SALE_CLOSED"), 409),
    **dict.fromkeys(("ORDER_NOT_HELD", "PAYMENT_TOO_LATE", "DUPLICATE_PAYMENT", "CONFLICT"), 409),
    **dict.fromkeys(("INVALID", "IDEMPOTENCY_KEY_REUSED", "AMOUNT_MISMATCH"), 422),
    "RATE_LIMITED": 429,
    **dict.fromkeys(("OVERLOADED", "FROZEN", "OUTCOME_UNKNOWN", "LEDGER_BEHIND"), 503),
}
ASK_AGAIN_CODES = frozenset({"OVERLOADED", "FROZEN", "OUTCOME_UNKNOWN", "LEDGER_BEHIND", "RATE_LIMITED"})
"""Not now: right at any time, and to be asked again with the same key."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, as it came."""

    status: int
    """0 where none came."""
    headers: Mapping[str, str]
    """By name in lower case."""
    body: Mapping[str, Any]
    """Empty where it was no JSON object."""

    @property
    def is_yes(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_replay(self) -> bool:
        return self.headers.get("idempotent-replayed") == "true"

    @property
    def code(self) -> str:
        """The problem's code; empty for a yes."""
        return "" if self.is_yes else str(self.body.get("code", f"HTTP {self.status}"))

    @property
    def is_not_now(self) -> bool:
        return self.code in ASK_AGAIN_CODES


@dataclass(frozen=True, slots=True)
class Sent:
    """An order that was asked for, and what must come back."""

    key: str
    body: Mapping[str, Any]
    fair_amount_minor: int
    """What it costs by the catalogue, whatever the buyer expects."""
    prices_minor: Mapping[str, int]
    currency: str

    @property
    def units(self) -> int:
        return sum(line["quantity"] for line in self.body["lines"])

    @property
    def expects_old_price(self) -> bool:
        return bool(self.body["expected_amount_minor"] != self.fair_amount_minor)


def complaint_about(answer: Answer, expected_codes: Collection[str], request_id: str) -> str:
    """What is wrong with an answer's form, or with its being given at all; empty where nothing is."""
    if answer.status == 0:
        return "no answer"
    if request_id and answer.headers.get("x-request-id") != request_id:
        return f"X-Request-Id {request_id} came back as {answer.headers.get('x-request-id')}"
    if "x-request-id" not in answer.headers:
        return "no X-Request-Id"
    if answer.is_yes:
        return "" if answer.body else f"{answer.status} without a JSON object"
    if answer.code not in expected_codes and not answer.is_not_now:
        return f"unexpected {answer.status} {answer.code}: {answer.body.get('detail', '')}"
    return _complaint_about_problem(answer)


def _complaint_about_problem(answer: Answer) -> str:
    code, body = answer.code, answer.body
    if answer.status != STATUS_OF_CODE[code] or body.get("status") != answer.status:
        return f"{code} with status {answer.status}, and {body.get('status')} in its document"
    if not answer.headers.get("content-type", "").startswith(PROBLEM_CONTENT_TYPE):
        return f"{code} as {answer.headers.get('content-type')}"
    if missing := [name for name in ("type", "title", "detail") if not body.get(name)]:
        return f"{code} without {', '.join(missing)}"
    waits = answer.headers.get("retry-after", "")
    if answer.is_not_now and not (waits.isdigit() and int(waits) >= 1):
        return f"{code} with Retry-After {waits!r}"
    return ""


def complaint_about_order(order: Mapping[str, Any], sent: Sent) -> str:
    """What is wrong with an order, compared with what was asked for; empty where nothing is."""
    for name in ("buyer_id", "channel", "reference", "discount_minor", "freight_minor"):
        if order.get(name) != sent.body[name]:
            return f"{name} {sent.body[name]!r} became {order.get(name)!r}"
    asked = [(line["sku"], line["quantity"], sent.prices_minor[line["sku"]]) for line in sent.body["lines"]]
    given = [(line["sku"], line["quantity"], line["unit_price_minor"]) for line in order["lines"]]
    if given != asked:
        return f"lines {asked} became {given}"
    if order["amount_minor"] != sent.fair_amount_minor or order["currency"] != sent.currency:
        return f"{sent.fair_amount_minor} {sent.currency} became {order['amount_minor']} {order['currency']}"
    if sum(line["paid_minor"] for line in order["lines"]) + order["freight_minor"] != order["amount_minor"]:
        return "the lines do not add up to the amount"
    if not (isinstance(order["sequence"], int) and order["sequence"] > 0):
        return f"sequence {order['sequence']!r}"
    return ""


def complaint_about_no(answer: Answer, sent: Sent) -> str:
    """What is wrong with a business refusal of an order; empty where nothing is."""
    body = answer.body
    match answer.code:
        case "SOLD_OUT":
            asked = sum(line["quantity"] for line in sent.body["lines"] if line["sku"] == body.get("sku"))
            left = body.get("available")
            if not (isinstance(left, int) and 0 <= left < asked):
                return f"SOLD_OUT with {left!r} of {body.get('sku')!r} left, {asked} asked for"
        case "PRICE_CHANGED" if body.get("amount_minor") != sent.fair_amount_minor:
            return f"PRICE_CHANGED to {body.get('amount_minor')!r}, not to {sent.fair_amount_minor}"
        case "BUYER_LIMIT_REACHED":
            limit, bought = body.get("limit", 0), body.get("bought", -1)
            if not (0 <= bought <= limit < bought + sent.units):
                return f"BUYER_LIMIT_REACHED at {bought} of {limit} with {sent.units} more"
    return ""


def seconds_since_epoch(text: str) -> float:
    """A time of the contract's JSON as seconds since the epoch. Raises: ValueError."""
    return datetime.fromisoformat(text).timestamp()
