"""A whole engine as it runs, and its callers: `miaocang up` as a process, asked over HTTP, its stores read past it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import asyncpg
import redis.asyncio

from engine.runtime.child import die_with_parent
from engine.runtime.process_identity import ProcessIdentity, identify, is_alive, send_signal

READY_SECONDS_MAX = 60.0
END_SECONDS_MAX = 20.0
GONE_SECONDS_MAX = 15.0
ANSWER_SECONDS_MAX = 20.0
RETRY_SECONDS_MAX = 60.0
RETRY_PAUSE_SECONDS = 0.05
CAUGHT_UP_SECONDS_MAX = 60.0
FEED_PAGE_ROWS = 100

HELD, SETTLED, CANCELLED, EXPIRED, REFUND_DUE = 1, 2, 3, 4, 5
"""How the ledger writes an order's status."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer with its body read."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        """The body's JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem's code; empty where the answer is no problem."""
        return str(self.document["code"]) if self.status >= 400 else ""

    @property
    def is_replayed(self) -> bool:
        """Whether it says that it repeats an earlier one."""
        return self.headers.get("Idempotent-Replayed") == "true"


class RunningEngine:
    """One `miaocang up` on a data directory, and what can be done to it. It dies with the test run."""

    def __init__(self, data_dir: Path, *, gateways: int = 2, **settings: str | int) -> None:
        """`settings` are variables without their prefix: `ledger_backlog_max_entries=200`."""
        self.data_dir = data_dir
        self.gateways = gateways
        self.process: subprocess.Popen[bytes] | None = None
        self.endpoints: dict[str, Any] = {}
        self._settings = settings
        self._seen: set[ProcessIdentity] = set()
        self._log_path = data_dir.with_name(f"{data_dir.name}.up.log")

    def launch(self) -> None:
        """Start `up` and do not wait for it."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MIAOCANG_")}
        environment |= {f"MIAOCANG_{name.upper()}": str(value) for name, value in self._settings.items()}
        arguments = ["--data-dir", str(self.data_dir), "--gateway-port", "0", "--backoffice-port", "0"]
        with self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "engine", "up", *arguments, "--gateways", str(self.gateways)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - it only calls prctl
            )

    def start(self) -> float:
        """Start `up` and wait until it is ready; the seconds that took."""
        started_at = time.monotonic()
        self.launch()
        self.wait_until_ready()
        return time.monotonic() - started_at

    async def start_again(self) -> float:
        """As `start`, while others go on: `up` is forked from this thread, because it dies with the one it was."""
        started_at = time.monotonic()
        self.launch()
        await asyncio.to_thread(self.wait_until_ready)
        return time.monotonic() - started_at

    def wait_until_ready(self) -> None:
        """Wait for the endpoints of this very run."""
        assert self.process is not None
        deadline = time.monotonic() + READY_SECONDS_MAX
        while self.read_endpoints().get("pid") != self.process.pid:
            assert self.process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        self.endpoints = self.read_endpoints()

    def read_endpoints(self) -> dict[str, Any]:
        """What `endpoints.json` says now; nothing where there is none."""
        try:
            endpoints: dict[str, Any] = json.loads((self.data_dir / "endpoints.json").read_text())
        except FileNotFoundError:
            return {}
        pids = [endpoints["pid"], *(pid for kind in endpoints["processes"].values() for pid in kind)]
        pids += [child for pid in pids for child in children_of(pid)]
        self._seen |= {identity for pid in pids if (identity := identify(pid))}
        return endpoints

    def said(self) -> str:
        """What the supervisor has printed."""
        return self._log_path.read_text(errors="replace")[-4000:]

    def log(self, kind: str) -> str:
        """What a kind of process has logged."""
        return (self.data_dir / "log" / f"{kind}.log").read_text(errors="replace")

    def pids(self, kind: str) -> list[int]:
        """The processes of a kind, or the supervisor, as the endpoints tell them now."""
        endpoints = self.read_endpoints()
        return [endpoints["pid"]] if kind == "supervisor" else list(endpoints["processes"][kind])

    def send(self, kind: str, number: signal.Signals) -> int:
        """Signal the first process of a kind; its number."""
        pid = self.pids(kind)[0]
        os.kill(pid, number)
        return pid

    def send_all(self, kind: str, number: signal.Signals) -> None:
        """Signal all processes of a kind with the children that they have."""
        for pid in self.pids(kind):
            for each in (pid, *children_of(pid)):
                if identity := identify(each):
                    send_signal(identity, number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal the supervisor and wait for it; its exit status."""
        assert self.process is not None
        self.read_endpoints()
        self.process.send_signal(number)
        return self.process.wait(END_SECONDS_MAX)

    def clear_away(self) -> None:
        """End whatever is left of it; for the end of a test, however that came about."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.read_endpoints()
            for identity in [one for one in self._seen if is_alive(one)]:
                os.kill(identity.pid, signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(END_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        left = self.wait_until_gone()
        for identity in left:
            os.kill(identity.pid, signal.SIGKILL)
        assert not left, f"{left} outlived the engine"

    def wait_until_gone(self) -> list[ProcessIdentity]:
        """Processes that this engine has had and that are still there after a while."""
        deadline = time.monotonic() + GONE_SECONDS_MAX
        while left := [identity for identity in self._seen if is_alive(identity)]:
            if time.monotonic() > deadline:
                return left
            time.sleep(0.02)
        return []

    async def audit(self, *sale_ids: str) -> tuple[int, str]:
        """`miaocang audit` as a command: its exit status, and what it printed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "engine", "audit", "--data-dir", str(self.data_dir), *sale_ids),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, said.decode()

    async def sql(self, query: str, *arguments: object) -> list[Any]:
        """Ask the ledger, which may still be coming up."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while True:
            try:
                connection = await asyncpg.connect(self.endpoints["database_url"])
                break
            except (OSError, asyncpg.CannotConnectNowError):
                assert time.monotonic() < deadline, "PostgreSQL did not come up"
                await asyncio.sleep(0.05)
        try:
            return list(await connection.fetch(query, *arguments))
        finally:
            await connection.close()

    async def sequence(self, sale_id: str) -> int:
        """The last sequence number of a sale's partition, read past the engine."""
        async with redis.asyncio.Redis.from_url(self.endpoints["redis_url"]) as store:
            return int(await store.hget(f"mc:{{{sale_id}}}:state", "sequence") or 0)

    async def persisted(self, sale_id: str) -> int:
        """The last sequence number that the ledger holds of it."""
        rows = await self.sql("SELECT persisted_sequence FROM partitions WHERE sale_id = $1", sale_id)
        return int(rows[0][0]) if rows else 0

    async def wait_until_persisted(self, sale_id: str) -> int:
        """Wait until the ledger holds all of a sale at rest; its last sequence number."""

        async def caught_up() -> bool:
            return await self.persisted(sale_id) == await self.sequence(sale_id)

        await eventually(caught_up, CAUGHT_UP_SECONDS_MAX)
        return await self.sequence(sale_id)


class Caller:
    """An HTTP client of an engine, with its three keys. What it is refused for now it asks again, with the same key."""

    def __init__(self, engine: RunningEngine, connections_max: int = 0) -> None:
        self.engine = engine
        self.troubles: Counter[str] = Counter()
        """Why requests were asked again: problem codes of 503 answers, and connections that broke."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections_max),
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX),
            json_serialize=lambda value: json.dumps(value, separators=(",", ":")),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._session.close()

    async def ask(self, method: str, path: str, body: Any = None, *, key: str = "", role: str = "") -> Answer:
        """One request, once. Raises what aiohttp raises."""
        side = "gateway" if path.startswith("/v1") else "backoffice"
        role = role or {"v1": "checkout", "ops": "ops", "erp": "erp"}[path.split("/")[1].partition("?")[0]]
        headers = {"Authorization": f"Bearer {self.engine.endpoints['keys'][role]}"}
        if key:
            headers["Idempotency-Key"] = key
        url = self.engine.endpoints[f"{side}_url"] + path
        async with self._session.request(method, url, json=body, headers=headers) as response:
            return Answer(response.status, response.headers, await response.read())

    async def persist(self, method: str, path: str, body: Any = None, *, key: str = "") -> Answer:
        """One request until it is answered: broken connections and 503 are asked again with the same key."""
        deadline = time.monotonic() + RETRY_SECONDS_MAX
        while True:
            try:
                answer = await self.ask(method, path, body, key=key)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self.troubles[type(error).__name__] += 1
                trouble: object = error
            else:
                if answer.status != 503:
                    return answer
                assert int(answer.headers["Retry-After"]) >= 1
                self.troubles[answer.code] += 1
                trouble = answer
            assert time.monotonic() < deadline, f"{method} {path} was not answered: {trouble}"
            await asyncio.sleep(RETRY_PAUSE_SECONDS)

    async def probe(self, side: str, path: str = "/readyz") -> Answer:
        """A request without a key."""
        async with self._session.get(self.engine.endpoints[f"{side}_url"] + path) as response:
            return Answer(response.status, response.headers, await response.read())

    async def open_sale(self, sale_id: str, quantities: Mapping[str, int], hold_seconds: int = 3600) -> None:
        """Create a sale and open it; every SKU costs 19.90."""
        answer = await self.persist("PUT", f"/ops/v1/sales/{sale_id}", sale_body(quantities, hold_seconds))
        assert answer.status in {200, 201}, answer
        answer = await self.persist("POST", f"/ops/v1/sales/{sale_id}/open")
        assert answer.status == 200, answer

    async def hold(self, sale_id: str, buyer_id: str, key: str, lines: Mapping[str, int]) -> Answer:
        """Ask for a hold, once."""
        return await self.ask("POST", f"/v1/sales/{sale_id}/orders", hold_body(buyer_id, lines), key=key)

    async def settle(self, order: Mapping[str, Any], payment_id: str) -> Answer:
        """Report the payment of an order, once."""
        return await self.ask("POST", f"/v1/orders/{order['order_id']}/settle", payment_body(order, payment_id))

    async def stock(self, sale_id: str) -> dict[str, dict[str, Any]]:
        """Each SKU of a sale as the back office shows it."""
        answer = await self.persist("GET", f"/ops/v1/sales/{sale_id}")
        assert answer.status == 200, answer
        return {row["sku"]: row for row in answer.document["skus"]}

    async def feed(self) -> list[dict[str, Any]]:
        """The whole feed of the ERP, page by page from the start."""
        rows: list[dict[str, Any]] = []
        cursor = ""
        while True:
            answer = await self.persist("GET", f"/erp/v1/orders?after={cursor}&limit={FEED_PAGE_ROWS}")
            assert answer.status == 200, answer
            page = answer.document
            rows += page["orders"]
            cursor = page["next_cursor"]
            if not page["has_more"]:
                return rows


def sale_body(quantities: Mapping[str, int], hold_seconds: int = 3600) -> dict[str, Any]:
    """A sale's definition."""
    skus = [
        {"sku": sku, "style": "TEE", "unit_price_minor": 1990, "quantity": units} for sku, units in quantities.items()
    ]
    return {"title": "A live", "currency": "CNY", "hold_seconds": hold_seconds, "skus": skus}


def hold_body(buyer_id: str, lines: Mapping[str, int]) -> dict[str, Any]:
    """A hold's body."""
    return {
        "buyer_id": buyer_id,
        "channel": "douyin",
        "lines": [{"sku": sku, "quantity": quantity} for sku, quantity in lines.items()],
    }


def payment_body(order: Mapping[str, Any], payment_id: str) -> dict[str, Any]:
    """What a checkout sends when an order was paid."""
    return {"payment_id": payment_id, "amount_minor": order["amount_minor"], "currency": order["currency"]}


def units_of(lines: Any) -> Counter[str]:
    """The units that an order's lines take, by SKU."""
    units: Counter[str] = Counter()
    for line in lines:
        units[line["sku"]] += line["quantity"]
    return units


def children_of(pid: int) -> list[int]:
    """The processes that this one has started and that are still there."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


async def eventually(condition: Callable[[], Awaitable[bool]], timeout_seconds: float) -> float:
    """Ask until it is so; the seconds that took."""
    started_at = time.monotonic()
    while not await condition():
        assert time.monotonic() - started_at < timeout_seconds, f"not within {timeout_seconds} seconds"
        await asyncio.sleep(0.02)
    return time.monotonic() - started_at
