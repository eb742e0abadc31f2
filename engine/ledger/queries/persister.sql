-- name: offsets
-- How far some sales' journals are in the ledger.
SELECT sale_id, persisted_sequence FROM partitions WHERE sale_id = ANY ($1::text[]) AND partition_number = 0;

-- name: lock_partition
-- The offset of a partition, locked until the transaction ends: the fence between persisters.
SELECT partition_id, persisted_sequence, retired_at FROM partitions
WHERE sale_id = $1 AND partition_number = 0 FOR UPDATE;

-- name: lock_partitions
-- The offsets of several, locked in an order that is everybody's, so that nobody waits in a circle.
SELECT partition_id, persisted_sequence, retired_at FROM partitions
WHERE partition_id = ANY ($1::integer[]) ORDER BY partition_id FOR UPDATE;

-- name: add_partition
-- Make a partition's row; where another process did at the same time, that one stands.
INSERT INTO partitions (sale_id) VALUES ($1) ON CONFLICT (sale_id, partition_number) DO NOTHING;

-- name: entry_at
-- The bytes of one entry, to see that what a journal repeats is what the ledger holds.
SELECT entries[$2 - first_sequence + 1] FROM journal_slices
WHERE partition_id = $1 AND last_sequence >= $2 ORDER BY last_sequence LIMIT 1;

-- name: sale
-- A sale as of the last entry in the ledger.
SELECT definition::text AS definition, status, version, created_at, changed_at, opened_at, closed_at, deleted_at,
       changed_sequence
FROM sales WHERE sale_id = $1;

-- name: places
-- Some partitions with their offsets, and the sales as of them where an entry has defined them.
SELECT partitions.sale_id, partitions.partition_id, persisted_sequence, definition::text AS definition, status, version, sales.created_at,
       changed_at, opened_at, closed_at, deleted_at, changed_sequence
FROM partitions LEFT JOIN sales USING (sale_id) WHERE sale_id = ANY ($1::text[]) AND partition_number = 0;

-- name: newest_era
-- The era that rows of orders are written under now.
SELECT last_value::integer FROM order_eras;

-- name: next_era
-- Begin another era.
SELECT nextval('order_eras')::integer;

-- name: put_sale
-- The sale as of the last entry of this transaction.
INSERT INTO sales (sale_id, partition_id, definition, status, version, created_at, changed_at, opened_at, closed_at,
                   deleted_at, changed_sequence)
VALUES ($1, $2, $3::text::jsonb, $4, $5, $6, $7, $8, $9, $10, $11)
ON CONFLICT (sale_id) DO UPDATE SET
    partition_id = excluded.partition_id, definition = excluded.definition, status = excluded.status,
    version = excluded.version, created_at = excluded.created_at, changed_at = excluded.changed_at,
    opened_at = excluded.opened_at, closed_at = excluded.closed_at, deleted_at = excluded.deleted_at,
    changed_sequence = excluded.changed_sequence;

-- name: stock
-- The levels of some partitions' SKUs before this transaction.
SELECT partition_id, sku, allocated, withheld, held, settled, pools::text AS pools
FROM unnest($1::integer[], $2::text[]) AS wanted (partition_id, sku) JOIN stock USING (partition_id, sku);

-- name: put_stock
-- The levels of some partitions' SKUs after this transaction.
INSERT INTO stock (partition_id, sku, allocated, withheld, available, held, settled, pools)
SELECT partition_id, sku, allocated, withheld, available, held, settled, pools::jsonb
FROM unnest($1::integer[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[])
     AS level (partition_id, sku, allocated, withheld, available, held, settled, pools)
ON CONFLICT (partition_id, sku) DO UPDATE SET
    allocated = excluded.allocated, withheld = excluded.withheld, available = excluded.available,
    held = excluded.held, settled = excluded.settled, pools = excluded.pools;

-- name: remove_stock
-- SKUs that left their sales.
DELETE FROM stock USING unnest($1::integer[], $2::text[]) AS gone (partition_id, sku)
WHERE stock.partition_id = gone.partition_id AND stock.sku = gone.sku;

-- name: count_feed
-- Take the next numbers of the feed, for as many rows as are given; the last of them. Held locked until the commit.
UPDATE counters SET feed_sequence = feed_sequence + $1 RETURNING feed_sequence;

-- name: move_offsets
-- The ledger holds these partitions' journals up to here.
UPDATE partitions SET persisted_sequence = moved.sequence, epoch = greatest(partitions.epoch, moved.epoch),
                      persisted_at = clock_timestamp()
FROM unnest($1::integer[], $2::bigint[], $3::bigint[]) AS moved (partition_id, sequence, epoch)
WHERE partitions.partition_id = moved.partition_id;
