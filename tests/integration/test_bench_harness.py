"""What the benchmark's figures rest on: generators that count honestly, and runs that fail when something is wrong."""

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from engine.runtime.ports import pick_free_port
from loadtest.bench.child_processes import BenchFailed
from loadtest.bench.results import Results
from loadtest.bench.sampler import Sampler
from loadtest.bench.wrk_run import run_wrk
from loadtest.load.open_loop import OpenLoop, answer_length, arrivals, percentile
from loadtest.load.requests import PRICE_MINOR, SKU, Shop, buyer_of, order_request, order_requests

ANSWER = b"HTTP/1.1 201 Created\r\nContent-Type: application/json\r\ncontent-length: 2\r\n\r\n{}"
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


class OneByOneServer:
    """Answers requests in the order of their coming, on one thread for each connection, and may stall for a while."""

    def __init__(self, stall_after: int = -1, stall_seconds: float = 0.0, answer: bytes = ANSWER) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self.listener.getsockname()[1]
        self.requests: list[bytes] = []
        self._lock = threading.Lock()
        self._stall = (stall_after, stall_seconds)
        self._answer = answer

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                while data := connection.recv(65_536):
                    with self._lock:
                        self.requests.append(data)
                        if len(self.requests) == self._stall[0]:
                            time.sleep(self._stall[1])
                    if not self._answer:
                        return
                    connection.sendall(self._answer)
        except OSError:
            return  # wrk leaves when its time is up, whatever is under way


@contextmanager
def one_by_one(**fields: object) -> Iterator[OneByOneServer]:
    server = OneByOneServer(**fields)  # type: ignore[arg-type]
    threading.Thread(target=server.accept, daemon=True).start()
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()


@pytest.mark.alone
def test_a_stall_is_counted_for_every_request_that_was_due_in_it() -> None:
    count, rate, stall_seconds = 400, 400.0, 0.5
    with one_by_one(stall_after=100, stall_seconds=stall_seconds) as server:
        shop = Shop("127.0.0.1", server.port, "key", "sale")
        loop = OpenLoop("127.0.0.1", server.port, connections=8)  # far fewer than are due while it stalls
        try:
            outcome = loop.run(order_requests(shop, "aaaa", count), arrivals(rate, count, seed=1))
        finally:
            loop.close()
    assert (len(outcome.latencies), outcome.statuses, outcome.unanswered, outcome.errors) == (count, {201: count}, 0, 0)
    late = [latency for latency in outcome.latencies if latency > stall_seconds / 10]
    assert len(late) > 0.7 * rate * stall_seconds, "a closed loop would have seen eight"
    assert stall_seconds * 0.9 < max(outcome.latencies) < stall_seconds * 3
    assert len(set(server.requests)) == count


def test_a_connection_that_breaks_is_an_error_and_not_silence() -> None:
    with one_by_one(answer=b"") as server:  # which hangs up instead of answering
        loop = OpenLoop("127.0.0.1", server.port, connections=2)
        outcome = loop.run(order_requests(Shop("h", 1, "k", "s"), "aaaa", 5), arrivals(0, 5, seed=1))
        loop.close()
    assert (outcome.errors, outcome.unanswered, outcome.latencies) == (2, 3, [])


def test_an_answer_is_whole_with_its_body() -> None:
    assert answer_length(ANSWER[:40]) == 0
    assert answer_length(ANSWER) == len(ANSWER)
    assert answer_length(ANSWER + ANSWER) == len(ANSWER)
    with pytest.raises(ValueError, match="without a length"):
        answer_length(b"HTTP/1.1 200 OK\r\n\r\n")


def test_arrivals_come_at_the_rate_and_at_random() -> None:
    due = arrivals(1000, 20_000, seed=1)
    assert 19 < due[-1] < 21
    gaps = sorted(later - earlier for earlier, later in pairwise(due))
    assert percentile(gaps, 0.5) == pytest.approx(0.000693, rel=0.05), "the median of an exponential gap"


@pytest.mark.alone
@needs_wrk
def test_wrk_and_the_open_loop_send_the_same_bytes() -> None:
    with one_by_one() as server:
        shop = Shop("127.0.0.1", server.port, "the-key", "sale-1")
        arguments = ("accepted", "sale-1", "the-key", "abc", SKU, "-", str(PRICE_MINOR), "100", "1", "zzz9")
        run = run_wrk(f"http://127.0.0.1:{server.port}", 2, 1, "orders.lua", arguments)
        assert run.requests > 100 and run.refused == 0
        sent = set(server.requests)
    numbers = range(2, min(run.issued) - 4)  # wrk keeps a thread's first request to itself
    made = {order_request(shop, buyer_of(f"abc{thread}", number)) for thread in (0, 1) for number in numbers}
    assert made <= sent
    assert len(sent) == len(server.requests), "no request was sent twice"
    assert order_requests(shop, "abc0", 9)[8] == order_request(shop, buyer_of("abc0", 9))


@needs_wrk
def test_a_run_without_a_server_fails() -> None:
    with pytest.raises(BenchFailed):
        run_wrk(f"http://127.0.0.1:{pick_free_port('127.0.0.1')}", 2, 1, "orders.lua", ("accepted", *"abcdefghi"))


def test_a_wrong_sample_fails_the_run_it_was_taken_in() -> None:
    def check(number: int) -> None:
        if number == 2:
            raise BenchFailed("the second answer was wrong")

    with pytest.raises(BenchFailed, match="second answer"), Sampler(check):
        time.sleep(0.3)


def test_ratios_are_taken_round_by_round() -> None:
    results = Results()
    for above, below in ((10, 1), (30, 10), (8, 2)):
        results.add("above", above, "/s")
        results.add("below", below, "/s")
    ratio = results.ratio("above", "below")
    assert ratio is not None
    assert (ratio.median, ratio.least, ratio.most) == (4, 3, 10)
    results.add("below", 2, "/s")
    assert results.ratio("above", "below") is None, "a round is missing on one side"
    assert results.ratio("above", "nothing") is None
