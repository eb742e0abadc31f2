-- name: offsets
-- How far some sales' journals are in the ledger.
SELECT sale_id, persisted_sequence FROM partitions WHERE sale_id = ANY ($1::text[]) AND partition_number = 0;

-- name: lock_partition
-- The offset of a partition, locked until the transaction ends: the fence between persisters.
SELECT partition_id, persisted_sequence, epoch, retired_at FROM partitions
WHERE sale_id = $1 AND partition_number = 0 FOR UPDATE;

-- name: add_partition
-- Make a partition's row; where another process did at the same time, that one stands.
INSERT INTO partitions (sale_id) VALUES ($1) ON CONFLICT (sale_id, partition_number) DO NOTHING;

-- name: entry_at
-- The bytes of one entry, to see that what a journal repeats is what the ledger holds.
SELECT entry FROM journal WHERE partition_id = $1 AND sequence = $2;

-- name: sale
-- A sale as of the last entry in the ledger.
SELECT definition::text AS definition, status, version, created_at, changed_at, opened_at, closed_at, deleted_at,
       changed_sequence
FROM sales WHERE sale_id = $1;

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

-- name: change_orders
-- Orders of earlier transactions as of their last change in this one; the count tells whether all were there.
UPDATE orders SET status = changed.status, version = changed.version, changed_sequence = changed.changed_sequence,
                  held_until = changed.held_until, settled_at = changed.settled_at, payment_id = changed.payment_id
FROM unnest($2::bigint[], $3::smallint[], $4::integer[], $5::bigint[], $6::timestamptz[], $7::timestamptz[], $8::text[])
     AS changed (sequence, status, version, changed_sequence, held_until, settled_at, payment_id)
WHERE orders.partition_id = $1 AND orders.sequence = changed.sequence;

-- name: stock
-- The levels of some SKUs before this transaction.
SELECT sku, allocated, withheld, held, settled, pools::text AS pools FROM stock WHERE partition_id = $1 AND sku = ANY ($2::text[]);

-- name: put_stock
-- The levels of some SKUs after this transaction.
INSERT INTO stock (partition_id, sku, allocated, withheld, available, held, settled, pools)
SELECT $1, sku, allocated, withheld, available, held, settled, pools::jsonb
FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[])
     AS level (sku, allocated, withheld, available, held, settled, pools)
ON CONFLICT (partition_id, sku) DO UPDATE SET
    allocated = excluded.allocated, withheld = excluded.withheld, available = excluded.available,
    held = excluded.held, settled = excluded.settled, pools = excluded.pools;

-- name: remove_stock
-- SKUs that left the sale.
DELETE FROM stock WHERE partition_id = $1 AND sku = ANY ($2::text[]);

-- name: count_feed
-- Take the next numbers of the feed, for as many rows as are given; the last of them. Held locked until the commit.
UPDATE counters SET feed_sequence = feed_sequence + $1 RETURNING feed_sequence;

-- name: move_offset
-- The ledger holds the partition's journal up to here.
UPDATE partitions SET persisted_sequence = $2, epoch = greatest(epoch, $3), persisted_at = clock_timestamp()
WHERE partition_id = $1;
