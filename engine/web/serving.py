"""Serves an interface until SIGTERM or SIGINT, which drain it."""

import asyncio
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import structlog
import uvloop

from engine.web.server import Server, Service

BACKLOG_CONNECTIONS = 4096
"""Connections that may wait to be accepted: at "the link is up" they all come in one second."""
DRAIN_NOTICE_SECONDS = 0.3
"""How long idle connections are kept when draining starts: a request that is on its way through one is answered, and
a balancer that asks /readyz through one learns why it will close."""
HAND_OVER_NOTICE_SECONDS = 3.0
"""The same where another process serves on already, so that there is no hurry: nearly every connection gets an answer
that says "close", and none is closed while its next request is on the way."""
HAND_OVER_SECONDS_MAX = 5.0
"""How long a process that was asked to end goes on accepting until its successor is there."""
DRAIN_LOOK_SECONDS = 0.02
PREPARE_RETRY_SECONDS = 0.1
CLOSE_SECONDS_MAX = 0.1
"""How long a connection that has had all its time may take to notice (to aiohttp, no time at all would be for ever)."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Slot:
    """A place that processes hold one after the other, with the queues of connections that go with it.

    The sockets are the supervisor's, so that what waits in them is accepted by whoever comes next. SIGTERM is then a
    request to be replaced, told by `announce`, and SIGINT ends the accepting: the supervisor sends it once the
    successor serves, or when everything ends.
    """

    listeners: tuple[socket.socket, ...]
    announce: Callable[[], None]
    """Called once, when the process is about to end; by the supervisor's leave it may be called more often."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a process' main coroutine on the event loop that every process of ours serves on."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


async def serve_until_signal(
    service: Service,
    host: str,
    port: int,
    on_ready: Callable[[], None],
    *,
    drain_seconds: float,
    reuse_port: bool,
    answers: Callable[[], Awaitable[bool]],
    slot: Slot | None = None,
) -> None:
    """Listen, call `on_ready` once `answers()` is true as well, and serve until a signal; then drain and return.

    With a `slot` its sockets are listened on, and SIGTERM hands them over to a successor.
    Raises: OSError (the port is taken, the host is not ours).
    """
    loop = asyncio.get_running_loop()
    stopping, handing_over = asyncio.Event(), asyncio.Event()

    def hand_over() -> None:
        if slot is not None and not handing_over.is_set():
            handing_over.set()
            slot.announce()
            loop.call_later(HAND_OVER_SECONDS_MAX, stopping.set)

    loop.add_signal_handler(signal.SIGINT, stopping.set)
    loop.add_signal_handler(signal.SIGTERM, stopping.set if slot is None else hand_over)
    try:
        server = service.make_server()
        if slot is None:
            listeners = [
                await loop.create_server(server, host, port, backlog=BACKLOG_CONNECTIONS, reuse_port=reuse_port or None)
            ]
        else:
            listeners = [
                await loop.create_server(server, sock=each, backlog=BACKLOG_CONNECTIONS) for each in slot.listeners
            ]
        try:
            if await _first_true(answers, stopping):
                on_ready()
                _log.info("serving", interface=service.interface.name, host=host, port=port)
                await stopping.wait()
        finally:
            if slot is not None:
                slot.announce()
            await _drain(service, server, listeners, drain_seconds, handing_over)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _first_true(answers: Callable[[], Awaitable[bool]], stopping: asyncio.Event) -> bool:
    """Ask until the answer is yes (True) or it is time to stop (False)."""
    while not stopping.is_set():
        if await answers():
            return True
        try:
            await asyncio.wait_for(stopping.wait(), PREPARE_RETRY_SECONDS)
        except TimeoutError:
            continue
    return False


async def _drain(
    service: Service,
    server: Server,
    listeners: list[asyncio.Server],
    drain_seconds: float,
    handing_over: asyncio.Event,
) -> None:
    """Stop listening, answer what is in flight (each answer closing its connection), then close what is idle."""
    started = time.monotonic()
    service.draining.set()
    for listener in listeners:
        listener.close()
    _log.info("draining", interface=service.interface.name, in_flight=service.in_flight)
    while (now := time.monotonic()) < started + drain_seconds:
        # looked at each time, because the signals that say so may arrive in either order
        notice_seconds = HAND_OVER_NOTICE_SECONDS if handing_over.is_set() else DRAIN_NOTICE_SECONDS
        if service.in_flight == 0 and (now >= started + notice_seconds or not server.connections):
            break
        await asyncio.sleep(DRAIN_LOOK_SECONDS)
    left_unanswered = service.in_flight
    server.pre_shutdown()
    await server.shutdown(CLOSE_SECONDS_MAX)
    _log.info("drained", interface=service.interface.name, unanswered=left_unanswered)
