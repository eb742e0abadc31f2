"""Connections to PostgreSQL, bounded, and its errors in the engine's own words."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from engine.domain.errors import LedgerUnavailable
from engine.observability.metrics import POSTGRES_ERRORS

CONNECT_TIMEOUT_SECONDS = 5.0
READER_STATEMENT_TIMEOUT_SECONDS = 10.0
"""A search that takes longer is refused, so that it cannot keep a connection from the others."""

WRITER_SETTINGS = {
    "application_name": "miaocang persister",
    "synchronous_commit": "on",  # a commit that PostgreSQL answered is on disk: only then is the journal trimmed
    "idle_in_transaction_session_timeout": "15000",  # the locks of a persister that died with its machine end
    "statement_timeout": "60000",
    "lock_timeout": "10000",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
READER_SETTINGS = {
    "application_name": "miaocang",
    "idle_in_transaction_session_timeout": "15000",
    "statement_timeout": str(int(READER_STATEMENT_TIMEOUT_SECONDS * 1000)),
    "lock_timeout": "5000",
    "plan_cache_mode": "force_custom_plan",  # a search by a busy channel and one by a rare buyer need different plans
    "jit": "off",  # the plans here are short; compiling one costs more than running it
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


@contextmanager
def ledger_errors() -> Iterator[None]:
    """Within it, what says that PostgreSQL could not be asked becomes LedgerUnavailable, with its cause, and counts.

    Errors in the data (asyncpg.DataError, IntegrityConstraintViolationError) pass as they are, for the persister
    tells them apart.
    """
    try:
        yield
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
        POSTGRES_ERRORS.labels(kind=type(error).__name__).inc()
        raise
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError) as error:
        POSTGRES_ERRORS.labels(kind=type(error).__name__).inc()
        said = str(error).strip().split("\n")[0]
        raise LedgerUnavailable(f"PostgreSQL: {said or type(error).__name__}") from error


class LedgerPool:
    """At most `connections_max` connections, made when they are first needed. Make it with `open_pool`.

    Every method raises LedgerUnavailable where PostgreSQL cannot be asked within its bounds.
    """

    def __init__(self, pool: Any, acquire_timeout_seconds: float) -> None:
        self._pool = pool
        self._acquire_timeout_seconds = acquire_timeout_seconds

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """A connection of one's own (asyncpg.Connection)."""
        with ledger_errors():
            async with self._pool.acquire(timeout=self._acquire_timeout_seconds) as connection:
                yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Any]:
        """A connection on which all queries see the ledger at one moment, and change nothing."""
        async with self.connection() as connection, connection.transaction(isolation="repeatable_read", readonly=True):
            yield connection

    async def fetch(self, query: str, *arguments: Any) -> list[Any]:
        """All rows (asyncpg.Record)."""
        async with self.connection() as connection:
            rows: list[Any] = await connection.fetch(query, *arguments)
            return rows

    async def fetch_row(self, query: str, *arguments: Any) -> Any | None:
        """The first row, or None."""
        async with self.connection() as connection:
            return await connection.fetchrow(query, *arguments)

    async def fetch_value(self, query: str, *arguments: Any) -> Any | None:
        """The first column of the first row, or None."""
        async with self.connection() as connection:
            return await connection.fetchval(query, *arguments)

    async def execute(self, query: str, *arguments: Any) -> str:
        """Run a command; PostgreSQL's tag of what it did."""
        async with self.connection() as connection:
            done: str = await connection.execute(query, *arguments)
            return done

    async def close(self) -> None:
        """Close all connections, waiting a few seconds for those in use."""
        try:
            await asyncio.wait_for(self._pool.close(), CONNECT_TIMEOUT_SECONDS)
        except TimeoutError:
            self._pool.terminate()


async def open_pool(
    database_url: str,
    connections_max: int = 8,
    settings: dict[str, str] | None = None,
    acquire_timeout_seconds: float = 5.0,
) -> LedgerPool:
    """A pool for reading (or, with WRITER_SETTINGS, for the persister). It connects at its first use, so PostgreSQL
    may be away when it is opened, and come and go later.
    """
    pool = await asyncpg.create_pool(
        database_url,
        min_size=0,
        max_size=connections_max,
        max_inactive_connection_lifetime=60.0,
        timeout=CONNECT_TIMEOUT_SECONDS,
        command_timeout=READER_STATEMENT_TIMEOUT_SECONDS + 5 if settings is None else 70,
        server_settings=READER_SETTINGS if settings is None else settings,
    )
    return LedgerPool(pool, acquire_timeout_seconds)
