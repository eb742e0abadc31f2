"""The sweeper: gives holds back whose deadline has passed, within a second or so of it (contract §6.3).

When a hundred thousand are due at once, buyers must not wait for them. Redis does one thing at a time, so each call is
short; a sale has one at a time, so that whatever its buyers have sent meanwhile has its turn before the next; and they
go no faster than is promised with something to spare, which leaves Redis to buyers in between. Only where that rate is
not reached, because Redis or this process is slow, do calls grow, up to a bound.
"""

import asyncio

import structlog

from engine.domain.commands import Expire
from engine.domain.errors import MiaocangError, PartitionUnavailable
from engine.domain.outcomes import Outcome
from engine.observability import metrics
from engine.partition.glance import Glance
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.worker.roll import Roll

HOLDS_PER_CALL_MIN = 100
HOLDS_PER_CALL_MAX = 500
"""A buyer's request may come just behind a call and waits for it: some milliseconds."""
CALLS_AT_ONCE_MAX = 8
"""To several sales: each is a round trip and an fsync, which many sales with few holds would else wait for in turn."""
HOLDS_A_SECOND_MAX = 30_000
"""In all partitions together; twenty thousand are promised."""
CALLS_PER_LOOK_MAX = 200
"""Calls to one partition before all are looked at again; those that are due take turns, call by call."""

log = structlog.get_logger(__name__)


class Sweeper:
    """Looks for due holds in all partitions at a fixed interval, and expires them in calls of bounded size."""

    def __init__(self, partitions: Partitions, settings: Settings, roll: Roll | None = None) -> None:
        self._partitions = partitions
        self._roll = roll or Roll(partitions)
        self._glance = Glance(partitions.connections)
        self._interval_seconds = settings.sweep_interval_seconds
        self._holds_per_call = HOLDS_PER_CALL_MIN
        self._turns = asyncio.Semaphore(CALLS_AT_ONCE_MAX)
        self._next_at = 0.0
        """When the next call may begin, by the rate; the event loop's time."""

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
        deadlines = await self._glance.earliest_deadlines(await self._roll.lively())
        now_ms = await self._glance.now_ms()
        due = {sale_id: deadline for sale_id, deadline in deadlines.items() if deadline <= now_ms}
        for deadline in due.values():
            metrics.SWEEP_LATENESS_SECONDS.observe((now_ms - deadline) / 1000)
        return any(await asyncio.gather(*(self._expire(sale_id) for sale_id in due)))

    async def _expire(self, sale_id: str) -> bool:
        """Expire one partition's due holds. Whether some are left for the next look."""
        for _ in range(CALLS_PER_LOOK_MAX):
            try:
                more = await self._expire_some(sale_id)
            except MiaocangError as error:  # one sale's trouble is not the others'
                log.info("sweep_put_off", sale_id=sale_id, reason=str(error))
                return False
            if not more:
                return False
        metrics.BOUND_REACHED.labels(bound="sweep_calls_per_look").inc()
        return True

    async def _expire_some(self, sale_id: str) -> bool:
        """One call, once the rate lets it begin. Whether more is due."""
        clock = asyncio.get_running_loop()
        async with self._turns:
            await asyncio.sleep(self._next_at - clock.time())
            began_at = clock.time()
            (reply,) = await self._partitions.submit(sale_id, Expire(self._holds_per_call))
            if reply.outcome is not Outcome.DONE:
                return False
            expired, more = reply.detail
            metrics.EXPIRED_HOLDS.inc(expired)
            self._next_at = max(self._next_at, began_at) + expired / HOLDS_A_SECOND_MAX
            if more:
                fitting = round((clock.time() - began_at) * HOLDS_A_SECOND_MAX)  # in the time that a call takes
                self._holds_per_call = min(max(fitting, HOLDS_PER_CALL_MIN), HOLDS_PER_CALL_MAX)
            return bool(more)
