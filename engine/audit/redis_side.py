"""Redis held against the fold, exactly, while buyers go on buying.

`get_sale` answers the levels and their sequence number R in one atom, and the fold is carried on to R. The index of
open holds, the buyers' rows with their newest orders, and the orders that moved out of them are scanned afterwards, in
this order and not in one atom; each change of theirs changes an order as well. So orders are scanned *last*, each where
it moves to after where it moves from: a difference in what was scanned before counts only if none of the orders it
rests on changed after R, and what did change is left out by name and counted.
"""

import asyncio
import time
from dataclasses import dataclass, field

from engine.audit.ledger_side import LedgerSide, fingerprint
from engine.audit.report import CannotTell, Check, Differences
from engine.domain.commands import GetSale
from engine.domain.errors import JournalUnreadable, OutcomeUnknown, PartitionFrozen, PartitionUnavailable
from engine.domain.journal import decode_record
from engine.domain.orders import OrderRecord
from engine.domain.outcomes import Outcome
from engine.domain.sales import StockLevels
from engine.ledger.connect import LedgerPool
from engine.ledger.snapshot import ledger_snapshot
from engine.partition.call import ScriptFailed
from engine.partition.codec import SaleSnapshot
from engine.partition.inspection import PartitionInspection
from engine.partition.partitions import Partitions

RECORDS_AT_ONCE = 200
ORDERS_BETWEEN_PAUSES = 5000
"""After so many orders others on the event loop get their turn."""
FROZEN_WAIT_SECONDS = 2.0
"""How long a partition may stay frozen before that is what the audit says."""
FROZEN_POLL_SECONDS = 0.1
BUYER_ORDERS_MAX = 100
"""The newest orders that a buyer's record names, as in `includes/buyer.lua`."""


class PartitionMoved(Exception):
    """The partition was opened anew, frozen or retired while it was looked at: the audit is to be made again."""


@dataclass
class Scan:
    """What was found in Redis past the script, to be judged when the orders have been scanned."""

    orders: Differences = field(default_factory=Differences)
    seen: set[str] = field(default_factory=set)
    orders_equal: int = 0
    orders_later: int = 0
    changed: set[str] = field(default_factory=set)
    """Digests of orders that changed after R."""
    changed_buyers: set[str] = field(default_factory=set)
    due_candidates: dict[str, str] = field(default_factory=dict)
    """Digest → what differs, unless that order has changed since."""
    buyer_candidates: dict[str, str] = field(default_factory=dict)


async def audit_redis(partitions: Partitions, pool: LedgerPool, side: LedgerSide) -> list[Check]:
    """Compare the sale in Redis with its journal; the fold in `side` is carried on to Redis' sequence number.

    Raises: CannotTell, PartitionMoved, LedgerUnavailable.
    """
    try:
        sale = await _ask_when_open(partitions, side.sale_id)
    except PartitionFrozen as frozen:
        return [Check("partition-open", False, f"frozen: {frozen}")]
    except ScriptFailed as failure:
        return [Check("partition-open", False, f"the partition cannot be read: {failure}")]
    inspection = PartitionInspection(partitions.connections)
    if sale is None:
        return await _audit_absent(partitions, pool, side, inspection)
    await _fold_on(partitions, pool, side, sale.state.sequence)
    state = sale.state
    checks = [Check("partition-open", True, f"epoch {state.epoch}, sequence {state.sequence}, {state.status}")]
    if side.fold.sequence > state.sequence:
        words = f"Redis is at sequence {state.sequence}, the ledger at {side.fold.sequence}: Redis has lost entries"
        side.journal.add(words)
        return checks
    checks += [_check_stock(side, sale), _check_sale(side, sale)]
    checks += await _check_scans(inspection, side)
    await _require_unmoved(pool, inspection, side.sale_id, state.epoch)
    return checks


async def _ask_when_open(partitions: Partitions, sale_id: str) -> SaleSnapshot | None:
    """As `ask_sale`, waiting a moment for the guard: after a restart it opens what it finds in order."""
    deadline = time.monotonic() + FROZEN_WAIT_SECONDS
    while True:
        try:
            return await ask_sale(partitions, sale_id)
        except PartitionFrozen:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(FROZEN_POLL_SECONDS)


async def ask_sale(partitions: Partitions, sale_id: str) -> SaleSnapshot | None:
    """The sale with its levels, in one atom; None where the partition says that there is none.

    Raises: PartitionFrozen, ScriptFailed, CannotTell where Redis cannot be asked.
    """
    try:
        (reply,) = await partitions.submit(sale_id, GetSale())
    except PartitionFrozen:
        raise
    except (PartitionUnavailable, OutcomeUnknown) as error:
        raise CannotTell(f"Redis cannot be asked: {error}") from error
    return reply.sale() if reply.outcome is Outcome.DONE else None


async def _audit_absent(
    partitions: Partitions, pool: LedgerPool, side: LedgerSide, inspection: PartitionInspection
) -> list[Check]:
    """Redis says that there is no such sale: right if its last entry deleted it, and a loss otherwise."""
    state = await _state(inspection, side.sale_id)
    if state["status"] != "deleted":
        await _require_not_retired(pool, side.sale_id)
        words = f"Redis has no such sale, and the ledger has {side.partition.sequence} entries of it"
        return [Check("partition-open", False, words)]
    await _fold_on(partitions, pool, side, int(state["sequence"]))
    if side.fold.status is not None:
        words = f"Redis says that the sale was deleted, and the journal that it is {side.fold.status}"
        return [Check("partition-open", False, words)]
    return [Check("partition-open", True, f"deleted as a draft, at sequence {state['sequence']}")]


async def _state(inspection: PartitionInspection, sale_id: str) -> dict[str, str]:
    try:
        return await inspection.state(sale_id, ("status", "sequence", "epoch", "frozen", "retired"))
    except PartitionUnavailable as error:
        raise CannotTell(f"Redis cannot be asked: {error}") from error


async def _require_unmoved(pool: LedgerPool, inspection: PartitionInspection, sale_id: str, epoch: int) -> None:
    """What was scanned belongs together; a partition that was purged meanwhile is retired in the ledger by then."""
    state = await _state(inspection, sale_id)
    if state["retired"] == "1":
        await _require_not_retired(pool, sale_id)
    if state["epoch"] != str(epoch) or state["frozen"]:
        raise PartitionMoved(f"its epoch went from {epoch} to {state['epoch'] or 'nothing'}")


async def _require_not_retired(pool: LedgerPool, sale_id: str) -> None:
    async with ledger_snapshot(pool) as snapshot:
        partition = await snapshot.partition(sale_id)
    if partition is not None and partition.retired:
        raise PartitionMoved("it was retired")


# --- the journal in Redis ------------------------------------------------------------------------------------------


async def _fold_on(partitions: Partitions, pool: LedgerPool, side: LedgerSide, sequence: int) -> None:
    """Carry the fold on to Redis' sequence number, comparing what Redis still has of the entries before."""
    first: int | None = None
    last = 0
    while last < sequence:
        try:
            records = await partitions.journals.records_after(side.sale_id, last, RECORDS_AT_ONCE)
        except PartitionUnavailable as error:
            raise CannotTell(f"Redis cannot be asked: {error}") from error
        if not records:
            break
        for record_sequence, encoded in records:
            begins = await _fold_record(pool, side, record_sequence, encoded, sequence)
            if first is None:
                first = begins
            elif begins is not None and begins != last + 1:
                side.journal.add(f"the journal in Redis has a gap: {begins} comes after {last}")
            last = record_sequence
    if first is not None and last < sequence:
        side.journal.add(f"the journal in Redis ends at {last}, and the partition is at {sequence}")
    if side.fold.sequence < sequence:
        await _fill_from_ledger(pool, side, sequence)
    if side.fold.sequence < sequence:
        words = f"entries {side.fold.sequence + 1} to {sequence} are neither in Redis' journal nor in the ledger"
        side.journal.add(words)


async def _fold_record(
    pool: LedgerPool, side: LedgerSide, record_sequence: int, encoded: bytes, up_to: int
) -> int | None:
    """Fold, or compare, the entries of one record up to a sequence number; the first one's, None if unreadable."""
    try:
        record = decode_record(encoded)
    except JournalUnreadable as error:
        side.journal.add(f"the record at {record_sequence} in Redis: {error}")
        return None
    if record.last_sequence != record_sequence:
        side.journal.add(f"the record at {record_sequence} in Redis ends at {record.last_sequence}")
    if record.first_sequence > up_to:
        return record.first_sequence  # made since Redis answered its levels: the fold stops before it
    if record.first_sequence > side.fold.sequence + 1:
        await _fill_from_ledger(pool, side, record.first_sequence - 1)
    for sequence, raw in enumerate(record.entries, record.first_sequence):
        if sequence > up_to:
            break
        entry = bytes(raw)
        if sequence > side.fold.sequence:
            side.apply(sequence, record.epoch, record.at_ms, entry)
        elif side.fingerprints[sequence - 1] != fingerprint(record.epoch, record.at_ms, entry):
            side.journal.add(f"entry {sequence} in Redis is not the one in the ledger")
    return record.first_sequence


async def _fill_from_ledger(pool: LedgerPool, side: LedgerSide, up_to: int) -> None:
    """What was trimmed from Redis since the ledger was read has got into the ledger since."""
    async with ledger_snapshot(pool) as snapshot:
        async for row in snapshot.journal(side.partition.partition_id, side.fold.sequence):
            if row["sequence"] > up_to:
                return
            side.apply_row(row)


# --- levels and orders ---------------------------------------------------------------------------------------------


def _check_stock(side: LedgerSide, sale: SaleSnapshot) -> Check:
    differences = Differences()
    found = dict(sale.levels)
    for sku, levels in side.fold.levels.items():
        in_redis = found.pop(sku, None)
        if in_redis is None:
            differences.add(f"{sku} is not in Redis")
        elif _comparable(in_redis) != _comparable(levels):
            differences.add(f"{sku}: Redis {_words(in_redis)}, journal {_words(levels)}")
    for sku in found:
        differences.add(f"{sku} is in Redis, and not in the journal")
    totals = [(levels.allocated, levels.held, levels.settled) for levels in side.fold.levels.values()]
    allocated, held, settled = (sum(column) for column in zip(*totals, strict=True)) if totals else (0, 0, 0)
    good = (
        f"{len(totals)} SKUs at sequence {sale.state.sequence}: {allocated} allocated, {held} held, {settled} settled"
    )
    return differences.check("stock-redis-equals-journal", good)


def _comparable(levels: StockLevels) -> tuple[object, ...]:
    """A pool that is empty and one that is not there are the same."""
    pools = {pool: units for pool, units in levels.pools.items() if units}
    return (
        levels.allocated,
        levels.withheld,
        levels.held,
        levels.settled,
        levels.unit_price_minor,
        levels.buyer_limit,
        levels.style,
        pools,
    )


def _words(levels: StockLevels) -> str:
    return (
        f"allocated {levels.allocated} withheld {levels.withheld} pools {levels.pools} "
        f"held {levels.held} settled {levels.settled} price {levels.unit_price_minor}"
    )


def _check_sale(side: LedgerSide, sale: SaleSnapshot) -> Check:
    differences = Differences()
    fold, state = side.fold, sale.state
    status = "deleted" if fold.status is None else fold.status.value
    for what, in_redis, in_journal in (
        ("status", state.status, status),
        ("version", state.version, fold.version),
        ("epoch", state.epoch, fold.epoch),
        ("ever held", state.ever_held, fold.ever_held),
    ):
        if in_redis != in_journal:
            differences.add(f"{what}: Redis {in_redis}, journal {in_journal}")
    if sale.definition != fold.definition_json:
        differences.add("the definition in Redis is not the journal's last one")
    if state.persisted > state.sequence:
        differences.add(f"Redis believes entries up to {state.persisted} in the ledger, and is at {state.sequence}")
    return differences.check("sale-redis-equals-journal", f"{state.status}, version {state.version}")


async def _check_scans(inspection: PartitionInspection, side: LedgerSide) -> list[Check]:
    scan = Scan()
    digests_by_buyer: dict[str, list[str]] = {}
    for number, (digest, order) in enumerate(side.fold.orders()):
        digests_by_buyer.setdefault(f"{order.channel}:{order.buyer_id}", []).append(digest)
        if number % ORDERS_BETWEEN_PAUSES == 0:
            await asyncio.sleep(0)
    try:
        await _scan_due(inspection, side, scan)
        await _scan_buyers(inspection, side, scan, digests_by_buyer)
        await _scan_moved_orders(inspection, side, scan)  # last: see the top of this file
    except PartitionUnavailable as error:
        raise CannotTell(f"Redis cannot be asked: {error}") from error
    due, buyers = Differences(), Differences()
    due_later = _judge(scan.due_candidates, scan.changed, due)
    buyers_later = _judge(scan.buyer_candidates, scan.changed_buyers, buyers)
    fold = side.fold
    return [
        scan.orders.check("orders-redis-equal-journal", f"{scan.orders_equal} orders{_later(scan.orders_later)}"),
        due.check("due-index", f"{len(fold.open_holds)} open holds, each with its deadline{_later(due_later)}"),
        buyers.check("buyer-counters", f"{len(digests_by_buyer)} buyers{_later(buyers_later)}"),
    ]


def _judge(candidates: dict[str, str], changed: set[str], differences: Differences) -> int:
    """Name what differs and did not change since; how many did."""
    later = 0
    for name, words in candidates.items():
        if name in changed:
            later += 1
        else:
            differences.add(words)
    return later


def _later(count: int) -> str:
    return f"; {count} that changed while this was read are left out" if count else ""


async def _scan_buyers(
    inspection: PartitionInspection, side: LedgerSide, scan: Scan, digests_by_buyer: dict[str, list[str]]
) -> None:
    """Buyers and their newest orders: one row holds both, so that they are of one moment."""
    unseen = set(digests_by_buyer)
    seen_parts: set[str] = set()
    async for part, row in inspection.buyers(side.sale_id):
        if part in seen_parts:
            continue
        seen_parts.add(part)
        if row is None:
            scan.orders.add(f"the row of buyer {part} in Redis cannot be read")
            continue
        for digest, order in row.orders:
            _look_at_order(side, scan, digest, order)
        _, newest = row.orders[-1]
        buyer = f"{newest.channel}:{newest.buyer_id}"
        unseen.discard(buyer)
        expected, counted = side.fold.bought.get(buyer, {}), row.units()
        if counted != expected:
            scan.buyer_candidates[buyer] = f"buyer {buyer}: Redis counts {counted}, the journal {expected}"
        elif row.digests() != digests_by_buyer.get(buyer, [])[-len(row.digests()) :]:
            scan.buyer_candidates[buyer] = f"buyer {buyer}: Redis lists {len(row.digests())} orders, not the newest"
        elif len(row.digests()) < min(len(digests_by_buyer.get(buyer, [])), BUYER_ORDERS_MAX):
            scan.buyer_candidates[buyer] = f"buyer {buyer}: Redis lists {len(row.digests())} orders, and not all"
    for buyer in unseen:
        scan.buyer_candidates[buyer] = f"buyer {buyer} is not in Redis"


async def _scan_due(inspection: PartitionInspection, side: LedgerSide, scan: Scan) -> None:
    """Each open hold once, at its deadline. Orders that ended before their deadline may be in the index until then."""
    open_holds = side.fold.open_holds
    unseen = set(open_holds)
    async for digest, deadline_ms in inspection.due(side.sale_id):
        if digest in unseen:
            unseen.discard(digest)
            if open_holds[digest] != deadline_ms:
                words = f"order {digest} is in the index at {deadline_ms}, and held until {open_holds[digest]}"
                scan.due_candidates[digest] = words
        elif digest in open_holds:
            scan.due_candidates[digest] = f"order {digest} is in the index twice"
        elif digest not in side.fold.digests:
            scan.due_candidates[digest] = f"order {digest} is in the index, and not in the journal"
    for digest in unseen:
        scan.due_candidates[digest] = f"order {digest} is held, and not in the index"


async def _scan_moved_orders(inspection: PartitionInspection, side: LedgerSide, scan: Scan) -> None:
    """After the rows: an order that moves out of one meanwhile is seen here, or in both."""
    async for digest, order in inspection.moved_orders(side.sale_id):
        if order is None:
            scan.orders.add(f"order {digest} in Redis cannot be read")
        else:
            _look_at_order(side, scan, digest, order)
    for digest in side.fold.digests - scan.seen:
        scan.orders.add(f"order {digest} is not in Redis")


def _look_at_order(side: LedgerSide, scan: Scan, digest: str, order: OrderRecord) -> None:
    if order.changed_sequence > side.fold.sequence:
        scan.orders_later += digest not in scan.changed
        scan.changed.add(digest)
        scan.changed_buyers.add(f"{order.channel}:{order.buyer_id}")
    elif digest not in scan.seen:
        _compare_order(side, scan, digest, order)
    scan.seen.add(digest)


def _compare_order(side: LedgerSide, scan: Scan, digest: str, order: OrderRecord) -> None:
    expected = side.fold.order(digest)
    if expected is None:
        scan.orders.add(f"order {digest} is in Redis, and not in the journal")
    elif order != expected:
        names = [name for name in order.__struct_fields__ if getattr(order, name) != getattr(expected, name)]
        scan.orders.add(f"order {digest} differs in {', '.join(names)}")
    else:
        scan.orders_equal += 1
