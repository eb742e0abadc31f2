"""Stores of the benchmark's own, the same servers with the same configuration as the engine's embedded ones."""

import asyncio
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from engine.runtime.child import ChildPlan
from engine.runtime.data_directory import open_data_directory
from engine.runtime.embedded_postgres import database_url, plan_postgres
from engine.runtime.embedded_redis import plan_redis, redis_url
from engine.runtime.ports import pick_free_port
from loadtest.bench.child_processes import BenchFailed, end, start_store

READY_SECONDS_MAX = 120.0
PASSWORD = "only-in-benchmarks"
NOT_DURABLE = ("--appendonly", "no")
"""Redis without a file: what is accepted is in memory alone."""


@dataclass
class Store:
    """A running store, which may be killed and started again on its data."""

    plan: ChildPlan
    url: str
    port: int
    more_arguments: tuple[str, ...]
    process: "subprocess.Popen[bytes]"

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    def kill(self) -> None:
        """End it without a warning, children and all, as a loss of power would (but for the page cache)."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def start_again(self) -> None:
        """On the data that it left."""
        asyncio.run(_clear_the_way(self.plan))
        self.process = start_store(self.plan, self.more_arguments)
        _wait_until_ready(self.plan, self.process)

    def end(self) -> None:
        """In order."""
        end(self.process, self.plan.stop_signals[0])


@contextmanager
def running_redis(directory: Path, more_arguments: tuple[str, ...] = ()) -> Iterator[Store]:
    """A Redis in a directory of its own; `appendfsync always` unless told otherwise."""
    directory.mkdir(parents=True, exist_ok=True)
    port = pick_free_port("127.0.0.1")
    plan = asyncio.run(plan_redis(open_data_directory(directory), port, PASSWORD))
    with _running(plan, redis_url(port, PASSWORD), port, more_arguments) as store:
        yield store


@contextmanager
def running_postgres(directory: Path) -> Iterator[Store]:
    """A PostgreSQL in a directory of its own; `synchronous_commit` on."""
    directory.mkdir(parents=True, exist_ok=True)
    port = pick_free_port("127.0.0.1")
    plan = asyncio.run(plan_postgres(open_data_directory(directory), port, PASSWORD))
    with _running(plan, database_url(port, PASSWORD), port, ()) as store:
        yield store


@contextmanager
def _running(plan: ChildPlan, url: str, port: int, more_arguments: tuple[str, ...]) -> Iterator[Store]:
    store = Store(plan, url, port, more_arguments, start_store(plan, more_arguments))
    try:
        _wait_until_ready(plan, store.process)
        yield store
    finally:
        store.end()


def _wait_until_ready(plan: ChildPlan, process: "subprocess.Popen[bytes]") -> None:
    assert plan.is_ready is not None
    deadline = time.monotonic() + READY_SECONDS_MAX
    while not asyncio.run(_is_ready(plan, process.pid)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchFailed(f"{plan.kind} did not start: {plan.log_path.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)


async def _clear_the_way(plan: ChildPlan) -> None:
    await plan.before_start()


async def _is_ready(plan: ChildPlan, pid: int) -> bool:
    assert plan.is_ready is not None
    return await plan.is_ready(pid)


def make_database(server_url: str, name: str) -> str:
    """An empty database of this name, in place of one that may be there; its URL."""

    async def make() -> None:
        admin = await asyncpg.connect(server_url.rpartition("/")[0] + "/postgres")
        try:
            await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            await admin.execute(f"CREATE DATABASE {name}")
        finally:
            await admin.close()

    asyncio.run(make())
    return f"{server_url.rpartition('/')[0]}/{name}"
