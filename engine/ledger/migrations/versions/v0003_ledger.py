"""The ledger: every journal entry, and sales, orders, stock and the feed derived from them.

What each row and index costs was weighed against COPY: the large tables only ever grow.

* An order is written once, at its hold, and never changed: each later change is a row of `order_changes` (with the
  payment, where it was one). An UPDATE costs several times such a row, writes to each index again where its page has no
  room, and leaves a dead row behind. What an order is now, the view `order_states` says.
* An order's key is (partition_id, sequence), the hold's own sequence number, which every later entry of the order
  carries. It grows, so its index is written at the right edge only.
* A row and its entry in an index cost more than the bytes in them, so what is always read together lies together: about
  a dozen entries of the journal in one row of `journal_slices`, an order's first line in the order's own row. The views
  `journal` and `order_lines` show each as a row of its own.
* Digests, buyers and payments come in no order at all, and an index of them costs ever more to write as it grows beyond
  the memory. So orders are found by a number (search_keys.py): the upper half is an *era*, which goes up by one with
  some ten thousand orders, so that what is written stays within the newest era's part of an index, which the
  processor's own memory holds; who searches asks for each era there was. SKUs are found in the same way.
* No status is indexed: searching by it walks newest-first; the rare `refund_due` is found through its payment.
* It follows no version: v0001 and v0002 were never released (migrate.OLDEST_VERSION).
* Nothing is declared a foreign key: the only writer is the persister, which writes all sides in one transaction; the
  audit recomputes the rest.
"""

from alembic import op

revision = "v0003"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = """
CREATE TABLE partitions (
    partition_id       integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    sale_id            text COLLATE "C" NOT NULL,
    partition_number   smallint NOT NULL DEFAULT 0,
    persisted_sequence bigint NOT NULL DEFAULT 0 CHECK (persisted_sequence >= 0),
    epoch              bigint NOT NULL DEFAULT 0,
    created_at         timestamptz NOT NULL DEFAULT now(),
    persisted_at       timestamptz,
    retired_at         timestamptz,
    UNIQUE (sale_id, partition_number)
) WITH (fillfactor = 50);
COMMENT ON TABLE partitions IS
    'How far each partition''s journal is in the ledger. Its row lock is the fence between persisters.';

CREATE TABLE journal_slices (
    partition_id   integer NOT NULL,
    first_sequence bigint NOT NULL,
    last_sequence  bigint NOT NULL,
    epoch          bigint NOT NULL,
    at             timestamptz NOT NULL,
    entries        bytea[] NOT NULL,
    PRIMARY KEY (partition_id, last_sequence),
    CHECK (cardinality(entries) = last_sequence - first_sequence + 1)
);
COMMENT ON TABLE journal_slices IS 'Entries that were written at the same time, one behind the other.';
COMMENT ON COLUMN journal_slices.entries IS 'The exact MessagePack bytes that the partition wrote.';

CREATE VIEW journal AS
SELECT partition_id, first_sequence + place - 1 AS sequence, epoch, at,
       CASE WHEN length(entry) >= 2 THEN get_byte(entry, 1)::smallint END AS kind, entry, last_sequence AS slice
FROM journal_slices, unnest(entries) WITH ORDINALITY AS entries (entry, place);
COMMENT ON VIEW journal IS 'Every entry. To find sequences behind a number quickly, ask for slices behind it, too.';
COMMENT ON COLUMN journal.kind IS 'The first element of the entry, which is an array.';

CREATE TABLE sales (
    sale_id          text COLLATE "C" PRIMARY KEY,
    partition_id     integer NOT NULL,
    definition       jsonb NOT NULL,
    status           text NOT NULL CHECK (status IN ('draft', 'open', 'paused', 'closed', 'deleted')),
    version          bigint NOT NULL,
    created_at       timestamptz NOT NULL,
    changed_at       timestamptz NOT NULL,
    opened_at        timestamptz,
    closed_at        timestamptz,
    deleted_at       timestamptz,
    changed_sequence bigint NOT NULL
);

CREATE SEQUENCE order_eras AS integer;
SELECT setval('order_eras', 1);
COMMENT ON SEQUENCE order_eras IS 'Its last value is the newest era: rows of orders have 1 to that.';

CREATE TABLE orders (
    sequence         bigint NOT NULL,
    created_at       timestamptz NOT NULL,
    held_until       timestamptz NOT NULL,
    digest_key       bigint NOT NULL,
    buyer_key        bigint NOT NULL,
    sku_key          bigint NOT NULL,
    discount_minor   bigint NOT NULL,
    freight_minor    bigint NOT NULL,
    amount_minor     bigint NOT NULL,
    unit_price_minor bigint NOT NULL,
    paid_minor       bigint NOT NULL,
    partition_id     integer NOT NULL,
    quantity         integer NOT NULL,
    digest           text COLLATE "C" NOT NULL,
    buyer_id         text COLLATE "C" NOT NULL,
    channel          text COLLATE "C" NOT NULL,
    currency         text COLLATE "C" NOT NULL,
    line_id          text COLLATE "C" NOT NULL,
    sku              text COLLATE "C" NOT NULL,
    outer_code       text,
    reference_key    bigint,
    reference        text COLLATE "C",
    PRIMARY KEY (partition_id, sequence)
);
COMMENT ON TABLE orders IS 'What an order has from its hold and keeps for good, with its first line.';
COMMENT ON COLUMN orders.sequence IS 'The hold''s sequence number in its partition.';
CREATE INDEX orders_by_digest ON orders (digest_key);
CREATE INDEX orders_by_buyer ON orders (buyer_key);
CREATE INDEX orders_by_reference ON orders (reference_key) WHERE reference_key IS NOT NULL;
CREATE INDEX orders_by_sku ON orders (sku_key);
CREATE INDEX orders_by_creation ON orders (created_at);

CREATE TABLE further_lines (
    order_sequence   bigint NOT NULL,
    sku_key          bigint NOT NULL,
    unit_price_minor bigint NOT NULL,
    paid_minor       bigint NOT NULL,
    partition_id     integer NOT NULL,
    quantity         integer NOT NULL,
    position         smallint NOT NULL CHECK (position >= 2),
    line_id          text COLLATE "C" NOT NULL,
    sku              text COLLATE "C" NOT NULL,
    outer_code       text,
    PRIMARY KEY (partition_id, order_sequence, position)
);
COMMENT ON TABLE further_lines IS 'The lines of orders, from the second on.';
CREATE INDEX further_lines_by_sku ON further_lines (sku_key);

CREATE VIEW order_lines AS
SELECT partition_id, sequence AS order_sequence, 1::smallint AS position, quantity, unit_price_minor, paid_minor,
       line_id, sku, outer_code, sku_key
FROM orders
UNION ALL
SELECT partition_id, order_sequence, position, quantity, unit_price_minor, paid_minor, line_id, sku, outer_code, sku_key
FROM further_lines;
COMMENT ON VIEW order_lines IS 'Every line of every order.';

CREATE TABLE order_changes (
    partition_id   integer NOT NULL,
    order_sequence bigint NOT NULL,
    version        integer NOT NULL CHECK (version >= 2),
    sequence       bigint NOT NULL,
    status         smallint NOT NULL CHECK (status BETWEEN 1 AND 5),
    at             timestamptz NOT NULL,
    fate           smallint CHECK (fate BETWEEN 1 AND 3),
    amount_minor   bigint,
    payment_key    bigint,
    currency       text COLLATE "C",
    payment_id     text COLLATE "C",
    PRIMARY KEY (partition_id, order_sequence, version),
    CHECK ((fate IS NULL) = (payment_id IS NULL))
);
COMMENT ON TABLE order_changes IS 'Every change of an order after its hold, with the payment that it recorded.';
COMMENT ON COLUMN order_changes.sequence IS 'The entry''s number: there the journal has the whole order as of then.';
COMMENT ON COLUMN order_changes.status IS 'What the order became.';
CREATE INDEX order_changes_by_payment ON order_changes (payment_key) WHERE payment_key IS NOT NULL;
CREATE INDEX order_changes_due_for_refund ON order_changes (partition_id, order_sequence) WHERE fate <> 1;

CREATE VIEW payments AS
SELECT partition_id, order_sequence, sequence, amount_minor, fate, at, payment_id, currency
FROM order_changes WHERE payment_id IS NOT NULL;
COMMENT ON VIEW payments IS 'Every payment that was reported, also those that came too late or twice.';

CREATE VIEW order_states AS
SELECT orders.partition_id, orders.sequence, digest_key, buyer_key, reference_key, digest, buyer_id, channel, currency,
       reference, discount_minor, freight_minor, amount_minor, created_at, held_until,
       coalesce(latest.version, 1) AS version, coalesce(latest.status, 1::smallint) AS status,
       coalesce(latest.sequence, orders.sequence) AS changed_sequence, settling.at AS settled_at,
       CASE latest.status WHEN 2 THEN settling.payment_id END AS payment_id
FROM orders
LEFT JOIN LATERAL (
    SELECT version, status, sequence FROM order_changes AS changes
    WHERE changes.partition_id = orders.partition_id AND changes.order_sequence = orders.sequence
    ORDER BY version DESC LIMIT 1
) AS latest ON true
LEFT JOIN LATERAL (
    SELECT at, payment_id FROM order_changes AS changes
    WHERE changes.partition_id = orders.partition_id AND changes.order_sequence = orders.sequence AND fate = 1
    ORDER BY version LIMIT 1
) AS settling ON latest.version IS NOT NULL;
COMMENT ON VIEW order_states IS 'Orders as of their last change.';

CREATE TABLE stock (
    partition_id integer NOT NULL,
    sku          text COLLATE "C" NOT NULL,
    allocated    bigint NOT NULL,
    withheld     bigint NOT NULL,
    available    bigint NOT NULL,
    held         bigint NOT NULL,
    settled      bigint NOT NULL,
    pools        jsonb NOT NULL,
    PRIMARY KEY (partition_id, sku),
    CONSTRAINT stock_adds_up CHECK (allocated = withheld + available + held + settled),
    CONSTRAINT stock_never_below_zero CHECK (least(allocated, withheld, available, held, settled) >= 0)
) WITH (fillfactor = 50);
COMMENT ON TABLE stock IS 'Units as of partitions.persisted_sequence.';

CREATE TABLE feed (
    feed_sequence bigint PRIMARY KEY,
    partition_id  integer NOT NULL,
    version       integer NOT NULL,
    change        text COLLATE "C" NOT NULL,
    sale_id       text COLLATE "C" NOT NULL,
    order_id      text COLLATE "C" NOT NULL,
    row           text NOT NULL
);
COMMENT ON COLUMN feed.row IS 'The finished JSON document: the whole order as of that change.';
CREATE INDEX feed_by_change ON feed (change, feed_sequence) WHERE change <> 'settled';

CREATE TABLE counters (
    only_row      boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    feed_sequence bigint NOT NULL
) WITH (fillfactor = 10);
INSERT INTO counters (feed_sequence) VALUES (0);

CREATE TABLE acknowledgements (
    role          text NOT NULL,
    owner         text NOT NULL,
    feed_sequence bigint NOT NULL,
    at            timestamptz NOT NULL,
    PRIMARY KEY (role, owner)
);

CREATE TABLE settings (
    name  text PRIMARY KEY,
    value bytea NOT NULL
);
INSERT INTO settings (name, value) VALUES
    ('cursor_secret', decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));
"""

TABLES = (
    "settings", "acknowledgements", "counters", "feed", "stock", "order_changes", "further_lines", "orders",
    "sales", "journal_slices", "partitions",
)  # fmt: skip


def upgrade() -> None:
    """Make the tables."""
    for statement in SCHEMA.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    """Drop them, with everything in them."""
    op.execute("DROP VIEW order_states, payments, order_lines, journal")
    op.execute("DROP TABLE " + ", ".join(TABLES))
    op.execute("DROP SEQUENCE order_eras")
