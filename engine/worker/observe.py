"""Keeps the stock metric: the units of running sales, by SKU and state."""

import asyncio

import structlog

from engine.domain.errors import PartitionUnavailable
from engine.observability import metrics
from engine.partition.glance import Glance
from engine.partition.partitions import Partitions
from engine.worker.roll import Roll

INTERVAL_SECONDS = 1.0
SALES_MAX = 100
"""Sales that get series in this process' life; each series stays as long as the process."""
SKUS_MAX = 200
"""SKUs of one sale that get series."""
SKUS_IN_ALL_MAX = 2_000
"""SKUs that get series in this process' life, four each: what a scrape can carry."""
RUNNING = frozenset({"open", "paused"})

log = structlog.get_logger(__name__)


class StockObserver:
    """Looks at the stock of running sales, and once more at that of one that has just ended."""

    def __init__(self, partitions: Partitions, roll: Roll | None = None) -> None:
        self._roll = roll or Roll(partitions)
        self._glance = Glance(partitions.connections)
        self._observed: set[str] = set()
        self._observed_skus: set[tuple[str, str]] = set()
        self._running: set[str] = set()

    async def run(self) -> None:
        """Observe for as long as the worker lives; while Redis is away there is nothing to see."""
        while True:
            try:
                await self.look()
            except PartitionUnavailable as error:
                log.debug("nothing_to_observe", reason=str(error))
            await asyncio.sleep(INTERVAL_SECONDS)

    async def look(self) -> None:
        """Set the metric from what Redis holds now."""
        schedules = await self._glance.schedules(await self._roll.lively())
        running = {sale_id for sale_id, schedule in schedules.items() if schedule.status in RUNNING}
        for sale_id in sorted(running | self._running):
            if sale_id in self._observed or len(self._observed) < SALES_MAX:
                self._observed.add(sale_id)
                await self._set(sale_id)
        self._running = running

    async def _set(self, sale_id: str) -> None:
        for sku, levels in (await self._glance.stock(sale_id, SKUS_MAX)).items():
            if (sale_id, sku) not in self._observed_skus:
                if len(self._observed_skus) >= SKUS_IN_ALL_MAX:
                    continue
                self._observed_skus.add((sale_id, sku))
            for state in ("withheld", "available", "held", "settled"):
                metrics.STOCK_UNITS.labels(sale=sale_id, sku=sku, state=state).set(getattr(levels, state))
