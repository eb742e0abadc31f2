"""A hold on the fast lane: from a request's bytes to its answer's, with nothing in between that is not needed.

The rules are those of the general route (`handlers.OrderHandlers.hold`), and so are the documents: what is not plainly
right here is left to that route, which finds out what is wrong with it and says so.
"""

from functools import lru_cache, partial
from time import perf_counter

import orjson
import structlog
from msgspec import UNSET, UnsetType

from engine.domain.commands import Hold
from engine.domain.errors import MiaocangError
from engine.domain.identifiers import ORDER_DIGEST_LENGTH, OrderId, order_digest
from engine.domain.orders import HoldRequest, RequestedLine, order_document
from engine.domain.outcomes import Outcome
from engine.gateway.documents import held_document
from engine.gateway.hot_answers import Rendered, rendered_failure, rendered_problem
from engine.gateway.plain_holds import PlainHold, plain_hold
from engine.observability.metrics import HOLD_SECONDS_BUFFER, REFUSALS_BUFFER
from engine.partition.codec import Reply
from engine.partition.hold_template import EncodedHold, HoldTemplate
from engine.partition.partitions import Partitions
from engine.web.answers import SUCCESS_CODE
from engine.web.fast_lane import HotRequest
from engine.web.problems import INTERNAL, Code, refusal

CARTS_MAX = 4096
"""Carts whose digest is remembered: in a flash sale nearly all are one of a few."""
REFUSALS_MAX = 4096
"""Refusals whose document is remembered: after the first second of a flash sale nearly all say the same."""

_DONE, _REPEATED, _SOLD_OUT = Outcome.DONE, Outcome.REPEATED, Outcome.SOLD_OUT
"""By names of their own: to look up a member of an enum costs as much as ten other look-ups."""
_SOLD_OUT_LABELS = (Code.SOLD_OUT.value,)

observe_hold_seconds = HOLD_SECONDS_BUFFER.observe
count_refusals = REFUSALS_BUFFER.counts
_log = structlog.get_logger(__name__)


class HotHolds:
    """The handler that the lane is given."""

    def __init__(self, partitions: Partitions) -> None:
        self._post = partitions.post
        self._is_short = partitions.is_short
        self._post_if_short = partitions.post_if_short
        self._last_short: Reply | None = None
        self._last_refusal = rendered_problem(INTERNAL)
        """What it was rendered to."""

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
        digest = order_digest(request.sale_id, hold.channel, hold.buyer_id, request.own)
        self._post(request.sale_id, hold_command(hold, digest), partial(_answer, request, hold, digest))

    def _answer_short(self, request: HotRequest, hold: PlainHold, reply: Reply | MiaocangError | None) -> None:
        """Answer what was known to be short; where it is not, or its price is not what was expected, ask in full."""
        if isinstance(reply, Reply) and reply.outcome is _SOLD_OUT:
            expected = hold.expected_amount_minor
            if expected is UNSET or expected == hold.lines[0].quantity * reply.detail[2]:
                observe_hold_seconds(perf_counter() - request.arrived)
                request.answer(*self._sold_out(reply))
                return
        elif reply is not None:
            _answer(request, hold, "", reply)  # no order, so no digest
            return
        self._hold(request, hold)

    def _sold_out(self, reply: Reply) -> Rendered:
        """The refusal, counted. All who wanted the same in one tick are given one reply, so it is rendered once."""
        if reply is not self._last_short:
            self._last_short = reply
            self._last_refusal = _refused(int(_SOLD_OUT), *reply.detail[:2])
        count_refusals[_SOLD_OUT_LABELS] += 1
        return self._last_refusal


def _answer(request: HotRequest, hold: HoldRequest, digest: str, reply: Reply | MiaocangError) -> None:
    """Give one request its answer; whatever is wrong with it is its own affair, and of no other in the batch."""
    try:
        answer = _rendered(request, hold, digest, reply)
    except Exception:
        _log.exception("request_defect", interface="gateway", route="hot hold", sale=request.sale_id)
        answer = rendered_problem(INTERNAL)
    request.answer(*answer)


def _rendered(request: HotRequest, hold: HoldRequest, digest: str, reply: Reply | MiaocangError) -> Rendered:
    if isinstance(reply, MiaocangError):
        return rendered_failure(reply)
    observe_hold_seconds(perf_counter() - request.arrived)
    outcome = reply.outcome
    if outcome is _DONE:
        return 201, held_document(request.sale_id, digest, hold, reply.detail), SUCCESS_CODE, False
    if outcome is _REPEATED:
        document = order_document(OrderId(request.sale_id, digest), reply.order())
        return 200, orjson.dumps(document), SUCCESS_CODE, True
    refused = _refused(int(outcome), *reply.detail)
    count_refusals[refused[2],] += 1
    return refused


@lru_cache(REFUSALS_MAX)
def _refused(outcome: int, *detail: str | int) -> Rendered:
    return rendered_problem(refusal(Outcome(outcome), detail))


@lru_cache(CARTS_MAX)
def _template(  # noqa: PLR0917 - positional, because that is what the cache is quick with
    channel: str,
    sku: str,
    quantity: int,
    line_id: str | UnsetType,
    discount_minor: int,
    freight_minor: int,
    expected_amount_minor: int | UnsetType,
) -> HoldTemplate:
    lines = [RequestedLine(sku, quantity, line_id)]
    example = HoldRequest("", channel, lines, discount_minor, freight_minor, expected_amount_minor)
    return HoldTemplate(Hold.of(OrderId("", "-" * ORDER_DIGEST_LENGTH), example))


def hold_command(request: HoldRequest, digest: str) -> Hold | EncodedHold:
    """The command that `Hold.of` makes, for less where the cart has one line: then it is one that many have."""
    if len(request.lines) != 1:
        return Hold.of(OrderId("", digest), request)
    line, amounts = request.lines[0], (request.discount_minor, request.freight_minor, request.expected_amount_minor)
    template = _template(request.channel, line.sku, line.quantity, line.line_id, *amounts)
    return template.hold(digest, request.buyer_id, "" if request.reference is UNSET else request.reference)
