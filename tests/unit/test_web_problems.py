"""Outcomes and errors become the contract's problem documents."""

import orjson
import pytest

from engine.domain.errors import (
    LedgerUnavailable,
    OutcomeUnknown,
    Overloaded,
    PartitionFrozen,
    PartitionUnavailable,
)
from engine.domain.outcomes import Outcome
from engine.web.answers import problem_answer
from engine.web.problems import KINDS, Code, FieldError, Problem, failure, invalid, refusal

STATUSES = {
    400: "MALFORMED IDEMPOTENCY_KEY_REQUIRED",
    401: "UNAUTHORIZED",
    403: "FORBIDDEN",
    404: "NOT_FOUND SALE_NOT_FOUND SKU_NOT_FOUND ORDER_NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    409: "SOLD_OUT BUYER_LIMIT_REACHED PRICE_CHANGED SALE_NOT_OPEN SALE_CLOSED ORDER_NOT_HELD PAYMENT_TOO_LATE "
    "DUPLICATE_PAYMENT CONFLICT",
    422: "INVALID IDEMPOTENCY_KEY_REUSED AMOUNT_MISMATCH",
    429: "RATE_LIMITED",
    503: "OVERLOADED FROZEN OUTCOME_UNKNOWN LEDGER_BEHIND",
    500: "INTERNAL",
}
DETAILS = {
    Outcome.SOLD_OUT: ["TEE", 0],
    Outcome.BUYER_LIMIT_REACHED: ["style", 2, 1],
    Outcome.PRICE_CHANGED: [1990],
    Outcome.AMOUNT_MISMATCH: [1990, "CNY"],
    Outcome.SKU_NOT_FOUND: ["TEE"],
    Outcome.ORDER_NOT_HELD: ["settled"],
    Outcome.INVALID: ["discount_minor", "is too large"],
    Outcome.CONFLICT: ["TEE", "only 2 are in shared"],
}


def test_each_code_has_the_status_of_the_contract() -> None:
    assert {code: status for status, codes in STATUSES.items() for code in codes.split()} == {
        str(code): kind.status for code, kind in KINDS.items()
    }


def test_exactly_the_codes_that_time_can_mend_say_when_to_ask_again() -> None:
    timed = {code for code, kind in KINDS.items() if kind.retry_after_seconds is not None}
    assert timed == {Code.RATE_LIMITED, Code.OVERLOADED, Code.FROZEN, Code.OUTCOME_UNKNOWN, Code.LEDGER_BEHIND}


@pytest.mark.parametrize("outcome", [outcome for outcome in Outcome if outcome.value >= 10])
def test_every_refusal_of_a_partition_becomes_a_whole_problem_document(outcome: Outcome) -> None:
    problem = refusal(outcome, DETAILS.get(outcome, []))
    document = orjson.loads(problem_answer(problem).body)
    assert {"type", "title", "status", "detail", "code"} <= document.keys()
    assert document["status"] == problem.kind.status
    if outcome.name in Code.__members__:
        assert document["code"] == outcome.name


@pytest.mark.parametrize(
    ("outcome", "members"),
    [
        (Outcome.SOLD_OUT, {"sku": "TEE", "available": 0}),
        (Outcome.BUYER_LIMIT_REACHED, {"scope": "style", "limit": 2, "bought": 1}),
        (Outcome.PRICE_CHANGED, {"amount_minor": 1990}),
        (Outcome.AMOUNT_MISMATCH, {"amount_minor": 1990, "currency": "CNY"}),
        (Outcome.INVALID, {"errors": [{"field": "discount_minor", "reason": "is too large"}]}),
    ],
)
def test_a_refusal_carries_what_its_caller_needs(outcome: Outcome, members: dict[str, object]) -> None:
    assert refusal(outcome, DETAILS[outcome]).members == members


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PartitionFrozen("being reconciled"), Code.FROZEN),
        (Overloaded("queue_commands_max"), Code.OVERLOADED),
        (PartitionUnavailable("connection refused"), Code.FROZEN),
        (OutcomeUnknown("time-out"), Code.OUTCOME_UNKNOWN),
        (LedgerUnavailable("connection refused"), Code.LEDGER_BEHIND),
    ],
)
def test_not_being_able_to_tell_is_a_503_with_a_time_to_ask_again(error: Exception, code: Code) -> None:
    problem = failure(error)
    assert problem is not None
    assert problem.code is code
    answer = problem_answer(problem)
    assert answer.status == 503
    assert int(dict(answer.headers)["Retry-After"]) >= 1


def test_any_other_exception_is_a_defect_and_not_an_answer() -> None:
    assert failure(KeyError("x")) is None


def test_all_wrong_fields_are_listed() -> None:
    problem = invalid([FieldError("a", "is required"), FieldError("b[0]", "must be an integer")])
    assert problem.detail == "a is required, and 1 more."
    assert [error["field"] for error in problem.members["errors"]] == ["a", "b[0]"]


def test_a_missing_key_is_told_how_to_send_one() -> None:
    assert "WWW-Authenticate" in dict(problem_answer(Problem(Code.UNAUTHORIZED, "No key.")).headers)
