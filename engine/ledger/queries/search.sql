-- name: select
-- Orders with their sale; the conditions, the order and the limit come behind it.
SELECT orders.*, partitions.sale_id, sales.definition -> 'labels' #>> '{}' AS labels
FROM order_states AS orders
JOIN partitions USING (partition_id) LEFT JOIN sales ON sales.partition_id = orders.partition_id;

-- name: if_digest
-- Of one order id: its digest, by its number (search_keys.py) in any era; the sale comes with if_partition.
orders.digest_key = ANY (ARRAY(SELECT era << 32 | {}::bigint FROM order_eras, generate_series(1, last_value) AS era))
    AND orders.digest = {};

-- name: if_partition
-- Of one sale.
orders.partition_id = {};

-- name: if_channel
-- Of one channel.
orders.channel = {};

-- name: if_buyer_id
-- Of one buyer's pseudonym, in whichever channel.
orders.buyer_key = ANY (ARRAY(SELECT era << 32 | {}::bigint FROM order_eras, generate_series(1, last_value) AS era))
    AND orders.buyer_id = {};

-- name: if_reference
-- With the caller's own order number.
orders.reference_key = ANY (ARRAY(SELECT era << 32 | {}::bigint FROM order_eras, generate_series(1, last_value) AS era))
    AND orders.reference = {};

-- name: if_status
-- In one state. No index holds it: each change would have to write to it.
orders.status = {};

-- name: if_held_somewhere
-- Of a sale that has units held: the others' orders have ended, all of them, and need no look at each.
orders.partition_id IN (SELECT partition_id FROM stock WHERE held > 0);

-- name: if_due_for_refund
-- With a payment that is due for refund, which is how the few orders in the state refund_due are found.
(orders.partition_id, orders.sequence) IN (SELECT partition_id, order_sequence FROM order_changes WHERE fate <> 1);

-- name: if_payment_id
-- With this payment, be it the settling one, a late one or a duplicate.
(orders.partition_id, orders.sequence) IN (
    SELECT partition_id, order_sequence FROM order_changes
    WHERE payment_key = ANY (ARRAY(SELECT era << 32 | {}::bigint FROM order_eras, generate_series(1, last_value) AS era))
        AND payment_id = {}
);

-- name: if_sku
-- With a line of this SKU.
(orders.partition_id, orders.sequence) IN (
    SELECT partition_id, order_sequence FROM order_lines
    WHERE sku_key = ANY (ARRAY(SELECT era << 32 | {}::bigint FROM order_eras, generate_series(1, last_value) AS era))
        AND sku = {}
);

-- name: if_before_in_partition
-- Behind a cursor, within one sale.
orders.sequence < {};

-- name: if_before
-- Behind a cursor, over all sales.
(orders.created_at, orders.partition_id, orders.sequence) < ({}, {}, {});

-- name: newest_in_partition
-- Newest first within one sale, which is the order of its sequence numbers.
ORDER BY orders.sequence DESC LIMIT {};

-- name: newest
-- Newest first over all sales.
ORDER BY orders.created_at DESC, orders.partition_id DESC, orders.sequence DESC LIMIT {};

-- name: lines_of
-- The lines of some orders.
SELECT order_lines.* FROM unnest($1::integer[], $2::bigint[]) AS wanted (partition_id, sequence)
JOIN order_lines ON order_lines.partition_id = wanted.partition_id AND order_lines.order_sequence = wanted.sequence
ORDER BY order_lines.partition_id, order_lines.order_sequence, order_lines.position;

-- name: payments_of
-- The payments of some orders, in the order in which they came.
SELECT payments.* FROM unnest($1::integer[], $2::bigint[]) AS wanted (partition_id, sequence)
JOIN payments ON payments.partition_id = wanted.partition_id AND payments.order_sequence = wanted.sequence
ORDER BY payments.partition_id, payments.order_sequence, payments.sequence;
