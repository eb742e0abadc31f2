"""The supervisor: what it starts, replaces, ends and leaves behind. Real processes, real signals, real stores."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

from engine.runtime.ports import bind_slots, is_port_free, listen_in, pick_free_port
from engine.runtime.process_identity import ProcessIdentity, identify, is_alive

ENGINE = Path(__file__).with_name("stand_in_engine.py")
READY_SECONDS_MAX = 30.0
END_SECONDS_MAX = 12.0


class Engine:
    """One `up` as a process, and everything that it started."""

    def __init__(self, data_dir: Path, *, gateway_port: int = 0, backoffice_port: int = 0, gateways: int = 1) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [sys.executable, ENGINE, data_dir, str(gateway_port), str(backoffice_port), str(gateways)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_ready(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready "), (line, self.process.stderr.read() if self.process.stderr else "")
        return line

    @property
    def endpoints(self) -> dict[str, Any]:
        return json.loads((self.data_dir / "endpoints.json").read_text())

    def identities(self) -> list[ProcessIdentity]:
        """Every process of this engine, PostgreSQL's own children included."""
        pids = [pid for kind in self.endpoints["processes"].values() for pid in kind]
        pids += [child for pid in pids for child in children_of(pid)]
        return [identity for pid in [*pids, self.process.pid] if (identity := identify(pid))]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(END_SECONDS_MAX)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def eventually(condition: Callable[[], object], timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds} seconds"
        time.sleep(0.02)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.fixture
def start_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    for name in ("MIAOCANG_REDIS_URL", "MIAOCANG_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    engines: list[Engine] = []

    def start(data_dir: Path = tmp_path / "data", **options: int) -> Engine:
        engines.append(Engine(data_dir, **options))
        return engines[-1]

    yield start
    for engine in engines:
        if engine.process.poll() is None:
            engine.end(signal.SIGTERM)
        for stream in (engine.process.stdout, engine.process.stderr):
            if stream is not None:
                stream.close()


async def test_up_is_ready_ends_cleanly_and_goes_on_with_the_same_keys_and_data(
    start_engine: Callable[..., Engine],
) -> None:
    engine = start_engine(gateways=2)
    line = engine.wait_for_ready()
    first = engine.endpoints
    assert first["gateway_url"] in line
    assert first["backoffice_url"] in line
    assert stat.S_IMODE((engine.data_dir / "endpoints.json").stat().st_mode) == 0o600
    assert first["pid"] == engine.process.pid
    assert {kind: len(pids) for kind, pids in first["processes"].items()} == {
        "redis": 1,
        "postgres": 1,
        "gateway": 2,
        "worker": 1,
        "backoffice": 1,
    }
    own = os.getpriority(os.PRIO_PROCESS, 0)
    behind = {kind for kind, pids in first["processes"].items() if os.getpriority(os.PRIO_PROCESS, pids[0]) > own}
    assert behind == {"postgres", "worker"}
    assert set(first["keys"]) == {"checkout", "ops", "erp"}
    assert answers(first["gateway_url"])
    assert answers(first["backoffice_url"])
    with redis.Redis.from_url(first["redis_url"]) as store:
        store.set("kept", "in redis")
        assert store.config_get("append*")["appendfsync"] == "always"
    connection = await asyncpg.connect(first["database_url"])
    await connection.execute("CREATE TABLE kept AS SELECT 'in postgres' AS said")
    await connection.close()

    everything = engine.identities()
    assert engine.end() == 0
    assert not any(map(is_alive, everything))
    assert not (engine.data_dir / "endpoints.json").exists()

    again = start_engine()
    again.wait_for_ready()
    assert again.endpoints["keys"] == first["keys"]
    assert again.endpoints["redis_url"] == first["redis_url"]
    with redis.Redis.from_url(again.endpoints["redis_url"]) as store:
        assert store.get("kept") == b"in redis"
    connection = await asyncpg.connect(again.endpoints["database_url"])
    assert await connection.fetchval("SELECT said FROM kept") == "in postgres"
    await connection.close()
    assert again.end(signal.SIGINT) == 0


@pytest.mark.alone
def test_every_killed_process_is_replaced_and_listed_and_a_second_up_is_turned_away(
    start_engine: Callable[..., Engine],
) -> None:
    engine = start_engine()
    engine.wait_for_ready()
    before = engine.endpoints

    second = start_engine()
    assert second.process.wait(END_SECONDS_MAX) == 1
    assert second.process.stderr is not None
    said = second.process.stderr.read()
    assert said.count("\n") == 1
    assert "already runs" in said
    assert engine.endpoints == before

    for kind in ("gateway", "worker", "backoffice", "redis", "postgres"):
        [pid] = before["processes"][kind]
        os.kill(pid, signal.SIGKILL)
        # Each kind is replaced within a second of its end; PostgreSQL's orphans may take some of another.
        eventually(lambda kind=kind, pid=pid: engine.endpoints["processes"][kind] != [pid], timeout_seconds=2.0)
        [replacement] = engine.endpoints["processes"][kind]
        assert identify(replacement) is not None
    after = engine.endpoints
    eventually(lambda: answers(after["gateway_url"]) and answers(after["backoffice_url"]), timeout_seconds=5.0)
    assert {**after, "processes": None} == {**before, "processes": None}
    with redis.Redis.from_url(after["redis_url"]) as store:
        assert store.ping()
    port = int(after["database_url"].rpartition(":")[2].partition("/")[0])
    eventually(lambda: not is_port_free("127.0.0.1", port), timeout_seconds=5.0)
    everything = engine.identities()
    assert engine.end() == 0
    assert not any(map(is_alive, everything))


def test_a_killed_supervisor_leaves_nothing_behind_and_the_next_up_goes_on(
    start_engine: Callable[..., Engine],
) -> None:
    port = pick_free_port()
    engine = start_engine(gateway_port=port)
    engine.wait_for_ready()
    everything, keys = engine.identities(), engine.endpoints["keys"]
    assert len(everything) > 6
    engine.end(signal.SIGKILL)
    again = start_engine(gateway_port=port)  # at once: what is still ending is waited for
    again.wait_for_ready()
    assert not any(map(is_alive, everything))
    assert again.endpoints["keys"] == keys
    assert again.end() == 0


def test_nothing_is_left_after_a_supervisor_is_killed(start_engine: Callable[..., Engine]) -> None:
    engine = start_engine()
    engine.wait_for_ready()
    everything = engine.identities()
    engine.end(signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, everything)), timeout_seconds=5.0)


@pytest.mark.parametrize("option", ["gateway_port", "backoffice_port"])
def test_a_port_in_use_ends_the_start_with_one_line(start_engine: Callable[..., Engine], option: str) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        engine = start_engine(**{option: port})
        assert engine.process.wait(END_SECONDS_MAX) == 1
    assert engine.process.stderr is not None
    said = engine.process.stderr.read()
    assert said.count("\n") == 1
    assert str(port) in said
    assert f"--{option.replace('_', '-')}" in said


def test_slots_keep_the_port_from_others_and_get_connections_only_once_they_listen() -> None:
    port = pick_free_port()
    slots = bind_slots("127.0.0.1", port, 2)
    listeners = [listener for slot in slots for listener in slot]
    try:
        assert not is_port_free("127.0.0.1", port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)
        listen_in(slots[:1])
        assert not is_port_free("127.0.0.1", port)
        for _ in range(20):  # none of them may land in the other slot, which would never answer
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            listeners[0].accept()[0].close()
        listen_in(slots[1:])
        connections = [socket.create_connection(("127.0.0.1", port), timeout=1) for _ in range(40)]
        for listener in listeners:
            listener.settimeout(1)
            listener.accept()[0].close()  # the kernel spreads them: that one gets none of 40 will not be seen
        for connection in connections:
            connection.close()
    finally:
        for listener in listeners:
            listener.close()
    assert is_port_free("127.0.0.1", port), "what lingers of the connections must not keep the next engine out"


def test_a_process_that_cannot_start_ends_the_engine_with_its_last_words(
    start_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "worker.fails").touch()
    engine = start_engine(data_dir)
    assert engine.process.wait(READY_SECONDS_MAX) == 1
    assert engine.process.stderr is not None
    assert "the stand-in was told to fail" in engine.process.stderr.read()
    assert not (data_dir / "endpoints.json").exists()
    assert not list(data_dir.glob("postgres/data/postmaster.pid")), "the stores were stopped as well"


def test_a_signal_while_starting_stops_everything(start_engine: Callable[..., Engine]) -> None:
    engine = start_engine()
    eventually(lambda: len(children_of(engine.process.pid)) >= 1, timeout_seconds=5.0)
    started = [identity for pid in children_of(engine.process.pid) if (identity := identify(pid))]
    assert engine.end() == 0
    assert not any(map(is_alive, started))
