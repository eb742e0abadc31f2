"""A payment's report on the fast lane, as `hot_holds` has a hold: the general route's rules, and its documents.

What is not plainly right here is left to that route (`handlers.OrderHandlers.settle`), which says what is wrong.
"""

from functools import partial

import orjson
import structlog

from engine.domain.commands import Settle
from engine.domain.errors import MiaocangError
from engine.domain.identifiers import ORDER_DIGEST_LENGTH, OrderId
from engine.domain.orders import order_document
from engine.domain.outcomes import RECORDED_REFUSALS, Outcome
from engine.gateway.handlers import order_refusal
from engine.gateway.hot_answers import Rendered, rendered_failure, rendered_problem
from engine.gateway.plain_settles import plain_settle
from engine.observability.metrics import REFUSALS_BUFFER
from engine.partition.codec import Reply
from engine.partition.partitions import Partitions
from engine.web.answers import SUCCESS_CODE
from engine.web.fast_lane import HotRequest
from engine.web.problems import INTERNAL

_DONE, _REPEATED = Outcome.DONE, Outcome.REPEATED
"""By names of their own: to look up a member of an enum costs as much as ten other look-ups."""
_SALE_START = ORDER_DIGEST_LENGTH + len(".")

count_refusals = REFUSALS_BUFFER.counts
_log = structlog.get_logger(__name__)


class HotSettles:
    """The handler that the lane is given."""

    def __init__(self, partitions: Partitions) -> None:
        self._post = partitions.post

    def take(self, request: HotRequest) -> None:
        """Answer a payment's report, when the partition has: 200, or the refusal; both may repeat an earlier one."""
        settle = plain_settle(request.body)
        if settle is None:
            request.answer_generally()
            return
        own = request.own  # the lane lets no id through but one of an order id's shape: no need to parse it
        order_id = OrderId(own[_SALE_START:], own[:ORDER_DIGEST_LENGTH])
        self._post(order_id.sale_id, Settle.of(order_id, settle), partial(_answer, request, order_id))


def _answer(request: HotRequest, order_id: OrderId, reply: Reply | MiaocangError) -> None:
    """Give one request its answer; whatever is wrong with it is its own affair, and of no other in the batch."""
    try:
        answer = _rendered(order_id, reply)
    except Exception:
        _log.exception("request_defect", interface="gateway", route="hot settle", order=str(order_id))
        answer = rendered_problem(INTERNAL)
    request.answer(*answer)


def _rendered(order_id: OrderId, reply: Reply | MiaocangError) -> Rendered:
    if isinstance(reply, MiaocangError):
        return rendered_failure(reply)
    outcome = reply.outcome
    if outcome is _DONE or outcome is _REPEATED:
        return 200, orjson.dumps(order_document(order_id, reply.order())), SUCCESS_CODE, outcome is _REPEATED
    problem = order_refusal(reply)
    count_refusals[problem.code.value,] += 1
    return rendered_problem(problem, outcome in RECORDED_REFUSALS and reply.recorded_before)
