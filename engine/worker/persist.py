"""The persister's loop: carries every partition's journal into the ledger, and only then has it trimmed.

It goes by the ledger's own offset, never by what Redis or this process believes to be written. It knows nothing that it
could not learn anew: killed anywhere, the next one goes on from the offset.
"""

import asyncio
import time
from collections import deque

import structlog

from engine.domain.commands import NotePersisted
from engine.domain.errors import JournalUnreadable, LedgerUnavailable, OutcomeUnknown, PartitionUnavailable
from engine.domain.outcomes import Outcome
from engine.ledger.persister import LedgerWriter, Passing
from engine.observability import metrics
from engine.partition.glance import Glance, Progress
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.worker.loops import BackOff

BUSY_PAUSE_SECONDS = 0.02
"""Between two looks while there is something to do now and then: what a settled order waits for its feed row."""
IDLE_PAUSE_SECONDS = 0.15
BUSY_AFTER_CHANGE_SECONDS = 2.0
"""For so long after its last change a partition is looked at each time; the others with all."""
LOOK_AT_ALL_SECONDS = 0.3
WRITERS_MAX = 2
"""Transactions at the same time: while one waits for its commit, the next is made."""
FIRST_READ_RECORDS = 64
READ_RECORDS_MAX = 5000
BATCH_BYTES_MAX = 2 * 1024 * 1024
"""Of records in one transaction, beside the bound on entries: folding them keeps the other loops waiting, and orders
of two hundred lines are large."""
STOPPED_SECONDS = 2.0
"""How long a partition whose journal could not be read is left alone."""
NOTE_AGAIN_SECONDS = 0.5
"""How long after a partition that is frozen was not to be told of its offset it is told again."""
SAMPLES_MAX = 64
"""Moments remembered of a partition that is behind, to tell how old its oldest unwritten entry is."""

log = structlog.get_logger(__name__)


class Journey:
    """One partition's way into the ledger."""

    def __init__(self) -> None:
        self.offset = 0
        self.offset_known = False
        """Whether the ledger said so; until then the offset is what Redis takes it to be."""
        self.sequence = 0
        self.persisted = 0
        self.changed_at = 0.0
        self.stopped_until = 0.0
        self.note_after = 0.0
        self.read_records = FIRST_READ_RECORDS
        self._seen: deque[tuple[int, float]] = deque()

    def look(self, progress: Progress, now: float) -> None:
        """Take in how far the partition is."""
        if progress.sequence != self.sequence:
            self.changed_at = now
            if len(self._seen) == SAMPLES_MAX:
                self._seen.pop()  # the oldest says most, the newest is replaced
            self._seen.append((progress.sequence, now))
        self.sequence, self.persisted = progress
        if not self.offset_known:
            self.offset = max(self.offset, self.persisted)

    def move(self, offset: int) -> None:
        """The ledger says that it holds entries up to here."""
        self.offset, self.offset_known = offset, True
        while self._seen and self._seen[0][0] <= offset:
            self._seen.popleft()

    def behind_seconds(self, now: float) -> float:
        """For how long the oldest unwritten entry has been known of."""
        return now - self._seen[0][1] if self.offset < self.sequence and self._seen else 0.0

    def adapt_read(self, found: int, taken: int) -> None:
        """Read about as many records as make a batch: one may hold a single order, or a thousand."""
        if taken < found:
            self.read_records = taken + 1
        elif found == self.read_records:
            self.read_records = min(self.read_records * 2, READ_RECORDS_MAX)


class Persister:
    """Looks at all partitions in turn and writes what the ledger lacks, a bounded batch of each at a time."""

    def __init__(self, partitions: Partitions, writer: LedgerWriter, settings: Settings, passing: Passing) -> None:
        self._partitions = partitions
        self._glance = Glance(partitions.connections)
        self._writer = writer
        self._batch_entries = settings.persist_batch_entries
        self._keep_entries = settings.journal_keep_entries
        self._passing = passing
        self._journeys: dict[str, Journey] = {}
        self._looked_at_all_at = float("-inf")
        self._writers = asyncio.Semaphore(WRITERS_MAX)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let `run` return after the round in hand."""
        self._stopping.set()

    async def run(self) -> None:
        """Carry journals over until `stop`. While Redis or PostgreSQL is away it tries again, ever more slowly."""
        back_off = BackOff(longest_seconds=2.0)
        while not self._stopping.is_set():
            try:
                wrote = await self.round()
                back_off.reset()
                pause_seconds = 0.0 if wrote else self._pause_seconds()
            except (LedgerUnavailable, PartitionUnavailable) as error:
                log.warning("persister_waits", reason=str(error))
                for journey in self._journeys.values():
                    journey.offset_known = False  # whether the last commit happened, the ledger will tell
                self._looked_at_all_at = float("-inf")
                pause_seconds = back_off.next_seconds()
            await self._sleep(pause_seconds)

    async def finish(self, deadline: float) -> None:
        """Write what is left, until `deadline` (monotonic seconds) at the latest."""
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
                self._looked_at_all_at = float("-inf")
                while await self.round():
                    pass
        except (LedgerUnavailable, PartitionUnavailable, TimeoutError) as error:
            log.warning("journal_left_in_redis", reason=str(error) or "time was up")

    async def round(self) -> bool:
        """One look, and one batch of each partition that is ahead of the ledger. Whether anything was written."""
        looked_at = await self._look()
        now = time.monotonic()
        ahead = [sale_id for sale_id in looked_at if self._has_work(self._journeys[sale_id], now)]
        outcomes = await asyncio.gather(*(self._advance_alone(sale_id) for sale_id in ahead), return_exceptions=True)
        self._observe()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return any(outcomes)

    async def _look(self) -> list[str]:
        """The partitions that were looked at: all now and then, in between those that change."""
        now = time.monotonic()
        if now - self._looked_at_all_at >= LOOK_AT_ALL_SECONDS:
            sale_ids = list(await self._partitions.sale_ids())
        else:
            sale_ids = [name for name, journey in self._journeys.items() if self._is_busy(journey, now)]
        await self._look_at(sale_ids)
        self._observe()  # before PostgreSQL is asked: while it is away, how far behind it is must be seen
        if unknown := [sale_id for sale_id in sale_ids if not self._journeys[sale_id].offset_known]:
            for sale_id, offset in (await self._writer.offsets(unknown)).items():
                self._journeys[sale_id].move(offset)
            await self._look_at(unknown)  # again: another persister may have moved the offset past what was seen
        if now - self._looked_at_all_at >= LOOK_AT_ALL_SECONDS:
            self._looked_at_all_at = now
        return sale_ids

    async def _look_at(self, sale_ids: list[str]) -> None:
        progress = await self._glance.progress(sale_ids)
        now = time.monotonic()
        for sale_id, reached in progress.items():
            self._journeys.setdefault(sale_id, Journey()).look(reached, now)

    def _is_busy(self, journey: Journey, now: float) -> bool:
        return journey.offset < journey.sequence or now - journey.changed_at < BUSY_AFTER_CHANGE_SECONDS

    def _has_work(self, journey: Journey, now: float) -> bool:
        if now < journey.stopped_until or journey.sequence == 0:
            return False
        return journey.offset != journey.sequence or self._is_unnoted(journey, now)

    def _is_unnoted(self, journey: Journey, now: float) -> bool:
        return journey.persisted < journey.offset and now >= journey.note_after

    async def _advance_alone(self, sale_id: str) -> bool:
        """Advance a partition; what is wrong with it alone stops it alone, for a while."""
        async with self._writers:
            journey = self._journeys[sale_id]
            try:
                return await self._advance(sale_id, journey)
            except JournalUnreadable as error:
                return await self._look_again_or_freeze(sale_id, journey, error)

    async def _look_again_or_freeze(self, sale_id: str, journey: Journey, error: JournalUnreadable) -> bool:
        """Freeze the partition, unless the ledger's offset is another than this process took it to be.

        Then another persister has written, and trimmed, what is missing here; or PostgreSQL has failed over to a
        standby that lacks the last commits, and the journal still holds them behind the offset.
        """
        offset = (await self._writer.offsets([sale_id]))[sale_id]
        if offset != journey.offset:
            log.warning("offset_moved", sale_id=sale_id, known=journey.offset, found=offset)
            journey.move(offset)
            journey.persisted = max(journey.persisted, offset)  # until the next look, nobody needs to be told
            return True
        journey.stopped_until = time.monotonic() + STOPPED_SECONDS
        log.error("journal_unreadable", sale_id=sale_id, offset=offset, reason=str(error), exc_info=error)
        await self._partitions.freeze(sale_id, f"the ledger cannot take its journal: {error}")
        return False

    async def _advance(self, sale_id: str, journey: Journey) -> bool:
        if journey.sequence < journey.offset:  # both can only have grown since they were read, the offset first
            raise JournalUnreadable(f"the ledger holds {journey.offset}, the partition ends at {journey.sequence}")
        wrote = journey.offset < journey.sequence and await self._write(sale_id, journey)
        if self._is_unnoted(journey, time.monotonic()):
            await self._note(sale_id, journey)
        return wrote

    async def _write(self, sale_id: str, journey: Journey) -> bool:
        """Write the next records behind the offset."""
        self._passing.at("before_read")
        found = await self._partitions.journals.records_after(sale_id, journey.offset, journey.read_records)
        self._passing.at("after_read")
        if not found:
            raise JournalUnreadable(f"there is nothing behind {journey.offset}, but numbers up to {journey.sequence}")
        records = first_batch(found, journey.offset, self._batch_entries)
        result = await self._writer.write(sale_id, records)
        journey.adapt_read(len(found), len(records))
        journey.move(result.sequence)
        metrics.PERSISTED_ENTRIES.inc(result.entries)
        return result.entries > 0

    async def _note(self, sale_id: str, journey: Journey) -> None:
        """Tell the partition how far the ledger is, so that it trims its journal; never before the commit."""
        self._passing.at("before_trim")
        try:
            (reply,) = await self._partitions.submit(sale_id, NotePersisted(journey.offset, self._keep_entries))
        except (PartitionUnavailable, OutcomeUnknown) as error:
            journey.note_after = time.monotonic() + NOTE_AGAIN_SECONDS
            log.info("trim_put_off", sale_id=sale_id, reason=str(error))
            return
        if reply.outcome is Outcome.CONFLICT:
            raise JournalUnreadable(f"the partition does not know of {journey.offset}, which the ledger holds")
        journey.persisted = journey.offset
        self._passing.at("after_trim")

    def _pause_seconds(self) -> float:
        now = time.monotonic()
        busy = any(self._is_busy(journey, now) for journey in self._journeys.values())
        return BUSY_PAUSE_SECONDS if busy else IDLE_PAUSE_SECONDS

    async def _sleep(self, seconds: float) -> None:
        """Sleep, unless it is time to stop."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _observe(self) -> None:
        now = time.monotonic()
        behind = 0
        for sale_id, journey in self._journeys.items():
            if self._is_busy(journey, now):
                metrics.JOURNAL_ENTRIES.labels(sale=sale_id).set(max(journey.sequence - journey.offset, 0))
            behind += max(journey.sequence - journey.offset, 0)
        metrics.PERSISTER_LAG_ENTRIES.set(behind)
        ages = (journey.behind_seconds(now) for journey in self._journeys.values())
        metrics.PERSISTER_LAG_SECONDS.set(max(ages, default=0.0))


def first_batch(found: list[tuple[int, bytes]], offset: int, entries_max: int) -> list[tuple[int, bytes]]:
    """The first of these records that make one transaction; a record is never cut, and one is always taken."""
    size_bytes = 0
    for taken, (last_sequence, encoded) in enumerate(found, 1):
        size_bytes += len(encoded)
        if last_sequence - offset >= entries_max or size_bytes >= BATCH_BYTES_MAX:
            return found[:taken]
    return found
