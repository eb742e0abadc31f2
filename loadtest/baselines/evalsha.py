"""aiohttp and one EVALSHA a request: the usual good design, a Lua script that decides an order as a whole.

Each request calls the script by itself, through redis-py with hiredis on a pool of connections. The script answers a
repeat, checks price, stock and limit, takes the units, and writes the order, its deadline and an entry of the journal
in one atom; so nothing is oversold, and no unit is lost between two steps. Whether an accepted order can be lost
depends on Redis alone: with `appendfsync always` it is on disk before it is answered, with `appendonly no` it is in
memory only.
"""

from typing import Any

import msgspec
from redis.asyncio import ConnectionPool, Redis

from loadtest.baselines.checkout import HOLD_MS, Held, Options, Order, Refused, Store, read_options, run

CONNECTIONS_MAX = 4096
"""As many as requests come at once: a pool that makes callers wait costs more than the connections."""

HOLD = """
-- KEYS  order, bought (hash of the buyer), due, journal, sequence, then the hash of each line's SKU
-- ARGV  order id, body digest, buyer, now, held until, expected (-1: none), discount, freight, then each line's SKU
--       and quantity
local before = redis.call('GET', KEYS[1])
if before then return {'REPEATED', before} end
local count, prices, amount, wanted = #KEYS - 5, {}, -tonumber(ARGV[7]) + tonumber(ARGV[8]), {}
for i = 1, count do
  local sku, quantity = ARGV[7 + 2 * i], tonumber(ARGV[8 + 2 * i])
  local row = redis.call('HMGET', KEYS[5 + i], 'available', 'price', 'limit')
  if not row[1] then return {'SKU_NOT_FOUND', sku} end
  prices[i] = tonumber(row[2])
  amount = amount + prices[i] * quantity
  local w = wanted[sku] or { 0, tonumber(row[1]), tonumber(row[3]) }
  w[1] = w[1] + quantity
  wanted[sku] = w
end
if tonumber(ARGV[6]) >= 0 and tonumber(ARGV[6]) ~= amount then return {'PRICE_CHANGED', amount} end
for sku, w in pairs(wanted) do
  if w[1] > w[2] then return {'SOLD_OUT', sku, w[2]} end
  local bought = tonumber(redis.call('HGET', KEYS[2], sku) or 0)
  if w[3] > 0 and bought + w[1] > w[3] then return {'BUYER_LIMIT_REACHED', w[3], bought} end
end
for i = 1, count do
  redis.call('HINCRBY', KEYS[5 + i], 'available', -tonumber(ARGV[8 + 2 * i]))
  redis.call('HINCRBY', KEYS[2], ARGV[7 + 2 * i], ARGV[8 + 2 * i])
end
local sequence = redis.call('INCR', KEYS[5])
local lines = {}
for i = 9, #ARGV do lines[#lines + 1] = ARGV[i] end
local record = cmsgpack.pack({ARGV[2], ARGV[3], tonumber(ARGV[5]), sequence, prices, amount, tonumber(ARGV[4]), lines})
redis.call('SET', KEYS[1], record)
redis.call('ZADD', KEYS[3], ARGV[5], ARGV[1])
redis.call('XADD', KEYS[4], sequence .. '-0', 'held', ARGV[1], 'order', record)
return {'HELD', record}
"""


class EvalshaStore(Store):
    """Orders in Redis, decided by its script."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._script = ""

    async def open(self, options: Options) -> None:
        """Load the script, and put the stock there if it is not there yet."""
        self._script = await self._redis.script_load(HOLD)
        _, units, price, limit = options.sku
        row: dict[str, Any] = {"available": units, "price": price, "limit": limit}
        for field, value in row.items():
            await self._redis.hsetnx(f"sku:{options.sku.sku}", field, value)

    async def hold(self, order: Order) -> Held | Refused:
        """One call of the script."""
        request = order.request
        expected = -1 if request.expected_amount_minor is None else request.expected_amount_minor
        skus = [line.sku for line in request.lines]
        keys = ["order:" + order.order_id, "bought:" + order.buyer, "due", "journal", "sequence"]
        lines = [word for line in request.lines for word in (line.sku, line.quantity)]
        answer: list[Any] = await self._redis.evalsha(
            self._script,
            len(keys) + len(skus),
            *(*keys, *("sku:" + sku for sku in skus)),
            *(order.order_id, order.body_digest, order.buyer, order.now_ms, order.now_ms + HOLD_MS, expected),
            *(request.discount_minor, request.freight_minor, *lines),
        )
        return read_answer(order, answer)

    async def count_orders(self) -> int:
        """Entries of the journal."""
        return int(await self._redis.xlen("journal"))

    async def close(self) -> None:
        """Close the pool."""
        await self._redis.aclose()


def read_answer(order: Order, answer: list[Any]) -> Held | Refused:
    """What the script said."""
    code = answer[0].decode()
    if code in {"HELD", "REPEATED"}:
        body_digest, _, held_until_ms, sequence, prices, *_ = msgspec.msgpack.decode(answer[1])
        if body_digest != order.body_digest:
            return Refused("IDEMPOTENCY_KEY_REUSED")
        return Held(prices, held_until_ms, sequence, code == "REPEATED")
    if code == "SOLD_OUT":
        return Refused(code, {"sku": answer[1].decode(), "available": answer[2]})
    if code == "BUYER_LIMIT_REACHED":
        return Refused(code, {"scope": "sku", "limit": answer[1], "bought": answer[2]})
    if code == "PRICE_CHANGED":
        return Refused(code, {"amount_minor": answer[1]})
    return Refused(code, {"sku": answer[1].decode()})


async def open_store(options: Options) -> Store:
    """Connect."""
    pool = ConnectionPool.from_url(options.redis_url, max_connections=CONNECTIONS_MAX)
    store = EvalshaStore(Redis(connection_pool=pool))
    await store.open(options)
    return store


if __name__ == "__main__":
    run(read_options(__doc__ or ""), open_store)
