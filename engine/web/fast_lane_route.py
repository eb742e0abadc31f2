"""A hot route: who answers it, what a request of it has of its own, and what is counted of its answers."""

from typing import TYPE_CHECKING

from engine.observability.aggregates import HistogramBuffer
from engine.observability.metrics import REQUEST_SECONDS
from engine.web.fast_lane_answers import AnswerKinds
from engine.web.fast_lane_head import HOT_METHOD, ORDER_ID_BEFORE
from engine.web.interface import Interface

if TYPE_CHECKING:
    from engine.web.fast_lane_request import HotHandler

ORDER_ID_TEMPLATE = ORDER_ID_BEFORE.decode("ascii").removeprefix(f"{HOT_METHOD} ") + "{order_id}/"
"""What the templates of routes begin with whose requests have an order's id of their own."""


class HotRoute:
    """One route of an interface whose requests the lane gives to a handler of their own."""

    __slots__ = ("_seconds", "answer_kinds", "handler", "kinds", "observe_seconds", "route", "takes_key")

    def __init__(self, interface: Interface, template: str, handler: "HotHandler", date: str) -> None:
        """Raises ValueError where no route of the interface is this one, or it has no value that the lane cuts out."""
        found = [route for route in interface.routes.routes if (route.method, route.template) == (HOT_METHOD, template)]
        if not found or not (found[0].takes_idempotency_key or template.startswith(ORDER_ID_TEMPLATE)):
            raise ValueError(f"{template}: it cannot be a hot route")
        self.route = found[0]
        self.takes_key = self.route.takes_idempotency_key
        """Whether a request's own value is its Idempotency-Key; else it is the order's id in its target."""
        self.handler = handler
        self.answer_kinds = AnswerKinds(interface.name, template, date)
        self.kinds = self.answer_kinds.kinds
        self._seconds = HistogramBuffer(REQUEST_SECONDS.labels(interface.name, template))
        self.observe_seconds = self._seconds.observe
