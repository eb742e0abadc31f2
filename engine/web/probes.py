"""The routes that take no key, the same for each interface: is it alive, can it serve, how is it, what is there."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import structlog
from msgspec import Struct

from engine.domain.errors import MiaocangError
from engine.observability.aggregates import flush_buffers
from engine.observability.metrics import CONTENT_TYPE, exposition
from engine.web.answers import JSON, Answer, json_answer
from engine.web.problems import Code, Problem
from engine.web.routes import Call, Route, Success

READINESS_SECONDS_MAX = 1.0
"""A balancer asks every second or two, and takes silence for an answer later than a "no"."""

_log = structlog.get_logger(__name__)

Readiness = Callable[[], Awaitable[Mapping[str, str] | Problem]]
"""The sales that are frozen with the reason for each, or why nothing at all can be served. May raise MiaocangError."""


class HealthDocument(Struct, forbid_unknown_fields=True):
    """The process lives."""

    alive: Literal[True]


class ReadinessDocument(Struct, forbid_unknown_fields=True):
    """The process can serve."""

    ready: Literal[True]
    frozen: dict[str, str]
    """Sales that are being reconciled, with the reason for each."""


class Probes:
    """The routes that take no key."""

    def __init__(self, readiness: Readiness, is_draining: Callable[[], bool]) -> None:
        self._readiness = readiness
        self._is_draining = is_draining
        self.openapi: bytes = b""
        """The document of all routes; it is made after they are, and they include its own."""

    async def read_health(self, _call: Call) -> Answer | Problem:
        """200 for as long as the process answers at all."""
        return json_answer(200, {"alive": True})

    async def read_readiness(self, _call: Call) -> Answer | Problem:
        """200 if requests can be served; 503 and why, if not."""
        if self._is_draining():
            return Problem(Code.OVERLOADED, "This process is draining and takes no new connections.")
        try:
            async with asyncio.timeout(READINESS_SECONDS_MAX):
                frozen = await self._readiness()
        except TimeoutError:
            return Problem(Code.FROZEN, f"The stores did not answer within {READINESS_SECONDS_MAX:g} seconds.")
        except MiaocangError as error:
            return Problem(Code.FROZEN, f"Nothing can be served: {error}.")
        except Exception:  # whoever asks is told "no" whenever "yes" cannot be told; the log has the reason
            _log.exception("readiness_unknown")
            return Problem(Code.FROZEN, "Whether requests can be served cannot be told; the log has the reason.")
        if isinstance(frozen, Problem):
            return frozen
        return json_answer(200, {"ready": True, "frozen": dict(frozen)})

    async def read_metrics(self, _call: Call) -> Answer | Problem:
        """All metrics of this engine's processes in Prometheus' text format."""
        flush_buffers()
        text = await asyncio.to_thread(exposition)  # it reads a file for each process
        return Answer(200, text, (("Content-Type", CONTENT_TYPE),))

    async def read_openapi(self, _call: Call) -> Answer | Problem:
        """The description of this interface."""
        return Answer(200, self.openapi, (("Content-Type", JSON),))

    def routes(self, *not_ready_codes: Code) -> list[Route]:
        """The four routes, to be put into an interface's table; the codes are what its own readiness adds."""
        not_ready = (Code.OVERLOADED, Code.FROZEN, *not_ready_codes)
        health = {200: Success("It is.", HealthDocument)}
        readiness = {200: Success("It can.", ReadinessDocument)}
        metrics = {200: Success("Prometheus' text format.", content_type="text/plain")}
        openapi = {200: Success("OpenAPI 3.1.")}
        return [
            Route("GET", "/healthz", None, self.read_health, "Is it alive?", health),
            Route("GET", "/readyz", None, self.read_readiness, "Can it serve?", readiness, not_ready),
            Route("GET", "/metrics", None, self.read_metrics, "Metrics", metrics),
            Route("GET", "/openapi.json", None, self.read_openapi, "This document", openapi),
        ]
