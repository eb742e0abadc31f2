"""aiohttp, Redis DECR, then a queue: the design of most public flash-sale projects.

The stock is a counter. A request takes its key (SET NX), counts for the buyer's limit and decrements, all in one
pipeline; below zero it puts everything back. Then it pushes the order onto a list and answers; a consumer in another
process (`--role consume`) pops orders, many at a time, and writes them to PostgreSQL.

It is fast, and it is wrong in ways that no setting mends, because its steps are not one:
- the process dies between the decrement and the push: the units are gone, nobody has them, and the key stays taken;
- the consumer dies between its pop and its commit: an order that was accepted is nowhere;
- below zero and not yet put back, a last unit that comes back meanwhile is refused to whoever asks for it.
`python -m loadtest.baselines.demonstrations` shows the first two.
"""

import asyncio
from typing import Any

import asyncpg
import msgspec
import uvloop
from redis.asyncio import ConnectionPool, Redis

from loadtest.baselines.checkout import (
    HOLD_MS,
    Held,
    Options,
    Order,
    Refused,
    Store,
    amount_of,
    read_options,
    run,
    stopped,
)

CONNECTIONS_MAX = 4096
CONSUMED_AT_ONCE_MAX = 500
IDLE_SECONDS = 0.01
TAKEN = b"taken"
"""Of a key whose order has not been pushed yet, or never will be."""

ORDERS = """
CREATE TABLE IF NOT EXISTS orders (
    order_id text PRIMARY KEY, sequence bigint NOT NULL, body_digest text NOT NULL, buyer text NOT NULL,
    lines jsonb NOT NULL, amount_minor bigint NOT NULL, created_ms bigint NOT NULL, held_until_ms bigint NOT NULL
);
"""


class DecrStore(Store):
    """Counters and a list in Redis; rows in PostgreSQL, later."""

    def __init__(self, redis: "Redis", pool: Any, on_sale: Options) -> None:
        self._redis = redis
        self._pool = pool
        self._price = {on_sale.sku.sku: on_sale.sku.price_minor}
        self._limit = {on_sale.sku.sku: on_sale.sku.buyer_limit}

    async def hold(self, order: Order) -> Held | Refused:
        """Take, and put back what was too much; then push."""
        request = order.request
        for line in request.lines:
            if line.sku not in self._price:
                return Refused("SKU_NOT_FOUND", {"sku": line.sku})
        prices = [self._price[line.sku] for line in request.lines]
        amount = amount_of(request, prices)
        if request.expected_amount_minor is not None and request.expected_amount_minor != amount:
            return Refused("PRICE_CHANGED", {"amount_minor": amount})
        order_key = f"order:{order.order_id}"
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.set(order_key, TAKEN, nx=True)
            for line in request.lines:
                pipeline.hincrby(f"bought:{order.buyer}", line.sku, line.quantity)
                pipeline.decrby(f"stock:{line.sku}", line.quantity)
            pipeline.incr("sequence")
            is_first, *counts, sequence = await pipeline.execute()
        if not is_first:
            await self._put_back(order, keep_key=True)
            return await self._repeat_of(order)
        for position, line in enumerate(request.lines):
            bought, stock = counts[2 * position], counts[2 * position + 1]
            if stock < 0:
                await self._put_back(order)
                return Refused("SOLD_OUT", {"sku": line.sku, "available": max(stock + line.quantity, 0)})
            limit = self._limit[line.sku]
            if limit and bought > limit:
                await self._put_back(order)
                members = {"scope": "sku", "limit": limit, "bought": bought - line.quantity}
                return Refused("BUYER_LIMIT_REACHED", members)
        held = Held(prices, order.now_ms + HOLD_MS, sequence)
        record = msgspec.json.encode(
            (order.order_id, order.body_digest, order.buyer, held, amount, order.now_ms, request)
        )
        async with self._redis.pipeline(transaction=False) as pipeline:  # to die before this is to lose the units
            pipeline.lpush("orders", record)
            pipeline.set(order_key, record)
            pipeline.zadd("due", {order.order_id: held.held_until_ms})
            await pipeline.execute()
        return held

    async def _put_back(self, order: Order, keep_key: bool = False) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for line in order.request.lines:
                pipeline.hincrby(f"bought:{order.buyer}", line.sku, -line.quantity)
                pipeline.incrby(f"stock:{line.sku}", line.quantity)
            if not keep_key:
                pipeline.delete(f"order:{order.order_id}")
            await pipeline.execute()

    async def _repeat_of(self, order: Order) -> Held | Refused:
        packed = await self._redis.get(f"order:{order.order_id}")
        if packed is None or packed == TAKEN:
            return Refused("OUTCOME_UNKNOWN")
        _, body_digest, _, (prices, held_until_ms, sequence, _), *_ = msgspec.json.decode(packed)
        if body_digest != order.body_digest:
            return Refused("IDEMPOTENCY_KEY_REUSED")
        return Held(prices, held_until_ms, sequence, True)

    async def count_orders(self) -> int:
        """Rows, and what waits in the list."""
        waiting = int(await self._redis.llen("orders"))
        return waiting + int(await self._pool.fetchval("SELECT count(*) FROM orders"))

    async def close(self) -> None:
        """Close both pools."""
        await self._redis.aclose()
        await self._pool.close()


async def consume(options: Options) -> None:
    """Carry orders from the list to PostgreSQL until SIGTERM."""
    redis: Redis = Redis.from_url(options.redis_url)
    pool = await asyncpg.create_pool(options.database_url, min_size=1, max_size=1)
    await pool.execute(ORDERS)
    stop = asyncio.create_task(stopped())
    while not stop.done():
        popped: list[bytes] | None = await redis.rpop("orders", CONSUMED_AT_ONCE_MAX)  # type: ignore[assignment]
        if not popped:
            await asyncio.sleep(IDLE_SECONDS)
            continue
        rows = []  # to die before these are committed is to lose them
        for packed in popped:
            order_id, digest, buyer, held, amount, created_ms, request = msgspec.json.decode(packed)
            lines = msgspec.json.encode(request["lines"]).decode()
            rows.append((order_id, held[2], digest, buyer, lines, amount, created_ms, held[1]))
        await pool.executemany("INSERT INTO orders VALUES ($1, $2, $3, $4, $5, $6, $7, $8)", rows)
    await redis.aclose()
    await pool.close()


async def open_store(options: Options) -> Store:
    """Connect, make the table, and put the stock there if it is not there yet."""
    connections = ConnectionPool.from_url(options.redis_url, max_connections=CONNECTIONS_MAX)
    redis: Redis = Redis(connection_pool=connections)
    pool = await asyncpg.create_pool(options.database_url, min_size=1, max_size=2)
    await pool.execute(ORDERS)
    await redis.set(f"stock:{options.sku.sku}", options.sku.units, nx=True)
    return DecrStore(redis, pool, options)


if __name__ == "__main__":
    chosen = read_options(__doc__ or "")
    if chosen.role == "consume":
        uvloop.run(consume(chosen))
    else:
        run(chosen, open_store)
