"""What the gateway's routes do: make a command of the request, submit it, render the reply."""

import time
from collections.abc import Sequence
from typing import Protocol

from msgspec import UNSET

from engine.domain.commands import Cancel, Command, GetAvailability, GetOrder, Hold, ListBuyerOrders, Settle
from engine.domain.identifiers import OrderId
from engine.domain.orders import HoldRequest, SettleRequest, order_document, rfc3339
from engine.domain.outcomes import RECORDED_REFUSALS, Outcome
from engine.gateway.documents import AvailabilityQuery, BuyerOrdersQuery, held_document
from engine.observability.metrics import HOLD_SECONDS_BUFFER
from engine.partition.codec import Reply
from engine.web.answers import JSON, REPLAYED, Answer, Header, json_answer
from engine.web.problems import FieldError, Problem, refusal
from engine.web.routes import Call

_REPLAYED: tuple[Header, ...] = (REPLAYED,)


class Submitter(Protocol):
    """Takes commands to a sale's partition: `Partitions` does."""

    async def submit(self, sale_id: str, *commands: Command) -> list[Reply]:
        """The replies in the order of the commands. Raises PartitionUnavailable, OutcomeUnknown."""
        ...


def unique_line_ids(request: HoldRequest) -> Sequence[FieldError]:
    """A line is found again by its id, so no two lines of an order share one, defaults included."""
    seen: set[str] = set()
    errors: list[FieldError] = []
    for position, (line_id, _, _) in enumerate(request.numbered_lines()):
        if line_id in seen:
            errors.append(FieldError(f"lines[{position}].line_id", "must be unique in the order, defaults included"))
        seen.add(line_id)
    return errors


class OrderHandlers:
    """The routes of orders and availability."""

    def __init__(self, partitions: Submitter) -> None:
        self._partitions = partitions

    async def hold(self, call: Call) -> Answer | Problem:
        """Set units aside: 201 for a new order, 200 for one that this key has made before."""
        request: HoldRequest = call.body
        order_id = OrderId.of(call.path["sale_id"], request.channel, request.buyer_id, call.idempotency_key)
        reply = await self._ask(order_id.sale_id, Hold.of(order_id, request))
        HOLD_SECONDS_BUFFER.observe(time.perf_counter() - call.arrived)
        if reply.outcome is Outcome.DONE:
            return Answer(201, held_document(*order_id, request, reply.detail), (("Content-Type", JSON),))
        if reply.outcome is Outcome.REPEATED:
            return json_answer(200, order_document(order_id, reply.order()), _REPLAYED)
        return refusal(reply.outcome, reply.detail)

    async def read_order(self, call: Call) -> Answer | Problem:
        """The order with its current status."""
        order_id = _order_id(call)
        return _order_answer(order_id, await self._ask(order_id.sale_id, GetOrder(order_id.digest)))

    async def settle(self, call: Call) -> Answer | Problem:
        """Confirm a payment; a refusal that was recorded says whether it repeats an earlier one."""
        order_id = _order_id(call)
        request: SettleRequest = call.body
        reply = await self._ask(order_id.sale_id, Settle.of(order_id, request))
        if reply.outcome in RECORDED_REFUSALS:
            problem = order_refusal(reply)
            headers = _REPLAYED if reply.recorded_before else ()
            return Problem(problem.code, problem.detail, problem.members, headers)
        return _order_answer(order_id, reply)

    async def cancel(self, call: Call) -> Answer | Problem:
        """Give a hold back."""
        order_id = _order_id(call)
        return _order_answer(order_id, await self._ask(order_id.sale_id, Cancel(order_id.digest)))

    async def list_buyer_orders(self, call: Call) -> Answer | Problem:
        """A buyer's orders in a sale, or the one that a key has made: how to learn an unknown outcome."""
        sale_id = call.path["sale_id"]
        query: BuyerOrdersQuery = call.query
        if query.idempotency_key is not UNSET:
            order_id = OrderId.of(sale_id, query.channel, query.buyer_id, query.idempotency_key)
            reply = await self._ask(sale_id, GetOrder(order_id.digest))
            if reply.outcome is Outcome.ORDER_NOT_FOUND:
                return json_answer(200, {"orders": []})
            found = [(order_id.digest, reply.order())] if reply.outcome is Outcome.DONE else []
        else:
            reply = await self._ask(
                sale_id, ListBuyerOrders(OrderId.buyer_part_of(sale_id, query.channel, query.buyer_id))
            )
            found = reply.buyer_orders() if reply.outcome is Outcome.DONE else []
        if reply.outcome is not Outcome.DONE:
            return refusal(reply.outcome, reply.detail)
        return json_answer(
            200, {"orders": [order_document(OrderId(sale_id, digest), order) for digest, order in found]}
        )

    async def read_availability(self, call: Call) -> Answer | Problem:
        """What can be bought now, by one channel or in all."""
        sale_id = call.path["sale_id"]
        query: AvailabilityQuery = call.query
        channel = "" if query.channel is UNSET else query.channel
        reply = await self._ask(sale_id, GetAvailability(channel))
        if reply.outcome is not Outcome.DONE:
            return refusal(reply.outcome, reply.detail)
        status, at_ms, levels = reply.detail
        skus = [{"sku": sku, "available": available} for sku, available in levels]
        return json_answer(200, {"sale_id": sale_id, "status": status, "as_of": rfc3339(at_ms), "skus": skus})

    async def _ask(self, sale_id: str, command: Command) -> Reply:
        (reply,) = await self._partitions.submit(sale_id, command)
        return reply


def _order_id(call: Call) -> OrderId:
    order_id = OrderId.parse(call.path["order_id"])
    assert order_id is not None, "the route table lets no other through"
    return order_id


_NO_SUCH_ORDER = frozenset({Outcome.SALE_NOT_FOUND, Outcome.PARTITION_MISSING})


def _order_answer(order_id: OrderId, reply: Reply) -> Answer | Problem:
    if reply.outcome is Outcome.DONE:
        return json_answer(200, order_document(order_id, reply.order()))
    if reply.outcome is Outcome.REPEATED:
        return json_answer(200, order_document(order_id, reply.order()), _REPLAYED)
    return order_refusal(reply)


def order_refusal(reply: Reply) -> Problem:
    """The partition's "no" to whoever named an order, and so asks for no sale."""
    if reply.outcome in _NO_SUCH_ORDER:
        return refusal(Outcome.ORDER_NOT_FOUND, ())
    return refusal(reply.outcome, reply.detail)
