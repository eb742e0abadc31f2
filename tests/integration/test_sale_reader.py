"""A sale that comes to be while somebody looks for it has not been lost by Redis, and is not called frozen."""

from typing import Any

from engine.backoffice.sale_reader import NOT_FOUND, SaleReader
from engine.domain.outcomes import Outcome
from engine.ledger.connect import LedgerPool
from engine.ledger.persister import LedgerWriter
from engine.partition.partitions import Partitions
from engine.web.problems import refusal
from tests.integration.ledger_pools import reading, writing
from tests.lua.shop import SALE, Shop, sku

__all__ = ["reading", "writing"]  # fixtures


class LedgerAskedLate:
    """A ledger that is asked only once a sale has been made and has been persisted."""

    def __init__(self, reading: LedgerPool, writing: LedgerPool, partitions: Partitions) -> None:
        self._reading, self._writing, self._partitions = reading, writing, partitions

    async def fetch_row(self, query: str, *arguments: Any) -> Any | None:
        if SALE not in await self._partitions.sale_ids():
            await Shop(self._partitions).open(sku("A", 1))
            records = await self._partitions.journals.records_after(SALE, 0, 10_000)
            await LedgerWriter(self._writing).write(SALE, records)
        return await self._reading.fetch_row(query, *arguments)


async def test_a_sale_that_is_made_while_it_is_looked_for_is_not_frozen(
    partitions: Partitions, reading: LedgerPool, writing: LedgerPool
) -> None:
    reader = SaleReader(partitions, LedgerAskedLate(reading, writing, partitions))  # type: ignore[arg-type]
    assert await reader.find(SALE) is NOT_FOUND, "it was not there when Redis was asked"
    assert await reader.has_partition(SALE)


async def test_a_sale_that_redis_has_lost_is_frozen_however_often_it_is_asked(
    partitions: Partitions, reading: LedgerPool, writing: LedgerPool
) -> None:
    reader = SaleReader(partitions, LedgerAskedLate(reading, writing, partitions))  # type: ignore[arg-type]
    await reader.find(SALE)
    await partitions.connections.execute("FLUSHALL")
    await partitions.guarding.vouch_for(await partitions.guarding.server_run())
    await partitions.register(SALE)
    assert await reader.find(SALE) == refusal(Outcome.FROZEN, ())
