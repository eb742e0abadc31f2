"""Serves an interface until SIGTERM or SIGINT, which drain it."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog
import uvloop

from engine.web.server import Server, Service

BACKLOG_CONNECTIONS = 4096
"""Connections that may wait to be accepted: at "the link is up" they all come in one second."""
DRAIN_NOTICE_SECONDS = 0.3
"""How long idle connections are kept when draining starts: a request that is on its way through one is answered, and
a balancer that asks /readyz through one learns why it will close."""
DRAIN_LOOK_SECONDS = 0.02
PREPARE_RETRY_SECONDS = 0.1
CLOSE_SECONDS_MAX = 0.1
"""How long a connection that has had all its time may take to notice (to aiohttp, no time at all would be for ever)."""

_log = structlog.get_logger(__name__)


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
) -> None:
    """Listen, call `on_ready` once `answers()` is true as well, and serve until a signal; then drain and return.

    Raises: OSError (the port is taken, the host is not ours).
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        server = service.make_server()
        listener = await loop.create_server(
            server, host, port, backlog=BACKLOG_CONNECTIONS, reuse_port=reuse_port or None
        )
        try:
            if await _first_true(answers, stopping):
                on_ready()
                _log.info("serving", interface=service.interface.name, host=host, port=port)
                await stopping.wait()
        finally:
            await _drain(service, server, listener, drain_seconds)
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


async def _drain(service: Service, server: Server, listener: asyncio.Server, drain_seconds: float) -> None:
    """Stop listening, answer what is in flight (each answer closing its connection), then close what is idle."""
    started = time.monotonic()
    service.draining.set()
    listener.close()
    _log.info("draining", interface=service.interface.name, in_flight=service.in_flight)
    notice_until = started + min(DRAIN_NOTICE_SECONDS, drain_seconds)
    while (now := time.monotonic()) < started + drain_seconds:
        if now >= notice_until and service.in_flight == 0:
            break
        await asyncio.sleep(DRAIN_LOOK_SECONDS)
    left_unanswered = service.in_flight
    server.pre_shutdown()
    await server.shutdown(CLOSE_SECONDS_MAX)
    _log.info("drained", interface=service.interface.name, unanswered=left_unanswered)
