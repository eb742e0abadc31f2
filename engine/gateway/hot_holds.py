"""A hold on the fast lane: from a request's bytes to its answer's, with nothing in between that is not needed.

The rules are those of the general route (`handlers.OrderHandlers.hold`), and so are the documents: what is not plainly
right here is left to that route, which finds out what is wrong with it and says so.
"""

import time
from functools import lru_cache, partial
from typing import NamedTuple

import orjson
import structlog
from msgspec import UNSET, UnsetType

from engine.domain.commands import Hold
from engine.domain.errors import MiaocangError
from engine.domain.identifiers import OrderId, order_digest
from engine.domain.orders import HoldRequest, RequestedLine, order_document, request_digest
from engine.domain.outcomes import Outcome
from engine.gateway.documents import held_document
from engine.gateway.plain_holds import PlainHold, plain_hold
from engine.observability.metrics import HOLD_SECONDS_BUFFER, REFUSALS_BUFFER
from engine.partition.codec import Reply
from engine.partition.partitions import Partitions
from engine.web.answers import SUCCESS_CODE
from engine.web.fast_lane import HotRequest
from engine.web.problems import INTERNAL, Problem, failure, refusal

CARTS_MAX = 4096
"""Carts whose digest is remembered: in a flash sale nearly all are one of a few."""
REFUSALS_MAX = 4096
"""Refusals whose document is remembered: after the first second of a flash sale nearly all say the same."""

_SOLD_OUT = int(Outcome.SOLD_OUT)
"""A number here, as a code is plain text in what is answered: an enum's members are hashed by a function in Python."""

_log = structlog.get_logger(__name__)


class HotHolds:
    """The handler that the lane is given."""

    def __init__(self, partitions: Partitions) -> None:
        self._post = partitions.post
        self._is_short = partitions.is_short
        self._post_if_short = partitions.post_if_short

    def take(self, request: HotRequest) -> None:
        """Answer a hold: 201, 200 for one made before, or the refusal; at once, or when the partition has answered."""
        hold = plain_hold(request.body)
        if hold is None:
            request.answer_generally()
            return
        sale_id, channel, lines = request.sale_id, hold.channel, hold.lines
        if len(lines) == 1 and not hold.discount_minor and not hold.freight_minor:
            line = lines[0]
            if self._is_short(sale_id, channel, line.sku, line.quantity):
                buyer = OrderId.buyer_part_of(sale_id, channel, hold.buyer_id)
                on_reply = partial(self._answer_short, request, hold)
                self._post_if_short(sale_id, buyer, channel, line.sku, line.quantity, on_reply)
                return
        self._hold(request, hold)

    def _hold(self, request: HotRequest, hold: PlainHold) -> None:
        digest = order_digest(request.sale_id, hold.channel, hold.buyer_id, request.idempotency_key)
        self._post(request.sale_id, hold_command(hold, digest), partial(_answer, request, hold, digest))

    def _answer_short(self, request: HotRequest, hold: PlainHold, reply: Reply | MiaocangError | None) -> None:
        """Answer what was known to be short; where it is not, or its price is not what was expected, ask in full."""
        if isinstance(reply, Reply) and reply.outcome is Outcome.SOLD_OUT:
            sku, available, unit_price_minor = reply.detail
            expected = hold.expected_amount_minor
            if expected is UNSET or expected == hold.lines[0].quantity * unit_price_minor:
                request.answer(*_counted_refusal(request, _SOLD_OUT, sku, available))
                return
        elif reply is not None:
            _answer(request, hold, "", reply)  # no order, so no digest
            return
        self._hold(request, hold)


_Rendered = tuple[int, bytes, str, bool]
"""What `HotRequest.answer` takes: status, body, code, whether it is a replay."""


def _answer(request: HotRequest, hold: HoldRequest, digest: str, reply: Reply | MiaocangError) -> None:
    """Give one request its answer; whatever is wrong with it is its own affair, and of no other in the batch."""
    try:
        answer = _rendered(request, hold, digest, reply)
    except Exception:
        _log.exception("request_defect", interface="gateway", route="hot hold", sale=request.sale_id)
        answer = _problem(INTERNAL)
    request.answer(*answer)


def _rendered(request: HotRequest, hold: HoldRequest, digest: str, reply: Reply | MiaocangError) -> _Rendered:
    if isinstance(reply, MiaocangError):
        problem = failure(reply)
        if problem is None:
            raise reply
        return _problem(problem)
    outcome = reply.outcome
    if outcome is not Outcome.DONE and outcome is not Outcome.REPEATED:
        return _counted_refusal(request, int(outcome), *reply.detail)
    HOLD_SECONDS_BUFFER.observe(time.perf_counter() - request.arrived)
    if outcome is Outcome.DONE:
        return 201, held_document(OrderId(request.sale_id, digest), hold, reply.detail), SUCCESS_CODE, False
    document = order_document(OrderId(request.sale_id, digest), reply.order())
    return 200, orjson.dumps(document), SUCCESS_CODE, True


def _counted_refusal(request: HotRequest, outcome: int, *detail: str | int) -> _Rendered:
    HOLD_SECONDS_BUFFER.observe(time.perf_counter() - request.arrived)
    refused = _refused(outcome, *detail)
    REFUSALS_BUFFER.counts[refused[2],] += 1
    return refused


@lru_cache(REFUSALS_MAX)
def _refused(outcome: int, *detail: str | int) -> _Rendered:
    return _problem(refusal(Outcome(outcome), detail))


def _problem(problem: Problem) -> _Rendered:
    return problem.kind.status, orjson.dumps(problem.document()), problem.code.value, False


class _Cart(NamedTuple):
    """What is the same in all holds of one cart."""

    lines: list[tuple[str, str, int]]
    canonical: bytes
    digest: str
    """Where there is no reference."""


@lru_cache(CARTS_MAX)
def _cart(  # noqa: PLR0917 - positional, because that is what the cache is quick with
    sku: str, quantity: int, line_id: str | UnsetType, discount: int, freight: int, expected: int | UnsetType
) -> _Cart:
    request = HoldRequest("", "", [RequestedLine(sku, quantity, line_id)], discount, freight, expected)
    return _Cart(request.numbered_lines(), request.canonical(), request.digest())


def hold_command(request: HoldRequest, digest: str) -> Hold:
    """The command that `Hold.of` makes, for less where the cart has one line: then it is one that many have."""
    if len(request.lines) != 1:
        return Hold.of(OrderId("", digest), request)
    line, expected, reference = request.lines[0], request.expected_amount_minor, request.reference
    cart = _cart(line.sku, line.quantity, line.line_id, request.discount_minor, request.freight_minor, expected)
    return Hold(
        digest,
        request.channel,
        request.buyer_id,
        cart.digest if reference is UNSET else request_digest(cart.canonical, reference),
        "" if reference is UNSET else reference,
        request.discount_minor,
        request.freight_minor,
        -1 if expected is UNSET else expected,
        cart.lines,
    )
