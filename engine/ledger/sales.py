"""Sales and partitions as the ledger knows them: for the guard, the audit and the back office.

Every function raises LedgerUnavailable where PostgreSQL cannot be asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from engine.domain.errors import LedgerUnavailable
from engine.domain.journal import OrderEntry, decode_entry
from engine.domain.orders import OrderRecord
from engine.ledger.connect import LedgerPool
from engine.ledger.queries import load

_queries = load("sales")


@dataclass(frozen=True)
class KnownPartition:
    """A partition as the ledger knows it."""

    partition_id: int
    sale_id: str
    sequence: int
    """The offset: the last sequence number that the ledger holds."""
    epoch: int
    retired: bool
    """Purged from Redis for good; its sale id is not used again."""


@dataclass(frozen=True)
class LedgerLevels:
    """A SKU's units in the ledger: `allocated = withheld + available + held + settled`."""

    allocated: int
    withheld: int
    available: int
    held: int
    settled: int
    pools: dict[str, int]


@dataclass(frozen=True)
class LevelsAt:
    """A sale's units at one sequence number."""

    sequence: int
    levels: dict[str, LedgerLevels]


@dataclass(frozen=True)
class StoredEntry:
    """One journal entry as the ledger keeps it."""

    sequence: int
    epoch: int
    at: datetime
    kind: int
    entry: bytes
    """The exact bytes that the partition wrote; see domain/journal.py."""


@dataclass(frozen=True)
class StoredOrder:
    """An order as of its last change, whole, as the journal in the ledger has it."""

    digest: str
    status: int
    version: int
    changed_sequence: int
    record: OrderRecord


def _partition_of(row: Any) -> KnownPartition:
    return KnownPartition(
        row["partition_id"], row["sale_id"], row["persisted_sequence"], row["epoch"], row["retired_at"] is not None
    )


async def known_partitions(pool: LedgerPool) -> list[KnownPartition]:
    """Every partition that the ledger has heard of, in the order of their sales' ids."""
    return [_partition_of(row) for row in await pool.fetch(_queries["known_partitions"])]


async def known_partition(pool: LedgerPool, sale_id: str) -> KnownPartition | None:
    """One sale's partition; None where the ledger has not heard of it."""
    row = await pool.fetch_row(_queries["known_partition"], sale_id)
    return None if row is None else _partition_of(row)


def _sale_document_of(row: Any) -> dict[str, Any]:
    return {**dict(row), "definition": msgspec.json.decode(row["definition"])}


async def sale_document(pool: LedgerPool, sale_id: str) -> dict[str, Any] | None:
    """The sale as of the last entry in the ledger, or None.

    Its members: sale_id, definition (as the operator gave it), status, version, changed_sequence, and the times
    created_at, changed_at, opened_at, closed_at, deleted_at.
    """
    row = await pool.fetch_row(_queries["sale"], sale_id)
    return None if row is None else _sale_document_of(row)


async def sale_documents(pool: LedgerPool, after: str, limit: int) -> list[dict[str, Any]]:
    """At most `limit` sales behind the id `after`, in the order of their ids, without deleted ones."""
    return [_sale_document_of(row) for row in await pool.fetch(_queries["sales_after"], after, limit)]


async def levels(pool: LedgerPool, sale_id: str) -> LevelsAt | None:
    """The sale's units by SKU and the sequence number that they are of, seen at one moment; None if unknown."""
    async with pool.snapshot() as connection:
        partition = await connection.fetchrow(_queries["known_partition"], sale_id)
        if partition is None:
            return None
        rows = await connection.fetch(_queries["levels"], partition["partition_id"])
    return LevelsAt(
        partition["persisted_sequence"],
        {row["sku"]: _levels_of(row) for row in rows},
    )


async def levels_of(pool: LedgerPool, sale_ids: Sequence[str]) -> dict[str, LevelsAt]:
    """`levels` of several sales, all seen at one moment, without those that the ledger has not heard of."""
    async with pool.snapshot() as connection:
        found = await connection.fetch(_queries["partitions_of"], sale_ids)
        rows = await connection.fetch(_queries["levels_of"], [row["partition_id"] for row in found])
    by_partition = {row["partition_id"]: LevelsAt(row["persisted_sequence"], {}) for row in found}
    for row in rows:
        by_partition[row["partition_id"]].levels[row["sku"]] = _levels_of(row)
    return {row["sale_id"]: by_partition[row["partition_id"]] for row in found}


def _levels_of(row: Any) -> LedgerLevels:
    return LedgerLevels(
        row["allocated"],
        row["withheld"],
        row["available"],
        row["held"],
        row["settled"],
        msgspec.json.decode(row["pools"], type=dict[str, int]),
    )


async def journal_after(pool: LedgerPool, partition_id: int, sequence: int, limit: int) -> list[StoredEntry]:
    """At most `limit` journal entries behind `sequence`, in order."""
    return [
        StoredEntry(**dict(row)) for row in await pool.fetch(_queries["journal_after"], partition_id, sequence, limit)
    ]


async def orders_after(pool: LedgerPool, partition_id: int, sequence: int, limit: int) -> list[StoredOrder]:
    """At most `limit` orders whose hold is behind `sequence`, in the order of their holds, each as of its last change.

    To go on: the last one's `record.sequence`. Raises also JournalUnreadable.
    """
    found = []
    for row in await pool.fetch(_queries["orders_after"], partition_id, sequence, limit):
        entry = decode_entry(row["entry"])
        if not isinstance(entry, OrderEntry):
            raise LedgerUnavailable(f"entry {row['changed_sequence']} of partition {partition_id} is of no order")
        found.append(StoredOrder(row["digest"], row["status"], row["version"], row["changed_sequence"], entry.order))
    return found


async def record_epoch(pool: LedgerPool, sale_id: str, epoch: int) -> int:
    """Note the epoch under which a partition is about to be opened, before it is; the highest one known then.

    The ledger outlives a Redis that lost everything, so an epoch noted here is never given twice. A partition that
    the ledger has not heard of gets its row.
    """
    return int(await pool.fetch_value(_queries["record_epoch"], sale_id, epoch) or 0)


async def record_epochs(pool: LedgerPool, epochs: Mapping[str, int]) -> None:
    """`record_epoch` for several partitions, all of which the ledger has heard of."""
    await pool.execute(_queries["record_epochs"], list(epochs), list(epochs.values()))


async def retire(pool: LedgerPool, sale_id: str, sequence: int) -> bool:
    """Mark a partition as purged, for good, if the ledger holds its entries up to exactly `sequence`; tells if so."""
    return await pool.fetch_value(_queries["retire"], sale_id, sequence) is not None
