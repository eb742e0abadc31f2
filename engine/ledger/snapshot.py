"""The ledger of one sale, whole and as of one moment, read in bounded pieces: what the audit compares.

Everything comes from one repeatable-read transaction, so that the offset, the journal and all that was derived from it
belong together however busy the persister is.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from engine.ledger.connect import LedgerPool
from engine.ledger.queries import load

ROWS_AT_ONCE = 5000
STATEMENT_TIMEOUT_SECONDS = 300.0
"""A sale of many millions of entries is read for minutes; each piece of it in a moment."""

_queries = load("audit")


@dataclass(frozen=True)
class PartitionRow:
    """A partition as the ledger knows it."""

    partition_id: int
    sequence: int
    """The offset: the last sequence number that the ledger says it holds."""
    epoch: int
    retired: bool


@dataclass(frozen=True)
class SaleRow:
    """What the ledger derived of a sale."""

    definition: str
    status: str
    version: int


@dataclass(frozen=True)
class FeedTotals:
    """The feed's numbers over all sales: dense if they are all the same, and the first is 1."""

    rows: int
    first: int
    last: int
    counter: int


class LedgerSnapshot:
    """Reads within one snapshot; the rows are asyncpg's records, with the columns named in queries/audit.sql."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def partition(self, sale_id: str) -> PartitionRow | None:
        """The sale's partition; None where the ledger has not heard of it."""
        row = await self._connection.fetchrow(_queries["partition"], sale_id)
        return None if row is None else PartitionRow(*row)

    async def sale(self, partition_id: int) -> SaleRow | None:
        """The sale; None where the ledger has no row of it."""
        row = await self._connection.fetchrow(_queries["sale"], partition_id)
        return None if row is None else SaleRow(*row)

    async def feed_totals(self) -> FeedTotals:
        """Counts the whole feed."""
        row = await self._connection.fetchrow(_queries["feed_totals"], timeout=STATEMENT_TIMEOUT_SECONDS)
        return FeedTotals(*row)

    def journal(self, partition_id: int, after: int = 0) -> AsyncIterator[Any]:
        """The journal's rows behind a sequence number, in order."""
        return self._rows("journal", partition_id, after)

    def stock(self, partition_id: int) -> AsyncIterator[Any]:
        """The stock rows."""
        return self._rows("stock", partition_id)

    def orders(self, partition_id: int) -> AsyncIterator[Any]:
        """The orders, in the order of their holds."""
        return self._rows("orders", partition_id)

    def order_lines(self, partition_id: int) -> AsyncIterator[Any]:
        """The orders' lines, in the order of the holds and of their positions."""
        return self._rows("order_lines", partition_id)

    def payments(self, partition_id: int) -> AsyncIterator[Any]:
        """The payments, in the order of the holds and of their arrival."""
        return self._rows("payments", partition_id)

    def feed(self, partition_id: int) -> AsyncIterator[Any]:
        """The feed rows that come from the journal, in order."""
        return self._rows("feed", partition_id)

    async def _rows(self, name: str, *arguments: Any) -> AsyncIterator[Any]:
        cursor = await self._connection.cursor(_queries[name], *arguments, timeout=STATEMENT_TIMEOUT_SECONDS)
        while rows := await cursor.fetch(ROWS_AT_ONCE, timeout=STATEMENT_TIMEOUT_SECONDS):
            for row in rows:
                yield row


@asynccontextmanager
async def ledger_snapshot(pool: LedgerPool) -> AsyncIterator[LedgerSnapshot]:
    """The ledger as of now, for as long as it takes to read. Raises LedgerUnavailable."""
    async with pool.snapshot() as connection:
        limit_ms = int(STATEMENT_TIMEOUT_SECONDS * 1000)
        await connection.execute(f"SET LOCAL statement_timeout = {limit_ms}")
        await connection.execute(f"SET LOCAL idle_in_transaction_session_timeout = {limit_ms}")
        yield LedgerSnapshot(connection)
