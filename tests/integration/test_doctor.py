"""The doctor passes the servers that the engine starts, and names each setting that breaks a promise."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from engine.audit import doctor
from engine.audit.doctor import Finding, Verdict, examine
from engine.partition.connections import Connections
from engine.settings import Settings


def settings_of(redis_url: str | None, database_url: str | None) -> Settings:
    return Settings(redis_url=redis_url, database_url=database_url)


def wrong(findings: list[Finding]) -> dict[str, Verdict]:
    return {finding.subject: finding.verdict for finding in findings if finding.verdict is not Verdict.WELL}


@pytest.fixture
async def redis(redis_server: str) -> AsyncIterator[Connections]:
    """The shared Redis, its configuration put back afterwards."""
    connections = Connections(redis_server, 2)
    yield connections
    for name, value in (
        ("appendonly", "yes"),
        ("appendfsync", "always"),
        ("no-appendfsync-on-rewrite", "no"),
        ("maxmemory-policy", "noeviction"),
        ("maxmemory", "0"),
    ):
        await connections.execute("CONFIG", "SET", name, value)
    await connections.close()


async def test_the_servers_that_the_engine_starts_are_well(
    redis_server: str, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(redis_server, database_url)
    assert await asyncio.to_thread(doctor.main, settings) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("ok  ") for line in lines[:-1])
    assert len(lines) > 20


@pytest.mark.parametrize(
    ("name", "value", "subject"),
    [
        ("appendonly", "no", "redis appendonly"),
        ("appendfsync", "everysec", "redis appendfsync"),
        ("appendfsync", "no", "redis appendfsync"),
        ("no-appendfsync-on-rewrite", "yes", "redis no-appendfsync-on-rewrite"),
        ("maxmemory-policy", "allkeys-lru", "redis maxmemory-policy"),
        ("maxmemory", "1000000", "redis memory"),
    ],
)
async def test_each_setting_that_breaks_a_promise_is_named_with_its_command(
    redis: Connections, redis_server: str, database_url: str, name: str, value: str, subject: str
) -> None:
    await redis.execute("CONFIG", "SET", name, value)
    findings = await examine(settings_of(redis_server, database_url))
    assert wrong(findings) == {subject: Verdict.CHANGE}
    (line,) = [finding.line() for finding in findings if finding.subject == subject]
    assert name == "maxmemory" or f"redis-cli CONFIG SET {name} " in line


async def restricted_url(redis: Connections, redis_server: str, *rules: str) -> str:
    await redis.execute("ACL", "SETUSER", "restricted", "reset", "on", ">secret", "~*", "&*", "+@all", *rules)
    return "redis://restricted:secret@" + redis_server.rpartition("@")[2]


async def test_a_redis_that_hides_its_configuration_is_told_and_no_crash(
    redis: Connections, redis_server: str, database_url: str
) -> None:
    url = await restricted_url(redis, redis_server, "-config")
    findings = await examine(settings_of(url, database_url))
    assert wrong(findings) == {
        "redis appendfsync": Verdict.UNREAD,
        "redis no-appendfsync-on-rewrite": Verdict.UNREAD,
    }


async def test_a_redis_without_scripts_is_told(redis: Connections, redis_server: str, database_url: str) -> None:
    url = await restricted_url(redis, redis_server, "-eval")
    assert wrong(await examine(settings_of(url, database_url))) == {"redis scripts": Verdict.CHANGE}


async def test_a_redis_that_refuses_all_is_told(redis: Connections, redis_server: str, database_url: str) -> None:
    url = await restricted_url(redis, redis_server, "-@all")
    assert wrong(await examine(settings_of(url, database_url))) == {"redis": Verdict.CHANGE}


async def test_servers_that_are_away_are_told(redis_server: str, database_url: str) -> None:
    away = settings_of("redis://127.0.0.1:1/0", "postgresql://nobody@127.0.0.1:1/nothing")
    assert wrong(await examine(away)) == {"redis": Verdict.CHANGE, "postgres": Verdict.CHANGE}
    assert await asyncio.to_thread(doctor.main, away) == 1
    assert wrong(await examine(settings_of(None, None))) == {"redis": Verdict.UNREAD, "postgres": Verdict.UNREAD}


async def test_a_database_without_a_ledger_is_told(redis_server: str, database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("DROP TABLE alembic_version")
        assert wrong(await examine(settings_of(redis_server, database_url))) == {"postgres ledger": Verdict.CHANGE}
    finally:
        await connection.close()
