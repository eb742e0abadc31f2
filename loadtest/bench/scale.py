"""What one more order costs when there are millions, in time and in memory; and a sale of 20,000 SKUs.

Run as `python -m loadtest.bench.scale [--json] [--quick]`, or as a part of the benchmark. The time of an order is taken
of the script alone, driven in batches of 256 as full gateways drive it, the journal trimmed behind the ledger as in
life; Redis may not rewrite its file meanwhile, which would take turns with whatever is measured. Memory is what
`used_memory` grows by, on a whole engine whose worker persists, trims and shrinks as it does in life.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec

from engine.domain.commands import Cancel, Command, GetSale, NotePersisted, Settle
from engine.domain.outcomes import Outcome
from engine.partition.codec import decode_answer, replies_of
from engine.partition.keyspace import partition_keys
from loadtest.bench.child_processes import BenchFailed
from loadtest.bench.engine_under_test import PLENTY, EngineUnderTest, ask, running_engine
from loadtest.bench.results import Results
from loadtest.bench.script_alone import RawRedis, ScriptCalls, make_holds, make_sale, time_calls
from loadtest.bench.station import FULL, QUICK, Bench
from loadtest.bench.stores import Store, running_redis
from loadtest.load.requests import CURRENCY, PRICE_MINOR, buyer_of

BATCH = 256
CHUNK_ORDERS = 100 * BATCH
WINDOW_ORDERS = 20 * BATCH
WINDOWS = 4
JOURNAL_KEEP_ENTRIES = 10_000
REST_SECONDS = 2.0
REST_SECONDS_MAX = 120.0
REST_BYTES = 100_000
RETIRED_SECONDS_MAX = 150.0
LARGE_SALE_ASKINGS = 50


class ScaleStation:
    """All of it."""

    name = "scale"

    def visit(self, bench: Bench) -> None:
        """Once. Raises BenchFailed."""
        with bench.directory(self.name) as directory:
            self._time_of_an_order(bench, directory / "time")
            self._memory_before_the_ledger(bench, directory / "untrimmed")
            settings = {"order_retention_hours": 0, "journal_keep_entries": 0}
            with running_engine(directory / "engine", settings=settings) as engine:
                _Memory(bench, engine).measure()
            with running_engine(directory / "large") as engine:
                self._large_sale(bench, engine)

    def _time_of_an_order(self, bench: Bench, directory: Path) -> None:
        sale_id = bench.sale_id("millions")
        never_rewrite = ("--auto-aof-rewrite-percentage", "0")
        with running_redis(directory, never_rewrite) as redis:
            make_sale(redis.url, sale_id, PLENTY)
            connection = RawRedis(redis.url)
            try:
                filling = _Filling(redis, connection, ScriptCalls(sale_id, connection), sale_id, f"{bench.prefix()}m")
                for orders in bench.effort.scale_orders:
                    bench.say(f"scale: an order among {orders:,}")
                    filling.fill_to(orders - WINDOWS * WINDOW_ORDERS)
                    micros, cpu_micros = filling.time_windows()
                    bench.results.add(f"scale.order_at_{orders}.time", micros, "µs")
                    bench.results.add(f"scale.order_at_{orders}.redis_cpu", cpu_micros, "µs")
                    used = used_memory(connection) / orders
                    bench.results.add(f"scale.order_at_{orders}.all_of_redis", used, "bytes")
            finally:
                connection.close()

    def _memory_before_the_ledger(self, bench: Bench, directory: Path) -> None:
        """An open order with its entry still in the journal: no worker trims it here."""
        sale_id, orders = bench.sale_id("untrimmed"), bench.effort.memory_orders
        with running_redis(directory) as redis:
            make_sale(redis.url, sale_id, PLENTY)
            connection = RawRedis(redis.url)
            try:
                before = used_memory(connection)
                calls = ScriptCalls(sale_id, connection)
                holds = make_holds(sale_id, f"{bench.prefix()}u", 1, orders)
                drive(connection, calls, holds, Outcome.DONE)
                grown = rested_memory(connection) - before
                bench.results.add("scale.memory_open_untrimmed", grown / orders, "bytes")
            finally:
                connection.close()

    def _large_sale(self, bench: Bench, engine: EngineUnderTest) -> None:
        count, sale_id = bench.effort.large_sale_skus, bench.sale_id("large")
        bench.say(f"scale: a sale of {count:,} SKUs")
        skus = [
            {
                "sku": f"TEE-{number:05}",
                "style": f"TEE-{number // 10}",
                "unit_price_minor": PRICE_MINOR,
                "quantity": 100,
            }
            for number in range(count)
        ]
        definition = {"title": "Large", "currency": CURRENCY, "hold_seconds": 900, "skus": skus}
        seconds = _seconds_of(lambda: engine.operate("PUT", f"/ops/v1/sales/{sale_id}", definition))
        bench.results.add("scale.large_sale.put", seconds, "s")
        seconds = _seconds_of(
            lambda: engine.operate("PUT", f"/ops/v1/sales/{sale_id}", definition | {"title": "Again"})
        )
        bench.results.add("scale.large_sale.put_again", seconds, "s")
        engine.operate("POST", f"/ops/v1/sales/{sale_id}/open")
        prefix = f"{bench.prefix()}l"
        times = []
        for number in range(LARGE_SALE_ASKINGS):
            started_at = time.perf_counter()
            engine.sequence(sale_id, buyer_of(prefix, number), f"TEE-{number * (count // LARGE_SALE_ASKINGS):05}")
            times.append(time.perf_counter() - started_at)
        bench.results.add("scale.large_sale.hold_median", sorted(times)[len(times) // 2] * 1000, "ms")

        def look() -> None:
            path = f"/v1/sales/{sale_id}/availability"
            answer = ask(engine.gateway_url, "GET", path, engine.checkout_key)
            if answer.status != 200 or len(answer.body["skus"]) != count:
                raise BenchFailed(f"availability of {count} SKUs was answered {answer.status}")

        bench.results.add("scale.large_sale.availability", _seconds_of(look) * 1000, "ms")
        engine.audit()


class _Filling:
    """Fills one sale with orders; the next chunk is made by another process meanwhile."""

    def __init__(self, redis: Store, connection: RawRedis, calls: ScriptCalls, sale_id: str, prefix: str) -> None:
        self._redis = redis
        self._connection = connection
        self._calls = calls
        self._sale_id = sale_id
        self._prefix = prefix
        self._orders = 0

    def fill_to(self, orders: int) -> None:
        """Hold until there are so many."""
        chunks = []
        while self._orders < orders:
            count = min(CHUNK_ORDERS, orders - self._orders)
            chunks.append((self._calls, self._sale_id, self._prefix, self._orders + 1, count))
            self._orders += count
        if not chunks:
            return
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            ahead = pool.submit(_make_calls, *chunks[0])
            for number in range(len(chunks)):
                calls = ahead.result()
                if number + 1 < len(chunks):
                    ahead = pool.submit(_make_calls, *chunks[number + 1])
                time_calls(self._redis.pid, self._connection, calls, 2, Outcome.DONE)
                self._trim()

    def time_windows(self) -> tuple[float, float]:
        """Microseconds of one order by the clock and of Redis' processor time: the best of a few windows."""
        by_clock, by_processor = [], []
        for _ in range(WINDOWS):
            calls = _make_calls(self._calls, self._sale_id, self._prefix, self._orders + 1, WINDOW_ORDERS)
            self._orders += WINDOW_ORDERS
            timing = time_calls(self._redis.pid, self._connection, calls, 1, Outcome.DONE)
            by_clock.append(timing.seconds / WINDOW_ORDERS * 1e6)
            by_processor.append(timing.redis_cpu_seconds / WINDOW_ORDERS * 1e6)
            self._trim()
        return min(by_clock), min(by_processor)

    def _trim(self) -> None:
        """As the worker does once the ledger has it."""
        self._connection.send(self._calls.call([GetSale()]))
        sequence = replies_of(decode_answer(self._connection.receive()))[0].sale().state.sequence
        self._connection.send(self._calls.call([NotePersisted(sequence, JOURNAL_KEEP_ENTRIES)]))
        outcome = replies_of(decode_answer(self._connection.receive()))[0].outcome
        if outcome is not Outcome.DONE:
            raise BenchFailed(f"the journal could not be trimmed: {outcome!r}")


class _Memory:
    """Bytes an order costs in Redis at each station of its life, on a whole engine."""

    def __init__(self, bench: Bench, engine: EngineUnderTest) -> None:
        self._bench = bench
        self._engine = engine
        self._orders = bench.effort.memory_orders
        self._connection = RawRedis(engine.redis_url)

    def measure(self) -> None:
        """Open, cancelled, settled, expired; then gone."""
        try:
            self._grow("open", [])
            before_ended = rested_memory(self._connection)
            ended = [
                self._grow("cancelled", [Cancel]),
                self._grow("settled", [_settle]),
                self._grow("expired", [], hold_seconds=1),
            ]
            if not self._bench.effort.waits_for_retirement:
                return
            self._bench.say("scale: memory of sales that have left Redis, which they do in a minute and a half")
            for sale_id in ended:
                self._engine.operate("POST", f"/ops/v1/sales/{sale_id}/close")
            for sale_id in ended:
                self._wait_until_retired(sale_id)
            left = rested_memory(self._connection)
            self._bench.results.add(
                "scale.memory_retired", (left - before_ended) / (len(ended) * self._orders), "bytes"
            )
        finally:
            self._connection.close()

    def _grow(self, name: str, follow: Sequence[Callable[[str], Command]], hold_seconds: int = 86_400) -> str:
        bench, engine, connection = self._bench, self._engine, self._connection
        bench.say(f"scale: memory of {self._orders:,} orders that are {name}")
        sale_id = bench.sale_id(name)
        before = rested_memory(connection)
        engine.make_sale(sale_id, PLENTY, hold_seconds=hold_seconds)
        calls = ScriptCalls(sale_id, connection)
        holds = make_holds(sale_id, f"{bench.prefix()}b", 1, self._orders)
        drive(connection, calls, holds, Outcome.DONE)
        for command_of in follow:
            drive(connection, calls, [command_of(hold.digest) for hold in holds], Outcome.DONE)
        self._wait_until_persisted(sale_id, calls, ended=bool(follow) or hold_seconds == 1)
        grown = rested_memory(connection) - before
        bench.results.add(f"scale.memory_{name}", grown / self._orders, "bytes")
        return sale_id

    def _wait_until_persisted(self, sale_id: str, calls: ScriptCalls, ended: bool) -> None:
        """Until no order is open, where all are to end, and the ledger holds every entry."""
        deadline = time.monotonic() + REST_SECONDS_MAX
        while ended and self._engine.held(sale_id) > 0:
            if time.monotonic() > deadline:
                raise BenchFailed(f"orders of {sale_id} are still open")
            time.sleep(0.2)
        self._connection.send(calls.call([GetSale()]))
        sequence = replies_of(decode_answer(self._connection.receive()))[0].sale().state.sequence
        self._engine.wait_for_ledger(sale_id, sequence)

    def _wait_until_retired(self, sale_id: str) -> None:
        """Until the worker has taken everything of it out of Redis but the state, which says so."""
        _, *everything_else = (key.encode() for key in partition_keys(sale_id))
        deadline = time.monotonic() + RETIRED_SECONDS_MAX
        while self._connection.ask(b"EXISTS", *everything_else) != b"0":
            if time.monotonic() > deadline:
                raise BenchFailed(f"{sale_id} is closed, its retention has passed, and its orders are still in Redis")
            time.sleep(0.1)


def _settle(digest: str) -> Command:
    return Settle(digest, f"pay-{digest[:12]}", PRICE_MINOR, CURRENCY)


def _make_calls(calls: ScriptCalls, sale_id: str, prefix: str, first: int, count: int) -> list[bytes]:
    holds = make_holds(sale_id, prefix, first, count)
    return [calls.call(batch) for batch in _batches(holds)]


def _batches(commands: Sequence[Command]) -> Iterator[list[Command]]:
    for at in range(0, len(commands), BATCH):
        yield list(commands[at : at + BATCH])


def drive(connection: RawRedis, calls: ScriptCalls, commands: Sequence[Command], outcome: Outcome) -> None:
    """Apply commands in batches, each of which must have this outcome."""
    for batch in _batches(commands):
        connection.send(calls.call(batch))
        answer = msgspec.msgpack.decode(connection.receive())
        wrong = {reply[0] for reply in answer[5]} - {outcome}
        if answer[0] != Outcome.DONE or wrong:
            raise BenchFailed(f"the script answered {answer[:5]}, {sorted(wrong)}")


def used_memory(connection: RawRedis) -> int:
    """What Redis says it uses."""
    for line in connection.ask(b"INFO", b"memory").decode().splitlines():
        if line.startswith("used_memory:"):
            return int(line.removeprefix("used_memory:"))
    raise BenchFailed("Redis does not tell its used_memory")


def rested_memory(connection: RawRedis) -> int:
    """The same once it stands still: tables are resized, and what the worker shrinks is shrunk, little by little."""
    deadline = time.monotonic() + REST_SECONDS_MAX
    least, since = used_memory(connection), time.monotonic()
    while time.monotonic() - since < REST_SECONDS and time.monotonic() < deadline:
        time.sleep(0.1)
        now = used_memory(connection)
        if abs(now - least) > REST_BYTES:
            least, since = now, time.monotonic()
        least = min(least, now)
    return least


def _seconds_of(work: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="fewer orders")
    options = parser.parse_args()
    results = Results()
    with tempfile.TemporaryDirectory(prefix="miaocang-scale-") as scratch:
        say = (lambda _: None) if options.json else (lambda line: print(line, file=sys.stderr))
        ScaleStation().visit(Bench(QUICK if options.quick else FULL, Path(scratch), results, say))
    if options.json:
        print(json.dumps({name: series.document() for name, series in results.items()}, indent=1))
    else:
        for name, series in results.items():
            print(f"{name:40} {series.median:12,.1f} {series.unit}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
