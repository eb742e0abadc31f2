"""The scheduler: sees to it that a sale opens and closes at its time when nobody else calls its partition.

Every batch that reaches a partition applies the schedule first, so this decides nothing: it gives a quiet one a batch.
"""

import asyncio

import structlog

from engine.domain.commands import ApplySchedule
from engine.domain.errors import MiaocangError, PartitionUnavailable
from engine.partition.glance import Glance, Schedule
from engine.partition.partitions import Partitions
from engine.worker.roll import Roll

INTERVAL_SECONDS = 0.25
OVER = frozenset({"closed", "deleted", ""})

log = structlog.get_logger(__name__)


class Scheduler:
    """Looks at the sales that may still open or close."""

    def __init__(self, partitions: Partitions, roll: Roll | None = None) -> None:
        self._partitions = partitions
        self._roll = roll or Roll(partitions)
        self._glance = Glance(partitions.connections)

    async def run(self) -> None:
        """Watch the clock for as long as the worker lives; while Redis is away it tries again."""
        while True:
            try:
                await self.look()
            except PartitionUnavailable as error:
                log.warning("scheduler_waits", reason=str(error))
            await asyncio.sleep(INTERVAL_SECONDS)

    async def look(self) -> None:
        """Give a batch to every partition whose time has come."""
        schedules = await self._glance.schedules(await self._roll.lively())
        now_ms = await self._glance.now_ms()
        due = [sale_id for sale_id, schedule in schedules.items() if is_due(schedule, now_ms)]
        await asyncio.gather(*(self._apply(sale_id) for sale_id in due))

    async def _apply(self, sale_id: str) -> None:
        try:
            await self._partitions.submit(sale_id, ApplySchedule())
        except MiaocangError as error:  # one sale's trouble is not the others'
            log.info("schedule_put_off", sale_id=sale_id, reason=str(error))


def is_due(schedule: Schedule, now_ms: int) -> bool:
    """Whether the sale should have opened or closed by now, and has not."""
    opens = schedule.status == "draft" and 0 < schedule.opens_at_ms <= now_ms
    closes = schedule.status not in OVER and 0 < schedule.closes_at_ms <= now_ms
    return opens or closes
