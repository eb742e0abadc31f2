"""The ledger: every journal entry, and sales, orders, stock and the feed derived from them.

What an index costs was weighed against COPY: an order is inserted once, at its hold, and changed once or twice.

* An order's key is (partition_id, sequence), the hold's own sequence number, which every later entry of the order
  carries. It grows, so its index is written at the right edge only, and an update needs no look-up by a random digest.
* No column that a settlement changes is indexed, and the pages of `orders` keep room (fillfactor), so that a change is
  a heap-only update that leaves all indexes alone. Searching by status therefore walks newest-first; the rare
  `refund_due` is found through its payment.
* Nothing is declared a foreign key: the only writer is the persister, which writes both sides in one transaction and
  counts what it changed; the audit recomputes the rest.
"""

from alembic import op

revision = "v0001"
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

CREATE TABLE journal (
    partition_id integer NOT NULL,
    sequence     bigint NOT NULL,
    epoch        bigint NOT NULL,
    at           timestamptz NOT NULL,
    kind         smallint NOT NULL,
    order_digest text COLLATE "C",
    entry        bytea NOT NULL,
    PRIMARY KEY (partition_id, sequence)
);
COMMENT ON COLUMN journal.entry IS 'The exact MessagePack bytes that the partition wrote.';

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

CREATE TABLE orders (
    partition_id     integer NOT NULL,
    sequence         bigint NOT NULL,
    version          integer NOT NULL CHECK (version >= 1),
    status           smallint NOT NULL CHECK (status BETWEEN 1 AND 5),
    changed_sequence bigint NOT NULL,
    discount_minor   bigint NOT NULL,
    freight_minor    bigint NOT NULL,
    amount_minor     bigint NOT NULL,
    created_at       timestamptz NOT NULL,
    held_until       timestamptz NOT NULL,
    settled_at       timestamptz,
    digest           text COLLATE "C" NOT NULL,
    channel          text COLLATE "C" NOT NULL,
    buyer_id         text COLLATE "C" NOT NULL,
    currency         text COLLATE "C" NOT NULL,
    reference        text COLLATE "C",
    payment_id       text COLLATE "C",
    PRIMARY KEY (partition_id, sequence)
) WITH (fillfactor = 60);
COMMENT ON COLUMN orders.sequence IS 'The hold''s sequence number in its partition.';
COMMENT ON COLUMN orders.changed_sequence IS 'Where in the journal the whole order as of its last change stands.';
COMMENT ON COLUMN orders.payment_id IS 'The payment that settled it.';
CREATE UNIQUE INDEX orders_by_digest ON orders (digest, partition_id);
CREATE INDEX orders_by_buyer ON orders (buyer_id);
CREATE INDEX orders_by_reference ON orders (reference) WHERE reference IS NOT NULL;
CREATE INDEX orders_by_creation ON orders (created_at);

CREATE TABLE order_lines (
    partition_id     integer NOT NULL,
    order_sequence   bigint NOT NULL,
    position         smallint NOT NULL,
    quantity         integer NOT NULL,
    unit_price_minor bigint NOT NULL,
    paid_minor       bigint NOT NULL,
    line_id          text COLLATE "C" NOT NULL,
    sku              text COLLATE "C" NOT NULL,
    outer_code       text,
    PRIMARY KEY (partition_id, order_sequence, position)
);
CREATE INDEX order_lines_by_sku ON order_lines (sku);

CREATE TABLE payments (
    partition_id   integer NOT NULL,
    order_sequence bigint NOT NULL,
    sequence       bigint NOT NULL,
    amount_minor   bigint NOT NULL,
    fate           smallint NOT NULL CHECK (fate BETWEEN 1 AND 3),
    at             timestamptz NOT NULL,
    payment_id     text COLLATE "C" NOT NULL,
    currency       text COLLATE "C" NOT NULL,
    PRIMARY KEY (partition_id, order_sequence, sequence)
);
COMMENT ON TABLE payments IS 'Every payment that was reported, also those that came too late or twice.';
COMMENT ON COLUMN payments.sequence IS 'The sequence number of the entry that recorded it.';
CREATE INDEX payments_by_payment_id ON payments (payment_id);
CREATE INDEX payments_due_for_refund ON payments (partition_id, order_sequence) WHERE fate <> 1;

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
CREATE INDEX feed_by_change ON feed (change, feed_sequence);

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
    "settings", "acknowledgements", "counters", "feed", "stock", "payments", "order_lines", "orders", "sales",
    "journal", "partitions",
)  # fmt: skip


def upgrade() -> None:
    """Make the tables."""
    for statement in SCHEMA.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    """Drop them, with everything in them."""
    op.execute("DROP TABLE " + ", ".join(TABLES))
