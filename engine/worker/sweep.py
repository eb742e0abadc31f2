"""The sweeper: gives holds back whose deadline has passed, within a second or so of it (contract §6.3)."""

import asyncio

import structlog

from engine.domain.commands import EXPIRE_ORDERS_MAX, Expire
from engine.domain.errors import OutcomeUnknown, PartitionUnavailable
from engine.domain.outcomes import Outcome
from engine.observability import metrics
from engine.partition.glance import Glance
from engine.partition.partitions import Partitions
from engine.settings import Settings

CALLS_PER_LOOK_MAX = 40
"""Calls to one partition before all are looked at again, so that none waits for another's twenty thousand holds."""
PARTITIONS_AT_ONCE_MAX = 16

log = structlog.get_logger(__name__)


class Sweeper:
    """Looks for due holds in all partitions at a fixed interval, and expires them in calls of bounded size."""

    def __init__(self, partitions: Partitions, settings: Settings) -> None:
        self._partitions = partitions
        self._glance = Glance(partitions.connections)
        self._interval_seconds = settings.sweep_interval_seconds
        self._at_once = asyncio.Semaphore(PARTITIONS_AT_ONCE_MAX)

    async def run(self) -> None:
        """Sweep for as long as the worker lives; while Redis is away it tries again."""
        while True:
            try:
                more = await self.look()
            except PartitionUnavailable as error:
                log.warning("sweeper_waits", reason=str(error))
                more = False
            await asyncio.sleep(0 if more else self._interval_seconds)

    async def look(self) -> bool:
        """Expire what is due now. Whether a partition had more than one look's share of it."""
        deadlines = await self._glance.earliest_deadlines(await self._partitions.sale_ids())
        now_ms = await self._glance.now_ms()
        due = {sale_id: deadline for sale_id, deadline in deadlines.items() if deadline <= now_ms}
        for deadline in due.values():
            metrics.SWEEP_LATENESS_SECONDS.observe((now_ms - deadline) / 1000)
        return any(await asyncio.gather(*(self._expire(sale_id) for sale_id in due)))

    async def _expire(self, sale_id: str) -> bool:
        """Expire one partition's due holds. Whether some are left for the next look."""
        async with self._at_once:
            for _ in range(CALLS_PER_LOOK_MAX):
                try:
                    (reply,) = await self._partitions.submit(sale_id, Expire(EXPIRE_ORDERS_MAX))
                except (PartitionUnavailable, OutcomeUnknown) as error:
                    log.info("sweep_put_off", sale_id=sale_id, reason=str(error))
                    return False
                if reply.outcome is not Outcome.DONE:
                    return False
                expired, more = reply.detail
                metrics.EXPIRED_HOLDS.inc(expired)
                if not more:
                    return False
        metrics.BOUND_REACHED.labels(bound="sweep_calls_per_look").inc()
        return True
