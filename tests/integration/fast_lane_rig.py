"""Two servers over one interface, the fast lane's and aiohttp's alone, and what it takes to compare their answers."""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import orjson
import uvloop

from engine.domain.identifiers import order_digest
from engine.gateway.application import HOLD_ROUTE, gateway_interface, hot_handlers
from engine.partition.batcher import BatchBounds
from engine.partition.partitions import Partitions
from engine.web.fast_lane import HotHandler, LaneBounds
from engine.web.key_store import Principal
from engine.web.server import Server, Service
from tests.conftest import CALL_SETTINGS
from tests.lua.shop import Shop, sku

PRINCIPALS = {f"{role}-key": Principal(role, "test") for role in ("checkout", "ops", "erp")}
ANSWER_SECONDS_MAX = 10.0


def on_uvloop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test on the loop that the engine serves on, whose transports are not asyncio's.

    Its parameter `partitions` is the door to an empty Redis, made on that loop; the others are pytest's.
    """

    def run(redis_server: str, **arguments: Any) -> None:
        async def main() -> None:
            async with Partitions(redis_server, CALL_SETTINGS, BatchBounds()) as partitions:
                await partitions.connections.execute("FLUSHALL")
                await partitions.guarding.vouch_for(await partitions.guarding.server_run())
                await test(partitions=partitions, **arguments)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    signature = inspect.signature(test)
    asked = [parameter for name, parameter in signature.parameters.items() if name != "partitions"]
    server = inspect.Parameter("redis_server", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wraps(test, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=())(run)
    del run.__wrapped__  # type: ignore[attr-defined]  # pytest would look at what is wrapped
    run.__signature__ = signature.replace(parameters=[server, *asked], return_annotation=None)  # type: ignore[attr-defined]
    return run


class Seen(NamedTuple):
    """One answer, without what differs between any two."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    version: str


@dataclass
class Running:
    """One server in this process."""

    port: int
    service: Service
    server: Server
    sale_id: str

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection of one's own."""
        return await asyncio.open_connection("127.0.0.1", self.port)

    def named(self, sent: bytes) -> bytes:
        """The bytes with this sale's name and its orders' digests in place of the marks, which are as long."""
        sale_id = self.sale_id
        sent = _DIGEST_MARK.sub(lambda mark: order_digest(sale_id, "douyin", "u-1", mark[1].decode()).encode(), sent)
        return sent.replace(b"live-@", sale_id.encode())

    async def exchange(self, *pieces: bytes, half_close: bool = False, pause_seconds: float = 0.0) -> bytes:
        """Send bytes piece by piece, in the name of this server's sale, and read until the other side closes."""
        loop = asyncio.get_running_loop()
        transport, caller = await loop.create_connection(Caller, "127.0.0.1", self.port)
        left = self.named(b"".join(pieces))
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            for piece in pieces:
                if transport.is_closing():  # it has said its last word before all was sent
                    break
                transport.write(left[: len(piece)])
                left = left[len(piece) :]
                await asyncio.sleep(pause_seconds)
            if half_close and not transport.is_closing():
                transport.write_eof()
            await caller.closed.wait()
        transport.close()
        return bytes(caller.received).replace(self.sale_id.encode(), b"live-@")


class Caller(asyncio.Protocol):
    """Keeps what it is sent, even if the connection is reset after that."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.closed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> None:
        self.closed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()


@asynccontextmanager
async def running(
    partitions: Partitions,
    sale_id: str,
    *,
    hot: Callable[[Partitions], Mapping[str, HotHandler]] | None,
    bounds: LaneBounds | None = None,
    draining: asyncio.Event | None = None,
) -> AsyncIterator[Running]:
    """A gateway's interface, served with the lane (`hot` makes its handlers) or without."""
    draining = draining or asyncio.Event()
    interface = gateway_interface(partitions, PRINCIPALS.get, draining.is_set)
    handlers = hot(partitions) if hot is not None else None
    service = Service(interface, draining, bounds.body_seconds_max if bounds else 10.0, handlers, bounds)
    server = service.make_server()
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield Running(listener.sockets[0].getsockname()[1], service, server, sale_id)
    finally:
        listener.close()
        server.pre_shutdown()
        await server.shutdown(0.1)


def of_holds(handler: HotHandler) -> Callable[[Partitions], Mapping[str, HotHandler]]:
    """A lane with one hot route: holds are this handler's."""
    return lambda _: {HOLD_ROUTE: handler}


async def open_sale(partitions: Partitions, sale_id: str) -> None:
    """A sale in which there is plenty of TEE, and none of GONE."""
    await Shop(partitions, sale_id).open(sku("TEE", 1_000_000), sku("GONE", 0), sku("LIMITED", 1000, buyer_limit=1))


async def orders_of(server: Running, buyer: str) -> int:
    """How many orders this buyer has made."""
    target = ORDERS + b"?channel=douyin&buyer_id=" + buyer.encode()
    received = await server.exchange(
        request(b"GET " + target + b" HTTP/1.1", [HOST, AUTHORIZATION, b"Connection: close"])
    )
    (seen,) = answers_in(received)
    assert seen.status == 200, seen
    return len(orjson.loads(seen.body)["orders"])


@asynccontextmanager
async def both_servers(
    partitions: Partitions, bounds: LaneBounds | None = None
) -> AsyncIterator[tuple[Running, Running]]:
    """The lane, and aiohttp alone, each with a sale of its own."""
    for sale_id in ("live-a", "live-b"):
        await open_sale(partitions, sale_id)
    async with (
        running(partitions, "live-a", hot=hot_handlers, bounds=bounds) as lane,
        running(partitions, "live-b", hot=None, bounds=bounds) as main,
    ):
        yield lane, main


async def ask_both(
    both: tuple[Running, Running], *pieces: bytes, half_close: bool, to_head: bool = False, pause_seconds: float = 0.0
) -> list[Seen]:
    """The answers of both servers to these bytes, after they were found to be the same."""
    lane, main = both
    by_lane = await lane.exchange(*pieces, half_close=half_close, pause_seconds=pause_seconds)
    by_main = await main.exchange(*pieces, half_close=half_close, pause_seconds=pause_seconds)
    seen, seen_by_main = answers_in(by_lane, to_head=to_head), answers_in(by_main, to_head=to_head)
    if len(seen) > len(seen_by_main) and seen_by_main[-1] == seen[-1] and seen[-1].version == "HTTP/1.0":
        # aiohttp forgets the requests that it has read, unanswered, if they came in one piece with bytes that it cannot
        # read. Nothing was done for them; in drops they are read before those bytes are there.
        sent = b"".join(pieces)
        drops = [sent[position : position + 1] for position in range(len(sent))]
        by_main = await main.exchange(*drops, half_close=half_close, pause_seconds=0.0005)
        seen_by_main = answers_in(by_main, to_head=to_head)
    assert seen == seen_by_main, (b"".join(pieces), by_lane, by_main)
    return seen


# --- requests ------------------------------------------------------------------------------------------------------

AUTHORIZATION = b"Authorization: Bearer checkout-key"
HOST = b"Host: x"
TYPE = b"Content-Type: application/json"
ORDERS = b"/v1/sales/live-@/orders"
KEY_LENGTH = 14
_DIGEST_MARK = re.compile(rb"digest-of_([a-z0-9-]{%d})" % KEY_LENGTH)


def body_of(buyer: str = "u-1", name: str = "TEE", more: str = "") -> bytes:
    """The body of a hold."""
    return b'{"buyer_id":"%b","channel":"douyin","lines":[{"sku":"%b","quantity":1}]%b}' % (
        buyer.encode(),
        name.encode(),
        more.encode(),
    )


def hold(key: str, body: bytes | None = None, *more: bytes) -> bytes:
    """A plain hold; `more` are header lines."""
    body = body_of() if body is None else body
    lines = (HOST, AUTHORIZATION, TYPE, b"Idempotency-Key: " + key.encode(), b"Content-Length: %d" % len(body), *more)
    return request(b"POST " + ORDERS + b" HTTP/1.1", lines, body)


def order_of(key: str) -> bytes:
    """A mark for the id of the order that `u-1` makes with this key, of 14 characters."""
    assert len(key) == KEY_LENGTH
    return b"digest-of_%b.live-@" % key.encode()


def settle_body(amount_minor: int = 1990, payment_id: str = "pay-1", more: str = "") -> bytes:
    """The body of a settlement."""
    text = f'{{"payment_id":"{payment_id}","amount_minor":{amount_minor},"currency":"CNY"{more}}}'
    return text.encode("utf-8", "surrogatepass")


def settle(order: bytes, body: bytes | None = None, *more: bytes) -> bytes:
    """A plain settlement; `more` are header lines."""
    body = settle_body() if body is None else body
    lines = (HOST, AUTHORIZATION, TYPE, b"Content-Length: %d" % len(body), *more)
    return request(b"POST /v1/orders/" + order + b"/settle HTTP/1.1", lines, body)


def request(first_line: bytes, lines: tuple[bytes, ...] | list[bytes], body: bytes = b"") -> bytes:
    """Bytes of a request as they are given."""
    return b"\r\n".join([first_line, *lines, b"", b""]) + body


# --- answers -------------------------------------------------------------------------------------------------------

_VARYING = re.compile(rb'"(order_id|held_until|as_of)":"[^"]*"')
_MADE_ID = re.compile(r"(?!a{16})[A-Za-z0-9_-]{16}(\.[0-9a-f]+)?\Z")
_DATE = re.compile(r"[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT\Z")


def answers_in(received: bytes, *, to_head: bool = False) -> list[Seen]:
    """The answers, in their order, less what differs between any two servers. All bytes must be parts of answers."""
    found: list[Seen] = []
    while received:
        head, separator, rest = received.partition(b"\r\n\r\n")
        assert separator, received
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version.startswith("HTTP/"), first
        headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
        length = 0 if to_head or status == "100" else int(dict(headers)["content-length"])
        assert len(rest) >= length, received
        if not found and to_head:
            to_head = False
        found.append(
            Seen(
                int(status),
                tuple(sorted(map(_steady, headers))),
                _VARYING.sub(rb'"\1":"varies"', rest[:length]),
                version,
            )
        )
        received = rest[length:]
    return found


def _steady(header: tuple[str, str]) -> tuple[str, str]:
    name, value = header
    if name == "date":
        assert _DATE.match(value), value
        return name, "…"
    if name == "x-request-id" and _MADE_ID.match(value):
        return name, "made"
    return header
