"""The ledger held against itself: its journal is folded anew and compared with everything derived from it."""

from array import array
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from engine.audit.feed_comparison import FeedComparison
from engine.audit.report import Check, Differences
from engine.domain.errors import JournalUnreadable
from engine.domain.fold import PartitionFold
from engine.domain.journal import Entry, decode_entry
from engine.domain.orders import OrderStatus
from engine.ledger.snapshot import LedgerSnapshot, PartitionRow

Key = TypeVar("Key", int, str, tuple[int, int])


@dataclass
class LedgerSide:
    """A sale as the ledger has it, and the fold of its journal."""

    sale_id: str
    partition: PartitionRow
    fold: PartitionFold = field(default_factory=PartitionFold)
    journal: Differences = field(default_factory=Differences)
    """What is wrong with the journal itself, in either store."""
    fingerprints: "array[int]" = field(default_factory=lambda: array("q"))
    """Of each entry up to the fold's, so that what Redis still has of them can be compared: eight bytes an entry."""
    checks: list[Check] = field(default_factory=list)

    def apply_row(self, row: Any) -> Entry | None:
        """Fold one row of the ledger's journal; the entry in it, or None where it cannot be read."""
        sequence = row["sequence"]
        expected = self.fold.sequence + 1
        if sequence != expected:
            self.journal.add(f"the ledger's entry {expected} is missing: {sequence} comes after {expected - 1}")
        return self.apply(sequence, row["epoch"], row["at_ms"], row["entry"])

    def apply(self, sequence: int, epoch: int, at_ms: int, encoded: bytes) -> Entry | None:
        """Fold one entry, wherever it comes from."""
        while len(self.fingerprints) < sequence - 1:
            self.fingerprints.append(0)  # of those that are missing
        self.fingerprints.append(fingerprint(epoch, at_ms, encoded))
        try:
            entry = decode_entry(encoded)
        except JournalUnreadable as error:
            self.journal.add(f"entry {sequence}: {error}")
            return None
        self.fold.apply(sequence, at_ms, entry)
        if epoch != self.fold.epoch:
            self.journal.add(f"entry {sequence} is of epoch {epoch}, the partition was at {self.fold.epoch}")
        return entry


def fingerprint(epoch: int, at_ms: int, encoded: bytes) -> int:
    """A number that tells two entries apart, within this process."""
    return hash((epoch, at_ms, encoded))


async def audit_ledger(snapshot: LedgerSnapshot, sale_id: str) -> LedgerSide | None:
    """Fold the ledger's journal and compare what was derived from it; None where the ledger has nothing of the sale."""
    partition = await snapshot.partition(sale_id)
    if partition is None or partition.sequence == 0:
        return None
    side = LedgerSide(sale_id, partition)
    feed = FeedComparison(sale_id, snapshot.feed(partition.partition_id))
    rows_count = 0
    async for row in snapshot.journal(partition.partition_id):
        rows_count += 1
        entry = side.apply_row(row)
        if entry is not None:
            await feed.expect(entry)
    await feed.finish()
    if rows_count != partition.sequence or side.fold.sequence != partition.sequence:
        words = f"the offset is {partition.sequence}, and {rows_count} entries up to {side.fold.sequence} are there"
        side.journal.add(words)
    if partition.epoch < side.fold.epoch:
        side.journal.add(f"the ledger knows epoch {partition.epoch}, its journal {side.fold.epoch}")
    side.checks += [
        await _check_stock(snapshot, side),
        await _check_sale(snapshot, side),
        await _check_orders(snapshot, side),
        await _check_lines(snapshot, side),
        await _check_payments(snapshot, side),
        feed.differences.check(
            "feed-equals-journal", f"{feed.rows_count} rows, {feed.settled_count} orders settled, each exactly once"
        ),
        await _check_feed_dense(snapshot),
    ]
    return side


async def _check_stock(snapshot: LedgerSnapshot, side: LedgerSide) -> Check:
    differences = Differences()

    def expected() -> Iterator[tuple[str, tuple[Any, ...]]]:
        for sku, levels in sorted(side.fold.levels.items()):
            pools = {pool: units for pool, units in sorted(levels.pools.items()) if units}
            yield sku, (levels.allocated, levels.withheld, levels.available, levels.held, levels.settled, pools)

    async def found() -> AsyncIterator[tuple[str, tuple[Any, ...]]]:
        async for row in snapshot.stock(side.partition.partition_id):
            pools = {pool: units for pool, units in sorted(msgspec.json.decode(row["pools"]).items()) if units}
            levels = (row["allocated"], row["withheld"], row["available"], row["held"], row["settled"], pools)
            yield row["sku"], levels

    count = await _compare(expected(), found(), differences, "stock of SKU")
    return differences.check("stock-ledger-equals-journal", f"{count} SKUs at sequence {side.fold.sequence}")


async def _check_sale(snapshot: LedgerSnapshot, side: LedgerSide) -> Check:
    differences = Differences()
    fold = side.fold
    sale = await snapshot.sale(side.partition.partition_id)
    status = "deleted" if fold.status is None else fold.status.value
    if sale is None:
        differences.add("the ledger has no row of the sale")
    else:
        if (sale.status, sale.version) != (status, fold.version):
            words = f"ledger {sale.status} of version {sale.version}, journal {status} of version {fold.version}"
            differences.add(words)
        if fold.status is not None and not _same_json(sale.definition, fold.definition_json):
            differences.add("the definition in the ledger is not the journal's last one")
    return differences.check("sale-ledger-equals-journal", f"{status}, version {fold.version}")


def _same_json(one: str, other: str) -> bool:
    try:
        return bool(msgspec.json.decode(one) == msgspec.json.decode(other))
    except msgspec.MsgspecError:
        return False


_ORDER_COLUMNS = (
    "digest", "status", "version", "changed_sequence", "channel", "buyer_id", "reference", "payment_id", "currency",
    "discount_minor", "freight_minor", "amount_minor", "created_at_ms", "held_until_ms", "settled_at_ms",
)  # fmt: skip


async def _check_orders(snapshot: LedgerSnapshot, side: LedgerSide) -> Check:
    differences = Differences()

    def expected() -> Iterator[tuple[int, tuple[Any, ...]]]:
        for digest, order in side.fold.orders():
            settling = order.settling_payment() if order.status is OrderStatus.SETTLED else None
            yield (
                order.sequence,
                (
                    digest,
                    order.status.value,
                    order.version,
                    order.changed_sequence,
                    order.channel,
                    order.buyer_id,
                    order.reference or None,
                    None if settling is None else settling.payment_id,
                    order.currency,
                    order.discount_minor,
                    order.freight_minor,
                    order.amount_minor,
                    order.created_at_ms,
                    order.held_until_ms,
                    order.settled_at_ms or None,
                ),
            )

    async def found() -> AsyncIterator[tuple[int, tuple[Any, ...]]]:
        async for row in snapshot.orders(side.partition.partition_id):
            yield row["sequence"], tuple(row[column] for column in _ORDER_COLUMNS)

    count = await _compare(expected(), found(), differences, "order held at")
    return differences.check("orders-ledger-equal-journal", f"{count} orders at sequence {side.fold.sequence}")


async def _check_lines(snapshot: LedgerSnapshot, side: LedgerSide) -> Check:
    differences = Differences()

    def expected() -> Iterator[tuple[tuple[int, int], tuple[Any, ...]]]:
        for _, order in side.fold.orders():
            shares = order.paid_minor_by_line()
            for position, (line, paid_minor) in enumerate(zip(order.lines, shares, strict=True), 1):
                row = (line.line_id, line.sku, line.quantity, line.unit_price_minor, paid_minor)
                yield (order.sequence, position), row

    async def found() -> AsyncIterator[tuple[tuple[int, int], tuple[Any, ...]]]:
        async for row in snapshot.order_lines(side.partition.partition_id):
            line = (row["line_id"], row["sku"], row["quantity"], row["unit_price_minor"], row["paid_minor"])
            yield (row["order_sequence"], row["position"]), line

    count = await _compare(expected(), found(), differences, "line (of the order held at, position)")
    return differences.check("order-lines-ledger-equal-journal", f"{count} lines, their shares add up")


async def _check_payments(snapshot: LedgerSnapshot, side: LedgerSide) -> Check:
    differences = Differences()

    def expected() -> Iterator[tuple[tuple[int, int], tuple[Any, ...]]]:
        for _, order in side.fold.orders():
            for number, payment in enumerate(order.payments, 1):
                row = (payment.payment_id, payment.amount_minor, payment.currency, payment.fate.value, payment.at_ms)
                yield (order.sequence, number), row

    async def found() -> AsyncIterator[tuple[tuple[int, int], tuple[Any, ...]]]:
        order_sequence, number = 0, 0
        async for row in snapshot.payments(side.partition.partition_id):
            number = number + 1 if row["order_sequence"] == order_sequence else 1
            order_sequence = row["order_sequence"]
            payment = (row["payment_id"], row["amount_minor"], row["currency"], row["fate"], row["at_ms"])
            yield (order_sequence, number), payment

    count = await _compare(expected(), found(), differences, "payment (of the order held at, number)")
    return differences.check("payments-ledger-equal-journal", f"{count} payments")


async def _check_feed_dense(snapshot: LedgerSnapshot) -> Check:
    totals = await snapshot.feed_totals()
    differences = Differences()
    if not totals.rows == totals.last == totals.counter or (totals.rows and totals.first != 1):
        words = f"{totals.rows} rows numbered {totals.first} to {totals.last}, the counter is at {totals.counter}"
        differences.add(words)
    return differences.check("feed-dense", f"{totals.rows} rows over all sales, numbered 1 to {totals.counter}")


async def _compare(
    expected: Iterable[tuple[Key, tuple[Any, ...]]],
    found: AsyncIterator[tuple[Key, tuple[Any, ...]]],
    differences: Differences,
    what: str,
) -> int:
    """Hold two lists in the order of their keys against each other; how many were expected."""
    count = 0
    row = await anext(found, None)
    for key, values in expected:
        count += 1
        while row is not None and row[0] < key:
            differences.add(f"{what} {row[0]}: in the ledger, and not in the journal")
            row = await anext(found, None)
        if row is None or row[0] != key:
            differences.add(f"{what} {key}: not in the ledger")
            continue
        if row[1] != values:
            ledger, journal = zip(
                *[pair for pair in zip(row[1], values, strict=True) if pair[0] != pair[1]], strict=True
            )
            differences.add(f"{what} {key}: ledger {_words(ledger)}, journal {_words(journal)}")
        row = await anext(found, None)
    while row is not None:
        differences.add(f"{what} {row[0]}: in the ledger, and not in the journal")
        row = await anext(found, None)
    return count


def _words(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)
