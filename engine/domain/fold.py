"""A partition computed anew from its journal, with every promise checked at every sequence number on the way.

The fold knows nothing of the script that wrote the journal: it follows the contract's words, so that a mistake in the
script shows as a violation here, or as a difference between the fold and a store. An entry that breaks a rule is
reported and then taken at its word, so that the fold goes on to show what follows from it.

Each order is kept encoded (about 300 bytes), so that memory is bounded by the orders and not by the entries.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Set
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from engine.domain.journal import (
    Cancelled,
    DuplicatePayment,
    Entry,
    Expired,
    Held,
    OrderEntry,
    PartitionOpened,
    PaymentTooLate,
    Reinstated,
    SaleClosed,
    SaleDefined,
    SaleDeleted,
    SaleOpened,
    SalePaused,
    SaleResumed,
    Settled,
    StockChanged,
    UnitsMoved,
)
from engine.domain.orders import OrderRecord, OrderStatus, PaymentFate, UnitsTaken
from engine.domain.sales import SaleDefinition, SaleStatus, SkuDefinition, StockLevels

VIOLATIONS_KEPT_MAX = 20
"""Violations of each rule kept in words; further ones are counted, so that a broken journal cannot fill the memory."""

WITHHELD = "withheld"
SHARED = "shared"


class Rule(StrEnum):
    """What the fold checks. The words are the names of the audit's checks."""

    SEQUENCE_DENSE = "sequence-dense"
    NEVER_OVERSOLD = "never-oversold"
    HOLDS_END_ONCE = "holds-end-once"
    EXPIRY_NEVER_EARLY = "expiry-never-early"
    HELD_ONLY_WHILE_OPEN = "held-only-while-open"
    ORDERS_UNCHANGED = "orders-unchanged"
    ORDERS_ADD_UP = "orders-add-up"
    UNITS_RETURN = "units-return"
    PAYMENTS_KEPT = "payments-kept"
    BUYER_LIMITS = "buyer-limits"
    SALE_CHANGES = "sale-changes"


class Violation(NamedTuple):
    """A rule that an entry broke."""

    rule: Rule
    sequence: int
    words: str

    def __str__(self) -> str:
        return f"sequence {self.sequence}: {self.words}"


class Opening(NamedTuple):
    """A PartitionOpened: holds whose deadline passed while the partition was frozen may not expire before the grace."""

    sequence: int
    at_ms: int
    grace_from_ms: int
    grace_until_ms: int


_encode_order = msgspec.msgpack.Encoder().encode
_decode_order = msgspec.msgpack.Decoder(OrderRecord).decode
_decode_definition = msgspec.json.Decoder(SaleDefinition).decode

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ENDED = frozenset({OrderStatus.CANCELLED, OrderStatus.EXPIRED})
_NOT_CLOSED = frozenset(SaleStatus) - {SaleStatus.CLOSED}


class PartitionFold:
    """One sale, folded entry by entry. Feed it with `apply`; read it between any two entries."""

    def __init__(self) -> None:
        self.sequence = 0
        """The last sequence number applied."""
        self.at_ms = 0
        self.epoch = 1
        self.status: SaleStatus | None = None
        """None before the sale is defined, and after it is deleted."""
        self.version = 0
        self.definition_json = ""
        self.levels: dict[str, StockLevels] = {}
        self.bought: dict[str, dict[str, int]] = {}
        """`channel:buyer_id` → units held and settled by SKU, without zeros."""
        self.open_holds: dict[str, int] = {}
        """Digest of each open hold → its deadline, milliseconds, without any grace."""
        self.documents: set[str] = set()
        self.ever_held = False
        self.entry_counts: Counter[str] = Counter()
        """Entries by the name of their kind."""
        self.violations: list[Violation] = []
        """The first VIOLATIONS_KEPT_MAX of each rule, in order."""
        self.violation_counts: Counter[Rule] = Counter()
        self._orders: dict[str, bytes] = {}
        self._definition: SaleDefinition | None = None
        self._skus: dict[str, SkuDefinition] = {}
        self._closes_at_ms = 0
        self._openings: list[Opening] = []
        self._appliers: dict[type, Callable[[int, Any], None]] = {
            Held: self._held,
            Settled: self._settled,
            Cancelled: self._cancelled,
            Expired: self._expired,
            Reinstated: self._reinstated,
            PaymentTooLate: self._payment_too_late,
            DuplicatePayment: self._duplicate_payment,
            SaleDefined: self._sale_defined,
            StockChanged: self._stock_changed,
            SaleOpened: self._sale_opened,
            SalePaused: self._sale_paused,
            SaleResumed: self._sale_resumed,
            SaleClosed: self._sale_closed,
            SaleDeleted: self._sale_deleted,
            PartitionOpened: self._partition_opened,
        }

    # --- what a reader asks ----------------------------------------------------------------------------------------

    def order(self, digest: str) -> OrderRecord | None:
        """The order as of the last entry applied, or None where the journal holds none of this digest."""
        encoded = self._orders.get(digest)
        return None if encoded is None else _decode_order(encoded)

    def orders(self) -> Iterator[tuple[str, OrderRecord]]:
        """Every order with its digest, in the order of their holds."""
        for digest, encoded in self._orders.items():
            yield digest, _decode_order(encoded)

    @property
    def digests(self) -> Set[str]:
        """The digests of all orders."""
        return self._orders.keys()

    @property
    def orders_count(self) -> int:
        """How many orders there are, ended ones included."""
        return len(self._orders)

    def words_about(self, rule: Rule) -> list[str]:
        """The violations of one rule that were kept, in words."""
        return [str(violation) for violation in self.violations if violation.rule is rule]

    # --- one entry -------------------------------------------------------------------------------------------------

    def apply(self, sequence: int, at_ms: int, entry: Entry) -> None:
        """Apply the entry with this sequence number, written at `at_ms` by Redis' clock.

        What breaks a rule is added to `violations`; nothing is raised.
        """
        if sequence != self.sequence + 1:
            self._report(Rule.SEQUENCE_DENSE, sequence, f"follows {self.sequence}")
        if at_ms < self.at_ms:
            self._report(Rule.SEQUENCE_DENSE, sequence, f"its time {at_ms} is before {self.at_ms}, the last one's")
        self.sequence = sequence
        self.at_ms = at_ms
        kind = type(entry)
        self.entry_counts[kind.__name__] += 1
        self._appliers[kind](sequence, entry)

    def _report(self, rule: Rule, sequence: int, words: str) -> None:
        self.violation_counts[rule] += 1
        if self.violation_counts[rule] <= VIOLATIONS_KEPT_MAX:
            self.violations.append(Violation(rule, sequence, words))

    # --- orders ----------------------------------------------------------------------------------------------------

    def _held(self, sequence: int, entry: Held) -> None:
        digest, order = entry.digest, entry.order
        if digest in self._orders:
            self._report(Rule.HOLDS_END_ONCE, sequence, f"order {digest} is held a second time")
        if self.status is not SaleStatus.OPEN:
            self._report(Rule.HELD_ONLY_WHILE_OPEN, sequence, f"order {digest} is held while the sale is {self.status}")
        elif self._closes_at_ms and self.at_ms >= self._closes_at_ms:
            self._report(
                Rule.HELD_ONLY_WHILE_OPEN,
                sequence,
                f"order {digest} is held at {self.at_ms}, closes_at {self._closes_at_ms}",
            )
        fresh = (order.status, order.version, order.sequence, order.changed_sequence, order.created_at_ms)
        if fresh != (OrderStatus.HELD, 1, sequence, sequence, self.at_ms) or order.settled_at_ms or order.payments:
            self._report(Rule.ORDERS_UNCHANGED, sequence, f"order {digest} is not a fresh hold of this entry")
        self.ever_held = True
        self._check_terms(sequence, digest, order)
        self._check_adds_up(sequence, digest, order)
        for units in order.units:
            self._take_from_pool(sequence, digest, order.channel, units)
            self.levels[units.sku].held += units.quantity
        self._count_for_buyer(order, 1)
        self._check_buyer_limits(sequence, digest, order)
        self._check_levels(sequence, order)
        self.open_holds[digest] = order.held_until_ms
        self._orders[digest] = _encode_order(order)

    def _settled(self, sequence: int, entry: Settled) -> None:
        before = self._follow(sequence, entry, OrderStatus.SETTLED, frozenset({OrderStatus.HELD}))
        if before is None:
            return
        order = entry.order
        self._check_units_unchanged(sequence, entry, before)
        self._check_settled_now(sequence, entry)
        self._check_payment_added(sequence, entry, before, PaymentFate.SETTLED)
        for units in order.units:
            levels = self._levels_of(sequence, units.sku)
            levels.held -= units.quantity
            levels.settled += units.quantity
        self.open_holds.pop(entry.digest, None)
        self._check_levels(sequence, order)

    def _cancelled(self, sequence: int, entry: Cancelled) -> None:
        self._give_back(sequence, entry, OrderStatus.CANCELLED)

    def _expired(self, sequence: int, entry: Expired) -> None:
        before = self._give_back(sequence, entry, OrderStatus.EXPIRED)
        if before is None:
            return
        deadline_ms = self._deadline_with_grace(before)
        if self.at_ms < deadline_ms:
            self._report(
                Rule.EXPIRY_NEVER_EARLY,
                sequence,
                f"order {entry.digest} expired at {self.at_ms}, {deadline_ms - self.at_ms} ms before its deadline",
            )

    def _give_back(self, sequence: int, entry: Cancelled | Expired, becomes: OrderStatus) -> OrderRecord | None:
        """End a hold without payment. Answers the order as it was, or None where there was none."""
        before = self._follow(sequence, entry, becomes, frozenset({OrderStatus.HELD}))
        if before is None:
            return None
        order = entry.order
        closed = self.status is SaleStatus.CLOSED
        if entry.returned is closed:
            where = "to a closed sale" if closed else "out of a sale that is not closed"
            self._report(Rule.UNITS_RETURN, sequence, f"the units of order {entry.digest} went {where}")
        self._check_units_unchanged(sequence, entry, before)
        self._check_unpaid(sequence, entry, before)
        for units in before.units:
            levels = self._levels_of(sequence, units.sku)
            levels.held -= units.quantity
            if entry.returned:
                levels.pools[units.pool] = levels.pools.get(units.pool, 0) + units.quantity
            else:
                levels.allocated -= units.quantity
        self._count_for_buyer(before, -1)
        self.open_holds.pop(entry.digest, None)
        self._check_levels(sequence, order)
        return before

    def _reinstated(self, sequence: int, entry: Reinstated) -> None:
        before = self._follow(sequence, entry, OrderStatus.SETTLED, _ENDED)
        if before is None:
            return
        order = entry.order
        if self.status is SaleStatus.CLOSED:
            self._report(Rule.UNITS_RETURN, sequence, f"order {entry.digest} took units anew from a closed sale")
        self._check_settled_now(sequence, entry)
        self._check_payment_added(sequence, entry, before, PaymentFate.SETTLED)
        self._check_adds_up(sequence, entry.digest, order)
        for units in order.units:
            self._take_from_pool(sequence, entry.digest, order.channel, units)
            self.levels[units.sku].settled += units.quantity
        self._count_for_buyer(order, 1)
        self._check_levels(sequence, order)

    def _payment_too_late(self, sequence: int, entry: PaymentTooLate) -> None:
        allowed = _ENDED | {OrderStatus.REFUND_DUE}
        before = self._follow(sequence, entry, OrderStatus.REFUND_DUE, allowed)
        if before is not None:
            self._check_units_unchanged(sequence, entry, before)
            self._check_payment_added(sequence, entry, before, PaymentFate.TOO_LATE)

    def _duplicate_payment(self, sequence: int, entry: DuplicatePayment) -> None:
        before = self._follow(sequence, entry, OrderStatus.SETTLED, frozenset({OrderStatus.SETTLED}))
        if before is None:
            return
        self._check_units_unchanged(sequence, entry, before)
        if entry.order.settled_at_ms != before.settled_at_ms:
            self._report(Rule.ORDERS_UNCHANGED, sequence, f"order {entry.digest} has another settled_at than before")
        self._check_payment_added(sequence, entry, before, PaymentFate.DUPLICATE)

    def _follow(
        self, sequence: int, entry: OrderEntry, becomes: OrderStatus, allowed: frozenset[OrderStatus]
    ) -> OrderRecord | None:
        """Put an order's new state in place of its last one, which is answered; None where it was never held."""
        digest, order = entry.digest, entry.order
        encoded = self._orders.get(digest)
        self._orders[digest] = _encode_order(order)
        if encoded is None:
            self._report(Rule.HOLDS_END_ONCE, sequence, f"order {digest} became {becomes.word} and was never held")
            return None
        before = _decode_order(encoded)
        if before.status not in allowed or order.status is not becomes:
            words = f"{before.status.word} → {order.status.word} under {type(entry).__name__}"
            self._report(Rule.HOLDS_END_ONCE, sequence, f"order {digest} went {words}")
        if order.version != before.version + 1 or order.changed_sequence != sequence:
            words = f"version {order.version} of sequence {order.changed_sequence} after version {before.version}"
            self._report(Rule.ORDERS_UNCHANGED, sequence, f"order {digest} has {words}")
        if _fixed_parts(order) != _fixed_parts(before):
            self._report(Rule.ORDERS_UNCHANGED, sequence, f"order {digest} changed a part that is fixed by its hold")
        return before

    def _check_units_unchanged(self, sequence: int, entry: OrderEntry, before: OrderRecord) -> None:
        if entry.order.units != before.units:
            self._report(Rule.UNITS_RETURN, sequence, f"order {entry.digest} names other units than it took")

    def _check_unpaid(self, sequence: int, entry: OrderEntry, before: OrderRecord) -> None:
        if entry.order.payments != before.payments or entry.order.settled_at_ms != before.settled_at_ms:
            self._report(Rule.PAYMENTS_KEPT, sequence, f"order {entry.digest} was paid by an end without payment")

    def _check_settled_now(self, sequence: int, entry: OrderEntry) -> None:
        if entry.order.settled_at_ms != self.at_ms:
            words = f"settled_at {entry.order.settled_at_ms}, its entry {self.at_ms}"
            self._report(Rule.ORDERS_UNCHANGED, sequence, f"order {entry.digest} has {words}")

    def _check_payment_added(self, sequence: int, entry: OrderEntry, before: OrderRecord, fate: PaymentFate) -> None:
        """All payments known before, and one more of this fate; one that settles is of the order's amount."""
        digest, order = entry.digest, entry.order
        if len(order.payments) != len(before.payments) + 1 or order.payments[:-1] != before.payments:
            words = f"{len(order.payments)} payments after {len(before.payments)}, or other ones"
            self._report(Rule.PAYMENTS_KEPT, sequence, f"order {digest} has {words}")
            return
        payment = order.payments[-1]
        if payment.fate is not fate or payment.at_ms != self.at_ms:
            self._report(Rule.PAYMENTS_KEPT, sequence, f"order {digest} has a payment of fate {payment.fate.name}")
        if any(payment.payment_id == earlier.payment_id for earlier in before.payments):
            self._report(Rule.PAYMENTS_KEPT, sequence, f"order {digest} has payment {payment.payment_id} twice")
        paid = (payment.amount_minor, payment.currency)
        if fate is PaymentFate.SETTLED and paid != (order.amount_minor, order.currency):
            words = f"settled by {paid[0]} {paid[1]}, its amount is {order.amount_minor} {order.currency}"
            self._report(Rule.PAYMENTS_KEPT, sequence, f"order {digest} was {words}")

    def _check_terms(self, sequence: int, digest: str, order: OrderRecord) -> None:
        """A hold is made on the terms of the sale's definition as of then."""
        definition = self._definition
        if definition is None:
            return
        if order.currency != definition.currency:
            self._report(Rule.ORDERS_ADD_UP, sequence, f"order {digest} is in {order.currency}")
        if order.held_until_ms - order.created_at_ms != definition.hold_seconds * 1000:
            self._report(Rule.ORDERS_ADD_UP, sequence, f"order {digest} is not held for {definition.hold_seconds} s")
        for line in order.lines:
            sku = self._skus.get(line.sku)
            if sku is None or sku.unit_price_minor != line.unit_price_minor:
                price = "no price" if sku is None else f"the price {sku.unit_price_minor}"
                words = f"line {line.line_id} of order {digest} at {line.unit_price_minor}: {line.sku} has {price}"
                self._report(Rule.ORDERS_ADD_UP, sequence, words)

    def _check_adds_up(self, sequence: int, digest: str, order: OrderRecord) -> None:
        """The amount follows from the lines, and the units taken are those of the lines."""
        lines_minor = 0
        balance: dict[str, int] = {}
        for line in order.lines:
            lines_minor += line.quantity * line.unit_price_minor
            balance[line.sku] = balance.get(line.sku, 0) + line.quantity
        if order.amount_minor != lines_minor - order.discount_minor + order.freight_minor:
            words = f"{order.amount_minor} ≠ {lines_minor} − {order.discount_minor} + {order.freight_minor}"
            self._report(Rule.ORDERS_ADD_UP, sequence, f"order {digest}: amount {words}")
        if order.discount_minor > lines_minor:
            self._report(Rule.ORDERS_ADD_UP, sequence, f"order {digest}: its discount is more than its lines")
        for units in order.units:
            balance[units.sku] = balance.get(units.sku, 0) - units.quantity
            if units.quantity <= 0:
                self._report(Rule.ORDERS_ADD_UP, sequence, f"order {digest} took {units.quantity} of {units.sku}")
        if not order.lines or any(balance.values()):
            self._report(Rule.ORDERS_ADD_UP, sequence, f"order {digest} took other units than its lines ask for")

    def _deadline_with_grace(self, order: OrderRecord) -> int:
        deadline_ms = order.held_until_ms
        first = bisect_right(self._openings, order.sequence, key=lambda opening: opening.sequence)
        for opening in self._openings[first:]:
            if opening.grace_from_ms < order.held_until_ms <= opening.at_ms:
                deadline_ms = max(deadline_ms, opening.grace_until_ms)  # 0 where the guard found none that had passed
        return deadline_ms

    def _count_for_buyer(self, order: OrderRecord, sign: int) -> None:
        buyer = f"{order.channel}:{order.buyer_id}"
        bought = self.bought.get(buyer)
        if bought is None:
            bought = self.bought[buyer] = {}
        for units in order.units:
            total = bought.get(units.sku, 0) + sign * units.quantity
            if total:
                bought[units.sku] = total
            else:
                bought.pop(units.sku, None)
        if not bought:
            del self.bought[buyer]

    def _check_buyer_limits(self, sequence: int, digest: str, order: OrderRecord) -> None:
        """With this hold in it, what the buyer has is within every limit that a SKU of the hold is under."""
        definition = self._definition
        if definition is None:
            return
        bought = self.bought.get(f"{order.channel}:{order.buyer_id}", {})
        excesses: list[str] = []
        if isinstance(definition.buyer_limit, int) and sum(bought.values()) > definition.buyer_limit:
            excesses.append(f"{sum(bought.values())} units of the sale, limit {definition.buyer_limit}")
        style_limits = definition.style_limits if isinstance(definition.style_limits, dict) else {}
        for name in {units.sku for units in order.units} & self._skus.keys():
            sku = self._skus[name]
            if isinstance(sku.buyer_limit, int) and bought.get(name, 0) > sku.buyer_limit:
                excesses.append(f"{bought.get(name, 0)} units of {name}, limit {sku.buyer_limit}")
            style_limit = style_limits.get(sku.style)
            if style_limit is None:
                continue
            of_style = sum(units for other, units in bought.items() if self._style_of(other) == sku.style)
            if of_style > style_limit:
                excesses.append(f"{of_style} units of style {sku.style}, limit {style_limit}")
        if excesses:
            self._report(Rule.BUYER_LIMITS, sequence, f"order {digest}: its buyer then has {'; '.join(excesses)}")

    def _style_of(self, name: str) -> str | None:
        sku = self._skus.get(name)
        return None if sku is None else sku.style

    # --- units -----------------------------------------------------------------------------------------------------

    def _levels_of(self, sequence: int, sku: str) -> StockLevels:
        """The SKU's levels; of one that the sale does not have, empty ones, and a violation."""
        levels = self.levels.get(sku)
        if levels is None:
            self._report(Rule.NEVER_OVERSOLD, sequence, f"units of {sku}, which the sale does not have")
            levels = self.levels[sku] = StockLevels(0, 0, 0, 0, 0, 0, "", {})
        return levels

    def _take_from_pool(self, sequence: int, digest: str, channel: str, units: UnitsTaken) -> None:
        """A line takes from its channel's own pool first and the rest from the shared one."""
        pools = self._levels_of(sequence, units.sku).pools
        pools[units.pool] = pools.get(units.pool, 0) - units.quantity
        if units.pool == SHARED:
            if pools.get(channel, 0) > 0:
                words = f"order {digest} took {units.sku} from shared while {channel} had {pools[channel]}"
                self._report(Rule.UNITS_RETURN, sequence, words)
        elif units.pool != channel:
            self._report(Rule.UNITS_RETURN, sequence, f"order {digest} of {channel} took from {units.pool}")

    def _check_levels(self, sequence: int, order: OrderRecord) -> None:
        for units in order.units:
            self._check_conserved(sequence, units.sku)

    def _check_conserved(self, sequence: int, sku: str) -> None:
        """allocated = withheld + available + held + settled, each at least zero (contract §6.1)."""
        levels = self.levels[sku]
        pools = levels.pools
        units = levels.withheld + levels.held + levels.settled
        short = levels.withheld < 0 or levels.held < 0 or levels.settled < 0
        for pool_units in pools.values():
            units += pool_units
            short = short or pool_units < 0
        if short or levels.allocated != units:
            words = (
                f"{sku}: allocated {levels.allocated}, withheld {levels.withheld}, pools {pools}, "
                f"held {levels.held}, settled {levels.settled}"
            )
            self._report(Rule.NEVER_OVERSOLD, sequence, words)

    def _move(self, sequence: int, moved: list[UnitsMoved]) -> None:
        """Units into and out of pools; what does not cancel out came from, or went, outside the sale."""
        for change in moved:
            levels = self._levels_of(sequence, change.sku)
            levels.allocated += change.quantity
            if change.pool == WITHHELD:
                levels.withheld += change.quantity
            else:
                levels.pools[change.pool] = levels.pools.get(change.pool, 0) + change.quantity
        for sku in {change.sku for change in moved}:
            self._check_conserved(sequence, sku)

    # --- the sale --------------------------------------------------------------------------------------------------

    def _sale_defined(self, sequence: int, entry: SaleDefined) -> None:
        if entry.created is not (self.status is None):
            self._report(Rule.SALE_CHANGES, sequence, f"created is {entry.created} while the sale is {self.status}")
        if entry.created:
            self.status = SaleStatus.DRAFT
        self._change_sale(sequence, entry.version, "defined", _NOT_CLOSED, self.status)
        try:
            definition = _decode_definition(entry.definition)
        except msgspec.MsgspecError as error:
            self._report(Rule.SALE_CHANGES, sequence, f"the definition cannot be read: {error}")
            return
        before = self._definition
        if self.ever_held and before is not None and before.currency != definition.currency:
            self._report(Rule.SALE_CHANGES, sequence, f"the currency went {before.currency} → {definition.currency}")
        self._define(entry.definition, definition)
        added = [sku for sku in definition.skus if sku.sku not in self.levels]
        for sku in definition.skus:
            levels = self.levels.setdefault(sku.sku, StockLevels(0, 0, 0, 0, 0, 0, "", {}))
            levels.unit_price_minor, levels.style = sku.unit_price_minor, sku.style
            levels.buyer_limit = sku.buyer_limit if isinstance(sku.buyer_limit, int) else 0
        self._move(sequence, entry.moved)
        self._remove(sequence, entry.removed)
        self._check_as_defined(sequence, definition, added)

    def _define(self, definition_json: str, definition: SaleDefinition) -> None:
        self.definition_json = definition_json
        self._definition = definition
        self._skus = {sku.sku: sku for sku in definition.skus}
        closes_at = definition.closes_at
        self._closes_at_ms = 0 if isinstance(closes_at, msgspec.UnsetType) else _milliseconds(closes_at)

    def _remove(self, sequence: int, removed: list[str]) -> None:
        for sku in removed:
            levels = self.levels.pop(sku, None)
            if levels is None or sku in self._skus:
                self._report(Rule.SALE_CHANGES, sequence, f"{sku} was removed, and was not there or is still defined")
            elif levels.allocated or levels.held or levels.settled:
                self._report(Rule.NEVER_OVERSOLD, sequence, f"{sku} was removed with {levels.allocated} units in it")

    def _check_as_defined(self, sequence: int, definition: SaleDefinition, added: list[SkuDefinition]) -> None:
        """`quantity` sets what is allocated; `withheld` and `channels` count for new SKUs; no others are left."""
        if self._skus.keys() != self.levels.keys():
            differing = sorted(self._skus.keys() ^ self.levels.keys())[:10]
            self._report(Rule.SALE_CHANGES, sequence, f"SKUs defined and SKUs there differ: {', '.join(differing)}")
        for sku in definition.skus:
            levels = self.levels[sku.sku]
            if levels.allocated != sku.quantity:
                words = f"{sku.sku}: defined {sku.quantity}, allocated {levels.allocated}"
                self._report(Rule.NEVER_OVERSOLD, sequence, words)
        for sku in added:
            levels = self.levels[sku.sku]
            withheld = sku.withheld if isinstance(sku.withheld, int) else 0
            channels = sku.channels if isinstance(sku.channels, dict) else {}
            own = {pool: units for pool, units in levels.pools.items() if pool != SHARED and units}
            if levels.withheld != withheld or own != {pool: units for pool, units in channels.items() if units}:
                self._report(Rule.SALE_CHANGES, sequence, f"{sku.sku} was added with other pools than defined")

    def _stock_changed(self, sequence: int, entry: StockChanged) -> None:
        self._change_sale(sequence, entry.version, "stocked", _NOT_CLOSED, self.status)
        if entry.document_id in self.documents:
            self._report(Rule.SALE_CHANGES, sequence, f"document {entry.document_id} was applied twice")
        self.documents.add(entry.document_id)
        self._move(sequence, entry.moved)

    def _sale_opened(self, sequence: int, entry: SaleOpened) -> None:
        self._change_sale(sequence, entry.version, "opened", {SaleStatus.DRAFT}, SaleStatus.OPEN)

    def _sale_paused(self, sequence: int, entry: SalePaused) -> None:
        self._change_sale(sequence, entry.version, "paused", {SaleStatus.OPEN}, SaleStatus.PAUSED)

    def _sale_resumed(self, sequence: int, entry: SaleResumed) -> None:
        self._change_sale(sequence, entry.version, "resumed", {SaleStatus.PAUSED}, SaleStatus.OPEN)

    def _sale_closed(self, sequence: int, entry: SaleClosed) -> None:
        self._change_sale(sequence, entry.version, "closed", _NOT_CLOSED, SaleStatus.CLOSED)
        self._move(sequence, entry.moved)
        for sku, levels in self.levels.items():
            if levels.withheld or any(levels.pools.values()):
                words = f"{sku} has {levels.withheld} withheld and {levels.available} available in a closed sale"
                self._report(Rule.SALE_CHANGES, sequence, words)

    def _sale_deleted(self, sequence: int, entry: SaleDeleted) -> None:
        if self.status is not SaleStatus.DRAFT or self.ever_held:
            self._report(Rule.SALE_CHANGES, sequence, f"deleted while {self.status}, or after a hold")
        self._move(sequence, entry.moved)
        left = [sku for sku, levels in self.levels.items() if levels.allocated]
        if left:
            self._report(Rule.SALE_CHANGES, sequence, f"deleted with units of {', '.join(left[:10])} in it")
        self.status = None
        self._definition, self._skus, self._closes_at_ms = None, {}, 0
        self.levels.clear()
        self.documents.clear()
        self.definition_json = ""

    def _change_sale(
        self, sequence: int, version: int, verb: str, allowed: Set[SaleStatus], becomes: SaleStatus | None
    ) -> None:
        if self.status not in allowed:
            self._report(Rule.SALE_CHANGES, sequence, f"the sale was {verb} while {self.status}")
        if version != self.version + 1:
            self._report(Rule.SALE_CHANGES, sequence, f"version {version} of the sale follows {self.version}")
        self.version = version
        self.status = becomes

    def _partition_opened(self, sequence: int, entry: PartitionOpened) -> None:
        if entry.epoch <= self.epoch:
            self._report(Rule.SALE_CHANGES, sequence, f"epoch {entry.epoch} was opened after {self.epoch}")
        self.epoch = entry.epoch
        self._openings.append(Opening(sequence, self.at_ms, entry.grace_from_ms, entry.grace_until_ms))


def _milliseconds(moment: datetime) -> int:
    """The first whole millisecond since 1970 that is not before `moment`."""
    return -((_EPOCH - moment) // timedelta(milliseconds=1))


def _fixed_parts(order: OrderRecord) -> tuple[object, ...]:
    """What an order has from its hold and keeps for good."""
    return (
        order.format,
        order.channel,
        order.buyer_id,
        order.reference,
        order.amount_expected,
        order.sequence,
        order.created_at_ms,
        order.held_until_ms,
        order.discount_minor,
        order.freight_minor,
        order.amount_minor,
        order.currency,
        order.lines,
    )
