"""Finds sales: in their partition where it is, and in the ledger where it has left Redis for good."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import structlog
from msgspec import UNSET, UnsetType

from engine.backoffice.documents import SaleDocument
from engine.backoffice.sale_view import sale_from_ledger, sale_from_partition
from engine.domain.commands import ApplySchedule, GetSale
from engine.domain.errors import LedgerUnavailable, PartitionFrozen
from engine.domain.outcomes import Outcome
from engine.ledger.connect import LedgerPool
from engine.ledger.sales import KnownPartition, known_partition, known_partitions, levels, sale_document
from engine.partition.codec import Reply
from engine.partition.partitions import Partitions
from engine.web.problems import Problem, refusal

LIST_SKUS_MAX = 50_000
"""A page of sales ends early once it has this many SKUs, so that an answer stays within tens of megabytes."""
LIST_READS_MAX = 8
"""Sales of a list that are read at once."""
NAMES_PER_READ = 1000
DELETED = "deleted"

NOT_FOUND = refusal(Outcome.SALE_NOT_FOUND, ())

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class SalesPage:
    """Sales in the order of their ids."""

    sales: list[SaleDocument]
    has_more: bool
    complete: bool
    """False where the ledger could not be asked, so that sales which have left Redis are missing."""


class SaleReader:
    """Reads sales. Every method may raise PartitionUnavailable, OutcomeUnknown and LedgerUnavailable."""

    def __init__(self, partitions: Partitions, ledger: LedgerPool) -> None:
        self._partitions = partitions
        self._ledger = ledger

    async def has_partition(self, sale_id: str) -> bool:
        """Whether Redis has the sale's partition, be its sale deleted or not. Raises PartitionFrozen if frozen."""
        (reply,) = await self._partitions.submit(sale_id, ApplySchedule())
        return reply.outcome is not Outcome.SALE_NOT_FOUND

    async def ledger_only(self, sale_id: str) -> KnownPartition | None:
        """The partition of a sale that Redis does not know, if the ledger does.

        A row without an entry only notes an epoch: it is of a sale that was never made. And Redis is asked once more,
        for the sale may have been made, and have come into the ledger, since it was asked first.
        """
        known = await known_partition(self._ledger, sale_id)
        if known is None or (known.sequence == 0 and not known.retired):
            return None
        return None if not known.retired and await self.has_partition(sale_id) else known

    async def find(self, sale_id: str) -> SaleDocument | Problem:
        """The sale as it stands now: SALE_NOT_FOUND, or FROZEN where Redis has lost what the ledger knows."""
        (reply,) = await self._partitions.submit(sale_id, GetSale())
        return await self.document_of(sale_id, reply)

    async def document_of(self, sale_id: str, reply: Reply) -> SaleDocument | Problem:
        """The sale in a reply to GetSale; where there was none in Redis, what the ledger has."""
        if reply.outcome is Outcome.DONE:
            snapshot = reply.sale()
            if snapshot.definition:
                return sale_from_partition(sale_id, snapshot)
            return await self._from_ledger(sale_id) or NOT_FOUND  # a tombstone: the rest has left Redis for good
        if reply.outcome is not Outcome.SALE_NOT_FOUND:
            return refusal(reply.outcome, reply.detail)
        return await self.find_absent(sale_id)

    async def find_absent(self, sale_id: str) -> SaleDocument | Problem:
        """A sale that no partition of Redis has: one that has left it for good (closed), or the problem."""
        if await self.has_partition(sale_id):
            return NOT_FOUND
        known = await self.ledger_only(sale_id)
        if known is None:
            return NOT_FOUND
        if not known.retired:
            return refusal(Outcome.FROZEN, ())
        return await self._from_ledger(sale_id) or NOT_FOUND

    async def page(self, after: str, limit: int) -> SalesPage:
        """At most `limit` sales behind the id `after`; one that is being reconciled as the ledger has it, saying so."""
        retired, complete = await self._retired()
        found: list[SaleDocument] = []
        skus = 0
        async with aclosing(self._names(after, retired)) as names:
            while chunk := await _take(names, LIST_READS_MAX):
                documents, all_told = await self._read_all(chunk)
                complete = complete and all_told
                for document in documents:
                    if len(found) == limit or (found and skus + len(document.skus) > LIST_SKUS_MAX):
                        return SalesPage(found, has_more=True, complete=complete)
                    found.append(document)
                    skus += len(document.skus)
        return SalesPage(found, has_more=False, complete=complete)

    async def _retired(self) -> tuple[list[str], bool]:
        """The ids of all sales that have left Redis for good, and whether the ledger could be asked."""
        try:
            return [known.sale_id for known in await known_partitions(self._ledger) if known.retired], True
        except LedgerUnavailable as error:
            _log.warning("sales_listed_without_ledger", reason=str(error))
            return [], False

    async def _names(self, after: str, retired: list[str]) -> AsyncGenerator[str, None]:
        """All names behind `after`, in order, from Redis' list and `retired` together."""
        while True:
            read = await self._partitions.sale_ids(after, NAMES_PER_READ)
            last = read[-1] if len(read) == NAMES_PER_READ else None
            here = {name for name in retired if name > after and (last is None or name <= last)}
            for name in sorted(here.union(read)):
                yield name
            if last is None:
                return
            after = last

    async def _read_all(self, sale_ids: list[str]) -> tuple[list[SaleDocument], bool]:
        """Those of the sales that exist, and whether the ledger could be asked for all that it alone has.

        What else could not be told of one is raised once all have been asked.
        """
        results = await asyncio.gather(*map(self._listed, sale_ids), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, LedgerUnavailable):
                raise result
        all_told = not any(isinstance(result, LedgerUnavailable) for result in results)
        return [result for result in results if isinstance(result, SaleDocument)], all_told

    async def _listed(self, sale_id: str) -> SaleDocument | None:
        try:
            found = await self.find(sale_id)
        except PartitionFrozen as frozen:
            try:
                document = await self._from_ledger(sale_id, frozen=str(frozen))
            except LedgerUnavailable:
                raise frozen from None
            if document is None:
                raise
            return document
        return None if isinstance(found, Problem) else found

    async def _from_ledger(self, sale_id: str, frozen: str | UnsetType = UNSET) -> SaleDocument | None:
        stored = await sale_document(self._ledger, sale_id)
        units = await levels(self._ledger, sale_id)
        if stored is None or units is None or stored["status"] == DELETED:
            return None
        return sale_from_ledger(sale_id, stored, units, frozen)


async def _take(names: AsyncIterator[str], count: int) -> list[str]:
    taken: list[str] = []
    async for name in names:
        taken.append(name)
        if len(taken) == count:
            break
    return taken
