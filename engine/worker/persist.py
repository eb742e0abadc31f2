"""The persister's loop: carries every partition's journal into the ledger, and only then has it trimmed.

It goes by the ledger's own offset, never by what Redis or this process believes to be written. It knows nothing that it
could not learn anew: killed anywhere, the next one goes on from the offset.

One transaction holds what is new of all partitions that are ahead of the ledger, a bounded batch of each: fifty sales
at once cost one commit, not fifty. While PostgreSQL writes one such *group*, the next is read and folded, so that both
processes work; there are never more than these two, which bounds the memory. A group is as large as the backlog asks
for: while there is little, it is written soon; the more there is, the more share the cost of a transaction.
"""

import asyncio
import time
from collections import deque

import structlog

from engine.domain.commands import NotePersisted
from engine.domain.errors import (
    JournalUnreadable,
    LedgerUnavailable,
    MiaocangError,
    PartitionUnavailable,
)
from engine.domain.outcomes import Outcome
from engine.ledger.folding import Folding, Place
from engine.ledger.persister import LedgerWriter, Passing, WriteResult
from engine.observability import metrics
from engine.partition.glance import Glance, Progress
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.worker.loops import BackOff
from engine.worker.roll import Roll

BUSY_PAUSE_SECONDS = 0.02
"""Between two looks while there is something to do now and then: what a settled order waits for its feed row."""
LIVE_PAUSE_SECONDS, FULL_PAUSE_SECONDS = 0.04, 0.5
CALM_ENTRIES_PER_SECOND, FULL_ENTRIES_PER_SECOND = 14_000, 20_000
"""The pause behind a group goes from the first to the second between these rates. A transaction costs some milliseconds
however little is in it, and so large groups cost least, which counts where buyers want all that the processors can do.
But while one is written buyers wait longer, so that where there is time for them small groups are better: at half of
what two processors can do, the slowest hundredth of holds waited 20 ms with pauses of 0.5 s, and 10 ms with 0.04 s."""
IDLE_PAUSE_SECONDS = 0.15
BUSY_AFTER_CHANGE_SECONDS = 2.0
"""For so long after its last change a partition is looked at each time; the others with all."""
LOOK_AT_LIVELY_SECONDS = 0.3
"""How often all sales are looked at that have not ended."""
LOOK_AT_ALL_SECONDS = 1.5
"""How often the others are: a payment that comes too late is still recorded, and belongs in the feed within two."""
LOOK_AT_RESTING_SECONDS = 1.0
"""For sales of which all is written; a change in one of them is in the feed within two seconds all the same."""
JOURNAL_SERIES_MAX = 100
"""Sales that get a series of their own of what is in their journals; the sums are of all."""
WRITERS_MAX = 2
"""Connections: one writes a group, while over the other the ledger is asked where the next begins."""
FIRST_READ_RECORDS = 64
READ_RECORDS_MAX = 1024
READ_BYTES_MAX = 1024 * 1024
"""About how much is read at a time, going by the records read last."""
BATCH_BYTES_MAX = 4 * 1024 * 1024
"""Of one partition's records in one group, beside the bound on entries: orders of two hundred lines are large."""
GROUP_ENTRIES_MAX = 20_000
GROUP_BYTES_MAX = 8 * 1024 * 1024
"""Of all partitions' records in one group; the last batch that is taken in may go beyond it."""
STOPPED_SECONDS = 2.0
"""How long a partition whose journal could not be read is left alone."""
PLACES_AT_ONCE_MAX = 256
"""Partitions whose place the ledger is asked for in one question: behind a restart it is that of each."""
NOTES_AT_ONCE_MAX = 16
"""Partitions that are told at the same time: each takes a connection, and the other loops need some too."""
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
        self.served_at = 0.0
        self.read_records = FIRST_READ_RECORDS
        self.tail: Place | None = None
        """Where the last batch ends that is written or about to be, and the next begins. None: the ledger will tell."""
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

    @property
    def folded(self) -> int:
        """The last sequence number that is written or about to be."""
        return self.offset if self.tail is None else self.tail.sequence

    def forget(self) -> None:
        """What was folded may not be what the ledger holds: it will be asked."""
        self.tail, self.offset_known = None, False

    def adapt_read(self, found: list[tuple[int, bytes]], taken: int) -> None:
        """Read about as many records as make a batch: one may hold a single order, or a thousand."""
        mean_bytes = sum(len(encoded) for _, encoded in found) // len(found) + 1
        fitting = max(READ_BYTES_MAX // mean_bytes, 1)
        if taken < len(found):
            self.read_records = min(taken + 1, fitting)
        elif len(found) == self.read_records:
            self.read_records = min(self.read_records * 2, READ_RECORDS_MAX, fitting)


class Group:
    """What one transaction will write, in the making. Its sums grow with it: it may be of thousands of sales."""

    def __init__(self) -> None:
        self.foldings: list[Folding] = []
        self._entries = 0
        self._size_bytes = 0

    def add(self, folding: Folding) -> None:
        """Take one in; nothing is folded on in it afterwards."""
        self.foldings.append(folding)
        self._entries += folding.entries
        self._size_bytes += folding.size_bytes

    @property
    def is_full(self) -> bool:
        """Whether it has reached a bound."""
        return self._entries >= GROUP_ENTRIES_MAX or self._size_bytes >= GROUP_BYTES_MAX


class Persister:
    """Looks at all partitions in turn and writes what the ledger lacks, a group of bounded batches at a time."""

    def __init__(
        self,
        partitions: Partitions,
        writer: LedgerWriter,
        settings: Settings,
        passing: Passing,
        roll: Roll | None = None,
    ) -> None:
        self._partitions = partitions
        self._roll = roll or Roll(partitions)
        self._glance = Glance(partitions.connections)
        self._writer = writer
        self._batch_entries = settings.persist_batch_entries
        self._keep_entries = settings.journal_keep_entries
        self._passing = passing
        self._journeys: dict[str, Journey] = {}
        self._under_way: dict[str, Journey] = {}
        """Those with anything to do or to be watched for; the others rest, and cost next to nothing."""
        self._names_read = 0
        self._looked_at_resting_at = float("-inf")
        self._with_series: set[str] = set()
        self._looked_at_all_at = self._looked_at_lively_at = float("-inf")
        self._prepared: list[Folding] = []
        self._wrote_entries = 0
        self._entries_since_pause = 0
        self._paused_at = float("-inf")
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
                pause_seconds = self._pause_seconds(wrote)
            except (LedgerUnavailable, PartitionUnavailable) as error:
                log.warning("persister_waits", reason=str(error))
                self._forget_all()
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
        """Write one group: that which was prepared, or what a look at the partitions finds; meanwhile prepare the next.

        Whether anything was written.
        """
        group, self._prepared, self._wrote_entries = self._prepared, [], 0
        if not group:
            group = await self._prepare(await self._look())
        began = self._wrote_entries > 0
        if not group:
            await self._note_all()
            self._observe()
            return began
        outcomes = await asyncio.gather(
            self._write(group), self._note_all(), self._prepare_ahead(), return_exceptions=True
        )
        # what was folded behind a batch that was refused, or that another process had written, is of no use
        self._prepared = [folding for folding in self._prepared if self._journeys[folding.sale_id].tail]
        self._observe()
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                self._forget_all()  # whether the last commit happened, the ledger will tell
                raise outcome
        return began or outcomes[0] is True

    async def _look(self) -> list[str]:
        """The partitions that were looked at: all now and then, lively ones more often, always those that change."""
        now = time.monotonic()
        sale_ids = [name for name, journey in self._journeys.items() if self._is_busy(journey, now)]
        looks_at_all = now - self._looked_at_all_at >= LOOK_AT_ALL_SECONDS
        if looks_at_all:
            sale_ids = list(await self._roll.names())
        elif now - self._looked_at_lively_at >= LOOK_AT_LIVELY_SECONDS:
            sale_ids = list(dict.fromkeys([*await self._roll.lively(), *sale_ids]))
            self._looked_at_lively_at = now
        await self._look_at(sale_ids)
        self._observe()  # before PostgreSQL is asked: while it is away, how far behind it is must be seen
        if unknown := [sale_id for sale_id in sale_ids if not self._journeys[sale_id].offset_known]:
            for sale_id, offset in (await self._writer.offsets(unknown)).items():
                self._journeys[sale_id].move(offset)
            await self._look_at(unknown)  # again: another persister may have moved the offset past what was seen
        if looks_at_all:
            self._looked_at_all_at = self._looked_at_lively_at = now
            self._rest()
        return sale_ids

    def _rest(self) -> None:
        """Keep no sale's definition for partitions in which nothing happens, and leave alone what is all written."""
        now = time.monotonic()
        for name, journey in list(self._under_way.items()):
            if self._is_busy(journey, now):
                continue
            journey.tail = None
            if journey.offset_known and journey.offset == journey.sequence and journey.persisted >= journey.offset:
                del self._under_way[name]

    async def _look_at(self, sale_ids: list[str]) -> None:
        progress = await self._glance.progress(sale_ids)
        now = time.monotonic()
        for sale_id, reached in progress.items():
            journey = self._under_way[sale_id] = self._journeys.setdefault(sale_id, Journey())
            journey.look(reached, now)

    def _is_busy(self, journey: Journey, now: float) -> bool:
        return journey.offset < journey.sequence or now - journey.changed_at < BUSY_AFTER_CHANGE_SECONDS

    def _has_work(self, journey: Journey, now: float) -> bool:
        if now < journey.stopped_until or journey.sequence == 0:
            return False
        return journey.folded != journey.sequence

    def _is_unnoted(self, journey: Journey, now: float) -> bool:
        unnoted = journey.offset_known and journey.persisted < journey.offset
        return unnoted and now >= max(journey.note_after, journey.stopped_until)

    # folding

    async def _prepare(self, sale_ids: list[str]) -> list[Folding]:
        """Fold a batch of each partition that has something new, those first that have waited longest."""
        now = time.monotonic()
        waiting = [name for name in sale_ids if self._has_work(self._journeys[name], now)]
        waiting.sort(key=lambda name: self._journeys[name].served_at)
        group = Group()
        for first in range(0, len(waiting), PLACES_AT_ONCE_MAX):
            await self._fold_into(group, waiting[first : first + PLACES_AT_ONCE_MAX], now)
            if group.is_full:
                metrics.BOUND_REACHED.labels(bound="persister_group").inc()
                break
        return group.foldings

    async def _fold_into(self, group: Group, sale_ids: list[str], now: float) -> None:
        """Fold a batch of each of these, until the group is full."""
        unknown = [name for name in sale_ids if self._journeys[name].tail is None]
        places = await self._writer.places(unknown) if unknown else {}
        for sale_id in sale_ids:
            if group.is_full:
                return
            journey = self._journeys[sale_id]
            journey.served_at = now
            try:
                folding = await self._fold(sale_id, journey, journey.tail or places.get(sale_id))
            except JournalUnreadable as error:
                journey.forget()
                await self._look_again_or_freeze(sale_id, journey, error)
                continue
            if folding is not None:
                group.add(folding)

    async def _prepare_ahead(self) -> None:
        """Fold the next group while one is written, if there is enough for another.

        What cannot be read is left for when the ledger holds all before it.
        """
        await self._look_at([name for name, journey in self._under_way.items() if journey.tail is not None])
        now = time.monotonic()
        ahead = {
            name: each
            for name, each in self._under_way.items()
            if each.tail is not None and each.folded < each.sequence and now >= each.stopped_until
        }
        if sum(each.sequence - each.folded for each in ahead.values()) < self._batch_entries // 2:
            return
        group = Group()
        self._prepared = group.foldings
        for sale_id, journey in sorted(ahead.items(), key=lambda item: item[1].served_at):
            if group.is_full:
                break
            journey.served_at = now
            try:
                folding = await self._fold(sale_id, journey, journey.tail)
            except JournalUnreadable as error:
                log.info("unreadable_ahead", sale_id=sale_id, reason=str(error))
                continue
            if folding is not None:
                group.add(folding)

    async def _fold(self, sale_id: str, journey: Journey, place: Place | JournalUnreadable | None) -> Folding | None:
        """Fold the next batch of one partition, from its place on (None: the ledger has not heard of it).

        None where there was nothing to fold, or where its first batch is written already.
        """
        if journey.sequence < journey.folded:  # both can only have grown since they were read, the offset first
            raise JournalUnreadable(f"the ledger holds {journey.folded}, the partition ends at {journey.sequence}")
        if isinstance(place, JournalUnreadable):
            raise place
        if place is None:
            await self._write_first(sale_id, journey)
            return None
        if journey.tail is None:
            journey.move(place.sequence)
        folding = await self._fold_records(journey, place)
        if not folding.entries:
            return None
        journey.tail = folding.end
        return folding

    async def _fold_records(self, journey: Journey, place: Place) -> Folding:
        """Read and fold records until the batch is full, or there are no more.

        One that cannot be read is an error only if it is the first: what comes before it is to be written.
        """
        folding, records = self._writer.folding_from(place), list[tuple[int, bytes]]()
        while folding.sequence < journey.sequence and not _is_full_batch(folding, self._batch_entries):
            found = await self._read(folding.sale_id, journey, folding.sequence)
            bytes_left = BATCH_BYTES_MAX - folding.size_bytes
            taken = first_batch(found, folding.start, self._batch_entries, bytes_left)
            for record in taken:
                try:
                    await _fold_record(folding, record)
                except JournalUnreadable:
                    if not records:
                        raise
                    return await self._fold_again(place, records)
                records.append(record)
            journey.adapt_read(found, len(taken))
            if len(taken) < len(found):
                break
        return folding

    async def _fold_again(self, place: Place, records: list[tuple[int, bytes]]) -> Folding:
        """A folding of these records, which were folded before: a record that fails leaves half of itself behind."""
        folding = self._writer.folding_from(place)
        for record in records:
            await _fold_record(folding, record)
        return folding

    async def _read(self, sale_id: str, journey: Journey, behind: int) -> list[tuple[int, bytes]]:
        self._passing.at("before_read")
        found = await self._partitions.journals.records_after(sale_id, behind, journey.read_records)
        self._passing.at("after_read")
        if not found:
            raise JournalUnreadable(f"there is nothing behind {behind}, but numbers up to {journey.sequence}")
        return found

    async def _write_first(self, sale_id: str, journey: Journey) -> None:
        """Write the first batch of a partition that the ledger has not heard of, and which gets its number so."""
        found = await self._read(sale_id, journey, 0)
        result = await self._writer.write(sale_id, first_batch(found, 0, self._batch_entries, BATCH_BYTES_MAX))
        journey.move(result.sequence)
        self._count(result)

    # writing

    async def _write(self, group: list[Folding]) -> bool:
        """Write a group; whether the ledger is another after it."""
        outcomes = await self._writer.write_folded(group)
        for sale_id, outcome in outcomes.items():
            journey = self._journeys[sale_id]
            if isinstance(outcome, WriteResult):
                journey.move(outcome.sequence)
                self._count(outcome)
                continue
            journey.forget()
            if outcome is None:
                log.warning("offset_moved", sale_id=sale_id, known=journey.offset)
            else:
                await self._look_again_or_freeze(sale_id, journey, outcome)
        return any(not isinstance(outcome, JournalUnreadable) for outcome in outcomes.values())

    def _count(self, result: WriteResult) -> None:
        metrics.PERSISTED_ENTRIES.inc(result.entries)
        self._wrote_entries += result.entries

    def _forget_all(self) -> None:
        self._prepared = []
        self._under_way = dict(self._journeys)
        for journey in self._journeys.values():
            journey.forget()

    async def _look_again_or_freeze(self, sale_id: str, journey: Journey, error: JournalUnreadable) -> None:
        """Freeze the partition, unless the ledger's offset is another than this process took it to be.

        Then another persister has written, and trimmed, what is missing here; or PostgreSQL has failed over to a
        standby that lacks the last commits, and the journal still holds them behind the offset.
        """
        offset = (await self._writer.offsets([sale_id]))[sale_id]
        if offset != journey.offset:
            log.warning("offset_moved", sale_id=sale_id, known=journey.offset, found=offset)
            journey.move(offset)
            journey.persisted = max(journey.persisted, offset)  # until the next look, nobody needs to be told
            return
        journey.stopped_until = time.monotonic() + STOPPED_SECONDS
        log.error("journal_unreadable", sale_id=sale_id, offset=offset, reason=str(error), exc_info=error)
        await self._partitions.freeze(sale_id, f"the ledger cannot take its journal: {error}")

    async def _note_all(self) -> None:
        """Tell each partition how far the ledger is, where it has come further since it was told."""
        now = time.monotonic()
        unnoted = [(name, each) for name, each in self._under_way.items() if self._is_unnoted(each, now)]
        for first in range(0, len(unnoted), NOTES_AT_ONCE_MAX):
            some = unnoted[first : first + NOTES_AT_ONCE_MAX]
            await asyncio.gather(*(self._note(name, journey) for name, journey in some))

    async def _note(self, sale_id: str, journey: Journey) -> None:
        """Tell the partition how far the ledger is, so that it trims its journal; never before the commit."""
        offset = journey.offset
        self._passing.at("before_trim")
        try:
            (reply,) = await self._partitions.submit(sale_id, NotePersisted(offset, self._keep_entries))
        except MiaocangError as error:  # one sale's trouble is not the others'
            journey.note_after = time.monotonic() + NOTE_AGAIN_SECONDS
            log.info("trim_put_off", sale_id=sale_id, reason=str(error))
            return
        if reply.outcome is Outcome.CONFLICT:
            reason = JournalUnreadable(f"the partition does not know of {offset}, which the ledger holds")
            await self._look_again_or_freeze(sale_id, journey, reason)
            return
        journey.persisted = max(journey.persisted, offset)
        self._passing.at("after_trim")

    def _pause_seconds(self, wrote: bool) -> float:
        self._entries_since_pause += self._wrote_entries
        if self._prepared:
            return 0.0
        now = time.monotonic()
        if wrote:
            entries_per_second = self._entries_since_pause / max(now - self._paused_at, BUSY_PAUSE_SECONDS)
            self._entries_since_pause, self._paused_at = 0, now
            return pause_seconds_behind(entries_per_second)
        busy = any(self._is_busy(journey, now) for journey in self._under_way.values())
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
        for sale_id, journey in self._under_way.items():
            if self._has_series(sale_id) and self._is_busy(journey, now):
                metrics.JOURNAL_ENTRIES.labels(sale=sale_id).set(max(journey.sequence - journey.offset, 0))
            behind += max(journey.sequence - journey.offset, 0)
        metrics.PERSISTER_LAG_ENTRIES.set(behind)
        ages = (journey.behind_seconds(now) for journey in self._under_way.values())
        metrics.PERSISTER_LAG_SECONDS.set(max(ages, default=0.0))

    def _has_series(self, sale_id: str) -> bool:
        if len(self._with_series) < JOURNAL_SERIES_MAX:
            self._with_series.add(sale_id)
        return sale_id in self._with_series


def first_batch(
    found: list[tuple[int, bytes]], start: int, entries_max: int, bytes_max: int
) -> list[tuple[int, bytes]]:
    """The first of these records that fill a batch which began behind `start`; a record is never cut, and one is
    always taken.
    """
    size_bytes = 0
    for taken, (last_sequence, encoded) in enumerate(found, 1):
        size_bytes += len(encoded)
        if last_sequence - start >= entries_max or size_bytes >= bytes_max:
            return found[:taken]
    return found


async def _fold_record(folding: Folding, record: tuple[int, bytes]) -> None:
    for _ in folding.add_in_slices(*record):
        await asyncio.sleep(0)  # the transaction under way, and the worker's other loops, have their turn


def _is_full_batch(folding: Folding, entries_max: int) -> bool:
    return folding.entries >= entries_max or folding.size_bytes >= BATCH_BYTES_MAX


def pause_seconds_behind(entries_per_second: float) -> float:
    """How long to wait for more behind a group, when entries come at this rate."""
    share = (entries_per_second - CALM_ENTRIES_PER_SECOND) / (FULL_ENTRIES_PER_SECOND - CALM_ENTRIES_PER_SECOND)
    return LIVE_PAUSE_SECONDS + min(max(share, 0.0), 1.0) * (FULL_PAUSE_SECONDS - LIVE_PAUSE_SECONDS)
