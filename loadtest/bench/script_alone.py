"""The partition's script without HTTP: prepared batches on raw connections, above which the engine can never be.

Also one order a call, from one connection and from 50: what `redis-benchmark` would measure of the same script, if it
could make arguments with bytes of 0 in them, or different ones for each call. No pipelining; the connections take turns
in one loop of this process, which only sends bytes that were made before.
"""

import asyncio
import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from engine.domain.commands import Command, Define, DefineSku, Hold, Open
from engine.domain.identifiers import OrderId
from engine.domain.orders import HoldRequest, RequestedLine
from engine.domain.outcomes import Outcome
from engine.partition.batcher import BatchBounds
from engine.partition.call import CallSettings
from engine.partition.codec import CALL_FORMAT, Header, encode_commands, encode_header
from engine.partition.keyspace import partition_keys
from engine.partition.partitions import Partitions
from engine.partition.scripts import load_script
from loadtest.bench.child_processes import BenchFailed
from loadtest.bench.cpu_time import process_seconds
from loadtest.bench.engine_under_test import PLENTY
from loadtest.bench.station import Bench
from loadtest.bench.stores import Store, running_redis
from loadtest.load.requests import CHANNEL, CURRENCY, PRICE_MINOR, SKU, buyer_of, key_of

BATCHES = (256, 64, 1)
MANY_CONNECTIONS = 50
FAR_AHEAD_MS = 10**15
HOUR_MS = 3_600_000
ANSWER_SECONDS_MAX = 30.0
RECEIVE_BYTES = 1 << 20

_decode = msgspec.msgpack.Decoder().decode


def make_holds(sale_id: str, prefix: str, first: int, count: int) -> list[Hold]:
    """Holds as a gateway would make them of `count` buyers' requests."""
    body = HoldRequest(buyer_id="", channel=CHANNEL, lines=[RequestedLine(SKU, 1)], expected_amount_minor=PRICE_MINOR)
    lines = body.numbered_lines()
    holds: list[Hold] = []
    for number in range(first, first + count):
        buyer_id = buyer_of(prefix, number)
        order_id = OrderId.of(sale_id, CHANNEL, buyer_id, key_of(buyer_id))
        holds.append(Hold(order_id.digest, CHANNEL, buyer_id, "", 0, 0, PRICE_MINOR, lines))
    return holds


def encode_call(words: Sequence[bytes]) -> bytes:
    """A command as Redis reads it."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class RawRedis:
    """A connection that sends what it is given and finds the end of each answer. Raises BenchFailed on an error."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection((str(parts.hostname), parts.port or 6379), timeout=ANSWER_SECONDS_MAX)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray()
        if parts.password:
            self.send(encode_call((b"AUTH", parts.password.encode())))
            self.receive()

    def fileno(self) -> int:
        """For poll."""
        return self._socket.fileno()

    def send(self, call: bytes) -> None:
        """Send it whole."""
        self._socket.sendall(call)

    def receive(self) -> bytes:
        """The next answer: a string's bytes, or the line of any other kind."""
        while True:
            line_end = self._buffer.find(b"\r\n")
            if line_end >= 0:
                kind, rest = self._buffer[0], bytes(self._buffer[1:line_end])
                if kind == ord("-"):
                    raise BenchFailed(f"Redis answered {rest.decode(errors='replace')}")
                if kind != ord("$"):
                    del self._buffer[: line_end + 2]
                    return rest
                end = line_end + 2 + int(rest)
                if len(self._buffer) >= end + 2:
                    found = bytes(self._buffer[line_end + 2 : end])
                    del self._buffer[: end + 2]
                    return found
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise BenchFailed("Redis closed the connection")
            self._buffer += data

    def ask(self, *words: bytes) -> bytes:
        """One command and its answer."""
        self.send(encode_call(words))
        return self.receive()

    def close(self) -> None:
        """Close it."""
        self._socket.close()


class ScriptCalls:
    """Makes calls of the partition's script for one sale, under the epoch that is in force."""

    def __init__(self, sale_id: str, redis: RawRedis) -> None:
        self._keys = [key.encode() for key in partition_keys(sale_id)]
        self._script = load_script("partition")
        self._epoch = 0
        redis.ask(b"SCRIPT", b"LOAD", self._script.text.encode())
        redis.send(self.call([Open()]))
        self._epoch = int(_decode(redis.receive())[2])

    def call(self, commands: Sequence[Command]) -> bytes:
        """One EVALSHA of a batch."""
        header = Header(
            format=CALL_FORMAT,
            epoch=self._epoch,
            not_after_ms=FAR_AHEAD_MS,
            backlog_max_entries=PLENTY,
            retention_ms=72 * HOUR_MS,
            run="",
        )
        count = str(len(self._keys)).encode()
        words = (b"EVALSHA", self._script.digest.encode(), count, *self._keys, encode_header(header))
        return encode_call((*words, encode_commands(list(commands))))


def require_outcomes(answers: Sequence[bytes], outcome: Outcome) -> None:
    """Every batch was looked at, and every command in it had this outcome. Raises BenchFailed."""
    for answer in answers:
        decoded = _decode(answer)
        if decoded[0] != Outcome.DONE:
            raise BenchFailed(f"the script turned a batch away: {decoded[:5]}")
        wrong = [reply[0] for reply in decoded[5] if reply[0] != outcome]
        if wrong:
            raise BenchFailed(f"the script answered {sorted(set(wrong))} where {outcome!r} must be")


@dataclass(frozen=True)
class Timing:
    """How long calls took."""

    seconds: float
    redis_cpu_seconds: float


def time_calls(
    redis_pid: int, connection: RawRedis, calls: Sequence[bytes], in_flight: int, outcome: Outcome
) -> Timing:
    """Send all calls on one connection, at most so many without an answer; answers are read after the clock stops."""
    answers = []
    cpu_before, started_at = process_seconds(redis_pid), time.perf_counter()
    for call in calls[:in_flight]:
        connection.send(call)
    for call in calls[in_flight:]:
        answers.append(connection.receive())
        connection.send(call)
    answers += [connection.receive() for _ in calls[:in_flight]]
    seconds, cpu_seconds = time.perf_counter() - started_at, process_seconds(redis_pid) - cpu_before
    require_outcomes(answers, outcome)
    return Timing(seconds, cpu_seconds)


def time_calls_on_many(redis: Store, calls: Sequence[bytes], connections: int, outcome: Outcome) -> float:
    """Send all calls, one at a time on each of many connections; the seconds it took."""
    opened = [RawRedis(redis.url) for _ in range(connections)]
    by_descriptor = {connection.fileno(): connection for connection in opened}
    poll = select.epoll()
    for descriptor in by_descriptor:
        poll.register(descriptor, select.EPOLLIN)
    answers: list[bytes] = []
    try:
        waiting = iter(calls)
        started_at = time.perf_counter()
        for connection, call in zip(opened, waiting, strict=False):
            connection.send(call)
        while len(answers) < len(calls):
            for descriptor, _ in poll.poll(ANSWER_SECONDS_MAX):
                answers.append(by_descriptor[descriptor].receive())
                if (call_next := next(waiting, None)) is not None:
                    by_descriptor[descriptor].send(call_next)
        seconds = time.perf_counter() - started_at
    finally:
        poll.close()
        for connection in opened:
            connection.close()
    require_outcomes(answers, outcome)
    return seconds


def make_sale(redis_url: str, sale_id: str, units: int) -> None:
    """Make and open a sale of SKU in a Redis that no engine looks after."""
    sku = DefineSku(SKU, "TEE", PRICE_MINOR, 2, units, 0, [])
    define = Define(
        command_id=f"make-{sale_id}",
        if_match=0,
        definition="{}",
        currency=CURRENCY,
        hold_ms=24 * HOUR_MS,
        buyer_limit=0,
        style_limits={},
        opens_at_ms=0,
        closes_at_ms=0,
        skus=[sku],
    )

    async def make() -> None:
        calls = CallSettings(5.0, 20.0, PLENTY, 72 * HOUR_MS)
        async with Partitions(redis_url, calls, BatchBounds()) as partitions:
            await partitions.guarding.vouch_for(await partitions.guarding.server_run())
            await partitions.register(sale_id)
            replies = await partitions.submit(sale_id, define, Open())
            if [reply.outcome for reply in replies] != [Outcome.DONE, Outcome.DONE]:
                raise BenchFailed(f"the sale {sale_id} could not be made: {replies}")

    asyncio.run(make())


class ScriptStation:
    """The script in batches, and one order a call."""

    name = "script"

    def visit(self, bench: Bench) -> None:
        """One round on a fresh Redis with `appendfsync always`. Raises BenchFailed."""
        with bench.directory(self.name) as directory, running_redis(directory) as redis:
            for batch in BATCHES:
                orders = bench.effort.script_orders if batch > 1 else bench.effort.script_orders // 10
                for units, name, outcome in ((PLENTY, "accepted", Outcome.DONE), (0, "sold_out", Outcome.SOLD_OUT)):
                    for in_flight in (1, 2):
                        bench.say(f"script: {name}, batches of {batch}, {in_flight} in flight")
                        timing, count = self._batches(
                            bench, redis, units=units, batch=batch, in_flight=in_flight, orders=orders, outcome=outcome
                        )
                        measure = f"script.{name}_b{batch}_f{in_flight}"
                        bench.results.add(f"{measure}.rate", count / timing.seconds, "/s")
                        cpu_of_one = timing.redis_cpu_seconds / count * 1e6
                        bench.results.add(f"{measure}.redis_cpu_of_an_order", cpu_of_one, "µs")
            self._many_connections(bench, redis)

    def _batches(
        self, bench: Bench, redis: Store, *, units: int, batch: int, in_flight: int, orders: int, outcome: Outcome
    ) -> tuple[Timing, int]:
        sale_id = bench.sale_id("script")
        make_sale(redis.url, sale_id, units)
        connection = RawRedis(redis.url)
        try:
            calls = ScriptCalls(sale_id, connection)
            warm = make_holds(sale_id, f"{bench.prefix()}w", 1, 4 * batch)
            holds = make_holds(sale_id, f"{bench.prefix()}h", 1, orders // batch * batch)
            time_calls(redis.pid, connection, _in_batches(calls, warm, batch), in_flight, outcome)
            return time_calls(redis.pid, connection, _in_batches(calls, holds, batch), in_flight, outcome), len(holds)
        finally:
            connection.close()

    def _many_connections(self, bench: Bench, redis: Store) -> None:
        bench.say(f"script: one order a call, {MANY_CONNECTIONS} connections")
        sale_id = bench.sale_id("calls")
        make_sale(redis.url, sale_id, PLENTY)
        connection = RawRedis(redis.url)
        calls = ScriptCalls(sale_id, connection)
        connection.close()
        holds = make_holds(sale_id, f"{bench.prefix()}h", 1, bench.effort.script_orders // 5)
        seconds = time_calls_on_many(redis, _in_batches(calls, holds, 1), MANY_CONNECTIONS, Outcome.DONE)
        bench.results.add(f"script.one_order_a_call_c{MANY_CONNECTIONS}.rate", len(holds) / seconds, "/s")


def _in_batches(calls: ScriptCalls, commands: Sequence[Command], size: int) -> list[bytes]:
    return [calls.call(commands[at : at + size]) for at in range(0, len(commands), size)]
