"""The schema: made once by whoever comes first, found as it is by all others."""

import asyncio
import sys
import time

import asyncpg
import pytest

from engine.domain.errors import LedgerUnavailable
from engine.ledger.migrate import head_version, is_at_head, upgrade, version


@pytest.fixture
async def empty_url(postgres_server: str):
    """A database with nothing in it."""
    name = f"empty_{time.monotonic_ns()}"
    base = postgres_server.rpartition("/")[0]
    admin = await asyncpg.connect(f"{base}/postgres")
    await admin.execute(f"CREATE DATABASE {name}")
    yield f"{base}/{name}"
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def test_three_processes_that_migrate_at_once_all_find_it_done(empty_url: str) -> None:
    await asyncio.gather(*(upgrade(empty_url) for _ in range(3)))
    connection = await asyncpg.connect(empty_url)
    assert await version(connection) == head_version()
    assert await connection.fetchval("SELECT count(*) FROM counters") == 1
    await connection.close()


async def test_it_can_be_told_without_a_migration_that_none_is_needed(empty_url: str) -> None:
    assert not await is_at_head(empty_url)
    await upgrade(empty_url)
    assert await is_at_head(empty_url)


async def test_a_ledger_of_a_newer_version_is_refused(empty_url: str) -> None:
    await upgrade(empty_url)
    connection = await asyncpg.connect(empty_url)
    await connection.execute("UPDATE alembic_version SET version_num = 'v9999'")
    await connection.close()
    with pytest.raises(LedgerUnavailable, match="newer than"):
        await upgrade(empty_url)


async def test_a_ledger_that_cannot_be_taken_over_is_refused_and_left_alone(empty_url: str) -> None:
    await upgrade(empty_url)
    connection = await asyncpg.connect(empty_url)
    await connection.execute("UPDATE alembic_version SET version_num = 'v0001'")
    await connection.close()
    with pytest.raises(LedgerUnavailable, match="cannot be taken over"):
        await upgrade(empty_url)


async def test_an_absent_server_is_said_to_be_unavailable() -> None:
    with pytest.raises(LedgerUnavailable, match="PostgreSQL"):
        await upgrade("postgresql://nobody:nothing@127.0.0.1:1/none")


async def test_a_ledger_that_is_up_to_date_is_found_so_without_alembic(database_url: str) -> None:
    code = (
        "import asyncio, sys; from engine.ledger.migrate import upgrade; asyncio.run(upgrade(sys.argv[1]));"
        "sys.exit(any(name.split('.')[0] in ('alembic', 'sqlalchemy') for name in sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, database_url)
    assert await process.wait() == 0
