"""Every refusal and failure as an RFC 9457 problem document: one table of codes, one function from outcome to problem.

Nothing here knows of a server, so that every way into the engine gives the same answers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from engine.domain.errors import LedgerUnavailable, OutcomeUnknown, Overloaded, PartitionUnavailable
from engine.domain.orders import OrderStatus
from engine.domain.outcomes import Outcome

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:miaocang:problem:"


class Code(StrEnum):
    """What went wrong, for programs: the contract's codes (contract §3), and INTERNAL for a defect of ours."""

    MALFORMED = "MALFORMED"
    IDEMPOTENCY_KEY_REQUIRED = "IDEMPOTENCY_KEY_REQUIRED"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    NOT_FOUND = "NOT_FOUND"
    SALE_NOT_FOUND = "SALE_NOT_FOUND"
    SKU_NOT_FOUND = "SKU_NOT_FOUND"
    ORDER_NOT_FOUND = "ORDER_NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    TOO_LARGE = "TOO_LARGE"
    UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"
    SOLD_OUT = "SOLD_OUT"
    BUYER_LIMIT_REACHED = "BUYER_LIMIT_REACHED"
    PRICE_CHANGED = "PRICE_CHANGED"
    SALE_NOT_OPEN = "SALE_NOT_OPEN"
    SALE_CLOSED = "SALE_CLOSED"
    ORDER_NOT_HELD = "ORDER_NOT_HELD"
    PAYMENT_TOO_LATE = "PAYMENT_TOO_LATE"
    DUPLICATE_PAYMENT = "DUPLICATE_PAYMENT"
    CONFLICT = "CONFLICT"
    INVALID = "INVALID"
    IDEMPOTENCY_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"
    AMOUNT_MISMATCH = "AMOUNT_MISMATCH"
    RATE_LIMITED = "RATE_LIMITED"
    OVERLOADED = "OVERLOADED"
    FROZEN = "FROZEN"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    LEDGER_BEHIND = "LEDGER_BEHIND"
    INTERNAL = "INTERNAL"


class ProblemKind(NamedTuple):
    """What all problems of one code share."""

    status: int
    title: str
    retry_after_seconds: int | None = None
    """After how long asking again can help; None where the same request would be refused again."""


KINDS: Mapping[Code, ProblemKind] = {
    Code.MALFORMED: ProblemKind(400, "The request cannot be read"),
    Code.IDEMPOTENCY_KEY_REQUIRED: ProblemKind(400, "An Idempotency-Key is required"),
    Code.UNAUTHORIZED: ProblemKind(401, "A valid key is required"),
    Code.FORBIDDEN: ProblemKind(403, "This key may not do that"),
    Code.NOT_FOUND: ProblemKind(404, "No such route"),
    Code.SALE_NOT_FOUND: ProblemKind(404, "No such sale"),
    Code.SKU_NOT_FOUND: ProblemKind(404, "No such SKU in this sale"),
    Code.ORDER_NOT_FOUND: ProblemKind(404, "No such order"),
    Code.METHOD_NOT_ALLOWED: ProblemKind(405, "This route does not take that method"),
    Code.TOO_LARGE: ProblemKind(413, "The body is too large"),
    Code.UNSUPPORTED_MEDIA_TYPE: ProblemKind(415, "The body is not JSON in UTF-8"),
    Code.SOLD_OUT: ProblemKind(409, "Sold out"),
    Code.BUYER_LIMIT_REACHED: ProblemKind(409, "The buyer's limit is reached"),
    Code.PRICE_CHANGED: ProblemKind(409, "The price has changed"),
    Code.SALE_NOT_OPEN: ProblemKind(409, "The sale is not open"),
    Code.SALE_CLOSED: ProblemKind(409, "The sale is closed"),
    Code.ORDER_NOT_HELD: ProblemKind(409, "The order is not held"),
    Code.PAYMENT_TOO_LATE: ProblemKind(409, "The payment came too late"),
    Code.DUPLICATE_PAYMENT: ProblemKind(409, "The order was paid already"),
    Code.CONFLICT: ProblemKind(409, "The request conflicts with the present state"),
    Code.INVALID: ProblemKind(422, "The request is not acceptable"),
    Code.IDEMPOTENCY_KEY_REUSED: ProblemKind(422, "The key was used for another request"),
    Code.AMOUNT_MISMATCH: ProblemKind(422, "The payment does not match the order"),
    Code.RATE_LIMITED: ProblemKind(429, "Too many requests", 1),
    Code.OVERLOADED: ProblemKind(503, "Too busy", 1),
    Code.FROZEN: ProblemKind(503, "Stock is being reconciled", 1),
    Code.OUTCOME_UNKNOWN: ProblemKind(503, "The outcome is unknown", 1),
    Code.LEDGER_BEHIND: ProblemKind(503, "The ledger is behind", 5),
    Code.INTERNAL: ProblemKind(500, "A defect in the engine"),
}


class FieldError(NamedTuple):
    """One wrong field of a request, and why."""

    field: str
    """Its path as in `lines[0].quantity`; a query parameter's or path parameter's name; `body` for the whole body."""
    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal or failure, before it is rendered."""

    code: Code
    detail: str
    members: Mapping[str, Any] = field(default_factory=dict)
    """Extension members, beside the standard ones."""
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> ProblemKind:
        """What all problems of this code share."""
        return KINDS[self.code]

    def document(self) -> dict[str, Any]:
        """The problem document, ready for JSON."""
        return {
            "type": TYPE_PREFIX + self.code,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "code": self.code,
            **self.members,
        }


def invalid(errors: Sequence[FieldError]) -> Problem:
    """The problem of a well-formed request with unacceptable fields, each of them listed."""
    first = errors[0]
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return Problem(
        Code.INVALID,
        f"{first.field} {first.reason}{more}.",
        {"errors": [{"field": error.field, "reason": error.reason} for error in errors]},
    )


# --- what a partition answers --------------------------------------------------------------------------------------


def refusal(outcome: Outcome, detail: Sequence[Any]) -> Problem:
    """The problem for a partition's "no"; `detail` is what came with the outcome (see the partition's codec).

    DONE and REPEATED are no refusals; giving one is a defect (KeyError).
    """
    return _REFUSALS[outcome](detail)


def _sold_out(detail: Sequence[Any]) -> Problem:
    sku, available = detail
    return Problem(
        Code.SOLD_OUT,
        f"Of {sku!r} only {available} can be bought now by this channel; nothing was held.",
        {"sku": sku, "available": available},
    )


def _buyer_limit_reached(detail: Sequence[Any]) -> Problem:
    scope, limit, bought = detail
    return Problem(
        Code.BUYER_LIMIT_REACHED,
        f"A buyer may have {limit} units by the limit of the {scope}, and this one has {bought}; nothing was held.",
        {"scope": scope, "limit": limit, "bought": bought},
    )


def _price_changed(detail: Sequence[Any]) -> Problem:
    return Problem(
        Code.PRICE_CHANGED,
        f"The order comes to {detail[0]} minor units, not to the amount that was expected; nothing was held.",
        {"amount_minor": detail[0]},
    )


def _amount_mismatch(detail: Sequence[Any]) -> Problem:
    amount_minor, currency = detail
    return Problem(
        Code.AMOUNT_MISMATCH,
        f"The order's amount is {amount_minor} minor units of {currency}; the payment was not recorded.",
        {"amount_minor": amount_minor, "currency": currency},
    )


def _sku_not_found(detail: Sequence[Any]) -> Problem:
    return Problem(Code.SKU_NOT_FOUND, f"The sale has no SKU {detail[0]!r}.", {"sku": detail[0]})


def _order_not_held(detail: Sequence[Any]) -> Problem:
    status = detail[0]
    word = OrderStatus(status).word if isinstance(status, int) else str(status)
    return Problem(Code.ORDER_NOT_HELD, f"The order is {word}, so it cannot be cancelled.", {"order_status": word})


def _invalid(detail: Sequence[Any]) -> Problem:
    return invalid([FieldError(str(detail[0]), str(detail[1]))])


def _conflict(detail: Sequence[Any]) -> Problem:
    subject, reason = detail
    return Problem(
        Code.CONFLICT,
        f"{subject}: {reason}." if subject else f"{reason}.",
        {"errors": [{"field": str(subject), "reason": str(reason)}]},
    )


def _fixed(code: Code, sentence: str) -> Callable[[Sequence[Any]], Problem]:
    problem = Problem(code, sentence)
    return lambda _detail: problem


_NOTHING_CHANGED = "Nothing was changed; ask again shortly."
_REFUSALS: Mapping[Outcome, Callable[[Sequence[Any]], Problem]] = {
    Outcome.SOLD_OUT: _sold_out,
    Outcome.BUYER_LIMIT_REACHED: _buyer_limit_reached,
    Outcome.PRICE_CHANGED: _price_changed,
    Outcome.SALE_NOT_OPEN: _fixed(Code.SALE_NOT_OPEN, "Orders are taken only while the sale is open."),
    Outcome.SALE_CLOSED: _fixed(Code.SALE_CLOSED, "The sale has closed for good."),
    Outcome.ORDER_NOT_HELD: _order_not_held,
    Outcome.PAYMENT_TOO_LATE: _fixed(
        Code.PAYMENT_TOO_LATE, "The order's hold has ended; the payment is recorded as due for refund."
    ),
    Outcome.DUPLICATE_PAYMENT: _fixed(
        Code.DUPLICATE_PAYMENT, "Another payment settled the order; this one is recorded as due for refund."
    ),
    Outcome.CONFLICT: _conflict,
    Outcome.SALE_NOT_FOUND: _fixed(Code.SALE_NOT_FOUND, "There is no sale of this id."),
    Outcome.SKU_NOT_FOUND: _sku_not_found,
    Outcome.ORDER_NOT_FOUND: _fixed(Code.ORDER_NOT_FOUND, "There is no order of this id, or not any more."),
    Outcome.INVALID: _invalid,
    Outcome.IDEMPOTENCY_KEY_REUSED: _fixed(
        Code.IDEMPOTENCY_KEY_REUSED, "This key, or this payment or document id, came with another body before."
    ),
    Outcome.AMOUNT_MISMATCH: _amount_mismatch,
    Outcome.LEDGER_BEHIND: _fixed(
        Code.LEDGER_BEHIND, "The ledger is too far behind to take new orders. " + _NOTHING_CHANGED
    ),
    Outcome.FROZEN: _fixed(Code.FROZEN, "Stock is being reconciled. " + _NOTHING_CHANGED),
    Outcome.STALE_EPOCH: _fixed(Code.FROZEN, "Stock has just been reconciled. " + _NOTHING_CHANGED),
    Outcome.TOO_LATE: _fixed(Code.OVERLOADED, "The request waited too long. " + _NOTHING_CHANGED),
    Outcome.PARTITION_MISSING: _fixed(Code.SALE_NOT_FOUND, "There is no sale of this id."),
    Outcome.DUE_HOLDS_REMAIN: _fixed(
        Code.OVERLOADED, "Holds that are due are still being given back. " + _NOTHING_CHANGED
    ),
}


# --- what could not be told ----------------------------------------------------------------------------------------


def failure(error: BaseException) -> Problem | None:
    """The problem for an exception by which the engine says that it cannot tell; None for any other: a defect."""
    if isinstance(error, Overloaded):
        return Problem(Code.OVERLOADED, f"A bound was reached: {error}. {_NOTHING_CHANGED}")
    if isinstance(error, PartitionUnavailable):
        # Its text is for the log and for /readyz: it may name hosts, which are none of a checkout's business.
        return Problem(Code.FROZEN, f"Stock cannot be decided on at this moment. {_NOTHING_CHANGED}")
    if isinstance(error, OutcomeUnknown):
        return Problem(
            Code.OUTCOME_UNKNOWN, "The request may or may not have been applied: ask again with the same key to learn."
        )
    if isinstance(error, LedgerUnavailable):
        return Problem(Code.LEDGER_BEHIND, f"The ledger cannot be asked. {_NOTHING_CHANGED}")
    return None


INTERNAL = Problem(
    Code.INTERNAL, "The engine has a defect here; its log has the details under this request's X-Request-Id."
)
