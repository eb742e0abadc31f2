"""What every baseline shares, so that they differ only in how they decide and store: the checkout's HTTP.

The same request and the same answer bodies as the engine's `POST /v1/sales/{sale_id}/orders`: auth by key, a typed
body, idempotency, a buyer limit, a price check, refusals as problem documents. aiohttp on uvloop, one process, no
access log; msgspec decodes and validates, orjson writes. `/count` tells how many orders are on
record, for the benchmark.
"""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from hashlib import blake2b, sha256
from hmac import compare_digest
from typing import Annotated, NamedTuple, Protocol

import msgspec
import orjson
import uvloop
from aiohttp import web
from msgspec import Meta, Struct

HOLD_MS = 15 * 60 * 1000
CURRENCY = "CNY"
KEY_LENGTH_MAX = 255
Name = Annotated[str, Meta(min_length=1, max_length=128)]
Channel = Annotated[str, Meta(pattern="^[a-z][a-z0-9_]{0,31}$")]

STATUS = {
    "MALFORMED": 400,
    "IDEMPOTENCY_KEY_REQUIRED": 400,
    "UNAUTHORIZED": 401,
    "SKU_NOT_FOUND": 404,
    "SOLD_OUT": 409,
    "BUYER_LIMIT_REACHED": 409,
    "PRICE_CHANGED": 409,
    "INVALID": 422,
    "IDEMPOTENCY_KEY_REUSED": 422,
    "OUTCOME_UNKNOWN": 503,
}


class Line(Struct, frozen=True):
    """One line of a cart."""

    sku: Name
    quantity: Annotated[int, Meta(ge=1, le=9999)]
    line_id: Name | None = None


class OrderRequest(Struct, frozen=True):
    """The body."""

    buyer_id: Name
    channel: Channel
    lines: Annotated[list[Line], Meta(min_length=1, max_length=200)]
    discount_minor: Annotated[int, Meta(ge=0, le=10**12)] = 0
    freight_minor: Annotated[int, Meta(ge=0, le=10**12)] = 0
    expected_amount_minor: Annotated[int, Meta(ge=0, le=10**13)] | None = None
    reference: Name | None = None


class Order(NamedTuple):
    """A request that is in order, as a store gets it."""

    order_id: str
    """Made of sale, buyer and idempotency key: a repeat has the same."""
    body_digest: str
    request: OrderRequest
    buyer: str
    """channel:buyer_id"""
    now_ms: int


class Held(NamedTuple):
    """What was decided, now or before."""

    unit_prices_minor: list[int]
    held_until_ms: int
    sequence: int
    is_repeat: bool = False


class Refused(NamedTuple):
    """Why not, with the members that the problem document carries."""

    code: str
    members: dict[str, object] = {}  # noqa: RUF012 - never changed


class SkuOnSale(NamedTuple):
    """What the sale starts with."""

    sku: str
    units: int
    price_minor: int
    buyer_limit: int


class Store(Protocol):
    """How a baseline decides and stores."""

    async def hold(self, order: Order) -> Held | Refused:
        """Set the units aside for the buyer, at most once for each order id."""
        ...

    async def count_orders(self) -> int:
        """Orders on record, of which a ledger could be written."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


def amount_of(request: OrderRequest, unit_prices_minor: list[int]) -> int:
    """What an order costs in all."""
    lines = sum(price * line.quantity for price, line in zip(unit_prices_minor, request.lines, strict=True))
    return lines - request.discount_minor + request.freight_minor


class Checkout:
    """The one route."""

    def __init__(self, store: Store, checkout_key: str) -> None:
        self._store = store
        self._key_digest = sha256(checkout_key.encode()).digest()
        self._decoder = msgspec.json.Decoder(OrderRequest)

    async def order(self, http: web.Request) -> web.Response:
        """`POST /v1/sales/{sale_id}/orders`."""
        authorization = http.headers.get("Authorization", "")
        digest = sha256(authorization.removeprefix("Bearer ").encode()).digest()
        if not compare_digest(digest, self._key_digest):
            return problem(Refused("UNAUTHORIZED"))
        key = http.headers.get("Idempotency-Key", "")
        if not 1 <= len(key) <= KEY_LENGTH_MAX:
            return problem(Refused("IDEMPOTENCY_KEY_REQUIRED"))
        body = await http.read()
        try:
            request = self._decoder.decode(body)
        except msgspec.ValidationError as error:
            return problem(Refused("INVALID", {"errors": [str(error)]}))
        except msgspec.DecodeError:
            return problem(Refused("MALFORMED"))
        sale_id = http.match_info["sale_id"]
        identity = msgspec.msgpack.encode((sale_id, request.channel, request.buyer_id, key))
        order = Order(
            order_id=blake2b(identity, digest_size=12).hexdigest(),
            body_digest=blake2b(msgspec.msgpack.encode(request), digest_size=12).hexdigest(),
            request=request,
            buyer=f"{request.channel}:{request.buyer_id}",
            now_ms=time.time_ns() // 1_000_000,
        )
        decided = await self._store.hold(order)
        if isinstance(decided, Refused):
            return problem(decided)
        return web.Response(
            body=orjson.dumps(order_document(sale_id, order, decided)),
            status=200 if decided.is_repeat else 201,
            headers={"Idempotent-Replayed": "true"} if decided.is_repeat else None,
            content_type="application/json",
        )

    async def count(self, _: web.Request) -> web.Response:
        """`GET /count`."""
        return web.Response(text=str(await self._store.count_orders()))


def order_document(sale_id: str, order: Order, held: Held) -> dict[str, object]:
    """The answer's body; paid amounts without discounts, which the benchmark's carts have none of."""
    request = order.request
    return {
        "order_id": f"{order.order_id}.{sale_id}",
        "sale_id": sale_id,
        "buyer_id": request.buyer_id,
        "channel": request.channel,
        "reference": request.reference,
        "status": "held",
        "lines": [
            {
                "line_id": line.line_id or str(position),
                "sku": line.sku,
                "quantity": line.quantity,
                "unit_price_minor": price,
                "paid_minor": price * line.quantity,
            }
            for position, (line, price) in enumerate(zip(request.lines, held.unit_prices_minor, strict=True), 1)
        ],
        "discount_minor": request.discount_minor,
        "freight_minor": request.freight_minor,
        "amount_minor": amount_of(request, held.unit_prices_minor),
        "currency": CURRENCY,
        "held_until": datetime.fromtimestamp(held.held_until_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "sequence": held.sequence,
    }


def problem(refused: Refused) -> web.Response:
    """A refusal as RFC 9457 has it."""
    status = STATUS[refused.code]
    title = refused.code.replace("_", " ").capitalize()
    document = {"type": f"urn:problem:{refused.code}", "title": title, "status": status, "detail": title}
    return web.Response(
        body=orjson.dumps({**document, "code": refused.code, **refused.members}),
        status=status,
        content_type="application/problem+json",
    )


class Options(NamedTuple):
    """What a baseline is started with."""

    port: int
    sku: SkuOnSale
    redis_url: str
    database_url: str
    checkout_key: str
    role: str


def read_options(description: str) -> Options:
    """From the command line; what is secret comes as lines on standard input: the key, then the stores' URLs."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sku", default="TEE-BLK-M")
    parser.add_argument("--units", type=int, required=True)
    parser.add_argument("--price", type=int, default=1990)
    parser.add_argument("--buyer-limit", type=int, default=2)
    parser.add_argument("--role", default="serve", help="for baselines of several processes")
    options = parser.parse_args()
    key, redis_url, database_url = (sys.stdin.readline().strip() for _ in range(3))
    sku = SkuOnSale(options.sku, options.units, options.price, options.buyer_limit)
    return Options(options.port, sku, redis_url, database_url, key, options.role)


async def _serve(options: Options, open_store: Callable[[Options], Awaitable[Store]]) -> None:
    store = await open_store(options)
    checkout = Checkout(store, options.checkout_key)
    application = web.Application()
    application.router.add_post("/v1/sales/{sale_id}/orders", checkout.order)
    application.router.add_get("/count", checkout.count)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", options.port, backlog=4096).start()
    try:
        await stopped()
    finally:
        await runner.cleanup()
        await store.close()


async def stopped() -> None:
    """Wait for SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


def run(options: Options, open_store: Callable[[Options], Awaitable[Store]]) -> None:
    """A baseline's main."""
    uvloop.run(_serve(options, open_store))
