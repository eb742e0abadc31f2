"""An Interface on aiohttp's low-level server: sockets, bodies within bounds of size and time, metrics, draining.

aiohttp parses and keeps connections alive; its own router, errors and body reading are not used, because the order of
checks and every error's document are the contract's.
"""

import asyncio
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler
from prometheus_client import Counter, Histogram

from engine.observability.metrics import IN_FLIGHT, REQUEST_SECONDS, REQUESTS
from engine.web.answers import Answer, finished_headers, problem_answer
from engine.web.bounds import (
    BODY_SECONDS_MAX,
    HEADER_BYTES_MAX,
    HEADERS_MAX,
    IDLE_SECONDS_MAX,
    LINE_BYTES_MAX,
    LINGER_SECONDS_MAX,
)
from engine.web.fast_lane import HotHandler, Lane, LaneBounds
from engine.web.fast_lane_connection import LaneConnection
from engine.web.headers import Headers, new_request_id
from engine.web.interface import UNMATCHED_ROUTE, BodyOrProblem, Interface
from engine.web.problems import INTERNAL, Code, Problem

_log = structlog.get_logger(__name__)


class Service:
    """One interface as it is served by this process, with what is in flight."""

    def __init__(
        self,
        interface: Interface,
        draining: asyncio.Event,
        body_seconds_max: float = BODY_SECONDS_MAX,
        hot: Mapping[str, HotHandler] | None = None,
        lane_bounds: LaneBounds | None = None,
    ) -> None:
        """`draining` is shared with whatever tells the world that no more is to be sent here.

        With handlers of hot routes (by their templates), connections start on the fast lane, within `lane_bounds`.
        """
        self.interface = interface
        self.draining = draining
        self._body_seconds_max = body_seconds_max
        self._hot = hot
        self._lane_bounds = lane_bounds or LaneBounds(body_seconds_max=body_seconds_max)
        self._lane: Lane | None = None
        self._general_in_flight = 0
        self._metrics: dict[tuple[str, int, str], tuple[Counter, Histogram]] = {}
        """By route, status and code: looking them up by their labels costs more than counting."""
        self._in_flight_metric = IN_FLIGHT.labels(interface.name)

    @property
    def in_flight(self) -> int:
        """Requests being answered, or read."""
        return self._general_in_flight + (self._lane.unfinished_count() if self._lane is not None else 0)

    def make_server(self) -> "Server":
        """A factory of connections' protocols, to be given to the event loop. Call it within the loop, once."""
        server = Server(
            self,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=IDLE_SECONDS_MAX,
            lingering_time=LINGER_SECONDS_MAX,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            max_headers=HEADERS_MAX,
        )
        if self._hot is not None:
            self._lane = Lane(self.interface, self._hot, self.draining, server, self._lane_bounds)
            server.lane = self._lane
        return server

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        self._general_in_flight += 1
        self._in_flight_metric.inc()
        try:
            return await self._respond(request)
        finally:
            self._general_in_flight -= 1
            self._in_flight_metric.dec()

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        admission = self.interface.admit(request.method, request.raw_path, _header_lookup(request))
        answer = admission.refused
        if answer is None:
            body = await self._read_body(request)
            answer = await self.interface.answer(admission, body)
        self.measure(admission.route_name, answer, admission.arrived)
        response = self.response(answer, admission.request_id)
        if request._message.upgrade:
            response.force_close()  # aiohttp throws away what it has read behind one that it does not take up
        return response

    async def _read_body(self, request: web.BaseRequest) -> BodyOrProblem:
        if not request.body_exists:
            return b""
        coding = request.headers.get("Transfer-Encoding", "chunked")
        if coding.strip().lower() != "chunked":
            return Problem(Code.MALFORMED, f"The transfer coding {coding!r} is not understood here.")
        if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # what was sent is no part of the answer
        try:
            async with asyncio.timeout(self._body_seconds_max):
                return await self._read_bounded(request)
        except TimeoutError:
            return Problem(Code.MALFORMED, f"The body did not arrive within {self._body_seconds_max:g} seconds.")
        except (BodyCutOff, web.RequestPayloadError, HttpProcessingError, OSError) as error:
            return Problem(Code.MALFORMED, f"The body cannot be read to its end: {_one_line(error)}.")

    async def _read_bounded(self, request: web.BaseRequest) -> BodyOrProblem:
        body = bytearray()
        while chunk := await request.content.readany():
            body += chunk
            if len(body) > self.interface.body_bytes_max:
                return self.interface.too_large()
        return bytes(body)

    def measure(self, route: str, answer: Answer, arrived: float) -> None:
        """Count an answer."""
        kind = (route, answer.status, answer.code)
        metrics = self._metrics.get(kind)
        if metrics is None:
            name = self.interface.name
            metrics = (
                REQUESTS.labels(name, route, str(answer.status), answer.code),
                REQUEST_SECONDS.labels(name, route),
            )
            self._metrics[kind] = metrics
        requests, seconds = metrics
        requests.inc()
        seconds.observe(time.perf_counter() - arrived)

    def response(self, answer: Answer, request_id: str) -> web.Response:
        """The answer as aiohttp sends it."""
        headers = dict(finished_headers(answer, request_id))
        response = web.Response(status=answer.status, body=answer.body, headers=headers)
        if self.draining.is_set() or answer.close:
            response.force_close()
        return response

    def unreadable(self, reason: str) -> web.Response:
        """The answer to bytes that are no HTTP request, after which the connection ends."""
        answer = problem_answer(Problem(Code.MALFORMED, f"This is no HTTP request that can be read: {reason}."))
        self.measure(UNMATCHED_ROUTE, answer, time.perf_counter())
        return self.response(answer._replace(close=True), new_request_id())

    def defect(self) -> web.Response:
        """The answer where the server itself failed."""
        answer = problem_answer(INTERNAL, close=True)
        self.measure(UNMATCHED_ROUTE, answer, time.perf_counter())
        return self.response(answer, new_request_id())


def _header_lookup(request: web.BaseRequest) -> Headers:
    headers = request.headers
    return lambda name: headers.getall(name, ())


class BodyCutOff(Exception):
    """The connection's other side, or its framing, ended before the body did."""


class Server(web.Server):
    """aiohttp's server, with our own connections, and with the fast lane before it, if there is one."""

    def __init__(self, service: Service, **options: Any) -> None:
        super().__init__(service.respond, **options)
        self.service = service
        self.lane: Lane | None = None
        self._options = options

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]  # the lane's is none of aiohttp's
        return LaneConnection(self.lane) if self.lane is not None else self.make_connection()

    def make_connection(self) -> "Connection":
        """A protocol for one connection that is not on the lane, or not any more."""
        return Connection(self, loop=asyncio.get_running_loop(), **self._options)

    def connection_count(self) -> int:
        """How many connections are not on the lane."""
        return len(self._connections)

    def measure(self, route: str, answer: Answer, arrived: float) -> None:
        """Count an answer that was given on the lane."""
        self.service.measure(route, answer, arrived)

    @property
    def connections(self) -> list[Any]:
        """All that are open."""
        return [*super().connections, *(self.lane.connections if self.lane is not None else ())]

    def pre_shutdown(self) -> None:
        """Close the connections that have no request in flight."""
        super().pre_shutdown()
        if self.lane is not None:
            self.lane.close_idle()

    async def shutdown(self, timeout: float | None = None) -> None:
        """Close what is left, within `timeout` seconds."""
        await super().shutdown(timeout)
        if self.lane is not None:
            await self.lane.end(timeout or 0.0)


class Connection(RequestHandler):
    """aiohttp's connection, but for what it answers to errors, and for bodies that end too early."""

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._service = server.service
        self._last_body: StreamReader | None = None
        self._answered_count = 0
        self._has_ended = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - aiohttp's signature
    ) -> web.StreamResponse:
        """Problem documents in place of aiohttp's own pages."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        if status == HTTPStatus.BAD_REQUEST:
            return self._service.unreadable(_one_line(exc))
        _log.error("request_defect", interface=self._service.interface.name, exc_info=exc)
        return self._service.defect()

    def data_received(self, data: bytes) -> None:
        """As aiohttp has it; but a body whose framing breaks half-way ends there, and not at a time limit."""
        super().data_received(data)
        for message, body in self._messages:
            if hasattr(message, "headers"):  # what has none is aiohttp's note of bytes that it cannot parse
                self._last_body = body
            else:
                self._end_last_body("its framing is broken")

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for a bool; aiohttp's never says yes
        """The other side will send no more: what it has asked is answered all the same, then the connection ends."""
        if self._request_count == self._answered_count:
            return False
        self._has_ended = True
        self._end_last_body("it was cut off")
        return True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """As aiohttp has it, counted; the last answer after the other side's end is the connection's end too.

        Closing earlier would leave requests unanswered that wait for their turn, or have yet to be read.
        """
        self._answered_count += 1
        finished = await super().finish_response(request, resp, start_time)
        if self._has_ended and self._request_count == self._answered_count:
            self.close()
        return finished

    def _end_last_body(self, reason: str) -> None:
        """Only the last body that has begun can be unfinished: requests come one after the other."""
        if self._last_body is not None and not self._last_body.is_eof():
            self._last_body.set_exception(BodyCutOff(reason))
            self._last_body.feed_eof()  # so that aiohttp does not linger over it


def _one_line(error: BaseException | None) -> str:
    text = error.message if isinstance(error, HttpProcessingError) else str(error)
    first_line = text.strip().splitlines()[0] if text.strip() else "it is malformed"
    return first_line.encode("utf-8", "backslashreplace").decode().rstrip(".:")[:200]
