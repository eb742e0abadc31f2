"""Bring a ledger's schema to the version that this code is written for.

Alembic and SQLAlchemy are imported only where there is something to do: they cost a third of a second, and nearly
every start finds the schema as it should be.
"""

import asyncio
from pathlib import Path
from typing import Any

import asyncpg

from engine.domain.errors import LedgerUnavailable
from engine.ledger.connect import ledger_errors

MIGRATIONS = Path(__file__).with_name("migrations")
CONNECT_TIMEOUT_SECONDS = 10.0
MIGRATION_TIMEOUT_SECONDS = 600.0
"""How long another process' migration, or one's own, may take."""
OLDEST_VERSION = "v0003"
"""What came before cannot be taken over, and was never released."""
_ADVISORY_LOCK = 0x6D69616F63616E67  # "miaocang"; any number that nobody else uses


def head_version() -> str:
    """The version that this code is written for: the newest file under `migrations/versions`."""
    return max(file.name.split("_")[0] for file in (MIGRATIONS / "versions").glob("v[0-9]*.py"))


async def version(connection: Any) -> str | None:
    """The version that a database is at; None where it is empty."""
    if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
        return None
    found: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
    return found


async def is_at_head(database_url: str) -> bool:
    """Whether there is nothing to bring up to date, as at nearly every start. Raises: LedgerUnavailable."""
    with ledger_errors():
        connection = await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_SECONDS)
        try:
            return await version(connection) == head_version()
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_SECONDS)


async def upgrade(database_url: str) -> None:
    """Bring the schema to `head_version()`; two processes that do so at once are safe, and one of them waits.

    Raises: LedgerUnavailable where PostgreSQL cannot be asked, or holds a ledger of a newer version, or of one that
    cannot be taken over.
    """
    with ledger_errors():
        connection = await asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_SECONDS)
        try:
            if await version(connection) == head_version():
                return
            async with asyncio.timeout(MIGRATION_TIMEOUT_SECONDS):
                await connection.execute("SELECT pg_advisory_lock($1)", _ADVISORY_LOCK)
                found = await version(connection)
                if found is not None and found > head_version():
                    raise LedgerUnavailable(f"the ledger is of version {found}, newer than {head_version()} here")
                if found is not None and found < OLDEST_VERSION:
                    raise LedgerUnavailable(
                        f"the ledger is of version {found}, which cannot be taken over: begin with an empty one"
                    )
                if found != head_version():
                    await asyncio.to_thread(_run_alembic, database_url)
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT_SECONDS)  # which gives the advisory lock back


def _run_alembic(database_url: str) -> None:
    """Apply what is missing, in one transaction. In a thread, for Alembic is synchronous: it has a loop of its own."""
    from alembic import command  # noqa: PLC0415 - see the top of this file
    from alembic.config import Config  # noqa: PLC0415
    from sqlalchemy import Connection, pool  # noqa: PLC0415
    from sqlalchemy.ext.asyncio import create_async_engine  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))

    def apply(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async def run() -> None:
        # the URL goes to asyncpg as it stands, for SQLAlchemy reads its options differently
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: asyncpg.connect(database_url, timeout=CONNECT_TIMEOUT_SECONDS),
            poolclass=pool.NullPool,
        )
        try:
            async with engine.begin() as connection:
                await connection.run_sync(apply)
        finally:
            await engine.dispose()

    asyncio.run(run())
