"""The guard: nothing is sold on doubt.

The script itself refuses every command after Redis has started anew, because the run it was opened on has gone. The
guard then compares each partition with the ledger: what the ledger holds, with the journal entries behind it folded on
top, must be what Redis counts. Only then does it open the partition, under the next epoch. What does not agree stays
frozen, with the reason where people look: the log, the metric, /readyz and the audit.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from engine.domain.errors import JournalUnreadable, LedgerUnavailable, MiaocangError, PartitionUnavailable
from engine.domain.journal import SaleDefined, decode_entry, decode_record
from engine.domain.sales import SaleStatus, StockLevels
from engine.domain.stock_effects import POOL, stock_effects
from engine.ledger.connect import LedgerPool
from engine.ledger.sales import (
    KnownPartition,
    LedgerLevels,
    LevelsAt,
    known_partition,
    known_partitions,
    levels,
    levels_of,
    record_epoch,
    record_epochs,
)
from engine.observability import metrics
from engine.partition.glance import Glance
from engine.partition.guarding import PartitionSight
from engine.partition.partitions import Partitions
from engine.partition.redis_clock import CLOCK_JUMP_MS
from engine.settings import Settings
from engine.worker.roll import Roll

JOURNAL_RECORDS_PER_READ = 1000
RECONCILED_AT_ONCE_MAX = 8
"""Partitions that are compared one by one at the same time."""
RECONCILED_TOGETHER_MAX = 100
"""Partitions that are compared in one go of a few round trips, which is how nearly all are after a restart."""
RECORDS_TOGETHER_MAX = 10
"""Records behind the ledger of a partition that is compared so: mostly there is none, or one of its last opening."""
TOGETHER_AT_ONCE_MAX = 2
"""Such goes at the same time: while one waits for a store, the other is worked on."""
ALL_FREEZES_SECONDS = 10.0
"""How often it is looked whether a sale that is over was frozen; the others, with each check."""
FROZEN_CHECK_SECONDS = 1.0
"""How often a frozen partition is looked at again: what was in doubt may have been settled, or PostgreSQL be back."""

STARTED_ANEW = "Redis has started anew"

log = structlog.get_logger(__name__)


class NotReconciled(MiaocangError):
    """Redis and the ledger disagree, or cannot be compared. Its argument is the reason, in words for people."""


@dataclass
class _Units:
    """A SKU's numbers while entries are folded onto them."""

    numbers: Counter[str] = field(default_factory=Counter)
    pools: Counter[str] = field(default_factory=Counter)


class Guard:
    """Watches Redis' run and clock, and the partitions' freezes. One for each worker."""

    def __init__(self, partitions: Partitions, pool: LedgerPool, settings: Settings, roll: Roll | None = None) -> None:
        self._partitions = partitions
        self._roll = roll or Roll(partitions)
        self._all_freezes_at = float("-inf")
        self._turns = asyncio.Semaphore(RECONCILED_AT_ONCE_MAX)
        self._guarding = partitions.guarding
        self._pool = pool
        self._interval_seconds = settings.guard_interval_seconds
        self._frozen: dict[str, str] = {}
        self._reported: Mapping[str, str] | None = None
        self._frozen_checked_at = 0.0
        self._clock_offset_ms: float | None = None
        self.first_pass_done = asyncio.Event()
        """Set once every partition of a sale that is not over was looked at, and opened or left frozen for a reason."""

    async def run(self) -> None:
        """Guard for as long as the worker lives. While Redis or PostgreSQL is away it tries again."""
        waiting_for = ""
        while True:
            try:
                await self.look()
                waiting_for = ""
                self.first_pass_done.set()
            except (PartitionUnavailable, LedgerUnavailable) as error:
                if waiting_for != str(error):
                    log.warning("guard_waits", reason=str(error))
                waiting_for = str(error)
            await asyncio.sleep(self._interval_seconds)

    async def look(self) -> None:
        """One look: at the run, at the clock, and now and then at what is frozen."""
        run = await self._guarding.server_run()
        jumped = await self._clock_has_jumped()
        if jumped:
            for sale_id in await self._partitions.sale_ids():
                await self._partitions.freeze(sale_id, "Redis' clock has jumped ahead")
        if run != await self._guarding.vouched_run():
            log.warning("redis_started_anew", run=run)
            await self._look_at_all(run)
        elif jumped or time.monotonic() - self._frozen_checked_at >= FROZEN_CHECK_SECONDS:
            self._frozen_checked_at = time.monotonic()
            await self._look_at_frozen(run)

    async def _clock_has_jumped(self) -> bool:
        """Whether Redis' time has run ahead of the monotonic clock by more than the bound since the last look."""
        asked_at = time.monotonic()
        server_ms = await self._guarding.server_time_ms()
        # the time was read between the two: a late answer must not look like a jump, neither now nor at the next look
        offset_least_ms = server_ms - time.monotonic() * 1000
        before_ms, self._clock_offset_ms = self._clock_offset_ms, server_ms - asked_at * 1000
        return before_ms is not None and offset_least_ms - before_ms > CLOCK_JUMP_MS

    async def _look_at_all(self, run: str) -> None:
        """After a restart: every partition of either store.

        Once those are done that may be sold from, and those that Redis may have lost, the run is vouched for; those of
        sales that are over follow. The script lets nobody at a partition that is not done, and whoever comes after a
        worker that was killed in between finds it among the frozen ones.
        """
        known = {partition.sale_id: partition for partition in await known_partitions(self._pool)}
        sale_ids = sorted({*known, *await self._partitions.sale_ids()})
        schedules = await Glance(self._partitions.connections).schedules(sale_ids)
        over = [sale_id for sale_id in sale_ids if schedules[sale_id].status == SaleStatus.CLOSED]
        others = [sale_id for sale_id in sale_ids if schedules[sale_id].status != SaleStatus.CLOSED]
        selling_first = sorted(others, key=lambda sale_id: schedules[sale_id].status != SaleStatus.OPEN)
        frozen = await self._reconcile_all(selling_first, known, run)
        await self._report(frozen)
        await self._guarding.vouch_for(run)
        self.first_pass_done.set()
        await self._report(frozen | await self._reconcile_all(over, known, run))

    async def _look_at_frozen(self, run: str) -> None:
        """Partitions that somebody froze since, or that could not be opened at the last look."""
        looks_at_all = time.monotonic() - self._all_freezes_at >= ALL_FREEZES_SECONDS
        if looks_at_all:
            self._all_freezes_at = time.monotonic()
        sale_ids = await (self._roll.names() if looks_at_all else self._roll.lively())
        suspects = list({**await self._guarding.freezes(sale_ids, run), **self._frozen})
        if len(suspects) > RECONCILED_AT_ONCE_MAX:
            known = {partition.sale_id: partition for partition in await known_partitions(self._pool)}
        else:
            found = [await known_partition(self._pool, sale_id) for sale_id in suspects]
            known = {partition.sale_id: partition for partition in found if partition}
        await self._report(await self._reconcile_all(suspects, known, run))

    async def _reconcile_all(
        self, sale_ids: Sequence[str], known: Mapping[str, KnownPartition], run: str
    ) -> dict[str, str]:
        """Open these partitions as far as they agree with the ledger, in their order; why those stay frozen that do."""
        goes = asyncio.Semaphore(TOGETHER_AT_ONCE_MAX)
        frozen: dict[str, str] = {}

        async def reconcile(some: Sequence[str]) -> None:
            async with goes:
                frozen.update(await self._reconcile_together(some, known, run))

        size = RECONCILED_TOGETHER_MAX
        await asyncio.gather(*(reconcile(sale_ids[first : first + size]) for first in range(0, len(sale_ids), size)))
        return frozen

    async def _reconcile_together(
        self, sale_ids: Sequence[str], known: Mapping[str, KnownPartition], run: str
    ) -> dict[str, str]:
        """Open those that agree with the ledger in one go; look at each other one by itself.

        Returns why those stay frozen that do.
        """
        present = [sale_id for sale_id in sale_ids if sale_id in known and not known[sale_id].retired]
        sights = await self._guarding.look_at(present)
        at_ledger = await levels_of(self._pool, present)
        plain = {
            sale_id: sight
            for sale_id, sight in sights.items()
            if sight.run != run and not sight.frozen and sight.status and not sight.retired and sale_id in at_ledger
        }
        offsets = {sale_id: at_ledger[sale_id].sequence for sale_id in plain}
        behind = await self._partitions.journals.records_of(offsets, RECORDS_TOGETHER_MAX)
        agreeing = {
            sale_id: sight for sale_id, sight in plain.items() if _agrees(sight, at_ledger[sale_id], behind[sale_id])
        }
        epochs = {sale_id: max(sight.epoch, known[sale_id].epoch) + 1 for sale_id, sight in agreeing.items()}
        opened = await self._open_all(agreeing, epochs, run)
        others = [sale_id for sale_id in sale_ids if not opened.get(sale_id)]
        reasons = await asyncio.gather(*(self._reconcile_in_turn(each, known.get(each), run) for each in others))
        return {sale_id: why for sale_id, why in zip(others, reasons, strict=True) if why}

    async def _open_all(self, sights: dict[str, PartitionSight], epochs: dict[str, int], run: str) -> dict[str, bool]:
        if not sights:
            return {}
        await record_epochs(self._pool, epochs)  # first, so that no epoch is ever given twice
        opened = await self._guarding.open_all(sights, epochs, run, STARTED_ANEW)
        for sale_id, sight in sights.items():
            if opened[sale_id] and sight.status != SaleStatus.CLOSED:
                log.warning("partition_opened", sale_id=sale_id, epoch=epochs[sale_id], reason=STARTED_ANEW)
        log.warning("partitions_opened", count=sum(opened.values()), reason=STARTED_ANEW)
        metrics.PARTITION_OPENINGS.inc(sum(opened.values()))
        return opened

    async def _reconcile_in_turn(self, sale_id: str, known: KnownPartition | None, run: str) -> str:
        async with self._turns:
            return await self._reconcile(sale_id, known, run)

    async def _report(self, frozen: dict[str, str]) -> None:
        self._frozen = frozen
        metrics.PARTITIONS_FROZEN.set(len(frozen))
        if frozen != self._reported:
            await self._guarding.report(await self._guarding.server_time_ms(), frozen)
            self._reported = frozen

    async def _reconcile(self, sale_id: str, known: KnownPartition | None, run: str) -> str:
        """Open one partition if it agrees with the ledger. Returns why it stays frozen; empty if it does not."""
        if known is not None and known.retired:
            return ""
        sight = await self._guarding.look(sale_id)
        if _is_in_order(sight, known, run):
            return ""
        if sight.run == run and sight.frozen and sight.sequence > (known.sequence if known else 0):
            # frozen on doubt, not by a restart: the ledger must have been able to take all of its journal
            return sight.frozen
        try:
            await self._compare(sale_id, sight)
        except NotReconciled as error:
            return await self._leave_frozen(sale_id, sight, str(error))
        known_epoch = known.epoch if known else 0
        return await self._open(sale_id, sight, max(sight.epoch, known_epoch) + 1, run)

    async def _leave_frozen(self, sale_id: str, sight: PartitionSight, reason: str) -> str:
        if self._frozen.get(sale_id) != reason:
            log.error("partition_frozen", sale_id=sale_id, reason=reason)
            metrics.FREEZES.labels(reason="not_reconciled").inc()
        if sight.frozen != reason:
            await self._guarding.freeze_lost(sale_id, reason)
        return reason

    async def _open(self, sale_id: str, sight: PartitionSight, epoch: int, run: str) -> str:
        reason = sight.frozen or STARTED_ANEW
        await record_epoch(self._pool, sale_id, epoch)  # first, so that no epoch is ever given twice
        if not await self._guarding.open(sale_id, sight, epoch, run, reason):
            return "the partition changed while it was being reconciled"
        log.warning("partition_opened", sale_id=sale_id, epoch=epoch, reason=reason)
        metrics.PARTITION_OPENINGS.inc()
        return ""

    async def _compare(self, sale_id: str, sight: PartitionSight) -> None:
        """Raise NotReconciled unless the ledger, with the journal folded on top of it, is what Redis counts."""
        if not sight.exists or not sight.status:
            raise NotReconciled("Redis has lost the partition, which the ledger knows")
        at_ledger = await levels(self._pool, sale_id)
        offset = at_ledger.sequence if at_ledger else 0
        if sight.sequence < offset:
            raise NotReconciled(
                f"Redis is behind the ledger: it ends at sequence number {sight.sequence}, the ledger at {offset}"
            )
        folded = _units_of(at_ledger.levels if at_ledger else {})
        await self._fold_journal(sale_id, folded, offset, sight.sequence)
        _require_equal(sight.levels, folded)

    async def _fold_journal(self, sale_id: str, folded: dict[str, _Units], offset: int, sequence: int) -> None:
        """Fold the journal's entries behind `offset`, which must lead to `sequence` without a gap."""
        reached = offset
        while True:
            records = await self._partitions.journals.records_after(sale_id, reached, JOURNAL_RECORDS_PER_READ)
            if not records:
                break
            reached = _fold_records(folded, records, reached)
        if reached != sequence:
            raise NotReconciled(f"the journal ends at sequence number {reached}, the partition at {sequence}")


def _agrees(sight: PartitionSight, at_ledger: LevelsAt, behind: Sequence[tuple[int, bytes]]) -> bool:
    """Whether the ledger, with these records behind it folded on top, is what Redis has, to its end."""
    folded = _units_of(at_ledger.levels)
    try:
        if _fold_records(folded, behind, at_ledger.sequence) != sight.sequence:
            return False  # its journal is longer than what was read
        _require_equal(sight.levels, folded)
    except NotReconciled:
        return False  # looked at once more by itself, for the reason
    return True


def _fold_records(folded: dict[str, _Units], records: Sequence[tuple[int, bytes]], offset: int) -> int:
    """Fold records that must follow `offset` without a gap; the last one's number. Raises: NotReconciled."""
    reached = offset
    for last_sequence, encoded in records:
        try:
            record = decode_record(encoded)
            # a record may begin behind the ledger's offset only where the ledger has taken part of it: never
            if record.first_sequence != reached + 1 or record.last_sequence != last_sequence:
                raise NotReconciled(
                    f"the journal has a gap: {record.first_sequence} to {last_sequence} follows {reached}"
                )
            for encoded_entry in record.entries:
                _apply(folded, encoded_entry)
        except JournalUnreadable as error:
            raise NotReconciled(f"the journal cannot be read behind {reached}: {error}") from error
        reached = last_sequence
    return reached


def _is_in_order(sight: PartitionSight, known: KnownPartition | None, run: str) -> bool:
    """Whether there is nothing to reconcile: it is open on this run, has been retired, or never was."""
    if not sight.exists:
        return known is None  # a name that was registered for a sale which was never made
    return sight.retired or (sight.run == run and not sight.frozen)


def _apply(folded: dict[str, _Units], encoded_entry: bytes) -> None:
    entry = decode_entry(encoded_entry)
    for effect in stock_effects(entry):
        units = folded.setdefault(effect.sku, _Units())
        if effect.account == POOL:
            units.pools[effect.pool] += effect.quantity
        else:
            units.numbers[effect.account] += effect.quantity
    if isinstance(entry, SaleDefined):
        for sku in entry.removed:
            folded.pop(sku, None)


def _units_of(at_ledger: Mapping[str, LedgerLevels]) -> dict[str, _Units]:
    return {
        sku: _Units(
            Counter(allocated=row.allocated, withheld=row.withheld, held=row.held, settled=row.settled),
            Counter(row.pools),
        )
        for sku, row in at_ledger.items()
    }


def _require_equal(in_redis: Mapping[str, StockLevels], folded: Mapping[str, _Units]) -> None:
    """Raise NotReconciled with the first SKU whose numbers differ."""
    for sku in sorted({*in_redis, *folded}):
        row, units = in_redis.get(sku), folded.get(sku, _Units())
        counted = (
            {}
            if row is None
            else {
                "allocated": row.allocated,
                "withheld": row.withheld,
                "held": row.held,
                "settled": row.settled,
            }
        )
        pools = {} if row is None else row.pools
        for name in ("allocated", "withheld", "held", "settled"):
            if counted.get(name, 0) != units.numbers[name]:
                raise NotReconciled(
                    f"SKU {sku}: Redis counts {counted.get(name, 0)} {name}, the journal {units.numbers[name]}"
                )
        for pool in sorted({*pools, *units.pools}):
            if pools.get(pool, 0) != units.pools[pool]:
                raise NotReconciled(
                    f"SKU {sku}: Redis counts {pools.get(pool, 0)} in {pool}, the journal {units.pools[pool]}"
                )
