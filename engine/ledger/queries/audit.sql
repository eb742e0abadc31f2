-- name: partition
-- One sale's partition with its offset and epoch.
SELECT partition_id, persisted_sequence, epoch, retired_at IS NOT NULL AS retired FROM partitions
WHERE sale_id = $1 AND partition_number = 0;

-- name: sale
-- What the ledger derived of a sale.
SELECT definition::text AS definition, status, version FROM sales WHERE partition_id = $1;

-- name: journal
-- Every entry of a partition behind a sequence number, in order.
SELECT sequence, epoch, (extract(epoch FROM at) * 1000)::bigint AS at_ms, entry FROM journal
WHERE partition_id = $1 AND slice > $2 AND sequence > $2 ORDER BY slice, sequence;

-- name: stock
-- A partition's units by SKU.
SELECT sku, allocated, withheld, available, held, settled, pools::text AS pools FROM stock
WHERE partition_id = $1 ORDER BY sku;

-- name: orders
-- A partition's orders, in the order of their holds.
SELECT sequence, digest, version, status, changed_sequence, discount_minor, freight_minor, amount_minor, channel,
       buyer_id, currency, reference, payment_id, (extract(epoch FROM created_at) * 1000)::bigint AS created_at_ms,
       (extract(epoch FROM held_until) * 1000)::bigint AS held_until_ms,
       (extract(epoch FROM settled_at) * 1000)::bigint AS settled_at_ms
FROM order_states WHERE partition_id = $1 ORDER BY sequence;

-- name: order_lines
-- The lines of a partition's orders, in their order.
SELECT order_sequence, position, line_id, sku, quantity, unit_price_minor, paid_minor FROM order_lines
WHERE partition_id = $1 ORDER BY order_sequence, position;

-- name: payments
-- The payments for a partition's orders, in the order in which they came for each.
SELECT order_sequence, sequence, payment_id, amount_minor, currency, fate, (extract(epoch FROM at) * 1000)::bigint AS at_ms
FROM payments WHERE partition_id = $1 ORDER BY order_sequence, sequence;

-- name: feed
-- The feed rows that a partition's journal made, in order.
SELECT feed_sequence, version, change, sale_id, order_id, row FROM feed
WHERE partition_id = $1 AND change IN ('settled', 'refund_due') ORDER BY feed_sequence;

-- name: feed_totals
-- What tells whether the feed's numbers are dense over all sales.
SELECT count(*) AS rows, coalesce(min(feed_sequence), 0) AS first, coalesce(max(feed_sequence), 0) AS last,
       coalesce((SELECT feed_sequence FROM counters), -1) AS counter
FROM feed;
