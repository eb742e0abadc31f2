"""One sale's audit: the ledger against its journal, the journal against every promise, and Redis against both."""

import asyncio
import time

from engine.audit.ledger_side import LedgerSide, audit_ledger
from engine.audit.redis_side import PartitionMoved, ask_sale, audit_redis
from engine.audit.report import AuditReport, CannotTell, Check, Differences, SaleUnknown
from engine.domain.errors import PartitionFrozen
from engine.domain.fold import Rule
from engine.ledger.connect import LedgerPool
from engine.ledger.snapshot import ledger_snapshot
from engine.partition.call import ScriptFailed
from engine.partition.partitions import Partitions

ATTEMPTS_MAX = 3
"""How often an audit is begun anew because its partition was opened anew meanwhile."""
LEDGER_WAIT_SECONDS = 3.0
"""How long a sale that was made just now may take to get into the ledger."""
LEDGER_POLL_SECONDS = 0.1


async def audit_sale(partitions: Partitions, pool: LedgerPool, sale_id: str) -> AuditReport:
    """Recompute every promise that can be, exactly, also under load.

    The ledger is read in one snapshot at its sequence number L, and its journal folded; the fold goes on with Redis'
    journal to the sequence number R at which Redis answered its levels.

    Raises: SaleUnknown, CannotTell, LedgerUnavailable. A partition that is frozen is a check that does not hold.
    """
    moved = ""
    for _ in range(ATTEMPTS_MAX):
        side = await _read_ledger(partitions, pool, sale_id)
        try:
            redis_checks = await _look_at_redis(partitions, pool, side)
        except PartitionMoved as reason:
            moved = str(reason)
            continue
        journal = side.journal.check(
            "journal-complete",
            f"the ledger holds 1 to {side.partition.sequence}, with Redis' journal 1 to {side.fold.sequence}",
        )
        return AuditReport(sale_id, [journal, *_rule_checks(side), *side.checks, *redis_checks])
    raise CannotTell(f"the partition changed {ATTEMPTS_MAX} times while it was looked at: {moved}")


async def _read_ledger(partitions: Partitions, pool: LedgerPool, sale_id: str) -> LedgerSide:
    """The ledger's side, waiting a moment for a sale that Redis alone has yet."""
    deadline = time.monotonic() + LEDGER_WAIT_SECONDS
    while True:
        async with ledger_snapshot(pool) as snapshot:
            side = await audit_ledger(snapshot, sale_id)
        if side is not None:
            return side
        try:
            sale = await ask_sale(partitions, sale_id)
        except (PartitionFrozen, ScriptFailed) as error:
            raise CannotTell(f"the ledger holds no entry of it, and Redis cannot be asked: {error}") from error
        if sale is None:
            raise SaleUnknown(f"neither Redis nor the ledger knows of a sale {sale_id}")
        if time.monotonic() >= deadline:
            words = f"Redis has {sale.state.sequence} entries of it, and the ledger none: is the worker running?"
            raise CannotTell(words)
        await asyncio.sleep(LEDGER_POLL_SECONDS)


async def _look_at_redis(partitions: Partitions, pool: LedgerPool, side: LedgerSide) -> list[Check]:
    if side.partition.retired:
        words = "the sale was retired from Redis; the ledger alone was compared"
        return [Check("partition-retired", True, words)]
    return await audit_redis(partitions, pool, side)


def _rule_checks(side: LedgerSide) -> list[Check]:
    """What the fold saw on its way."""
    counts = side.fold.entry_counts
    at_every = f"at each of {side.fold.sequence} sequence numbers"
    ends = f"{counts['Settled']} settled, {counts['Cancelled']} cancelled, {counts['Expired']} expired"
    good = {
        Rule.SEQUENCE_DENSE: f"1 to {side.fold.sequence}",
        Rule.NEVER_OVERSOLD: f"allocated = withheld + available + held + settled, each ≥ 0, {at_every}",
        Rule.HOLDS_END_ONCE: f"{counts['Held']} holds: {ends}, {len(side.fold.open_holds)} open",
        Rule.EXPIRY_NEVER_EARLY: f"{counts['Expired']} expired, none before its deadline",
        Rule.HELD_ONLY_WHILE_OPEN: f"{counts['Held']} holds, each while the sale was open",
        Rule.ORDERS_UNCHANGED: f"{side.fold.orders_count} orders, each change the next version of it",
        Rule.ORDERS_ADD_UP: f"{side.fold.orders_count} orders: amounts and units follow from their lines",
        Rule.UNITS_RETURN: "each unit taken and given back where it should be",
        Rule.PAYMENTS_KEPT: (
            f"{counts['Settled'] + counts['Reinstated']} settle, "
            f"{counts['PaymentTooLate'] + counts['DuplicatePayment']} are due for refund"
        ),
        Rule.BUYER_LIMITS: f"{len(side.fold.bought)} buyers within the limits of their holds' time",
        Rule.SALE_CHANGES: f"version {side.fold.version}, {counts['StockChanged']} stock documents",
    }
    checks = []
    for rule in Rule:
        differences = Differences()
        differences.extend(side.fold.violation_counts[rule], side.fold.words_about(rule))
        checks.append(differences.check(rule.value, good[rule]))
    return checks
