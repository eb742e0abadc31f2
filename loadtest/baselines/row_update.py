"""aiohttp and PostgreSQL: `UPDATE … SET available = available - n WHERE available >= n`, and the order, as one.

Tuned as far as the idea goes: all of it is one function, so that a request is one round trip and one transaction; what
can be done without the SKU's row lock is done before it is taken; the pool is small, because transactions that wait for
one row gain nothing by being many. What remains is the design's own limit: the row is locked until the commit is on
disk, so the orders of one SKU are one after the other, each with a flush of its own (group commit cannot join what
waits). Nothing is oversold, and nothing accepted is lost (`synchronous_commit` on).
"""

from typing import Any

import asyncpg

from loadtest.baselines.checkout import HOLD_MS, Held, Options, Order, Refused, Store, read_options, run

CONNECTIONS_MAX = 16

ORDERS = """
CREATE TABLE IF NOT EXISTS skus (
    sku text PRIMARY KEY, price_minor bigint NOT NULL, buyer_limit int NOT NULL,
    available bigint NOT NULL CHECK (available >= 0)
) WITH (fillfactor = 10);
CREATE TABLE IF NOT EXISTS bought (
    buyer text NOT NULL, sku text NOT NULL, units int NOT NULL, PRIMARY KEY (buyer, sku)
);
CREATE TABLE IF NOT EXISTS orders (
    order_id text PRIMARY KEY, sequence bigserial, body_digest text NOT NULL, buyer text NOT NULL,
    skus text[] NOT NULL, quantities int[] NOT NULL, prices_minor bigint[] NOT NULL, amount_minor bigint NOT NULL,
    created_ms bigint NOT NULL, held_until_ms bigint NOT NULL, status text NOT NULL DEFAULT 'held'
);
CREATE INDEX IF NOT EXISTS orders_due ON orders (held_until_ms) WHERE status = 'held';
"""

HOLD = """
CREATE OR REPLACE FUNCTION hold(
    the_order text, digest text, the_buyer text, the_skus text[], the_quantities int[], expected bigint, extra bigint,
    now_ms bigint, until_ms bigint, OUT code text, OUT place bigint, OUT held_until bigint, OUT prices bigint[],
    OUT which text, OUT number_a bigint, OUT number_b bigint
) LANGUAGE plpgsql AS $$
DECLARE
    before orders%ROWTYPE;
    one skus%ROWTYPE;
    total bigint := extra;
BEGIN
    SELECT * INTO before FROM orders WHERE order_id = the_order;
    IF NOT FOUND THEN
        FOR i IN 1 .. cardinality(the_skus) LOOP
            SELECT * INTO one FROM skus WHERE sku = the_skus[i];
            IF NOT FOUND THEN code := 'SKU_NOT_FOUND'; which := the_skus[i]; RETURN; END IF;
            prices := prices || one.price_minor;
            total := total + one.price_minor * the_quantities[i];
        END LOOP;
        IF expected >= 0 AND expected <> total THEN code := 'PRICE_CHANGED'; number_a := total; RETURN; END IF;
        INSERT INTO orders (order_id, body_digest, buyer, skus, quantities, prices_minor, amount_minor, created_ms,
            held_until_ms)
            VALUES (the_order, digest, the_buyer, the_skus, the_quantities, prices, total, now_ms, until_ms)
            ON CONFLICT DO NOTHING RETURNING sequence INTO place;
        IF FOUND THEN
            FOR i IN 1 .. cardinality(the_skus) LOOP
                SELECT * INTO one FROM skus WHERE sku = the_skus[i];
                INSERT INTO bought VALUES (the_buyer, the_skus[i], the_quantities[i])
                    ON CONFLICT (buyer, sku) DO UPDATE SET units = bought.units + excluded.units
                    RETURNING units INTO number_b;
                IF one.buyer_limit > 0 AND number_b > one.buyer_limit THEN
                    RAISE EXCEPTION USING ERRCODE = 'M0002', MESSAGE =
                        one.buyer_limit || ' ' || number_b - the_quantities[i];
                END IF;
            END LOOP;
            PERFORM take_units(the_skus, the_quantities, the_order);
            code := 'HELD'; held_until := until_ms;
            RETURN;
        END IF;
        SELECT * INTO before FROM orders WHERE order_id = the_order;
    END IF;
    code := CASE WHEN before.body_digest = digest THEN 'REPEATED' ELSE 'IDEMPOTENCY_KEY_REUSED' END;
    place := before.sequence; held_until := before.held_until_ms; prices := before.prices_minor;
END $$;
"""
"""Takes the units last, by `take_units`, which raises M0001 (sold out) so that all of it is undone."""

TAKE_UNITS = """
CREATE OR REPLACE FUNCTION take_units(the_skus text[], the_quantities int[], the_order text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    wanted record;
BEGIN
    -- always in the order of the names, so that two carts cannot wait for each other
    FOR wanted IN SELECT sku, sum(quantity) AS quantity FROM unnest(the_skus, the_quantities) AS line (sku, quantity)
                  GROUP BY sku ORDER BY sku LOOP
        UPDATE skus SET available = available - wanted.quantity
            WHERE sku = wanted.sku AND available >= wanted.quantity;
        IF NOT FOUND THEN
            RAISE EXCEPTION USING ERRCODE = 'M0001', MESSAGE = wanted.sku, DETAIL =
                (SELECT available FROM skus WHERE sku = wanted.sku);
        END IF;
    END LOOP;
END $$;
"""

CALL = "SELECT * FROM hold($1, $2, $3, $4, $5, $6, $7, $8, $9)"


class RowUpdateStore(Store):
    """Orders in PostgreSQL, one function call each."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def hold(self, order: Order) -> Held | Refused:
        """One call of the function, which is one transaction."""
        request = order.request
        try:
            async with self._pool.acquire() as connection:
                found = await connection.fetchrow(
                    CALL,
                    *(order.order_id, order.body_digest, order.buyer, [line.sku for line in request.lines]),
                    [line.quantity for line in request.lines],
                    -1 if request.expected_amount_minor is None else request.expected_amount_minor,
                    request.freight_minor - request.discount_minor,
                    *(order.now_ms, order.now_ms + HOLD_MS),
                )
        except asyncpg.PostgresError as error:
            return refusal_of(error)
        code = found["code"]
        if code in {"HELD", "REPEATED"}:
            return Held(list(found["prices"]), found["held_until"], found["place"], code == "REPEATED")
        if code == "PRICE_CHANGED":
            return Refused(code, {"amount_minor": found["number_a"]})
        return Refused(code, {"sku": found["which"]} if found["which"] else {})

    async def count_orders(self) -> int:
        """Rows."""
        return int(await self._pool.fetchval("SELECT count(*) FROM orders"))

    async def close(self) -> None:
        """Close the pool."""
        await self._pool.close()


def refusal_of(error: asyncpg.PostgresError) -> Refused:
    """The refusals that undo their transaction. Raises the error where it is none."""
    if error.sqlstate == "M0001":
        return Refused("SOLD_OUT", {"sku": str(error), "available": int(error.detail or 0)})
    if error.sqlstate == "M0002":
        limit, _, bought = str(error).partition(" ")
        return Refused("BUYER_LIMIT_REACHED", {"scope": "sku", "limit": int(limit), "bought": int(bought)})
    raise error


async def open_store(options: Options) -> Store:
    """Connect, make the tables, and put the stock there if it is not there yet."""
    pool = await asyncpg.create_pool(options.database_url, min_size=CONNECTIONS_MAX, max_size=CONNECTIONS_MAX)
    sku, units, price, limit = options.sku
    async with pool.acquire() as connection:
        await connection.execute(ORDERS + HOLD + TAKE_UNITS)
        await connection.execute(
            "INSERT INTO skus VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING", sku, price, limit, units
        )
    return RowUpdateStore(pool)


if __name__ == "__main__":
    run(read_options(__doc__ or ""), open_store)
