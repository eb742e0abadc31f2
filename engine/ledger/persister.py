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
transaction locks its partitions' offsets first, in the order of their ids, and the counter last.

**Folded ahead.** Records may be folded before the transaction that writes them begins, and while the one before it is
still being written: the folding goes on from where that one will leave the ledger. The offset is compared once it is
locked, and what does not go on from it exactly is not written.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from struct import error as PackError  # noqa: N812 - it names a lower-case class
from typing import Any

import asyncpg
import msgspec

from engine.domain.errors import JournalUnreadable, LedgerUnavailable
from engine.domain.orders import SHARED_POOL
from engine.ledger import copy_rows
from engine.ledger.connect import LedgerPool
from engine.ledger.folding import Folding, Place, SaleRow, StockDifference, TableRows
from engine.ledger.queries import load

SALES_REMEMBERED_MAX = 256
"""Sales whose definition a writer keeps decoded; another one costs a read."""
ERA_ORDERS = 16_384
"""Orders written by one writer in one era. What is written to an index stays within half a megabyte then, which the
processor keeps at hand: with 131,072 an order cost PostgreSQL a fifth more. A search asks for each era, some
microseconds for ten of them."""
FEED_ROWS_PER_CHUNK = 256

_queries = load("persister")
_NOT_HELD = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError, OverflowError, PackError)
"""What is raised where PostgreSQL, or the packing for it, refuses a value."""


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


Written = WriteResult | JournalUnreadable | None
"""What became of one folding: written; refused, with the reason; or left out, for the offset is another by now."""


class LedgerWriter:
    """Writes journal records into the ledger. One may be used for many partitions at the same time."""

    def __init__(self, pool: LedgerPool, passing: Passing | None = None) -> None:
        """`pool` is to be opened with WRITER_SETTINGS."""
        self._pool = pool
        self._passing = passing or Passing()
        self._sales: dict[str, tuple[int, SaleRow | None]] = {}  # with the offset as of which each is known
        self._era = 1
        self._era_known = False
        self._orders_of_era = 0

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
                    folding = await self._fold_locked(connection, sale_id, records)
                    if folding.entries:
                        await self._write_rows(connection, [folding])
                    self._passing.at("before_commit")
                self._passing.at("after_commit")
        except _NOT_HELD as error:
            raise JournalUnreadable(f"the ledger cannot hold the journal of {sale_id}: {error}") from error
        except LedgerUnavailable:
            self._era_known = False  # a standby that took over may have a lower one
            raise
        self._remember(folding)
        return WriteResult(folding.sequence, folding.entries, folding.at_ms)

    async def place(self, sale_id: str) -> Place | None:
        """Where the ledger is; None where it has not heard of the sale, which `write` then makes known.

        Raises: LedgerUnavailable, JournalUnreadable (the sale's definition in the ledger).
        """
        found = (await self.places([sale_id])).get(sale_id)
        if isinstance(found, JournalUnreadable):
            raise found
        return found

    async def places(self, sale_ids: Sequence[str]) -> dict[str, Place | JournalUnreadable]:
        """`place` of several sales, in one question; without those that the ledger has not heard of."""
        async with self._pool.connection() as connection:
            rows = await connection.fetch(_queries["places"], list(sale_ids))
            await self._know_era(connection)
        found: dict[str, Place | JournalUnreadable] = {}
        for sale_id, partition_id, offset, *defined in rows:
            try:
                found[sale_id] = Place(sale_id, partition_id, offset, self._known_sale(sale_id, offset, defined))
            except JournalUnreadable as error:
                found[sale_id] = error
        return found

    def _known_sale(self, sale_id: str, offset: int, defined: list[Any]) -> SaleRow | None:
        known_at, sale = self._sales.get(sale_id, (-1, None))
        if known_at == offset:
            return sale
        return None if defined[0] is None else SaleRow(*defined).with_definition(defined[0])

    def folding_from(self, place: Place) -> Folding:
        """A folding that goes on from this place, which may be one that is about to be written."""
        return Folding(place, self._era)

    async def write_folded(self, foldings: Sequence[Folding]) -> dict[str, Written]:
        """Write what was folded of several partitions, of each once, in one transaction; by sale, what became of it.

        Where one of them is refused it is found by writing each alone, so that the others are written.
        Raises LedgerUnavailable (a commit may have happened: ask for the offsets).
        """
        try:
            return await self._write_together(foldings)
        except (*_NOT_HELD, JournalUnreadable) as error:
            if len(foldings) == 1:
                (refused,) = foldings
                reason = f"the ledger cannot hold the journal of {refused.sale_id}: {error}"
                return {refused.sale_id: error if isinstance(error, JournalUnreadable) else JournalUnreadable(reason)}
        except LedgerUnavailable:
            self._era_known = False  # a standby that took over may have a lower one
            raise
        written: dict[str, Written] = {}
        for folding in foldings:
            written |= await self.write_folded([folding])
        return written

    async def _write_together(self, foldings: Sequence[Folding]) -> dict[str, Written]:
        async with self._pool.connection() as connection:
            async with connection.transaction():
                fitting, written = await _lock_fitting(connection, foldings)
                if fitting:
                    await self._write_rows(connection, fitting)
                self._passing.at("before_commit")
            self._passing.at("after_commit")
        for folding in fitting:
            self._remember(folding)
            written[folding.sale_id] = WriteResult(folding.sequence, folding.entries, folding.at_ms)
        return written

    async def _fold_locked(self, connection: Any, sale_id: str, records: list[tuple[int, bytes]]) -> Folding:
        partition = await _lock_partition(connection, sale_id)
        offset = partition["persisted_sequence"]
        sale = await self._sale_as_of(connection, sale_id, offset)
        await self._know_era(connection)
        folding = self.folding_from(Place(sale_id, partition["partition_id"], offset, sale))
        for record_sequence, encoded in records:
            folding.add(record_sequence, encoded)
        await _require_fitting(connection, folding, partition)
        return folding

    async def _write_rows(self, connection: Any, foldings: Sequence[Folding]) -> None:
        """Everything that the entries say; the feed's counter last, for it is locked until the commit."""
        await _copy(connection, "journal_slices", copy_rows.JOURNAL_COLUMNS, [folding.journal for folding in foldings])
        await _copy(connection, "orders", copy_rows.ORDER_COLUMNS, [folding.orders for folding in foldings])
        await _copy(connection, "further_lines", copy_rows.LINE_COLUMNS, [folding.lines for folding in foldings])
        self._passing.at("in_transaction")
        await _copy(connection, "order_changes", copy_rows.CHANGE_COLUMNS, [folding.changes for folding in foldings])
        await self._count_orders(connection, sum(folding.orders.count for folding in foldings))
        await _write_stock(connection, foldings)
        for folding in foldings:
            if folding.sale_changed:
                await _write_sale(connection, folding)
        await _write_feed(connection, [folding for folding in foldings if folding.feed])
        rows = [(folding.partition_id, folding.sequence, folding.epoch) for folding in foldings]
        await connection.execute(_queries["move_offsets"], *_columns(rows))

    async def _sale_as_of(self, connection: Any, sale_id: str, offset: int) -> SaleRow | None:
        """The sale as of the offset: remembered, unless another writer has moved the offset since."""
        known_at, sale = self._sales.get(sale_id, (-1, None))
        if known_at == offset:
            return sale
        row = await connection.fetchrow(_queries["sale"], sale_id)
        return None if row is None else SaleRow(**dict(row)).with_definition(row["definition"])

    def _remember(self, folding: Folding) -> None:
        """Only after the commit: what was rolled back must not be known."""
        self._sales.pop(folding.sale_id, None)
        self._sales[folding.sale_id] = (folding.sequence, folding.sale)
        if len(self._sales) > SALES_REMEMBERED_MAX:
            del self._sales[next(iter(self._sales))]

    async def _know_era(self, connection: Any) -> None:
        if not self._era_known:
            self._era, self._era_known = await connection.fetchval(_queries["newest_era"]), True

    async def _count_orders(self, connection: Any, orders: int) -> None:
        self._orders_of_era += orders
        if self._orders_of_era >= ERA_ORDERS:
            self._orders_of_era = 0
            self._era = await connection.fetchval(_queries["next_era"])


async def _lock_fitting(connection: Any, foldings: Sequence[Folding]) -> tuple[list[Folding], dict[str, Written]]:
    """Lock the partitions' offsets: the foldings that go on from them, and what became of the others."""
    ids = [folding.partition_id for folding in foldings]
    locked = {row["partition_id"]: row for row in await connection.fetch(_queries["lock_partitions"], ids)}
    fitting: list[Folding] = []
    others: dict[str, Written] = {}
    for folding in foldings:
        partition = locked.get(folding.partition_id)
        if partition is None or partition["persisted_sequence"] != folding.start:
            others[folding.sale_id] = None
            continue
        try:
            await _require_fitting(connection, folding, partition)
        except JournalUnreadable as error:
            others[folding.sale_id] = error
        else:
            fitting.append(folding)
    return fitting, others


async def _lock_partition(connection: Any, sale_id: str) -> Any:
    row = await connection.fetchrow(_queries["lock_partition"], sale_id)
    if row is None:
        await connection.execute(_queries["add_partition"], sale_id)
        row = await connection.fetchrow(_queries["lock_partition"], sale_id)
    return row


async def _require_fitting(connection: Any, folding: Folding, partition: Any) -> None:
    """What a journal repeats must be what the ledger holds (else Redis went back and took another way), and nothing
    comes behind a retirement.
    """
    if folding.repeated is not None:
        sequence, entry = folding.repeated
        if await connection.fetchval(_queries["entry_at"], folding.partition_id, sequence) != entry:
            raise JournalUnreadable(f"entry {sequence} of {folding.sale_id} is another one in the ledger")
    if folding.entries and partition["retired_at"] is not None:
        raise JournalUnreadable(f"{folding.sale_id} was retired, and its journal goes on at {folding.start + 1}")


async def _copy(connection: Any, table: str, columns: tuple[str, ...], rows: list[TableRows]) -> None:
    if count := sum(each.count for each in rows):
        chunks = chain.from_iterable(each.chunks for each in rows)
        await copy_rows.copy_rows(connection, table, columns, chunks, count)


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[list[Any]]:
    """Rows as the arrays that `unnest` takes."""
    return [list(column) for column in zip(*rows, strict=True)]


async def _write_stock(connection: Any, foldings: Sequence[Folding]) -> None:
    """Add the differences to the levels. Below zero, or where they do not add up, a constraint refuses them."""
    differences = [(folding, sku, difference) for folding in foldings for sku, difference in folding.stock().items()]
    if not differences:
        return
    keys = _columns([(folding.partition_id, sku) for folding, sku, _ in differences])
    before = {(row["partition_id"], row["sku"]): row for row in await connection.fetch(_queries["stock"], *keys)}
    levels, removed = [], []
    for folding, sku, difference in differences:
        level = _add(sku, before.get((folding.partition_id, sku)), difference)
        if not difference.removed:
            levels.append((folding.partition_id, *level))
        elif any(level[1:-1]):
            raise JournalUnreadable(f"{sku} left {folding.sale_id} with units in it: {level}")
        else:
            removed.append((folding.partition_id, sku))
    if levels:
        await connection.execute(_queries["put_stock"], *_columns(levels))
    if removed:
        await connection.execute(_queries["remove_stock"], *_columns(removed))


def _add(sku: str, before: Any | None, difference: StockDifference) -> tuple[str, int, int, int, int, int, str]:
    """(sku, allocated, withheld, available, held, settled, pools as JSON) after the difference."""
    numbers = [quantity + (before[name] if before is not None else 0) for name, quantity in difference.numbers.items()]
    allocated, withheld, held, settled = numbers
    pools: dict[str, int] = {SHARED_POOL: 0}
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


async def _write_feed(connection: Any, foldings: Sequence[Folding]) -> None:
    """Number the feed's rows: see the top of this file."""
    count = sum(len(folding.feed) for folding in foldings)
    if not count:
        return
    last = await connection.fetchval(_queries["count_feed"], count)
    rows = list(chain.from_iterable(folding.feed for folding in foldings))
    chunks = (
        copy_rows.feed_rows(last - count + 1 + first, rows[first : first + FEED_ROWS_PER_CHUNK])
        for first in range(0, count, FEED_ROWS_PER_CHUNK)
    )
    await copy_rows.copy_rows(connection, "feed", copy_rows.FEED_COLUMNS, chunks, count)
