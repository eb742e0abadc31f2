"""aiohttp and Redis' optimistic transactions: WATCH, read, decide, MULTI … EXEC; again if somebody was faster.

Laid out for it: what is read is read by one MGET, so that a try is three round trips; and a process makes one try at a
time, because everyone who tries beside another on one SKU makes the other try again. Nothing is oversold (EXEC fails
where a watched key has changed), nothing accepted is lost with `appendfsync always`. Several processes would be in each
other's way again: that is the design, whatever the client.
"""

import asyncio
from typing import Any

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import WatchError

from loadtest.baselines.checkout import HOLD_MS, Held, Options, Order, Refused, Store, amount_of, read_options, run

TRIES_AT_ONCE_MAX = 1
"""For one process and one SKU two at once are already slower than one after the other."""
CONNECTIONS_MAX = TRIES_AT_ONCE_MAX + 1
TRIES_MAX = 1_000


class WatchStore(Store):
    """Orders in Redis, decided here."""

    def __init__(self, redis: "Redis", on_sale: Options) -> None:
        self._redis = redis
        self._price = {on_sale.sku.sku: on_sale.sku.price_minor}  # read at the start, as a cached price list is
        self._limit = {on_sale.sku.sku: on_sale.sku.buyer_limit}
        self._turns = asyncio.Semaphore(TRIES_AT_ONCE_MAX)

    async def hold(self, order: Order) -> Held | Refused:
        """Try until nobody was faster."""
        for line in order.request.lines:
            if line.sku not in self._price:
                return Refused("SKU_NOT_FOUND", {"sku": line.sku})
        async with self._turns, self._redis.pipeline(transaction=True) as pipeline:
            for _ in range(TRIES_MAX):
                try:
                    return await self._try(pipeline, order)
                except WatchError:
                    await pipeline.reset()  # type: ignore[no-untyped-call]
        return Refused("OUTCOME_UNKNOWN")

    async def _try(self, pipeline: Any, order: Order) -> Held | Refused:
        request = order.request
        prices = [self._price[line.sku] for line in request.lines]
        wanted: dict[str, int] = {}
        for line in request.lines:
            wanted[line.sku] = wanted.get(line.sku, 0) + line.quantity
        order_key, bought_key = f"order:{order.order_id}", f"bought:{order.buyer}"
        keys = [order_key, bought_key, "sequence", *(f"stock:{sku}" for sku in wanted)]
        await pipeline.watch(*keys)
        before, bought_packed, sequence, *stocks = await pipeline.mget(*keys)
        if before is not None:
            return repeat_of(order, before)
        amount = amount_of(request, prices)
        if request.expected_amount_minor is not None and request.expected_amount_minor != amount:
            return Refused("PRICE_CHANGED", {"amount_minor": amount})
        bought: dict[str, int] = msgspec.json.decode(bought_packed) if bought_packed else {}
        for (sku, quantity), stock in zip(wanted.items(), stocks, strict=True):
            if int(stock) < quantity:
                return Refused("SOLD_OUT", {"sku": sku, "available": int(stock)})
            units, limit = bought.get(sku, 0), self._limit[sku]
            if limit and units + quantity > limit:
                return Refused("BUYER_LIMIT_REACHED", {"scope": "sku", "limit": limit, "bought": units})
            bought[sku] = units + quantity
        held = Held(prices, order.now_ms + HOLD_MS, int(sequence or 0) + 1)
        record = msgspec.msgpack.encode((order.body_digest, order.buyer, held, amount, order.now_ms, request))
        pipeline.multi()
        pipeline.mset({order_key: record, bought_key: msgspec.json.encode(bought), "sequence": held.sequence})
        for sku, quantity in wanted.items():
            pipeline.decrby(f"stock:{sku}", quantity)
        pipeline.zadd("due", {order.order_id: held.held_until_ms})
        pipeline.xadd("journal", {"held": order.order_id, "order": record}, id=f"{held.sequence}-0")
        await pipeline.execute()
        return held

    async def count_orders(self) -> int:
        """Entries of the journal."""
        return int(await self._redis.xlen("journal"))

    async def close(self) -> None:
        """Close the pool."""
        await self._redis.aclose()


def repeat_of(order: Order, packed: bytes) -> Held | Refused:
    """The order that this key has made before."""
    body_digest, _, (prices, held_until_ms, sequence, _), *_ = msgspec.msgpack.decode(packed)
    if body_digest != order.body_digest:
        return Refused("IDEMPOTENCY_KEY_REUSED")
    return Held(prices, held_until_ms, sequence, True)


async def open_store(options: Options) -> Store:
    """Connect, and put the stock there if it is not there yet."""
    pool = BlockingConnectionPool.from_url(options.redis_url, max_connections=CONNECTIONS_MAX, timeout=None)
    redis: Redis = Redis(connection_pool=pool)
    await redis.set(f"stock:{options.sku.sku}", options.sku.units, nx=True)
    return WatchStore(redis, options)


if __name__ == "__main__":
    run(read_options(__doc__ or ""), open_store)
