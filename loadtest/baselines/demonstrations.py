"""What a design loses when a process ends at a bad moment, shown rather than told.

    python -m loadtest.baselines.demonstrations [--json] [--only NAME …]

Each demonstration runs a baseline under load, kills one process with SIGKILL (which leaves the page cache as it is, so
that it says nothing about the disk), starts it again, and counts: what buyers were told against what is there.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import uvloop
from redis import Redis

from loadtest.bench.baseline_under_test import BASELINES, BaselineUnderTest, baseline_stores
from loadtest.bench.child_processes import BenchFailed
from loadtest.load.requests import SKU, buyer_of

BUYERS_AT_ONCE = 24
UNITS = 100_000
FEW_UNITS = 300
SETTLE_DOWN_SECONDS = 1.0


class Outcome(NamedTuple):
    """What a demonstration found."""

    name: str
    what: str
    accepted: int
    """Orders that buyers were told were theirs."""
    lost: int
    """Of these, those of which there is no record any more."""
    oversold: int
    """Units promised beyond those that there were."""
    vanished: int
    """Units that are neither left nor in any order."""

    def document(self) -> dict[str, object]:
        """As it goes into the JSON file."""
        return self._asdict()


class Crowd:
    """Buyers who order one after the other until told to stop; what they were told is kept."""

    def __init__(self, running: BaselineUnderTest, prefix: str) -> None:
        self._running = running
        self._prefix = prefix
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._buy, args=(number,)) for number in range(BUYERS_AT_ONCE)]
        self.accepted: list[str] = []
        """Order ids."""

    def start(self) -> None:
        """Let them in."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Nobody orders any more."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _buy(self, number: int) -> None:
        for turn in range(1_000_000):
            if self._stop.is_set():
                return
            try:
                answer = self._running.order(buyer_of(self._prefix, number * 1_000_000 + turn))
            except BenchFailed:
                return  # the server has gone: nobody was told anything
            if answer.status == 201:
                self.accepted.append(answer.body["order_id"].partition(".")[0])


@contextmanager
def a_baseline(name: str, scratch: Path) -> Iterator[BaselineUnderTest]:
    """One of them with fresh stores, not yet started."""
    baseline = next(each for each in BASELINES if each.name == name)
    directory = scratch / f"demonstration-{name}-{time.monotonic_ns()}"
    directory.mkdir(parents=True)
    try:
        with baseline_stores(baseline, directory) as running:
            yield running
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def redis_ends(name: str, scratch: Path, seconds: float) -> Outcome:
    """Redis is killed under load and started again on its data; then the server starts as it does every day."""
    with a_baseline(name, scratch) as running:
        assert running.redis is not None
        running.start(FEW_UNITS)
        crowd = Crowd(running, "aaaa")
        crowd.start()
        _wait_until(lambda: len(crowd.accepted) >= FEW_UNITS, seconds + 20)
        running.redis.kill()
        crowd.stop()
        running.stop()
        running.redis.start_again()
        running.start(FEW_UNITS)
        on_record = _orders_in_redis(running)
        again = Crowd(running, "bbbb")
        again.start()
        time.sleep(seconds)
        again.stop()
        lost = sum(order_id not in on_record for order_id in crowd.accepted)
        promised = len(crowd.accepted) + len(again.accepted)
    what = f"SIGKILL to Redis after {FEW_UNITS} units were sold, restart, sale goes on"
    return Outcome(f"{name}: Redis ends", what, promised, lost, max(promised - FEW_UNITS, 0), 0)


def postgres_ends(name: str, scratch: Path, seconds: float) -> Outcome:
    """The server of a database-only baseline is killed under load; the database has each order that was accepted."""
    with a_baseline(name, scratch) as running:
        running.start(UNITS)
        crowd = Crowd(running, "aaaa")
        crowd.start()
        time.sleep(seconds)
        assert running.server is not None
        running.server.send_signal(signal.SIGKILL)
        crowd.stop()
        running.server.wait()
        running.server = None
        rows = _rows(running.database_url, "SELECT order_id FROM orders")
        left = _rows(running.database_url, "SELECT sum(available)::bigint FROM skus")[0]
        if name == "skip_locked":
            left += _rows(running.database_url, "SELECT count(*) FROM units")[0]
        lost = len(set(crowd.accepted) - set(rows))
    what = "SIGKILL to the server in the middle of its requests"
    return Outcome(
        f"{name}: server ends",
        what,
        len(crowd.accepted),
        lost,
        max(len(rows) + left - UNITS, 0),
        UNITS - len(rows) - left,
    )


def server_ends_before_push(scratch: Path, seconds: float) -> Outcome:
    """DECR, then queue: the server is killed under load; what was decremented and not pushed is nowhere."""
    with a_baseline("decr_queue", scratch) as running:
        assert running.redis is not None and running.consumer is None
        running.start(UNITS)
        crowd = Crowd(running, "aaaa")
        crowd.start()
        time.sleep(seconds)
        assert running.server is not None
        running.server.send_signal(signal.SIGKILL)
        crowd.stop()
        running.server.wait()
        running.server = None
        time.sleep(SETTLE_DOWN_SECONDS)  # the consumer carries the rest over
        client = Redis.from_url(running.redis.url)
        left, waiting = int(client.get(f"stock:{SKU}") or 0), int(client.llen("orders"))
        client.close()
        rows = _rows(running.database_url, "SELECT order_id FROM orders")
        vanished = UNITS - left - waiting - len(rows)
        lost = 0 if waiting else len(set(crowd.accepted) - set(rows))
    what = "SIGKILL to the server between DECR and push (appendfsync always)"
    return Outcome("decr_queue: server ends", what, len(crowd.accepted), lost, 0, vanished)


def consumer_ends_before_commit(scratch: Path, seconds: float) -> Outcome:
    """DECR, then queue: the consumer is killed; what it had popped and not committed is nowhere."""
    with a_baseline("decr_queue", scratch) as running:
        assert running.redis is not None
        running.start(UNITS)
        assert running.consumer is not None
        running.consumer.send_signal(signal.SIGSTOP)  # it is slow for a moment, as consumers are: a backlog builds up
        crowd = Crowd(running, "aaaa")
        crowd.start()
        time.sleep(seconds)
        running.consumer.send_signal(signal.SIGCONT)
        time.sleep(0.02)
        running.consumer.send_signal(signal.SIGKILL)
        crowd.stop()
        running.consumer.wait()
        running.stop()
        running.start(UNITS)
        running.count_orders()
        time.sleep(SETTLE_DOWN_SECONDS)
        rows = _rows(running.database_url, "SELECT order_id FROM orders")
        client = Redis.from_url(running.redis.url)
        left = int(client.get(f"stock:{SKU}") or 0)
        client.close()
        lost = len(set(crowd.accepted) - set(rows))
    what = "SIGKILL to the consumer between pop and commit (appendfsync always)"
    return Outcome("decr_queue: consumer ends", what, len(crowd.accepted), lost, 0, UNITS - left - len(rows))


DEMONSTRATIONS: dict[str, Callable[[Path, float], Outcome]] = {
    "evalsha_none_redis_ends": lambda scratch, seconds: redis_ends("evalsha_none", scratch, seconds),
    "evalsha_always_redis_ends": lambda scratch, seconds: redis_ends("evalsha_always", scratch, seconds),
    "watch_multi_redis_ends": lambda scratch, seconds: redis_ends("watch_multi", scratch, seconds),
    "row_update_server_ends": lambda scratch, seconds: postgres_ends("row_update", scratch, seconds),
    "skip_locked_server_ends": lambda scratch, seconds: postgres_ends("skip_locked", scratch, seconds),
    "decr_queue_server_ends": server_ends_before_push,
    "decr_queue_consumer_ends": consumer_ends_before_commit,
}


def _orders_in_redis(running: BaselineUnderTest) -> set[str]:
    assert running.redis is not None
    client = Redis.from_url(running.redis.url)
    try:
        return {key.decode().partition(":")[2] for key in client.scan_iter("order:*", count=1000)}
    finally:
        client.close()


def _rows(database_url: str, query: str) -> list[Any]:
    """The first column of what a query finds."""

    async def read() -> list[Any]:
        connection = await asyncpg.connect(database_url)
        try:
            return [row[0] for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return uvloop.run(read())


def _wait_until(condition: Callable[[], bool], seconds_max: float) -> None:
    deadline = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > deadline:
            raise BenchFailed("a demonstration did not get as far as it must")
        time.sleep(0.01)


def demonstrate(
    scratch: Path, seconds: float, say: Callable[[str], None], only: list[str] | None = None
) -> list[Outcome]:
    """Run the demonstrations one after the other."""
    found = []
    for name in only or DEMONSTRATIONS:
        say(f"demonstration: {name}")
        found.append(DEMONSTRATIONS[name](scratch, seconds))
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=sorted(DEMONSTRATIONS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="miaocang-demonstrations-") as scratch:
        found = demonstrate(Path(scratch), 1.0, lambda line: print(line, file=sys.stderr), options.only)
    if options.json:
        print(json.dumps([one.document() for one in found], indent=1))
        return
    for one in found:
        counts = f"lost {one.lost:6}  oversold {one.oversold:6}  vanished {one.vanished:6}"
        print(f"{one.name:28} accepted {one.accepted:6}  {counts}")


if __name__ == "__main__":
    main()
