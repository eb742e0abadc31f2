"""The persister alone: journals made by the real script in a real Redis, carried into a real PostgreSQL.

    python -m loadtest.bench.persister [--orders 60000] [--json] [--grow-to 1000000]

For each kind of journal: entries a second from the first look to the last commit, processor seconds for a million
entries (of this process, which does what the worker does, of all of PostgreSQL's, and of Redis), and by how much this
process' memory grew. The servers run with the same configuration as the engine's embedded ones: synced to disk.

* *holds*: one line each. *settlements*: of these holds, each an entry of a later transaction.
* *held, then settled*: batches of holds, and of their settlements right behind them.
* *expiry*: holds that were all due at one deadline.
* *many sales*: holds of fifty sales at once.

With `--grow-to` one sale is sold in steps up to that many orders, to see whether an order's cost stays what it was.
"""

import argparse
import asyncio
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop

from engine.domain.commands import Command, Define, DefineSku, Expire, Hold, Open, Settle
from engine.domain.outcomes import Outcome
from engine.ledger.connect import WRITER_SETTINGS, open_pool
from engine.ledger.migrate import upgrade
from engine.ledger.persister import LedgerWriter, Passing
from engine.partition.batcher import BatchBounds
from engine.partition.call import CallSettings
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.worker.persist import WRITERS_MAX, Persister
from engine.worker.process import COLLECT_AFTER_OBJECTS
from loadtest.bench.cpu_time import kinds_seconds
from loadtest.bench.script_alone import make_holds
from loadtest.bench.stores import running_postgres, running_redis
from loadtest.load.requests import CURRENCY, PREFIX_LENGTH, PRICE_MINOR, SKU

PREFIX = "b" * PREFIX_LENGTH
BATCH = 256
"""Commands of one call of the script, and so entries of one record, as a gateway under load sends them."""
SALES = 50
EXPIRE_AT_ONCE = 500
ORDERS = 60_000
WARM_UP_ORDERS = 20_000
STEPS = 10
LIMIT_SECONDS = 600.0
PLENTY = 10**8
SHORT_HOLD_MS = 1000
LONG_HOLD_MS = 3_600_000
CALLS = CallSettings(
    call_timeout_seconds=30.0, request_deadline_seconds=60.0, backlog_max_entries=100_000_000, retention_ms=LONG_HOLD_MS
)


@dataclass(frozen=True)
class Measured:
    """What it cost to carry one journal over."""

    kind: str
    entries: int
    seconds: float
    entries_per_second: float
    worker_seconds_per_million: float
    postgres_seconds_per_million: float
    redis_seconds_per_million: float
    memory_grown_bytes: int

    def words(self) -> str:
        """A line of the table."""
        return (
            f"{self.kind:32s}{self.entries:>10,}{self.entries_per_second:>12,.0f}"
            f"{self.worker_seconds_per_million:>10.2f}{self.postgres_seconds_per_million:>12.2f}"
            f"{self.redis_seconds_per_million:>8.2f}{self.memory_grown_bytes / 2**20:>10.1f}"
        )


HEADINGS = (
    f"{'journal':32s}{'entries':>10s}{'entries/s':>12s}{'worker':>10s}{'PostgreSQL':>12s}{'Redis':>8s}{'MiB':>10s}\n"
    f"{'':32s}{'':>10s}{'':>12s}{'processor seconds per 10⁶':>30s}{'grown':>10s}"
)


class Bench:
    """Makes journals, and measures how they are carried over."""

    def __init__(self, partitions: Partitions, persister: Persister, pids: dict[str, list[int]]) -> None:
        self._partitions = partitions
        self._persister = persister
        self._pids = pids
        self.found: list[Measured] = []

    async def open_sale(self, sale_id: str, hold_ms: int = LONG_HOLD_MS) -> None:
        """A sale with more units than will be sold."""
        definition = json.dumps({"title": sale_id, "currency": CURRENCY, "skus": [{"sku": SKU, "outer_code": "4711"}]})
        define = Define(
            command_id="define", if_match=0, definition=definition, currency=CURRENCY, hold_ms=hold_ms, buyer_limit=0,
            style_limits={}, opens_at_ms=0, closes_at_ms=0,
            skus=[DefineSku(SKU, "TEE", PRICE_MINOR, 0, PLENTY, 0, [])],
        )  # fmt: skip
        await self._partitions.register(sale_id)
        await self._ask(sale_id, [define, Open()])
        await self._persister.finish(time.monotonic() + LIMIT_SECONDS)  # what is measured is what follows

    async def _ask(self, sale_id: str, commands: Sequence[Command]) -> None:
        for reply in await self._partitions.submit(sale_id, *commands):
            assert reply.outcome is Outcome.DONE, reply

    async def hold(self, sale_id: str, first: int, orders: int, *, settled: bool = False) -> list[str]:
        """Hold so many orders, batch by batch, each batch settled right behind it if asked for; their digests."""
        digests = []
        for start in range(first, first + orders, BATCH):
            holds = make_holds(sale_id, PREFIX, start, min(BATCH, first + orders - start))
            await self._ask(sale_id, holds)
            made = [hold.digest for hold in holds if isinstance(hold, Hold)]
            digests += made
            if settled:
                await self.settle(sale_id, made)
        return digests

    async def settle(self, sale_id: str, digests: Sequence[str]) -> None:
        """Settle these orders."""
        for batch in _batches(digests):
            payments = [Settle(digest, f"pay-{digest}", PRICE_MINOR, CURRENCY) for digest in batch]
            await self._ask(sale_id, payments)

    async def expire(self, sale_id: str, orders: int) -> None:
        """Give back so many holds that are due."""
        for _ in range(0, orders, EXPIRE_AT_ONCE):
            await self._ask(sale_id, [Expire(EXPIRE_AT_ONCE)])

    async def persist(self, kind: str, entries: int) -> Measured:
        """Let the persister carry over what there is."""
        gc.collect()
        _begin_peak_anew()
        memory_before, before = _peak_memory_bytes(), kinds_seconds(self._pids)
        own_before, started_at = time.process_time(), time.perf_counter()
        await self._persister.finish(time.monotonic() + LIMIT_SECONDS)
        seconds, own = time.perf_counter() - started_at, time.process_time() - own_before
        after = kinds_seconds(self._pids)
        measured = Measured(
            kind,
            entries,
            seconds,
            entries / seconds,
            own / entries * 1e6,
            (after["postgres"] - before["postgres"]) / entries * 1e6,
            (after["redis"] - before["redis"]) / entries * 1e6,
            _peak_memory_bytes() - memory_before,
        )
        self.found.append(measured)
        return measured


def _batches(digests: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(digests), BATCH):
        yield digests[start : start + BATCH]


def _begin_peak_anew() -> None:
    Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def _peak_memory_bytes() -> int:
    """Of this process, since the peak was last begun anew."""
    status = Path("/proc/self/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


async def measure_kinds(bench: Bench, orders: int, say: "Say") -> None:
    """Each kind of journal."""
    await bench.open_sale("warm")
    await bench.hold("warm", 0, WARM_UP_ORDERS, settled=True)
    await bench.persist("(warming up)", 2 * WARM_UP_ORDERS)
    bench.found.clear()
    await bench.open_sale("holds")
    digests = await bench.hold("holds", 0, orders)
    say(await bench.persist("holds", orders))
    await bench.settle("holds", digests)
    say(await bench.persist("settlements", orders))
    await bench.open_sale("both")
    await bench.hold("both", 0, orders, settled=True)
    say(await bench.persist("held, then settled", 2 * orders))
    await bench.open_sale("due", SHORT_HOLD_MS)
    await bench.hold("due", 0, orders)
    await bench.persist("(holds to expire)", orders)
    bench.found.pop()
    await asyncio.sleep(SHORT_HOLD_MS / 1000)
    await bench.expire("due", orders)
    say(await bench.persist("expiry", orders))
    for number in range(SALES):
        await bench.open_sale(f"many-{number}")
    for number in range(SALES):
        await bench.hold(f"many-{number}", 0, orders // SALES)
    say(await bench.persist(f"holds of {SALES} sales", orders))


async def measure_growth(bench: Bench, orders_max: int, say: "Say") -> None:
    """One sale in equal steps."""
    await bench.open_sale("long")
    step = orders_max // STEPS
    for number in range(STEPS):
        await bench.hold("long", number * step, step)
        say(await bench.persist(f"holds {number * step:,} to {(number + 1) * step:,}", step))


class Say:
    """Prints each line as it is found, unless JSON was asked for."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        if not silent:
            print(HEADINGS)

    def __call__(self, measured: Measured) -> None:
        """Print it."""
        if not self._silent:
            print(measured.words(), flush=True)


async def _run(arguments: argparse.Namespace, redis_url: str, database_url: str, pids: dict[str, list[int]]) -> None:
    await upgrade(database_url)
    pool = await open_pool(database_url, WRITERS_MAX, WRITER_SETTINGS)
    say = Say(silent=arguments.json)
    async with Partitions(redis_url, CALLS, BatchBounds()) as partitions:
        await partitions.guarding.vouch_for(await partitions.guarding.server_run())
        persister = Persister(partitions, LedgerWriter(pool), Settings(), Passing())
        bench = Bench(partitions, persister, pids)
        if arguments.grow_to:
            await measure_growth(bench, arguments.grow_to, say)
        else:
            await measure_kinds(bench, arguments.orders, say)
    await pool.close()
    if arguments.json:
        json.dump([asdict(measured) for measured in bench.found], sys.stdout, indent=1)
        print()


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="The persister alone, from journals to ledger.")
    parser.add_argument("--orders", type=int, default=ORDERS, help="orders of each kind of journal")
    parser.add_argument("--grow-to", type=int, default=0, help="sell one sale up to so many orders instead")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS)
    with tempfile.TemporaryDirectory(prefix="miaocang-bench-") as directory:
        Path(directory).chmod(0o755)  # the servers may run under an account of their own
        with (
            running_redis(Path(directory, "redis")) as redis,
            running_postgres(Path(directory, "postgres")) as postgres,
        ):
            pids = {"redis": [redis.pid], "postgres": [postgres.pid]}
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_run(arguments, redis.url, postgres.url, pids))


if __name__ == "__main__":
    main()
