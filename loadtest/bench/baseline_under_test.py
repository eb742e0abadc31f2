"""A baseline as a running server, with its stores: what the station, the demonstrations and the tests start."""

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from engine.runtime.ports import pick_free_port
from loadtest.bench.child_processes import BenchFailed, end, start, wait_until_listening
from loadtest.bench.engine_under_test import PLENTY, Response, ask
from loadtest.bench.stores import NOT_DURABLE, Store, make_database, running_postgres, running_redis
from loadtest.load.requests import SKU, Shop, key_of, order_body

CHECKOUT_KEY = "mc_checkout_of_a_baseline"
SALE_ID = "sale-1"
COUNT_SECONDS_MAX = 60.0
REST_SECONDS = 0.3
CONSUME = "consume"


@dataclass(frozen=True)
class Baseline:
    """What there is to know of a baseline before it runs."""

    name: str
    module: str
    needs_redis: bool
    needs_postgres: bool
    redis_arguments: tuple[str, ...] = ()
    has_consumer: bool = False
    may_lose: str = "no"
    """Whether an order that was accepted can be lost, and how."""
    may_oversell: str = "no"
    may_undersell: str = "no"


BASELINES = (
    Baseline("evalsha_always", "loadtest.baselines.evalsha", True, False),
    Baseline(
        "evalsha_none",
        "loadtest.baselines.evalsha",
        True,
        False,
        redis_arguments=NOT_DURABLE,
        may_lose="yes: all of them, when Redis ends",
        may_oversell="yes: the stock is loaded anew, the orders are not",
    ),
    Baseline("row_update", "loadtest.baselines.row_update", False, True),
    Baseline(
        "skip_locked",
        "loadtest.baselines.skip_locked",
        False,
        True,
        may_undersell="for a moment: units locked by others look sold",
    ),
    Baseline("watch_multi", "loadtest.baselines.watch_multi", True, False),
    Baseline(
        "decr_queue",
        "loadtest.baselines.decr_queue",
        True,
        True,
        has_consumer=True,
        may_lose="yes: when the consumer ends between pop and commit",
        may_undersell="yes: units vanish when the server ends between DECR and push",
    ),
)


class BaselineUnderTest:
    """A running baseline."""

    def __init__(
        self, baseline: Baseline, directory: Path, redis: Store | None, postgres: Store | None, database_url: str
    ) -> None:
        self.baseline = baseline
        self.redis = redis
        self._postgres = postgres
        self.port = pick_free_port("127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = directory
        self.database_url = database_url
        self.server: subprocess.Popen[bytes] | None = None
        self.consumer: subprocess.Popen[bytes] | None = None

    def start(self, units: int = PLENTY, buyer_limit: int = 2) -> None:
        """Start its processes; the stock is put there if it is not there yet."""
        arguments = ("--port", str(self.port), "--units", str(units), "--buyer-limit", str(buyer_limit))
        self.server = self._start_process("server", arguments)
        wait_until_listening(self.port, self.server, self._directory / "server.log")
        if self.baseline.has_consumer:
            self.consumer = self._start_process(CONSUME, (*arguments, "--role", CONSUME))

    def _start_process(self, name: str, arguments: tuple[str, ...]) -> "subprocess.Popen[bytes]":
        path = self._directory / f"{name}.secrets"  # on standard input: a command line can be seen by everybody
        path.touch(mode=0o600)
        path.write_text(f"{CHECKOUT_KEY}\n{self.redis.url if self.redis else ''}\n{self.database_url}\n")
        with path.open("rb") as secrets:
            argv = (sys.executable, "-m", self.baseline.module, *arguments)
            return start(argv, self._directory / f"{name}.log", standard_input=secrets)

    def stop(self) -> None:
        """End its processes in order."""
        running = [process for process in (self.server, self.consumer) if process is not None]
        self.server = self.consumer = None
        for process in running:
            end(process)

    def shop(self) -> Shop:
        """Whom the generators ask."""
        return Shop("127.0.0.1", self.port, CHECKOUT_KEY, SALE_ID)

    def order(self, buyer_id: str, body: bytes | None = None, key: str | None = None) -> Response:
        """One request for an order."""
        headers = {"Idempotency-Key": key or key_of(buyer_id)}
        path = f"/v1/sales/{SALE_ID}/orders"
        return ask(self.url, "POST", path, CHECKOUT_KEY, body or order_body(buyer_id, SKU), headers=headers)

    def count_orders(self) -> int:
        """Orders on record, once their number stands still: a generator's last requests may be under way yet, and a
        consumer may hold some between queue and table."""
        deadline, before = time.monotonic() + COUNT_SECONDS_MAX, -1
        while (now := self._count_once()) != before:
            if time.monotonic() > deadline:
                raise BenchFailed(f"{self.baseline.name}: the number of orders does not come to rest")
            before = now
            time.sleep(REST_SECONDS)
        return now

    def _count_once(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=COUNT_SECONDS_MAX)
        try:
            connection.request("GET", "/count")
            return int(connection.getresponse().read())
        except (OSError, http.client.HTTPException) as error:
            raise BenchFailed(f"{self.baseline.name}: {error!r}") from error
        finally:
            connection.close()

    def processes(self) -> dict[str, list[int]]:
        """Its own, and those of the stores that were started for it."""
        own = [process.pid for process in (self.server, self.consumer) if process is not None]
        stores = {"redis": self.redis, "postgres": self._postgres}
        return {"server": own, **{kind: [store.pid] for kind, store in stores.items() if store}}


@contextmanager
def baseline_stores(
    baseline: Baseline, directory: Path, postgres_url: str | None = None
) -> Iterator[BaselineUnderTest]:
    """Its stores, fresh, and the baseline not yet started; everything is ended afterwards.

    `postgres_url` names a PostgreSQL that runs already, in which it gets a database of its own.
    """
    with ExitStack() as stack:
        redis, postgres, database_url = None, None, ""
        if baseline.needs_redis:
            redis = stack.enter_context(running_redis(directory / "redis-data", baseline.redis_arguments))
        if baseline.needs_postgres:
            if postgres_url is None:
                postgres = stack.enter_context(running_postgres(directory / "postgres-data"))
            server_url = postgres.url if postgres else str(postgres_url)
            database_url = make_database(server_url, f"bench_{baseline.name}")
        running = BaselineUnderTest(baseline, directory, redis, postgres, database_url)
        stack.callback(running.stop)
        yield running
