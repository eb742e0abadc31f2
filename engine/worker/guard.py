"""The guard: nothing is sold on doubt.

The script itself refuses every command after Redis has started anew, because the run it was opened on has gone. The
guard then compares each partition with the ledger: what the ledger holds, with the journal entries behind it folded on
top, must be what Redis counts. Only then does it open the partition, under the next epoch. What does not agree stays
frozen, with the reason where people look: the log, the metric, /readyz and the audit.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from engine.domain.errors import JournalUnreadable, LedgerUnavailable, MiaocangError, PartitionUnavailable
from engine.domain.journal import SaleDefined, decode_entry, decode_record
from engine.domain.sales import SaleStatus, StockLevels
from engine.domain.stock_effects import POOL, stock_effects
from engine.ledger.connect import LedgerPool
from engine.ledger.sales import KnownPartition, LedgerLevels, known_partition, known_partitions, levels, record_epoch
from engine.observability import metrics
from engine.partition.glance import Glance
from engine.partition.guarding import PartitionSight
from engine.partition.partitions import Partitions
from engine.partition.redis_clock import CLOCK_JUMP_MS
from engine.settings import Settings

JOURNAL_RECORDS_PER_READ = 1000
RECONCILED_AT_ONCE_MAX = 8
"""Partitions that are compared at the same time: as many as there are connections to the ledger."""
FROZEN_CHECK_SECONDS = 1.0
"""How often a frozen partition is looked at again: what was in doubt may have been settled, or PostgreSQL be back."""

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

    def __init__(self, partitions: Partitions, pool: LedgerPool, settings: Settings) -> None:
        self._partitions = partitions
        self._guarding = partitions.guarding
        self._pool = pool
        self._interval_seconds = settings.guard_interval_seconds
        self._frozen: dict[str, str] = {}
        self._reported: Mapping[str, str] | None = None
        self._frozen_checked_at = 0.0
        self._clock_offset_ms: float | None = None
        self.first_pass_done = asyncio.Event()
        """Set once every partition has been looked at, and opened or left frozen with its reason."""

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
            await self._guarding.vouch_for(run)
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
        """After a restart: every partition of either store."""
        known = {partition.sale_id: partition for partition in await known_partitions(self._pool)}
        sale_ids = sorted({*known, *await self._partitions.sale_ids()})
        schedules = await Glance(self._partitions.connections).schedules(sale_ids)
        selling_first = sorted(sale_ids, key=lambda sale_id: schedules[sale_id].status != SaleStatus.OPEN)
        turns = asyncio.Semaphore(RECONCILED_AT_ONCE_MAX)

        async def reconcile(sale_id: str) -> str:
            async with turns:
                return await self._reconcile(sale_id, known.get(sale_id), run)

        reasons = await asyncio.gather(*map(reconcile, selling_first))
        await self._report({sale_id: why for sale_id, why in zip(selling_first, reasons, strict=True) if why})

    async def _look_at_frozen(self, run: str) -> None:
        """Partitions that somebody froze since, or that could not be opened at the last look."""
        sale_ids = await self._partitions.sale_ids()
        freezes = await self._guarding.freezes(sale_ids)
        frozen = {}
        for sale_id in {**freezes, **self._frozen}:
            reason = await self._reconcile(sale_id, await known_partition(self._pool, sale_id), run)
            if reason:
                frozen[sale_id] = reason
        await self._report(frozen)

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
        reason = sight.frozen or "Redis has started anew"
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
        if reached != sequence:
            raise NotReconciled(f"the journal ends at sequence number {reached}, the partition at {sequence}")


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
