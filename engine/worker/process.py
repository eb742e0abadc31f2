"""The worker's process: the loops that run beside, built from the settings, until a signal."""

import asyncio
import gc
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack

import structlog
import uvloop

from engine.ledger.connect import WRITER_SETTINGS, LedgerPool, open_pool
from engine.ledger.persister import LedgerWriter
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.worker.crash import passing
from engine.worker.guard import Guard
from engine.worker.loops import keep_running
from engine.worker.observe import StockObserver
from engine.worker.persist import WRITERS_MAX, Persister
from engine.worker.retire import Retirer
from engine.worker.roll import Roll
from engine.worker.schedule import Scheduler
from engine.worker.sweep import Sweeper

READER_CONNECTIONS_MAX = 2
COLLECT_AFTER_OBJECTS = 100_000
"""A batch makes some ten thousand rows and lets go of them without a cycle: looking for one costs half the rate."""
CANCEL_TIMES_MAX = 5
CANCEL_SECONDS = 0.2

log = structlog.get_logger(__name__)


def serve(settings: Settings, on_ready: Callable[[], None]) -> None:
    """Run the worker in this thread until SIGTERM or SIGINT; then it writes what is left in the journals, and returns.

    `on_ready` is called once the guard has looked at every partition. PostgreSQL and Redis may be away at any time.
    Raises: ValueError where a store's address is missing.
    """
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, on_ready))


async def _serve(settings: Settings, on_ready: Callable[[], None]) -> None:
    if settings.redis_url is None or settings.database_url is None:
        raise ValueError("a worker needs MIAOCANG_REDIS_URL and MIAOCANG_DATABASE_URL; `miaocang up` gives it both")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        partitions = await stack.enter_async_context(Partitions.from_settings(settings))
        writing = await open_pool(settings.database_url, WRITERS_MAX + 1, WRITER_SETTINGS)
        stack.push_async_callback(writing.close)
        reading = await open_pool(settings.database_url, READER_CONNECTIONS_MAX)
        stack.push_async_callback(reading.close)
        await run_loops(settings, partitions, (writing, reading), stop, on_ready)


async def run_loops(
    settings: Settings,
    partitions: Partitions,
    pools: tuple[LedgerPool, LedgerPool],
    stop: asyncio.Event,
    on_ready: Callable[[], None],
) -> None:
    """Run every loop until `stop`, then the persister's once more, for `drain_seconds` at most.

    `pools`: one opened with WRITER_SETTINGS, and one for reading.
    """
    writing, reading = pools
    points = passing(settings.crash_at)
    roll = Roll(partitions)
    persister = Persister(partitions, LedgerWriter(writing, points), settings, points, roll)
    guard = Guard(partitions, reading, settings, roll)
    loops: dict[str, Callable[[], Awaitable[None]]] = {
        "guard": guard.run,
        "sweep": Sweeper(partitions, settings, roll).run,
        "schedule": Scheduler(partitions, roll).run,
        "retire": Retirer(partitions, reading, settings, roll).run,
        "observe": StockObserver(partitions, roll).run,
        "ready": lambda: _report_ready(guard, on_ready),
    }
    persisting = asyncio.create_task(keep_running("persist", persister.run), name="persist")
    beside = [asyncio.create_task(keep_running(name, loop), name=name) for name, loop in loops.items()]
    try:
        await stop.wait()
    finally:
        await _cancel(beside)
        await _drain(persister, persisting, time.monotonic() + settings.drain_seconds)


async def _cancel(tasks: Sequence["asyncio.Task[None]"]) -> None:
    """Cancel tasks, and once more each that does not end: a library may lose a cancellation."""
    for _ in range(CANCEL_TIMES_MAX):
        pending = [task for task in tasks if not task.done()]
        if not pending:
            return
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=CANCEL_SECONDS)
    log.error("loops_left_running", loops=[task.get_name() for task in tasks if not task.done()])


async def _drain(persister: Persister, persisting: "asyncio.Task[None]", deadline: float) -> None:
    """Let the round in hand end, then write the rest."""
    persister.stop()
    await asyncio.wait({persisting}, timeout=max(deadline - time.monotonic(), 0))
    await _cancel([persisting])
    await persister.finish(deadline)
    log.info("worker_drained")


async def _report_ready(guard: Guard, on_ready: Callable[[], None]) -> None:
    await guard.first_pass_done.wait()
    on_ready()
