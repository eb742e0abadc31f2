-- name: known_partitions
-- Every partition that the ledger has heard of.
SELECT partition_id, sale_id, persisted_sequence, epoch, retired_at FROM partitions
WHERE partition_number = 0 ORDER BY sale_id;

-- name: known_partition
-- One sale's partition.
SELECT partition_id, sale_id, persisted_sequence, epoch, retired_at FROM partitions
WHERE sale_id = $1 AND partition_number = 0;

-- name: sale
-- A sale as of the last entry that is in the ledger.
SELECT sale_id, definition::text AS definition, status, version, created_at, changed_at, opened_at, closed_at,
       deleted_at, changed_sequence
FROM sales WHERE sale_id = $1;

-- name: sales_after
-- Sales in the order of their ids, without those that were deleted as drafts.
SELECT sale_id, definition::text AS definition, status, version, created_at, changed_at, opened_at, closed_at,
       deleted_at, changed_sequence
FROM sales WHERE sale_id > $1 AND status <> 'deleted' ORDER BY sale_id LIMIT $2;

-- name: levels
-- A sale's units by SKU.
SELECT sku, allocated, withheld, available, held, settled, pools::text AS pools
FROM stock WHERE partition_id = $1 ORDER BY sku;

-- name: partitions_of
-- Some sales' partitions.
SELECT partition_id, sale_id, persisted_sequence FROM partitions
WHERE sale_id = ANY ($1::text[]) AND partition_number = 0;

-- name: levels_of
-- Some partitions' units by SKU.
SELECT partition_id, sku, allocated, withheld, available, held, settled, pools::text AS pools
FROM stock WHERE partition_id = ANY ($1::integer[]);

-- name: journal_after
-- Journal entries behind a sequence number, in order.
SELECT sequence, epoch, at, kind, entry FROM journal
WHERE partition_id = $1 AND slice > $2 AND sequence > $2 ORDER BY slice, sequence LIMIT $3;

-- name: orders_after
-- Orders with the whole record as of their last change (in the journal's bytes), in the order of their holds.
SELECT orders.sequence, orders.digest, orders.status, orders.version, orders.changed_sequence, changed.entry
FROM order_states AS orders JOIN LATERAL (
    SELECT entries[changed_sequence - first_sequence + 1] AS entry FROM journal_slices AS slices
    WHERE slices.partition_id = orders.partition_id AND slices.last_sequence >= orders.changed_sequence
    ORDER BY slices.last_sequence LIMIT 1
) AS changed ON true
WHERE orders.partition_id = $1 AND orders.sequence > $2 ORDER BY orders.sequence LIMIT $3;

-- name: record_epoch
-- Note the epoch under which a partition is about to be opened; makes the partition's row if the ledger has none.
INSERT INTO partitions (sale_id, epoch) VALUES ($1, $2)
ON CONFLICT (sale_id, partition_number) DO UPDATE SET epoch = greatest(partitions.epoch, excluded.epoch)
RETURNING epoch;

-- name: record_epochs
-- The same for several that the ledger has rows of, locked in the order in which the persister locks them.
WITH wanted AS (
    SELECT partition_id, given.epoch FROM unnest($1::text[], $2::bigint[]) AS given (sale_id, epoch)
    JOIN partitions ON partitions.sale_id = given.sale_id AND partition_number = 0
    ORDER BY partition_id FOR UPDATE OF partitions
)
UPDATE partitions SET epoch = greatest(partitions.epoch, wanted.epoch)
FROM wanted WHERE partitions.partition_id = wanted.partition_id;

-- name: retire
-- Mark a partition as purged from Redis: its sale id is not used again. Once, and only where the ledger holds it all.
UPDATE partitions SET retired_at = coalesce(retired_at, now())
WHERE sale_id = $1 AND partition_number = 0 AND persisted_sequence = $2
RETURNING retired_at;
