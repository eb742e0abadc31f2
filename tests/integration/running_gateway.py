"""A gateway as it runs: a process of its own over a real Redis, asked over real sockets."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.partition.batcher import BatchBounds
from engine.partition.partitions import Partitions
from engine.runtime.data_directory import open_data_directory
from engine.runtime.embedded_redis import plan_redis, redis_url
from engine.runtime.ports import pick_free_port
from engine.web.key_store import KEYS_FILE_NAME, create_key
from tests.conftest import CALL_SETTINGS, STORE_PASSWORD, running_store

PROGRAM = """
import sys
from engine.gateway.process import serve
from engine.settings import read_settings
serve(read_settings(), "127.0.0.1", int(sys.argv[1]), lambda: print("ready", flush=True), reuse_port=False)
"""


@dataclass
class Response:
    """An answer with its body read."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        """The body's document."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem's code."""
        assert self.headers["Content-Type"] == "application/problem+json", self
        document = self.json
        assert document["status"] == self.status
        assert {"type", "title", "detail"} <= set(document)
        return str(document["code"])


@dataclass
class RunningGateway:
    """How to reach one gateway, and what stands behind it."""

    port: int
    keys: Mapping[str, str]
    redis_url: str
    process: subprocess.Popen[bytes]
    log_path: Path

    def connect(self, timeout_seconds: float = 20) -> http.client.HTTPConnection:
        """A connection of one's own."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_seconds)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        role: str | None = "checkout",
        headers: Mapping[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Response:
        """One request with the key of a role; a body that is no bytes is sent as JSON."""
        sent = {"Authorization": f"Bearer {self.keys[role]}"} if role is not None else {}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            sent["Content-Type"] = "application/json"
        sent |= headers or {}
        used = connection or self.connect()
        try:
            used.request(method, path, body, {name: value for name, value in sent.items() if value != ""})
            answer = used.getresponse()
            return Response(answer.status, answer.headers, answer.read())
        finally:
            if connection is None:
                used.close()

    def hold(self, body: Any, key: str, sale_id: str = "live-1", **more: Any) -> Response:
        """Ask for a hold."""
        headers = {"Idempotency-Key": key, **more.pop("headers", {})}
        return self.ask("POST", f"/v1/sales/{sale_id}/orders", body, headers=headers, **more)

    def raw(self, sent: bytes, *, half_close: bool = False, timeout_seconds: float = 20) -> bytes:
        """Send bytes as they are, and read until the other side closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_seconds) as connection:
            connection.sendall(sent)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            return received

    def on_partitions(self, work: Callable[[Partitions], Awaitable[None]]) -> None:
        """Do something to the partitions behind the gateway."""

        async def run() -> None:
            async with Partitions(self.redis_url, CALL_SETTINGS, BatchBounds()) as partitions:
                await work(partitions)

        asyncio.run(run())

    def stop(self, seconds: float = 15) -> int:
        """Send SIGTERM and wait; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def running_redis(path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A Redis of one's own, as the engine runs it: its URL and its process."""
    port = pick_free_port("127.0.0.1")
    with running_store(asyncio.run(plan_redis(open_data_directory(path), port, STORE_PASSWORD))) as process:
        yield redis_url(port, STORE_PASSWORD), process


@contextmanager
def running_gateway(path: Path, url: str, **settings: str) -> Iterator[RunningGateway]:
    """A gateway over the Redis at `url`, which is vouched for; `settings` are variables without their prefix."""
    path.mkdir(parents=True, exist_ok=True)
    keys = {role: create_key(path / KEYS_FILE_NAME, role, "test") for role in ("checkout", "ops", "erp")}
    variables = {"REDIS_URL": url, "DATA_DIR": str(path), **settings}
    environment = {**os.environ, **{f"MIAOCANG_{name}": value for name, value in variables.items()}}
    port = pick_free_port("127.0.0.1")
    log_path = path / "gateway.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port)], stdout=subprocess.PIPE, stderr=log, env=environment
        )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"ready\n", log_path.read_text()
        gateway = RunningGateway(port, keys, url, process, log_path)
        gateway.on_partitions(_vouch)
        yield gateway
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def _vouch(partitions: Partitions) -> None:
    await partitions.guarding.vouch_for(await partitions.guarding.server_run())


def wait_until_refused(port: int, seconds: float = 3.0) -> None:
    """Wait until nobody accepts connections at a port any more: so draining begins."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            pass  # it was let in as the door closed; the next one will be refused
        assert time.monotonic() < deadline, "connections are accepted still"
        time.sleep(0.01)
