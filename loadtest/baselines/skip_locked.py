"""aiohttp and PostgreSQL with a row for each unit, taken with FOR UPDATE SKIP LOCKED.

As Shopify describes it for MySQL in its engineering post "Scaling inventory reservations"
(https://shopify.engineering/scaling-inventory-reservations): a row with a quantity is where everybody queues, so each
unit that can be reserved is a row of its own; a reservation takes rows that nobody else has locked, and waits for none;
the rows are a pool of at most 1,000 for an item. Here a reserved unit's row is deleted in the transaction that writes
the order, and whoever finds the pool empty fills it from the quantity behind it. All is one function, one round trip,
one transaction, as in row_update.py, whose tables and function these are.

Transactions run beside each other, so that their commits share flushes: this gains by connections where the row update
does not. Nothing is oversold, nothing accepted is lost (`synchronous_commit` on). Its price: with the last rows locked
by others it cannot tell "sold out" from "perhaps": a buyer may be refused a unit that is free again a moment later.
"""

import asyncpg

from loadtest.baselines.checkout import Options, Store, read_options, run
from loadtest.baselines.row_update import HOLD, ORDERS, RowUpdateStore

CONNECTIONS_MAX = 32
POOL_ROWS_MAX = 1_000

UNITS = """
CREATE TABLE IF NOT EXISTS units (sku text NOT NULL, unit_number bigint NOT NULL, PRIMARY KEY (sku, unit_number));
ALTER TABLE units SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
"""

TAKE_UNITS = f"""
CREATE OR REPLACE FUNCTION take_units(the_skus text[], the_quantities int[], the_order text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    wanted record;
    lacking int;
    taken int;
    behind bigint;
BEGIN
    FOR wanted IN SELECT sku, sum(quantity) AS quantity FROM unnest(the_skus, the_quantities) AS line (sku, quantity)
                  GROUP BY sku ORDER BY sku LOOP
        lacking := wanted.quantity;
        LOOP
            WITH free AS (
                SELECT unit_number FROM units WHERE sku = wanted.sku ORDER BY unit_number LIMIT lacking
                FOR UPDATE SKIP LOCKED
            )
            DELETE FROM units USING free WHERE units.sku = wanted.sku AND units.unit_number = free.unit_number;
            GET DIAGNOSTICS taken = ROW_COUNT;
            lacking := lacking - taken;
            EXIT WHEN lacking <= 0;
            -- the quantity behind the pool: its row is locked about once in {POOL_ROWS_MAX} orders
            SELECT available INTO behind FROM skus WHERE sku = wanted.sku FOR UPDATE;
            PERFORM 1 FROM units WHERE sku = wanted.sku LIMIT 1 FOR UPDATE SKIP LOCKED;
            CONTINUE WHEN FOUND; -- somebody has filled it while we waited
            IF behind = 0 THEN
                RAISE EXCEPTION USING ERRCODE = 'M0001', MESSAGE = wanted.sku, DETAIL = wanted.quantity - lacking;
            END IF;
            INSERT INTO units SELECT wanted.sku, number
                FROM generate_series(behind - least(behind, {POOL_ROWS_MAX}) + 1, behind) AS number;
            UPDATE skus SET available = behind - least(behind, {POOL_ROWS_MAX}) WHERE sku = wanted.sku;
        END LOOP;
    END LOOP;
END $$;
"""


async def open_store(options: Options) -> Store:
    """Connect, make the tables, and put the stock there if it is not there yet."""
    pool = await asyncpg.create_pool(options.database_url, min_size=CONNECTIONS_MAX, max_size=CONNECTIONS_MAX)
    sku, units, price, limit = options.sku
    async with pool.acquire() as connection:
        await connection.execute(ORDERS + UNITS + HOLD + TAKE_UNITS)
        await connection.execute(
            "INSERT INTO skus VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING", sku, price, limit, units
        )
    return RowUpdateStore(pool)


if __name__ == "__main__":
    run(read_options(__doc__ or ""), open_store)
