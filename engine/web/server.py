"""An Interface on aiohttp's low-level server: sockets, bodies within bounds of size and time, metrics, draining.

aiohttp parses and keeps connections alive; its own router, errors and body reading are not used, because the order of
checks and every error's document are the contract's.
"""

import asyncio
import time
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from engine.observability.metrics import IN_FLIGHT, REQUEST_SECONDS, REQUESTS
from engine.web.answers import Answer, finished_headers, problem_answer
from engine.web.headers import Headers, new_request_id
from engine.web.interface import UNMATCHED_ROUTE, BodyOrProblem, Interface
from engine.web.problems import INTERNAL, Code, Problem

BODY_SECONDS_MAX = 10.0
"""A body that takes longer is taken for cut off."""
IDLE_SECONDS_MAX = 75.0
"""How long a connection may be silent, or take over a request's head: longer than a reverse proxy's usual 60."""
LINGER_SECONDS_MAX = 2.0
"""How long the rest of a refused body is read and thrown away, so that its sender gets to see the answer."""
LINE_BYTES_MAX = 8190
HEADER_BYTES_MAX = 8190
HEADERS_MAX = 100

_log = structlog.get_logger(__name__)


class Service:
    """One interface as it is served by this process, with what is in flight."""

    def __init__(
        self, interface: Interface, draining: asyncio.Event, body_seconds_max: float = BODY_SECONDS_MAX
    ) -> None:
        """`draining` is shared with whatever tells the world that no more is to be sent here."""
        self._body_seconds_max = body_seconds_max
        self.interface = interface
        self.draining = draining
        self.in_flight = 0
        self._in_flight_metric = IN_FLIGHT.labels(interface.name)

    def make_server(self) -> "Server":
        """A factory of connections' protocols, to be given to the event loop. Call it within the loop."""
        return Server(
            self,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=IDLE_SECONDS_MAX,
            lingering_time=LINGER_SECONDS_MAX,
            max_line_size=LINE_BYTES_MAX,
            max_field_size=HEADER_BYTES_MAX,
            max_headers=HEADERS_MAX,
        )

    async def respond(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        self.in_flight += 1
        self._in_flight_metric.inc()
        try:
            return await self._respond(request)
        finally:
            self.in_flight -= 1
            self._in_flight_metric.dec()

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        admission = self.interface.admit(request.method, request.raw_path, _header_lookup(request))
        answer = admission.refused
        if answer is None:
            body = await self._read_body(request)
            answer = await self.interface.answer(admission, body)
        self._measure(admission.route_name, answer, admission.arrived)
        return self.response(answer, admission.request_id)

    async def _read_body(self, request: web.BaseRequest) -> BodyOrProblem:
        if not request.body_exists:
            return b""
        if request.headers.get("Expect", "").lower() == "100-continue":
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

    def _measure(self, route: str, answer: Answer, arrived: float) -> None:
        REQUESTS.labels(self.interface.name, route, str(answer.status), answer.code).inc()
        REQUEST_SECONDS.labels(self.interface.name, route).observe(time.perf_counter() - arrived)

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
        self._measure(UNMATCHED_ROUTE, answer, time.perf_counter())
        return self.response(answer._replace(close=True), new_request_id())

    def defect(self) -> web.Response:
        """The answer where the server itself failed."""
        answer = problem_answer(INTERNAL, close=True)
        self._measure(UNMATCHED_ROUTE, answer, time.perf_counter())
        return self.response(answer, new_request_id())


def _header_lookup(request: web.BaseRequest) -> Headers:
    headers = request.headers
    return lambda name: headers.getall(name, ())


class BodyCutOff(Exception):
    """The connection's other side, or its framing, ended before the body did."""


class Server(web.Server):
    """aiohttp's server, with our own connections."""

    def __init__(self, service: Service, **options: Any) -> None:
        super().__init__(service.respond, **options)
        self.service = service
        self._options = options

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=asyncio.get_running_loop(), **self._options)


class Connection(RequestHandler):
    """aiohttp's connection, but for what it answers to errors, and for bodies that end too early."""

    def __init__(self, server: Server, **options: Any) -> None:
        super().__init__(server, **options)
        self._service = server.service
        self._last_body: StreamReader | None = None
        self._answered_count = 0

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
        self._end_last_body("it was cut off")
        self.close()
        return True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """As aiohttp has it, counted."""
        self._answered_count += 1
        return await super().finish_response(request, resp, start_time)

    def _end_last_body(self, reason: str) -> None:
        """Only the last body that has begun can be unfinished: requests come one after the other."""
        if self._last_body is not None and not self._last_body.is_eof():
            self._last_body.set_exception(BodyCutOff(reason))
            self._last_body.feed_eof()  # so that aiohttp does not linger over it


def _one_line(error: BaseException | None) -> str:
    text = error.message if isinstance(error, HttpProcessingError) else str(error)
    first_line = text.strip().splitlines()[0] if text.strip() else "it is malformed"
    return first_line.encode("utf-8", "backslashreplace").decode().rstrip(".:")[:200]
