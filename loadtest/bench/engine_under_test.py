"""A whole engine, `miaocang up`, with its own stores in a fresh directory, and what the benchmark asks of it."""

import asyncio
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from loadtest.bench.child_processes import BenchFailed, end, start
from loadtest.bench.cpu_time import kinds_seconds
from loadtest.load.requests import CURRENCY, PRICE_MINOR, SKU, Shop, buyer_of, key_of, order_body

READY_SECONDS_MAX = 120.0
REQUEST_SECONDS_MAX = 60.0
DRAIN_SECONDS_MAX = 300.0
AUDIT_SECONDS_MAX = 900.0
LEDGER_LOOK_SECONDS = 0.05
PLENTY = 900_000_000
OTHER_SKU = "TEE-WHT-M"
SERVERS = ("gateway", "redis", "postgres", "worker", "backoffice")


@dataclass(frozen=True)
class Response:
    """An answer, read whole."""

    status: int
    headers: Mapping[str, str]
    body: Any


class EngineUnderTest:
    """A running engine. Every method raises BenchFailed where the engine does not do as it is told."""

    def __init__(self, data_dir: Path, endpoints: Mapping[str, Any]) -> None:
        self.data_dir = data_dir
        self.endpoints = endpoints
        gateway = urlsplit(endpoints["gateway_url"])
        self.gateway_url: str = endpoints["gateway_url"]
        self.host, self.port = str(gateway.hostname), int(gateway.port or 80)
        self.checkout_key: str = endpoints["keys"]["checkout"]
        self.redis_url: str = endpoints["redis_url"]

    def shop(self, sale_id: str) -> Shop:
        """Whom the generators ask."""
        return Shop(self.host, self.port, self.checkout_key, sale_id)

    def cpu_seconds(self) -> dict[str, float]:
        """By kind of process so far, PostgreSQL's backends included."""
        return kinds_seconds({kind: self.endpoints["processes"][kind] for kind in SERVERS})

    def make_sale(self, sale_id: str, units: int, other_units: int = 0, **fields: object) -> None:
        """Make and open a sale of SKU, and of another one where it is to have units; a buyer may have two of each."""
        skus = [
            {"sku": sku, "style": "TEE", "unit_price_minor": PRICE_MINOR, "quantity": quantity, "buyer_limit": 2}
            for sku, quantity in ((SKU, units), (OTHER_SKU, other_units))
            if quantity
        ]
        definition = {"title": "Benchmark", "currency": CURRENCY, "hold_seconds": 86_400, "skus": skus, **fields}
        self.operate("PUT", f"/ops/v1/sales/{sale_id}", definition)
        self.operate("POST", f"/ops/v1/sales/{sale_id}/open")

    def operate(self, method: str, path: str, body: object = None) -> Any:
        """A request of the operators, which must succeed; its answer."""
        key = self.endpoints["keys"]["ops"]
        answer = ask(
            self.endpoints["backoffice_url"], method, path, key, None if body is None else json.dumps(body).encode()
        )
        if not 200 <= answer.status < 300:
            raise BenchFailed(f"{method} {path}: {answer.status} {answer.body}")
        return answer.body

    def order(self, sale_id: str, buyer_id: str, sku: str = SKU) -> Response:
        """One request for an order."""
        headers = {"Idempotency-Key": key_of(buyer_id)}
        path = f"/v1/sales/{sale_id}/orders"
        return ask(self.gateway_url, "POST", path, self.checkout_key, order_body(buyer_id, sku), headers=headers)

    def sequence(self, sale_id: str, buyer_id: str, sku: str = SKU) -> int:
        """The number that a new order takes, which must be possible: orders between two of them used all in between."""
        answer = self.order(sale_id, buyer_id, sku)
        if answer.status != 201:
            raise BenchFailed(f"an order that must be possible was answered {answer.status} {answer.body}")
        return int(answer.body["sequence"])

    def held(self, sale_id: str, sku: str = SKU) -> int:
        """Units held, as the back office tells it."""
        return int(self._levels(sale_id, sku)["held"])

    def settled(self, sale_id: str, sku: str = SKU) -> int:
        """Units settled, as the back office tells it."""
        return int(self._levels(sale_id, sku)["settled"])

    def _levels(self, sale_id: str, sku: str) -> Any:
        sale = self.operate("GET", f"/ops/v1/sales/{sale_id}")
        return next(entry for entry in sale["skus"] if entry["sku"] == sku)

    def seed_orders(self, sale_id: str, prefix: str, count: int) -> dict[str, str]:
        """Accept `count` orders one after the other, of the buyers 1 to `count` of this prefix; their ids by buyer."""
        found = {}
        for number in range(1, count + 1):
            buyer_id = buyer_of(prefix, number)
            answer = self.order(sale_id, buyer_id)
            if answer.status != 201:
                raise BenchFailed(f"a first order was answered {answer.status} {answer.body}")
            found[buyer_id] = answer.body["order_id"]
        return found

    def wait_for_ledger(self, sale_id: str, sequence: int) -> float:
        """Wait until the ledger holds everything up to `sequence`; the seconds that took."""
        return asyncio.run(self._wait_for_ledger(sale_id, sequence))

    async def _wait_for_ledger(self, sale_id: str, sequence: int) -> float:
        started_at = time.monotonic()
        connection = await asyncpg.connect(self.endpoints["database_url"])
        try:
            while (persisted := await persisted_sequence(connection, sale_id)) < sequence:
                waited = time.monotonic() - started_at
                if waited > DRAIN_SECONDS_MAX:
                    raise BenchFailed(f"the ledger is at {persisted} of {sequence} after {waited:.0f} seconds")
                await asyncio.sleep(LEDGER_LOOK_SECONDS)
        finally:
            await connection.close()
        return time.monotonic() - started_at

    def audit(self, *sale_id: str) -> None:
        """`miaocang audit` over everything, or over one sale; raises BenchFailed where a promise does not hold."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "engine", "audit", "--data-dir", str(self.data_dir), *sale_id],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=AUDIT_SECONDS_MAX,
            check=False,
        )
        if done.returncode != 0:
            raise BenchFailed(f"the audit ended with {done.returncode}: {done.stdout.decode(errors='replace')[-2000:]}")


async def persisted_sequence(connection: Any, sale_id: str) -> int:
    """How far the ledger is in a sale's journal; 0 where it has not heard of it."""
    query = "SELECT persisted_sequence FROM partitions WHERE sale_id = $1 AND partition_number = 0"
    return int(await connection.fetchval(query, sale_id) or 0)


def ask(
    url: str, method: str, path: str, key: str, body: bytes | None = None, *, headers: Mapping[str, str] | None = None
) -> Response:
    """One request on a connection of its own. Raises BenchFailed where there is no answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=REQUEST_SECONDS_MAX)
    more = {"Authorization": f"Bearer {key}", "Content-Type": "application/json", **(headers or {})}
    try:
        connection.request(method, path, body, more)
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise BenchFailed(f"{method} {path}: {error!r}") from error
    finally:
        connection.close()
    try:
        document = json.loads(text)
    except ValueError:
        document = text.decode(errors="replace")
    return Response(response.status, {name.lower(): value for name, value in response.getheaders()}, document)


@contextmanager
def running_engine(
    data_dir: Path, gateways: int = 1, settings: Mapping[str, object] | None = None
) -> Iterator[EngineUnderTest]:
    """A fresh engine, ended afterwards with everything that belongs to it."""
    data_dir.mkdir(parents=True, exist_ok=True)
    log_path = data_dir / "up.log"
    process = start(_up_command(data_dir, gateways), log_path, _environment(settings or {}))
    try:
        yield EngineUnderTest(data_dir, _wait_for_endpoints(data_dir, process, log_path))
    finally:
        end(process)


def _up_command(data_dir: Path, gateways: int) -> Sequence[str]:
    ports = ("--gateway-port", "0", "--backoffice-port", "0")
    return (
        sys.executable,
        "-P",
        "-m",
        "engine",
        "up",
        "--data-dir",
        str(data_dir),
        *ports,
        "--gateways",
        str(gateways),
    )


def _environment(settings: Mapping[str, object]) -> dict[str, str]:
    """Without what somebody's shell may say about another engine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MIAOCANG_")}
    return kept | {f"MIAOCANG_{name.upper()}": str(value) for name, value in settings.items()}


def _wait_for_endpoints(data_dir: Path, process: "subprocess.Popen[bytes]", log_path: Path) -> Mapping[str, Any]:
    deadline = time.monotonic() + READY_SECONDS_MAX
    path = data_dir / "endpoints.json"
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchFailed(f"the engine did not start: {log_path.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)
    endpoints: dict[str, Any] = json.loads(path.read_text())
    return endpoints
