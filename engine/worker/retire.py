"""Retiring sales: once a closed sale's orders can no longer be read at the gateway, the ledger alone keeps them."""

import asyncio

import structlog

from engine.domain.errors import LedgerUnavailable, PartitionUnavailable
from engine.ledger.connect import LedgerPool
from engine.ledger.sales import retire
from engine.partition.glance import Glance, Schedule
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.worker.roll import Roll

INTERVAL_SECONDS = 30.0
MARGIN_MS = 60_000
"""Beyond the retention, so that no request that still found an order is on its way when the order goes."""
MS_PER_HOUR = 3_600_000

log = structlog.get_logger(__name__)


class Retirer:
    """Takes retired sales out of Redis: first it is written down in the ledger, then the keys are deleted.

    What it looks at cannot change in between: past its retention the script finds no order of the sale any more, and
    without an open hold nothing can expire. The script that deletes looks again all the same.
    """

    def __init__(self, partitions: Partitions, pool: LedgerPool, settings: Settings, roll: Roll | None = None) -> None:
        self._partitions = partitions
        self._roll = roll or Roll(partitions)
        self._glance = Glance(partitions.connections)
        self._pool = pool
        self._retention_ms = int(settings.order_retention_hours * MS_PER_HOUR)
        self._retired: set[str] = set()

    async def run(self) -> None:
        """Look now and then for as long as the worker lives; what cannot be done now can wait."""
        while True:
            try:
                await self.look()
            except (PartitionUnavailable, LedgerUnavailable) as error:
                log.info("retiring_put_off", reason=str(error))
            await asyncio.sleep(INTERVAL_SECONDS)

    async def look(self) -> None:
        """Retire every sale whose time has come."""
        sale_ids = [sale_id for sale_id in await self._roll.names() if sale_id not in self._retired]
        schedules = await self._glance.schedules(sale_ids)
        self._retired.update(sale_id for sale_id, schedule in schedules.items() if schedule.retired)
        now_ms = await self._glance.now_ms()
        over = [sale_id for sale_id, schedule in schedules.items() if self._is_over(schedule, now_ms)]
        with_holds = await self._glance.with_open_holds(over)
        for sale_id in over:
            sequence = schedules[sale_id].sequence
            if sale_id in with_holds or not await retire(self._pool, sale_id, sequence):
                continue
            if await self._partitions.guarding.retire(sale_id, sequence):
                log.info("sale_retired", sale_id=sale_id)

    def _is_over(self, schedule: Schedule, now_ms: int) -> bool:
        if schedule.retired or schedule.status != "closed":
            return False
        return now_ms >= schedule.closed_at_ms + self._retention_ms + MARGIN_MS
