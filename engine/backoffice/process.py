"""The back office's process: built from the settings, served until a signal."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import structlog

from engine.backoffice.application import backoffice_interface
from engine.backoffice.cursors import LedgerCursors
from engine.domain.errors import LedgerUnavailable, PartitionFrozen, PartitionUnavailable
from engine.ledger.connect import open_pool
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.web.key_store import KEYS_FILE_NAME, KeyStore
from engine.web.server import Service
from engine.web.serving import run, serve_until_signal

LEDGER_CONNECTIONS_MAX = 8
REDIS_CONNECTIONS_MAX = 32

_log = structlog.get_logger(__name__)


def serve(settings: Settings, host: str, port: int, on_ready: Callable[[], None]) -> None:
    """Run the back office in this thread until SIGTERM or SIGINT, which drain it.

    `on_ready` is called once it listens and Redis has answered; PostgreSQL may come later.
    Raises: OSError (the port is taken, the host is not ours), KeysUnreadable, ValueError (a store's URL is missing).
    """
    run(_serve(settings, host, port, on_ready))


async def _serve(settings: Settings, host: str, port: int, on_ready: Callable[[], None]) -> None:
    if settings.database_url is None:
        raise ValueError("MIAOCANG_DATABASE_URL is missing; `miaocang up` gives it to the processes it starts")
    keys = KeyStore(settings.data_dir / KEYS_FILE_NAME)
    draining = asyncio.Event()
    async with AsyncExitStack() as stack:
        ledger = await open_pool(settings.database_url, LEDGER_CONNECTIONS_MAX)
        stack.push_async_callback(ledger.close)
        partitions = await stack.enter_async_context(Partitions.from_settings(settings, REDIS_CONNECTIONS_MAX))
        cursors = LedgerCursors(ledger)
        interface = backoffice_interface(partitions, ledger, cursors, keys.principal, draining.is_set)
        await serve_until_signal(
            Service(interface, draining),
            host,
            port,
            on_ready,
            drain_seconds=settings.drain_seconds,
            reuse_port=False,
            answers=lambda: _stores_answer(partitions, cursors),
        )


async def _stores_answer(partitions: Partitions, cursors: LedgerCursors) -> bool:
    """Whether Redis can be asked; that it is being reconciled is an answer.

    PostgreSQL is asked for the cursors' secret, and may be away: what needs it says so.
    """
    try:
        await partitions.ready()
    except PartitionFrozen:
        pass
    except PartitionUnavailable:
        return False
    try:
        await cursors.learn()
    except LedgerUnavailable as error:
        _log.warning("ledger_away_at_start", reason=str(error))
    return True
