"""The back office as it runs: a process of its own over real stores, with the worker beside it and a gateway where one
is needed, asked over real sockets."""

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg

from engine.runtime.child import die_with_parent
from engine.runtime.ports import pick_free_port
from engine.web.key_store import KEYS_FILE_NAME, create_key
from tests.integration.running_gateway import Response, running_redis

LEDGER_LAG_SECONDS_MAX = 15.0
"""Two seconds by the contract; a machine that runs other tests meanwhile may take longer."""

_SERVE = {
    "backoffice": 'from engine.backoffice.process import serve; serve(settings, "127.0.0.1", port, ready)',
    "gateway": 'from engine.gateway.process import serve; serve(settings, "127.0.0.1", port, ready, reuse_port=False)',
    "worker": "from engine.worker.process import serve; serve(settings, ready)",
}
_PROGRAM = """
import sys
from engine.observability.logging import configure_logging
from engine.settings import read_settings
settings, port, ready = read_settings(), int(sys.argv[2]), lambda: print("ready", flush=True)
configure_logging(settings, sys.argv[1])
"""


@dataclass
class RunningBackOffice:
    """How to reach a back office and the gateway beside it."""

    port: int
    gateway_port: int
    keys: Mapping[str, str]
    data_dir: Path
    process: "subprocess.Popen[bytes]"

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        role: str | None = "ops",
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Response:
        """One request with the key of a role; a body that is no bytes is sent as JSON."""
        sent = {"Authorization": f"Bearer {self.keys[role]}"} if role is not None else {}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            sent["Content-Type"] = "application/json"
        sent |= headers or {}
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=30)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            return Response(answer.status, answer.headers, answer.read())
        finally:
            connection.close()

    def put(self, sale_id: str, body: Any, **headers: str) -> Response:
        """Define a sale."""
        return self.ask("PUT", f"/ops/v1/sales/{sale_id}", body, headers=headers)

    def sale(self, sale_id: str) -> Any:
        """The sale's document."""
        answer = self.ask("GET", f"/ops/v1/sales/{sale_id}")
        assert answer.status == 200, answer
        return answer.json

    def levels(self, sale_id: str, sku: str) -> dict[str, Any]:
        """One SKU's entry, after a look at whether it adds up."""
        (entry,) = [entry for entry in self.sale(sale_id)["skus"] if entry["sku"] == sku]
        assert entry["available"] == sum(entry["pools"].values())
        accounted = entry["withheld"] + entry["available"] + entry["held"] + entry["settled"]
        assert entry["allocated"] == accounted
        return dict(entry)

    def transition(self, sale_id: str, word: str) -> Response:
        """Open, pause, resume or close a sale."""
        return self.ask("POST", f"/ops/v1/sales/{sale_id}/{word}")

    def stock(self, sale_id: str, document_id: str, *changes: dict[str, Any]) -> Response:
        """Apply a stock document."""
        return self.ask(
            "POST", f"/ops/v1/sales/{sale_id}/stock", {"document_id": document_id, "changes": list(changes)}
        )

    def hold(self, sale_id: str, key: str, **fields: Any) -> Any:
        """Make an order at the gateway; its document."""
        body = {"buyer_id": f"u-{key}", "channel": "douyin", "lines": [{"sku": "A", "quantity": 1}], **fields}
        answer = self.ask(
            "POST",
            f"/v1/sales/{sale_id}/orders",
            body,
            role="checkout",
            headers={"Idempotency-Key": key},
            port=self.gateway_port,
        )
        assert answer.status == 201, answer
        return answer.json

    def settle(self, order: Any, payment_id: str = "p") -> Response:
        """Pay for an order at the gateway."""
        body = {"payment_id": payment_id, "amount_minor": order["amount_minor"], "currency": order["currency"]}
        path = f"/v1/orders/{order['order_id']}/settle"
        return self.ask("POST", path, body, role="checkout", port=self.gateway_port)

    def stop(self, seconds: float = 15) -> int:
        """Send SIGTERM to the back office and wait; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def eventually(look: Callable[[], bool], seconds: float = LEDGER_LAG_SECONDS_MAX) -> None:
    """Wait until something is so: the ledger follows within moments."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "it did not come to be so"
        time.sleep(0.05)


@contextmanager
def running_back_office(
    path: Path, redis_url: str, database_url: str, *, with_gateway: bool = True, **settings: str
) -> Iterator[RunningBackOffice]:
    """A back office and a worker over these stores, and a gateway if wanted."""
    path.mkdir(parents=True, exist_ok=True)
    keys = {role: create_key(path / KEYS_FILE_NAME, role, "test") for role in ("checkout", "ops", "erp")}
    keys["erp2"] = create_key(path / KEYS_FILE_NAME, "erp", "other")
    variables = {"REDIS_URL": redis_url, "DATABASE_URL": database_url, "DATA_DIR": str(path), **settings}
    environment = {**os.environ, **{f"MIAOCANG_{name}": value for name, value in variables.items()}}
    kinds = ["worker", "backoffice", *(["gateway"] if with_gateway else [])]
    ports = {kind: pick_free_port("127.0.0.1") for kind in kinds}
    processes = {kind: _start(kind, ports[kind], path, environment) for kind in kinds}
    try:
        for kind, process in processes.items():
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n", (path / f"{kind}.log").read_text()
        yield RunningBackOffice(ports["backoffice"], ports.get("gateway", 0), keys, path, processes["backoffice"])
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _start(kind: str, port: int, path: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    with (path / f"{kind}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM + _SERVE[kind], kind, str(port)],
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - it only calls prctl
        )


@contextmanager
def fresh_database(postgres_url: str) -> Iterator[str]:
    """The URL of a database of one's own with an empty ledger, where the test is no coroutine."""
    name = f"test_{uuid4().hex}"
    server = postgres_url.rpartition("/")[0]

    async def execute(statement: str) -> None:
        connection = await asyncpg.connect(f"{server}/postgres")
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(execute(f"CREATE DATABASE {name} TEMPLATE miaocang"))
    try:
        yield f"{server}/{name}"
    finally:
        asyncio.run(execute(f"DROP DATABASE {name} WITH (FORCE)"))


@contextmanager
def whole_back_office(path: Path, postgres_url: str) -> Iterator[RunningBackOffice]:
    """A back office with everything it needs: a Redis and a ledger of its own, a worker and a gateway."""
    with (
        running_redis(path / "redis") as (redis_url, _),
        fresh_database(postgres_url) as database_url,
        running_back_office(path / "office", redis_url, database_url) as office,
    ):
        yield office


def sale_body(*skus: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A sale's definition, of one SKU where none is named."""
    return {
        "title": "Live",
        "currency": "CNY",
        "hold_seconds": 60,
        "skus": list(skus) or [sku("A")],
        **fields,
    }


def sku(name: str, quantity: int = 10, **fields: Any) -> dict[str, Any]:
    """A SKU of style TEE at 19.90."""
    return {"sku": name, "style": "TEE", "unit_price_minor": 1990, "quantity": quantity, **fields}
