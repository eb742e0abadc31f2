"""From journal to ledger: each entry exactly once, whatever is killed and whenever.

**Exactly once.** The offset (`partitions.persisted_sequence`) moves in the same transaction as everything that is
derived from the entries up to it, and its row is locked from the transaction's first statement to its end. Killed
before the commit, nothing of it is there; killed after it, the offset says so. A second persister on the same partition
waits for the lock and then finds the offset moved: what it brings is skipped, and a gap is refused.

**No gap in the feed, and none that a reader could fall into.** The feed's numbers come from one row, `counters`, that
a transaction updates as its last step but for the rows it numbers and the offset's new value. The row's lock is held to
the end of the transaction, so

1. numbers are dense: the next transaction reads the counter only after this one has ended, and finds it as this one
   left it, or, where it was rolled back, as if it had never been;
2. numbers appear in their order: PostgreSQL makes a transaction visible to new snapshots *before* it releases the
   transaction's locks (CommitTransaction calls ProcArrayEndTransaction before ResourceOwnerRelease). A transaction with
   higher numbers got the lock after that, so a snapshot which shows its rows shows all lower ones too. A page of the
   feed is one statement, and so one snapshot: from the last number in it on, a reader never misses a row.

A sequence would break both: it is taken without a lock and given out again to nobody. There is no deadlock, for every
transaction locks its own partition's offset first and the counter last.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec

from engine.domain.errors import JournalUnreadable
from engine.ledger.connect import LedgerPool
from engine.ledger.folding import SHARED, Folding, SaleRow, StockDifference
from engine.ledger.queries import load

SALES_REMEMBERED_MAX = 256
"""Sales whose definition a writer keeps decoded; another one costs a read."""

_queries = load("persister")

_JOURNAL = ("partition_id", "sequence", "epoch", "at", "kind", "order_digest", "entry")
_ORDERS = (
    "partition_id", "sequence", "version", "status", "changed_sequence", "discount_minor", "freight_minor",
    "amount_minor", "created_at", "held_until", "settled_at", "digest", "channel", "buyer_id", "currency", "reference",
    "payment_id",
)  # fmt: skip
_LINES = (
    "partition_id", "order_sequence", "position", "quantity", "unit_price_minor", "paid_minor", "line_id", "sku",
    "outer_code",
)  # fmt: skip
_PAYMENTS = (
    "partition_id", "order_sequence", "sequence", "amount_minor", "fate", "at", "payment_id", "currency",
)  # fmt: skip
_FEED = ("feed_sequence", "partition_id", "version", "change", "sale_id", "order_id", "row")


@dataclass(frozen=True)
class WriteResult:
    """What a write left in the ledger."""

    sequence: int
    """The offset: the last sequence number that the ledger holds now."""
    entries: int
    """Entries that this call wrote; the others were there already."""
    at_ms: int
    """When the last of them happened, by Redis' clock; 0 where none was written."""


class Passing:
    """Is told of each named point that a write passes. This one does nothing; fault tests end the process there."""

    def at(self, point: str) -> None:
        """The point was reached."""


class LedgerWriter:
    """Writes journal records into the ledger. One may be used for many partitions at the same time."""

    def __init__(self, pool: LedgerPool, passing: Passing | None = None) -> None:
        """`pool` is to be opened with WRITER_SETTINGS."""
        self._pool = pool
        self._passing = passing or Passing()
        self._sales: dict[str, tuple[int, SaleRow | None]] = {}  # with the offset as of which each is known

    async def offsets(self, sale_ids: Sequence[str]) -> dict[str, int]:
        """The last sequence number of each partition that the ledger holds; 0 where it has not heard of it."""
        rows = await self._pool.fetch(_queries["offsets"], list(sale_ids))
        return {**dict.fromkeys(sale_ids, 0), **{row["sale_id"]: row["persisted_sequence"] for row in rows}}

    async def write(self, sale_id: str, records: list[tuple[int, bytes]]) -> WriteResult:
        """Bring a partition's journal records into the ledger, in one transaction: all of them or none.

        `records`: (last sequence number, encoded JournalRecord), oldest first. Entries that the ledger holds are
        skipped, so any part of a journal may be given any number of times.

        Raises: JournalUnreadable (a gap, another format, an entry that contradicts the ledger, or a value that it
        cannot hold), LedgerUnavailable (a commit may have happened: ask for the offset, or give the records again).
        """
        try:
            async with self._pool.connection() as connection:
                async with connection.transaction():
                    folding, entries = await self._write(connection, sale_id, records)
                    self._passing.at("before_commit")
                self._passing.at("after_commit")
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError, OverflowError) as error:
            raise JournalUnreadable(f"the ledger cannot hold the journal of {sale_id}: {error}") from error
        self._remember(sale_id, folding)
        return WriteResult(folding.sequence, entries, folding.at_ms)

    async def _write(self, connection: Any, sale_id: str, records: list[tuple[int, bytes]]) -> tuple[Folding, int]:
        partition = await _lock_partition(connection, sale_id)
        offset = partition["persisted_sequence"]
        sale = await self._sale_as_of(connection, sale_id, offset)
        folding = Folding(sale_id, partition["partition_id"], offset, sale)
        for record_sequence, encoded in records:
            folding.add(record_sequence, encoded)
        if folding.repeated is not None:
            await _compare_repeated(connection, folding)
        entries = folding.sequence - offset
        if entries:
            if partition["retired_at"] is not None:
                raise JournalUnreadable(f"{sale_id} was retired, and its journal goes on at {offset + 1}")
            await self._write_rows(connection, folding)
        return folding, entries

    async def _write_rows(self, connection: Any, folding: Folding) -> None:
        """Everything that the entries say; the feed's counter last, for it is locked until the commit."""
        await connection.copy_records_to_table("journal", records=folding.journal_rows, columns=_JOURNAL)
        if held := folding.order_rows():
            await connection.copy_records_to_table("orders", records=held, columns=_ORDERS)
            await connection.copy_records_to_table("order_lines", records=folding.line_rows, columns=_LINES)
        self._passing.at("in_transaction")
        await _change_orders(connection, folding)
        if folding.payment_rows:
            await connection.copy_records_to_table("payments", records=folding.payment_rows, columns=_PAYMENTS)
        if folding.stock:
            await _write_stock(connection, folding)
        if folding.sale_changed:
            await _write_sale(connection, folding)
        if folding.feed_rows:
            await _write_feed(connection, folding)
        await connection.execute(_queries["move_offset"], folding.partition_id, folding.sequence, folding.epoch)

    async def _sale_as_of(self, connection: Any, sale_id: str, offset: int) -> SaleRow | None:
        """The sale as of the offset: remembered, unless another writer has moved the offset since."""
        known_at, sale = self._sales.get(sale_id, (-1, None))
        if known_at == offset:
            return sale
        row = await connection.fetchrow(_queries["sale"], sale_id)
        return None if row is None else SaleRow(**dict(row)).with_definition(row["definition"])

    def _remember(self, sale_id: str, folding: Folding) -> None:
        """Only after the commit: what was rolled back must not be known."""
        self._sales.pop(sale_id, None)
        self._sales[sale_id] = (folding.sequence, folding.sale)
        if len(self._sales) > SALES_REMEMBERED_MAX:
            del self._sales[next(iter(self._sales))]


async def _lock_partition(connection: Any, sale_id: str) -> Any:
    row = await connection.fetchrow(_queries["lock_partition"], sale_id)
    if row is None:
        await connection.execute(_queries["add_partition"], sale_id)
        row = await connection.fetchrow(_queries["lock_partition"], sale_id)
    return row


async def _compare_repeated(connection: Any, folding: Folding) -> None:
    """What a journal repeats must be what the ledger holds: else Redis went back and took another way."""
    assert folding.repeated is not None
    sequence, entry = folding.repeated
    if await connection.fetchval(_queries["entry_at"], folding.partition_id, sequence) != entry:
        raise JournalUnreadable(f"entry {sequence} of {folding.sale_id} is another one in the ledger")


async def _change_orders(connection: Any, folding: Folding) -> None:
    columns = folding.changed_order_columns()
    if not columns:
        return
    done = await connection.execute(_queries["change_orders"], folding.partition_id, *columns)
    if done != f"UPDATE {len(columns[0])}":
        raise JournalUnreadable(f"{folding.sale_id}: of {len(columns[0])} changed orders the ledger knows {done[7:]}")


async def _write_stock(connection: Any, folding: Folding) -> None:
    """Add the differences to the levels. Below zero, or where they do not add up, a constraint refuses them."""
    rows = await connection.fetch(_queries["stock"], folding.partition_id, list(folding.stock))
    before = {row["sku"]: row for row in rows}
    levels, removed = [], []
    for sku, difference in folding.stock.items():
        level = _add(sku, before.get(sku), difference)
        if not difference.removed:
            levels.append(level)
        elif any(level[1:-1]):
            raise JournalUnreadable(f"{sku} left {folding.sale_id} with units in it: {level}")
        else:
            removed.append(sku)
    if levels:
        columns = [list(column) for column in zip(*levels, strict=True)]
        await connection.execute(_queries["put_stock"], folding.partition_id, *columns)
    if removed:
        await connection.execute(_queries["remove_stock"], folding.partition_id, removed)


def _add(sku: str, before: Any | None, difference: StockDifference) -> tuple[str, int, int, int, int, int, str]:
    """(sku, allocated, withheld, available, held, settled, pools as JSON) after the difference."""
    numbers = [quantity + (before[name] if before is not None else 0) for name, quantity in difference.numbers.items()]
    allocated, withheld, held, settled = numbers
    pools: dict[str, int] = {SHARED: 0}
    if before is not None:
        pools.update(msgspec.json.decode(before["pools"]))
    for pool, quantity in difference.pools.items():
        pools[pool] = pools.get(pool, 0) + quantity
    if min(pools.values()) < 0:
        raise JournalUnreadable(f"a pool of {sku} would be below zero: {pools}")
    return sku, allocated, withheld, sum(pools.values()), held, settled, msgspec.json.encode(pools).decode()


async def _write_sale(connection: Any, folding: Folding) -> None:
    sale = folding.sale
    assert sale is not None
    await connection.execute(
        _queries["put_sale"],
        folding.sale_id,
        folding.partition_id,
        sale.definition,
        sale.status,
        sale.version,
        sale.created_at,
        sale.changed_at,
        sale.opened_at,
        sale.closed_at,
        sale.deleted_at,
        sale.changed_sequence,
    )


async def _write_feed(connection: Any, folding: Folding) -> None:
    """Number the feed's rows: see the top of this file."""
    last = await connection.fetchval(_queries["count_feed"], len(folding.feed_rows))
    first = last - len(folding.feed_rows) + 1
    await connection.copy_records_to_table(
        "feed",
        records=[
            (number, folding.partition_id, row.version, row.change, folding.sale_id, row.order_id, row.numbered(number))
            for number, row in enumerate(folding.feed_rows, first)
        ],
        columns=_FEED,
    )
