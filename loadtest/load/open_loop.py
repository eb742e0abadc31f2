"""An open loop: requests leave when they are due, whether earlier ones have been answered or not.

Latency is counted from the moment at which a request was *due*, so that a server that stalls for a second shows a
second for each request of that second (a closed loop would offer it fewer, and hide them: "coordinated omission").
Arrivals are random (exponential gaps, fixed seed), as people's are.

To be cheap enough to be trusted beside a server on the same machine it is a bare loop over non-blocking sockets;
requests are made beforehand, and of an answer only its status, its length and its end are looked at. It looks at its
sockets and at the time once in `TICK_SECONDS`, rather than at each answer by itself, which would take it twice the
processor time: so a latency may be counted up to two ticks too long, never too short. The time from due until sent, for
want of a tick, of processor time or of a free connection, is part of the latency, and is told by itself as
`late_…_seconds`.

    python -m loadtest.load.open_loop --help     `--rate 0` sends as fast as connections allow: its own limit
"""

import argparse
import gc
import json
import random
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from loadtest.load.requests import SKU, Shop, order_requests

TICK_SECONDS = 0.0002
ANSWER_SECONDS_MAX = 10.0
"""How long after the last departure answers are waited for."""
ANSWER_BYTES_MAX = 65_536
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}


class Outcome(NamedTuple):
    """What a run saw; times in seconds."""

    latencies: list[float]
    lateness: list[float]
    statuses: dict[int, int]
    unanswered: int
    errors: int
    seconds: float
    """From the first due time to the last answer."""
    cpu_seconds: float


class _Connection:
    __slots__ = ("due", "received", "socket")

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self.due = 0.0
        self.received = b""


def answer_length(received: bytes) -> int:
    """The whole length of the answer that starts here; 0 while its head is not whole."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return 0
    at = received.find(b"ontent-", 0, end)
    while at >= 0 and received[at + 7 : at + 14].lower() != b"length:":
        at = received.find(b"ontent-", at + 7, end)
    if at < 0:
        raise ValueError(f"an answer without a length: {received[:200]!r}")
    return end + 4 + int(received[at + 14 : received.index(b"\r", at)])


class OpenLoop:
    """One run against one server."""

    def __init__(self, host: str, port: int, connections: int) -> None:
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, _Connection] = {}
        self._idle: deque[_Connection] = deque()
        for _ in range(connections):
            opened = socket.create_connection((host, port), timeout=ANSWER_SECONDS_MAX)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setblocking(False)
            connection = _Connection(opened)
            self._by_descriptor[opened.fileno()] = connection
            self._idle.append(connection)
            self._epoll.register(opened.fileno(), select.EPOLLIN)
        self._latencies: list[float] = []
        self._lateness: list[float] = []
        self._statuses: dict[int, int] = {}
        self._errors = 0

    def run(self, requests: list[bytes], due_after_seconds: list[float]) -> Outcome:
        """Send each request when it is due, and wait for the answers."""
        now = time.perf_counter
        cpu_at_start = time.process_time()
        start = now() + 0.01
        total, sent = len(requests), 0
        deadline = start + due_after_seconds[-1] + ANSWER_SECONDS_MAX
        tick = start
        while len(self._latencies) + self._errors < total:
            elapsed = now() - start
            while sent < total and self._idle and due_after_seconds[sent] <= elapsed:
                self._send(self._idle.popleft(), requests[sent], start + due_after_seconds[sent], now())
                sent += 1
            for descriptor, _ in self._epoll.poll(0):
                self._receive(self._by_descriptor[descriptor], now)
            tick += TICK_SECONDS
            left_seconds = tick - now()
            if left_seconds > 0:
                time.sleep(left_seconds)
            else:
                tick -= left_seconds  # what is lost is lost: no flurry of ticks to catch up
            if now() > deadline or not self._by_descriptor:
                break
        return Outcome(
            latencies=self._latencies,
            lateness=self._lateness,
            statuses=self._statuses,
            unanswered=total - len(self._latencies) - self._errors,
            errors=self._errors,
            seconds=now() - start,
            cpu_seconds=time.process_time() - cpu_at_start,
        )

    def close(self) -> None:
        """Close the connections."""
        for connection in self._by_descriptor.values():
            connection.socket.close()
        self._epoll.close()

    def _send(self, connection: _Connection, request: bytes, due: float, now: float) -> None:
        connection.due = due
        self._lateness.append(now - due)
        try:
            if connection.socket.send(request) != len(request):
                raise BlockingIOError  # an idle connection whose buffer is full has a server that does not read
        except OSError:
            self._drop(connection)

    def _receive(self, connection: _Connection, now: Callable[[], float]) -> None:
        try:
            data = connection.socket.recv(ANSWER_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        received = connection.received + data if connection.received else data
        length = answer_length(received)
        if not length or len(received) < length:
            connection.received = received
            return
        self._latencies.append(now() - connection.due)
        status = int(received[9:12])
        self._statuses[status] = self._statuses.get(status, 0) + 1
        connection.received = b""
        self._idle.append(connection)

    def _drop(self, connection: _Connection) -> None:
        self._errors += 1
        self._epoll.unregister(connection.socket.fileno())
        del self._by_descriptor[connection.socket.fileno()]
        connection.socket.close()


def arrivals(rate: float, count: int, seed: int) -> list[float]:
    """When each of `count` requests is due, seconds from the start; all at once where the rate is 0."""
    if rate <= 0:
        return [0.0] * count
    draw = random.Random(seed)
    due, at = [], 0.0
    for _ in range(count):
        at += draw.expovariate(rate)
        due.append(at)
    return due


def percentile(ordered: list[float], share: float) -> float:
    """The value that `share` of the ordered ones do not exceed."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def summarize(outcome: Outcome, rate: float) -> dict[str, object]:
    """What is printed: seconds and counts."""
    latencies, lateness = sorted(outcome.latencies), sorted(outcome.lateness)
    if not latencies:
        raise SystemExit("open loop: there was no answer")
    return {
        "rate": rate,
        "achieved_rate": len(latencies) / outcome.seconds,
        "answers": len(latencies),
        "statuses": {str(status): count for status, count in sorted(outcome.statuses.items())},
        "unanswered": outcome.unanswered,
        "errors": outcome.errors,
        **{f"{name}_seconds": percentile(latencies, share) for name, share in PERCENTILES.items()},
        "max_seconds": latencies[-1],
        "late_p50_seconds": percentile(lateness, 0.5),
        "late_p99_seconds": percentile(lateness, 0.99),
        "late_max_seconds": lateness[-1],
        "cpu_seconds": outcome.cpu_seconds,
        "cpu_share": outcome.cpu_seconds / outcome.seconds,
    }


def main() -> None:
    """The command line; prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sale", required=True)
    parser.add_argument("--prefix", required=True, help="four characters, new for each run on a sale")
    parser.add_argument("--sku", default=SKU)
    parser.add_argument("--rate", type=float, required=True, help="requests a second; 0: as fast as connections allow")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--connections", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    key = sys.stdin.readline().strip()  # a key on the command line could be seen by everybody on the machine
    options = parser.parse_args()
    shop = Shop(options.host, options.port, key, options.sale)
    requests = order_requests(shop, options.prefix, options.count)
    due = arrivals(options.rate, options.count, options.seed)
    loop = OpenLoop(options.host, options.port, options.connections)
    gc.collect()
    gc.freeze()
    gc.disable()  # half a million requests in memory would be walked through again and again
    try:
        outcome = loop.run(requests, due)
    finally:
        loop.close()
    print(json.dumps(summarize(outcome, options.rate)))


if __name__ == "__main__":
    main()
