"""The roll of sales: which of them the loops have to look at, so that thousands that are over cost next to nothing.

A closed sale takes no hold any more, and opens and closes no more; once its last deadline has passed, time cannot
change it. It is *quiet* then. Every other sale is *lively*, and looked at as often as each loop needs. Quiet ones are
looked at in turn, a few at a time.
"""

import asyncio
import time
from collections.abc import Sequence

from engine.partition.glance import Glance
from engine.partition.partitions import Partitions

COUNT_SECONDS = 0.1
"""How old the answer may be to whether there are new sales."""
SORT_SECONDS = 1.0
"""How often it is looked which of the lively sales have become quiet."""
QUIET_ROUND_SECONDS = 15.0
"""In how long a time all quiet sales are looked at once; also how often the names are read anew."""
ENDED = "closed"
"""For good. A deleted sale may be made anew, under the same name, at any time; there are few of them."""


class Roll:
    """One for all loops of a worker. Its methods raise PartitionUnavailable."""

    def __init__(self, partitions: Partitions) -> None:
        self._partitions = partitions
        self._glance = Glance(partitions.connections)
        self._names: Sequence[str] = ()
        self._lively: dict[str, None] = {}
        """In the order of their names when they were found; a dictionary, for a set has none."""
        self._quiet: set[str] = set()
        self._to_look_at: list[str] = []
        self._counted_at = self._sorted_at = self._named_at = float("-inf")
        self._refreshing = asyncio.Lock()

    async def names(self) -> Sequence[str]:
        """All sales' names, in their order."""
        await self._refresh()
        return self._names

    async def lively(self) -> Sequence[str]:
        """The sales that time may change: all but those that have ended and whose deadlines have passed."""
        await self._refresh()
        return list(self._lively)

    async def _refresh(self) -> None:
        async with self._refreshing:
            now = time.monotonic()
            if now - self._counted_at < COUNT_SECONDS:
                return
            if await self._partitions.sale_count() != len(self._names) or now - self._named_at >= QUIET_ROUND_SECONDS:
                await self._read_names(now)
            if now - self._sorted_at >= SORT_SECONDS:
                await self._put_quiet_aside(list(self._lively))
                await self._look_at_some_quiet(now - self._sorted_at)
                self._sorted_at = now
            self._counted_at = now

    async def _read_names(self, now: float) -> None:
        self._names = await self._partitions.sale_ids()
        present = set(self._names)
        self._quiet &= present
        self._lively = {name: None for name in self._names if name not in self._quiet}
        self._named_at = now

    async def _put_quiet_aside(self, sale_ids: Sequence[str]) -> None:
        schedules = await self._glance.schedules(sale_ids)
        ended = [sale_id for sale_id, schedule in schedules.items() if schedule.status == ENDED]
        with_deadlines = await self._glance.earliest_deadlines(ended)
        for sale_id in ended:
            if sale_id not in with_deadlines:
                self._lively.pop(sale_id, None)
                self._quiet.add(sale_id)

    async def _look_at_some_quiet(self, seconds: float) -> None:
        """Look at the share of the quiet ones that falls on so many seconds."""
        if not self._to_look_at:
            self._to_look_at = list(self._quiet)
        share = int(len(self._quiet) * min(seconds / QUIET_ROUND_SECONDS, 1.0)) + 1
        some, self._to_look_at = self._to_look_at[:share], self._to_look_at[share:]
        for sale_id, schedule in (await self._glance.schedules(some)).items():
            if schedule.status != ENDED:
                self._quiet.discard(sale_id)
                self._lively[sale_id] = None
