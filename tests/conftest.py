"""Real servers for the tests: a Redis and a PostgreSQL for each process of a run, fresh keys and tables for each test.

A run may have several processes, which take the files of tests one by one; how they take turns is said in turns.py.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import asyncpg
import pytest

from engine.ledger.migrate import upgrade
from engine.partition.batcher import BatchBounds
from engine.partition.call import CallSettings
from engine.partition.partitions import Partitions
from engine.runtime.child import ChildPlan, die_with_parent
from engine.runtime.data_directory import open_data_directory
from engine.runtime.embedded_postgres import database_url as embedded_database_url
from engine.runtime.embedded_postgres import plan_postgres
from engine.runtime.embedded_redis import plan_redis
from engine.runtime.embedded_redis import redis_url as embedded_redis_url
from engine.runtime.ports import pick_free_port
from tests.turns import Turns

STORE_PASSWORD = "only-in-tests"
STORE_READY_SECONDS_MAX = 60.0
PROCESSES_MAX = 8
TURNS = pytest.StashKey[Turns]()


def pytest_configure(config: pytest.Config) -> None:
    """A process that runs tests beside others takes turns with them, by files in the directory that they share."""
    if hasattr(config, "workerinput"):
        turns = config.stash[TURNS] = Turns(Path(config.getoption("basetemp")).parent)
        config.add_cleanup(turns.close)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors, because the tests spend half their time waiting; each has its own stores."""
    return min(len(os.sched_getaffinity(0)) + 1, PROCESSES_MAX)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    """Outermost, so that waiting for one's turn does not count towards the time limit."""
    turns = item.config.stash.get(TURNS, None)
    if turns is None:
        return (yield)
    with turns.taken(alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures that tests have reported, which may have come from several processes at once."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    with_figures = [one for one in reports if getattr(one, "when", "") == "call" and one.user_properties]
    if with_figures:
        terminalreporter.section("figures")
    for report in with_figures:
        terminalreporter.line(report.nodeid)
        for name, value in report.user_properties:
            terminalreporter.line(f"    {name}: {value}")


@contextmanager
def running_store(plan: ChildPlan) -> Iterator[subprocess.Popen[bytes]]:
    """A store's process, ready, and ended afterwards; it dies with the test run whatever happens."""
    with plan.log_path.open("ab") as log:
        process = subprocess.Popen(
            plan.argv,
            env=dict(plan.environment),
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent(plan.death_signal),  # noqa: PLW1509 - it only calls prctl
        )
    try:
        asyncio.run(_wait_until_ready(plan, process))
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.send_signal(plan.stop_signals[0])
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _wait_until_ready(plan: ChildPlan, process: "subprocess.Popen[bytes]") -> None:
    assert plan.is_ready is not None
    async with asyncio.timeout(STORE_READY_SECONDS_MAX):
        while not await plan.is_ready(process.pid):
            assert process.poll() is None, plan.log_path.read_text(errors="replace")[-2000:]
            await asyncio.sleep(0.02)


class OwnRedis(NamedTuple):
    """A Redis that one test may stop, kill and start again."""

    url: str
    plan: ChildPlan
    process: "subprocess.Popen[bytes]"


@contextmanager
def own_redis(directory_path: Path) -> Iterator[OwnRedis]:
    """A Redis for one test; started again on the same directory it goes on from its file."""
    port = pick_free_port("127.0.0.1")
    plan = asyncio.run(plan_redis(open_data_directory(directory_path), port, STORE_PASSWORD))
    with running_store(plan) as process:
        yield OwnRedis(embedded_redis_url(port, STORE_PASSWORD), plan, process)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis as the engine runs it: append-only file, synced always."""
    directory = open_data_directory(tmp_path_factory.mktemp("redis"))
    port = pick_free_port("127.0.0.1")
    plan = asyncio.run(plan_redis(directory, port, STORE_PASSWORD))
    with running_store(plan):
        yield embedded_redis_url(port, STORE_PASSWORD)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL as the engine runs it, with the ledger's schema in its own database as the template."""
    directory = open_data_directory(tmp_path_factory.mktemp("postgres"))
    port = pick_free_port("127.0.0.1")
    plan = asyncio.run(plan_postgres(directory, port, STORE_PASSWORD))
    with running_store(plan):
        url = embedded_database_url(port, STORE_PASSWORD)
        asyncio.run(upgrade(url))
        yield url


@pytest.fixture
async def database_url(postgres_server: str) -> AsyncIterator[str]:
    """The URL of a database of one's own, with an empty ledger."""
    name = f"test_{uuid4().hex}"
    admin_url = postgres_server.rpartition("/")[0] + "/postgres"
    admin = await asyncpg.connect(admin_url)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE miaocang")
        yield postgres_server.rpartition("/")[0] + f"/{name}"
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


CALL_SETTINGS = CallSettings(
    call_timeout_seconds=5.0, request_deadline_seconds=20.0, backlog_max_entries=1_000_000, retention_ms=72 * 3_600_000
)


@pytest.fixture
async def partitions(redis_server: str) -> AsyncIterator[Partitions]:
    """The door to an empty Redis that the guard has vouched for."""
    async with Partitions(redis_server, CALL_SETTINGS, BatchBounds()) as opened:
        await opened.connections.execute("FLUSHALL")
        await opened.guarding.vouch_for(await opened.guarding.server_run())
        yield opened


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory of one's own."""
    return tmp_path / "var"
