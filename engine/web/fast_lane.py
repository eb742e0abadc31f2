"""The fast lane: reads and answers the hot requests without the general server, on the same port.

A connection starts on the lane. For as long as its requests are spelled plainly (`fast_lane_head`), the hot ones go to
their routes' handlers, and others whose answer is one JSON document to the interface; at the first that is anything
else, the connection goes over to the general server's protocol, bytes and all, and stays there. One set of rules serves
both: whatever is refused, is refused by `Interface`, and a test holds both servers' answers against each other.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import orjson
import structlog

from engine.observability.metrics import BOUND_REACHED, FAST_LANE_HANDOVERS, FAST_LANE_REQUESTS, IN_FLIGHT
from engine.web.answers import Answer, problem_answer
from engine.web.bounds import BODY_SECONDS_MAX, IDLE_SECONDS_MAX, LINGER_SECONDS_MAX
from engine.web.fast_lane_answers import RequestIds, date_now, rendered
from engine.web.fast_lane_bounded import Admitted, BoundedConnection
from engine.web.fast_lane_connection import LaneConnection
from engine.web.fast_lane_head import HEAD_BYTES_MAX, Head, HeadReader, WholeHead
from engine.web.fast_lane_request import HotHandler, HotRequest
from engine.web.fast_lane_route import HotRoute
from engine.web.headers import new_request_id
from engine.web.interface import UNMATCHED_ROUTE, BodyOrProblem, Interface
from engine.web.key_store import HOLDER_SECONDS_MAX
from engine.web.open_files import allow_open_files
from engine.web.problems import INTERNAL, Code, Problem

__all__ = ["HotHandler", "HotRequest", "Lane", "LaneBounds"]

_log = structlog.get_logger(__name__)

SWEEP_SECONDS = 1.0
"""How often connections are asked for their time; a timer for each would cost more than an answer."""
TICK_SECONDS = 0.25
"""How often the date in answers and the gauges are brought up to date."""
TURNED_AWAY_MAX = 256
"""Connections past the bound that are told so; more are reset, because telling takes a connection too."""
END_LOOK_SECONDS = 0.01
WRITE_SECONDS_MAX = 30.0
"""How long a caller may leave its answers unread before its connection is cut."""
HEAD_SECONDS_MAX = 10.0
"""How long a head may take from its first byte on."""
CONNECTIONS_MAX = 16_384
FILES_FOR_OTHERS = 128
"""Files that the rest of the process may need open."""
REQUESTS_IN_FLIGHT_MAX = 16_384


@dataclass(frozen=True)
class LaneBounds:
    """The bounds of one process' connections. Each is counted in `miaocang_bound_reached`."""

    idle_seconds_max: float = IDLE_SECONDS_MAX
    head_seconds_max: float = HEAD_SECONDS_MAX
    body_seconds_max: float = BODY_SECONDS_MAX
    write_seconds_max: float = WRITE_SECONDS_MAX
    linger_seconds_max: float = LINGER_SECONDS_MAX
    sweep_seconds: float = SWEEP_SECONDS
    connections_max: int = CONNECTIONS_MAX
    """With the general server's: a connection that was handed over goes on counting. Fewer, if the system allows fewer
    open files."""
    requests_in_flight_max: int = REQUESTS_IN_FLIGHT_MAX


class GeneralServer(Protocol):
    """The server that takes over what is not for the lane."""

    def make_connection(self) -> asyncio.Protocol:
        """A protocol for one connection."""
        ...

    def connection_count(self) -> int:
        """How many connections it has."""
        ...

    def measure(self, route: str, answer: Answer, arrived: float) -> None:
        """Count an answer that was no hot handler's."""
        ...


class Lane:
    """What the connections of one process share. To be made within the event loop."""

    def __init__(
        self,
        interface: Interface,
        hot: Mapping[str, HotHandler],
        draining: asyncio.Event,
        general: GeneralServer,
        bounds: LaneBounds,
    ) -> None:
        """`hot` has the handlers of the hot routes, by their templates."""
        self.interface = interface
        self.bounds = bounds
        self.loop = asyncio.get_running_loop()
        beside = TURNED_AWAY_MAX + FILES_FOR_OTHERS
        self._connections_max = min(bounds.connections_max, allow_open_files(bounds.connections_max + beside) - beside)
        self.idle_seconds_max = bounds.idle_seconds_max
        self.buffered_bytes_max = HEAD_BYTES_MAX + interface.body_bytes_max
        """How much of what comes after the request in flight is kept: as much as one request can have."""
        self.in_flight = 0
        self.date = date_now()
        self._hot_routes = {
            template: HotRoute(interface, template, handler, self.date) for template, handler in hot.items()
        }
        self.heads = HeadReader(interface, self._hot_routes)
        self.remembered = self.heads.remembered
        self.is_draining = draining.is_set
        self.requests_in_flight_max = bounds.requests_in_flight_max
        self.request_ids = RequestIds()
        self._general = general
        self._connections: set[BoundedConnection] = set()
        self._turned_away: set[BoundedConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_flight_metric = IN_FLIGHT.labels(interface.name)
        self._in_flight_shown = 0
        self._is_over = False
        self._sweep_due = self.loop.time() + bounds.sweep_seconds
        self._tick_seconds = min(TICK_SECONDS, bounds.sweep_seconds)
        self._timer = self.loop.call_later(self._tick_seconds, self._tick)

    # --- connections ---------------------------------------------------------------------------------------------

    @property
    def connections(self) -> list[BoundedConnection]:
        """Those that are on the lane."""
        return [*self._connections, *self._turned_away]

    def unfinished_count(self) -> int:
        """Requests in flight, and those whose body is still coming."""
        return self.in_flight + sum(connection.is_awaiting_body for connection in self._connections)

    def admit(self, connection: BoundedConnection) -> Admitted:
        """Take a new connection, or turn it away."""
        if self._is_over:
            return Admitted.REFUSED
        if len(self._connections) + self._general.connection_count() < self._connections_max:
            self._connections.add(connection)
            return Admitted.TAKEN
        BOUND_REACHED.labels("lane_connections").inc()
        if len(self._turned_away) >= TURNED_AWAY_MAX:
            return Admitted.REFUSED
        self._turned_away.add(connection)
        return Admitted.TURNED_AWAY

    def forget(self, connection: BoundedConnection) -> None:
        """A connection has gone, or is another protocol's."""
        self._connections.discard(connection)
        self._turned_away.discard(connection)

    def hand_over(self, transport: asyncio.Transport, data: bytes, has_ended: bool, reason: str) -> None:
        """Give a connection to the general server, with the bytes that the lane has not taken."""
        FAST_LANE_HANDOVERS.labels(reason).inc()
        connection = self._general.make_connection()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.data_received(data)
        if has_ended and not connection.eof_received():
            transport.close()

    # --- answers -------------------------------------------------------------------------------------------------

    def authorises(self, head: Head, now: float) -> bool:
        """Whether the head's key may call its hot route; a yes is kept for as long as the key store allows."""
        principal = self.interface.principal(head.key.decode("ascii"))
        if principal is None or head.hot_route is None or not head.hot_route.route.admits(principal.role):
            return False
        head.authorised_until = now + HOLDER_SECONDS_MAX
        return True

    def answer_generally(
        self, connection: LaneConnection, head: WholeHead, body: BodyOrProblem, arrived: float
    ) -> None:
        """Have the interface answer the request in flight. Never raises."""
        task = self.loop.create_task(self._answer_generally(connection, head, body, arrived))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def answer_overloaded(self, connection: LaneConnection, head: WholeHead, body: bytes, arrived: float) -> None:
        """Answer the request in flight, which is one too many: that it is, unless something else is wrong with it."""
        BOUND_REACHED.labels("lane_requests_in_flight").inc()
        admission = self.interface.admit(head.method, head.target, head.headers)
        answer = admission.refused or self.interface.check(admission, body)
        if answer is None:
            answer = problem_answer(_overloaded("requests in flight in this process"))
        FAST_LANE_REQUESTS.labels("general").inc()
        self._general.measure(admission.route_name, answer, arrived)
        connection.finish_generally(answer, head, admission.request_id)

    async def _answer_generally(
        self, connection: LaneConnection, head: WholeHead, body: BodyOrProblem, arrived: float
    ) -> None:
        admission = self.interface.admit(head.method, head.target, head.headers)
        answer = admission.refused
        if answer is None:
            answer = await self.interface.answer(admission, body)
        FAST_LANE_REQUESTS.labels("general").inc()
        self._general.measure(admission.route_name, answer, arrived)
        connection.finish_generally(answer, head, admission.request_id)

    def defect(self, request: HotRequest, route: HotRoute) -> None:
        """The route's handler has raised: answer for it, unless it has answered before that."""
        _log.exception("request_defect", interface=self.interface.name, route=route.route.template)
        if not request.is_answered:
            request.answer(INTERNAL.kind.status, orjson.dumps(INTERNAL.document()), INTERNAL.code.value)

    def turning_away(self) -> bytes:
        """What a connection is told that is one too many."""
        answer = problem_answer(_overloaded("connections to this process"))
        self._general.measure(UNMATCHED_ROUTE, answer, perf_counter())
        return rendered(answer, new_request_id(), closes=True, date=self.date)

    # --- time ----------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = self.loop.call_later(self._tick_seconds, self._tick)
        self._renew_date()
        self.request_ids.renew()
        self._show_in_flight()
        if self.loop.time() >= self._sweep_due:
            self._sweep_due = self.loop.time() + self.bounds.sweep_seconds
            now = perf_counter()
            for connection in self.connections:
                connection.look(now)

    def _renew_date(self) -> None:
        date = date_now()
        if date != self.date:
            self.date = date
            for route in self._hot_routes.values():
                route.answer_kinds.set_date(date)

    def _show_in_flight(self) -> None:
        self._in_flight_metric.inc(self.in_flight - self._in_flight_shown)
        self._in_flight_shown = self.in_flight

    def close_idle(self) -> None:
        """End the connections that have no request in flight; the others end with their answers while draining."""
        for connection in self.connections:
            connection.close_if_idle()

    async def end(self, seconds_max: float) -> None:
        """End it all; what is written already has so long to get out."""
        self._is_over = True
        until = self.loop.time() + seconds_max
        while self.connections and self.loop.time() < until:  # noqa: ASYNC110 - it is all but always over at once
            await asyncio.sleep(END_LOOK_SECONDS)
        self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        for connection in self.connections:
            connection.abort()
        self._show_in_flight()


def _overloaded(what: str) -> Problem:
    return Problem(Code.OVERLOADED, f"A bound was reached: {what}. Nothing was changed; ask again shortly.")
