"""The fold sees each promise broken: every test makes a good journal and breaks one thing in it."""

import time
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from engine.domain.fold import VIOLATIONS_KEPT_MAX, PartitionFold, Rule
from engine.domain.journal import (
    Cancelled,
    DuplicatePayment,
    Entry,
    Expired,
    Held,
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
    decode_entry,
)
from engine.domain.orders import OrderLine, OrderRecord, OrderStatus, Payment, PaymentFate, UnitsTaken
from engine.domain.sales import SaleStatus

START_MS = 1_700_000_000_000
HOLD_MS = 60_000


def definition(quantity: int = 10, **more: Any) -> str:
    """A sale of one tee of which douyin has 3 for itself and 2 are withheld, as JSON."""
    sku = {
        "sku": "TEE-M",
        "style": "TEE",
        "unit_price_minor": 1990,
        "quantity": quantity,
        "withheld": 2,
        "channels": {"douyin": 3},
    }
    document = {"title": "Drop", "currency": "CNY", "hold_seconds": 60, "skus": [sku]}
    return msgspec.json.encode(document | more).decode()


class Journal:
    """Writes entries into a fold as a partition would, one a second."""

    def __init__(self, **more: Any) -> None:
        self.fold = PartitionFold()
        self.sequence = 0
        self.at_ms = START_MS
        moved = [UnitsMoved("TEE-M", "shared", 5), UnitsMoved("TEE-M", "withheld", 2), UnitsMoved("TEE-M", "douyin", 3)]
        self.write(SaleDefined(1, True, definition(**more), moved, []))
        self.write(SaleOpened(2, False))

    def write(self, entry: Entry, after_ms: int = 1000) -> None:
        self.sequence += 1
        self.at_ms += after_ms
        self.fold.apply(self.sequence, self.at_ms, entry)

    def held(self, quantity: int = 1, channel: str = "tmall", buyer: str = "b", **changes: Any) -> OrderRecord:
        """The record of a hold that would be the next entry; it takes from shared alone."""
        at_ms = self.at_ms + 1000
        record = OrderRecord(
            format=1,
            status=OrderStatus.HELD,
            channel=channel,
            buyer_id=buyer,
            reference="",
            amount_expected=False,
            sequence=self.sequence + 1,
            created_at_ms=at_ms,
            held_until_ms=at_ms + HOLD_MS,
            discount_minor=0,
            freight_minor=500,
            amount_minor=1990 * quantity + 500,
            currency="CNY",
            lines=[OrderLine("1", "TEE-M", quantity, 1990)],
            own_units=[UnitsTaken("TEE-M", "shared", quantity)],
            version=1,
            changed_sequence=self.sequence + 1,
            settled_at_ms=0,
            payments=[],
        )
        return replace(record, **changes)

    def hold(self, digest: str = "A", quantity: int = 1, **changes: Any) -> OrderRecord:
        record = self.held(quantity, **changes)
        self.write(Held(digest, record))
        return record

    def next_of(self, record: OrderRecord, status: OrderStatus, **changes: Any) -> OrderRecord:
        follows = replace(record, status=status, version=record.version + 1, changed_sequence=self.sequence + 1)
        return replace(follows, **changes)

    def paid(self, record: OrderRecord, status: OrderStatus, fate: PaymentFate, payment_id: str = "p1") -> OrderRecord:
        at_ms = self.at_ms + 1000
        payment = Payment(payment_id, record.amount_minor, record.currency, fate, at_ms)
        settled_at_ms = at_ms if fate is PaymentFate.SETTLED else record.settled_at_ms
        return self.next_of(record, status, payments=[*record.payments, payment], settled_at_ms=settled_at_ms)

    def settle(self, record: OrderRecord, digest: str = "A") -> OrderRecord:
        record = self.paid(record, OrderStatus.SETTLED, PaymentFate.SETTLED)
        self.write(Settled(digest, record))
        return record

    def cancel(self, record: OrderRecord, digest: str = "A", returned: bool = True) -> OrderRecord:
        record = self.next_of(record, OrderStatus.CANCELLED)
        self.write(Cancelled(digest, record, returned))
        return record

    def close(self) -> None:
        levels = self.fold.levels["TEE-M"]
        out = {"withheld": levels.withheld, **levels.pools}
        moved = [UnitsMoved("TEE-M", pool, -units) for pool, units in out.items() if units]
        self.write(SaleClosed(self.fold.version + 1, False, moved))

    @property
    def broken(self) -> set[Rule]:
        return set(self.fold.violation_counts)


def levels_of(journal: Journal) -> tuple[int, int, int, int, int]:
    levels = journal.fold.levels["TEE-M"]
    return levels.allocated, levels.withheld, levels.available, levels.held, levels.settled


def test_a_whole_life_of_a_sale_breaks_no_rule_and_its_units_add_up() -> None:
    journal = Journal()
    settled = journal.settle(journal.hold("A", 2))
    journal.write(DuplicatePayment("A", journal.paid(settled, OrderStatus.SETTLED, PaymentFate.DUPLICATE, "p2")))
    cancelled = journal.cancel(journal.hold("B"), "B")
    assert levels_of(journal) == (10, 2, 6, 0, 2)
    journal.write(Reinstated("B", journal.paid(cancelled, OrderStatus.SETTLED, PaymentFate.SETTLED, "p3")))
    journal.write(StockChanged(3, "D1", [UnitsMoved("TEE-M", "withheld", -2), UnitsMoved("TEE-M", "tmall", 2)]))
    journal.write(SalePaused(4))
    journal.write(SaleResumed(5))
    left = journal.hold("C")
    assert journal.broken == {Rule.UNITS_RETURN}  # tmall has its own pool by now, and C took from shared
    journal.close()
    assert levels_of(journal) == (4, 0, 0, 1, 3)
    late = journal.cancel(left, "C", returned=False)
    journal.write(PaymentTooLate("C", journal.paid(late, OrderStatus.REFUND_DUE, PaymentFate.TOO_LATE, "p4")))
    assert levels_of(journal) == (3, 0, 0, 0, 3)
    assert journal.fold.violation_counts == {Rule.UNITS_RETURN: 1}
    assert journal.fold.status is SaleStatus.CLOSED
    assert journal.fold.bought == {"tmall:b": {"TEE-M": 3}}
    assert journal.fold.open_holds == {}
    assert [(digest, order.status.word) for digest, order in journal.fold.orders()] == [
        ("A", "settled"),
        ("B", "settled"),
        ("C", "refund_due"),
    ]


def test_a_hold_takes_from_its_own_pool_and_gives_back_there() -> None:
    journal = Journal()
    units = [UnitsTaken("TEE-M", "douyin", 3), UnitsTaken("TEE-M", "shared", 1)]
    record = journal.hold("A", 4, channel="douyin", own_units=units)
    assert journal.fold.levels["TEE-M"].pools == {"shared": 4, "douyin": 0}
    journal.cancel(record)
    assert journal.fold.levels["TEE-M"].pools == {"shared": 5, "douyin": 3}
    assert journal.broken == set()


def test_a_gap_in_the_sequence_is_seen() -> None:
    journal = Journal()
    journal.sequence += 1
    journal.write(SalePaused(3))
    assert journal.fold.words_about(Rule.SEQUENCE_DENSE) == ["sequence 4: follows 2"]


def test_a_sequence_number_that_comes_twice_is_seen() -> None:
    journal = Journal()
    journal.sequence -= 1
    journal.write(SalePaused(3))
    assert Rule.SEQUENCE_DENSE in journal.broken


def test_time_that_goes_back_is_seen() -> None:
    journal = Journal()
    journal.write(SalePaused(3), after_ms=-1)
    assert journal.broken == {Rule.SEQUENCE_DENSE}


def test_one_unit_more_than_there_is_in_a_pool_is_oversold() -> None:
    journal = Journal()
    journal.hold("A", 5)
    assert journal.broken == set()
    journal.hold("B", 1)
    assert journal.broken == {Rule.NEVER_OVERSOLD}
    assert "'shared': -1" in journal.fold.words_about(Rule.NEVER_OVERSOLD)[0]


def test_a_stock_document_that_takes_more_than_there_is_is_oversold() -> None:
    journal = Journal()
    journal.write(StockChanged(3, "D1", [UnitsMoved("TEE-M", "withheld", -3)]))
    assert journal.broken == {Rule.NEVER_OVERSOLD}


def test_an_allocation_that_is_not_the_defined_quantity_is_seen() -> None:
    journal = Journal()
    journal.write(SaleDefined(3, False, definition(quantity=12), [UnitsMoved("TEE-M", "shared", 1)], []))
    assert journal.fold.words_about(Rule.NEVER_OVERSOLD) == ["sequence 3: TEE-M: defined 12, allocated 11"]


def test_a_sku_removed_with_units_in_it_is_seen() -> None:
    journal = Journal()
    journal.write(SaleDefined(3, False, definition().replace("TEE-M", "TEE-L"), [], ["TEE-M"]))
    assert Rule.NEVER_OVERSOLD in journal.broken


def test_units_of_a_sku_that_the_sale_does_not_have_are_seen() -> None:
    journal = Journal()
    journal.write(StockChanged(3, "D1", [UnitsMoved("CAP", "shared", 1)]))
    assert journal.broken == {Rule.NEVER_OVERSOLD}


def test_a_hold_that_ends_twice_is_seen() -> None:
    journal = Journal()
    cancelled = journal.cancel(journal.hold())
    journal.cancel(cancelled)
    assert Rule.HOLDS_END_ONCE in journal.broken
    assert Rule.NEVER_OVERSOLD in journal.broken


def test_an_order_that_settles_twice_is_seen() -> None:
    journal = Journal()
    settled = journal.settle(journal.hold())
    journal.write(Settled("A", journal.paid(settled, OrderStatus.SETTLED, PaymentFate.SETTLED, "p2")))
    assert Rule.HOLDS_END_ONCE in journal.broken


def test_an_order_that_is_held_twice_is_seen() -> None:
    journal = Journal()
    journal.hold("A")
    journal.hold("A")
    assert journal.broken == {Rule.HOLDS_END_ONCE}


def test_an_end_without_a_hold_is_seen() -> None:
    journal = Journal()
    journal.cancel(journal.held(), "Z")
    assert journal.broken == {Rule.HOLDS_END_ONCE}


def test_a_reinstatement_of_a_settled_order_is_seen() -> None:
    journal = Journal()
    settled = journal.settle(journal.hold())
    journal.write(Reinstated("A", journal.paid(settled, OrderStatus.SETTLED, PaymentFate.SETTLED, "p2")))
    assert Rule.HOLDS_END_ONCE in journal.broken


def test_a_late_payment_of_a_held_order_is_seen() -> None:
    journal = Journal()
    journal.write(
        PaymentTooLate("A", journal.paid(journal.hold(), OrderStatus.REFUND_DUE, PaymentFate.TOO_LATE)),
    )
    assert journal.broken == {Rule.HOLDS_END_ONCE}


def test_a_status_that_its_entry_does_not_lead_to_is_seen() -> None:
    journal = Journal()
    record = journal.hold()
    journal.write(Cancelled("A", journal.next_of(record, OrderStatus.EXPIRED), True))
    assert journal.broken == {Rule.HOLDS_END_ONCE}


@pytest.mark.parametrize(("after_ms", "early"), [(HOLD_MS, False), (HOLD_MS - 1, True)])
def test_an_expiry_one_millisecond_early_is_seen(after_ms: int, early: bool) -> None:
    journal = Journal()
    record = journal.hold()
    journal.write(Expired("A", journal.next_of(record, OrderStatus.EXPIRED), True), after_ms)
    assert journal.broken == ({Rule.EXPIRY_NEVER_EARLY} if early else set())


@pytest.mark.parametrize(("after_ms", "early"), [(30_000, False), (29_999, True)])
def test_an_expiry_within_the_grace_after_an_opening_is_seen(after_ms: int, early: bool) -> None:
    journal = Journal()
    record = journal.hold()
    opened_at_ms = journal.at_ms + HOLD_MS
    journal.write(PartitionOpened(2, "restart", journal.at_ms, opened_at_ms + 30_000), HOLD_MS)
    journal.write(Expired("A", journal.next_of(record, OrderStatus.EXPIRED), True), after_ms)
    assert journal.broken == ({Rule.EXPIRY_NEVER_EARLY} if early else set())


def test_a_deadline_after_the_opening_has_no_grace() -> None:
    journal = Journal()
    record = journal.hold()
    journal.write(PartitionOpened(2, "restart", journal.at_ms, journal.at_ms + HOLD_MS - 1 + 30_000), HOLD_MS - 1)
    journal.write(Expired("A", journal.next_of(record, OrderStatus.EXPIRED), True), 1)
    assert journal.broken == set()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 3},
        {"changed_sequence": 1},
        {"sequence": 1},
        {"held_until_ms": START_MS * 2},
        {"amount_minor": 1},
        {"discount_minor": 1},
        {"buyer_id": "other"},
        {"channel": "jd"},
        {"reference": "other"},
        {"amount_expected": True},
        {"currency": "USD"},
        {"created_at_ms": 1},
        {"lines": [OrderLine("2", "TEE-M", 1, 1990)]},
    ],
)
def test_a_part_of_an_order_that_changes_is_seen(changes: dict[str, Any]) -> None:
    journal = Journal()
    record = journal.hold()
    journal.write(Cancelled("A", journal.next_of(record, OrderStatus.CANCELLED, **changes), True))
    assert journal.broken == {Rule.ORDERS_UNCHANGED}


@pytest.mark.parametrize("changes", [{"version": 2}, {"sequence": 1}, {"created_at_ms": 1, "held_until_ms": 60_001}])
def test_a_hold_that_is_not_fresh_is_seen(changes: dict[str, Any]) -> None:
    journal = Journal()
    journal.hold(**changes)
    assert journal.broken == {Rule.ORDERS_UNCHANGED}


@pytest.mark.parametrize(
    "changes",
    [
        {"amount_minor": 1991},
        {"discount_minor": 1, "amount_minor": 2490},
        {"discount_minor": 1991, "amount_minor": 499},
        {"currency": "USD"},
        {"held_until_ms": START_MS * 2},
        {"lines": [OrderLine("1", "TEE-M", 1, 1000)], "amount_minor": 1500},
        {"own_units": [UnitsTaken("TEE-M", "shared", 2)]},
        {"own_units": [UnitsTaken("TEE-M", "shared", 0)]},
    ],
)
def test_an_order_that_does_not_add_up_is_seen(changes: dict[str, Any]) -> None:
    journal = Journal()
    journal.hold(**changes)
    assert journal.broken == {Rule.ORDERS_ADD_UP}


def test_an_order_that_names_no_units_has_them_all_from_shared() -> None:
    journal = Journal()
    record = journal.hold(quantity=3, own_units=[])
    assert record.units == [UnitsTaken("TEE-M", "shared", 3)]
    assert journal.broken == set()
    assert (journal.fold.levels["TEE-M"].held, journal.fold.bought["tmall:b"]) == (3, {"TEE-M": 3})


def test_units_taken_from_shared_past_the_channels_own_are_seen() -> None:
    journal = Journal()
    journal.hold(channel="douyin")
    assert journal.broken == {Rule.UNITS_RETURN}


def test_units_taken_from_another_channels_pool_are_seen() -> None:
    journal = Journal()
    journal.hold(own_units=[UnitsTaken("TEE-M", "douyin", 1)])
    assert journal.broken == {Rule.UNITS_RETURN}


def test_units_given_back_to_another_pool_are_seen() -> None:
    journal = Journal()
    record = replace(journal.hold(), own_units=[UnitsTaken("TEE-M", "douyin", 1)])
    journal.cancel(record)
    assert journal.broken == {Rule.UNITS_RETURN}


@pytest.mark.parametrize("closed", [True, False])
def test_units_that_return_to_a_closed_sale_or_leave_an_open_one_are_seen(closed: bool) -> None:
    journal = Journal()
    record = journal.hold()
    if closed:
        journal.close()
    journal.cancel(record, returned=closed)
    assert journal.broken == {Rule.UNITS_RETURN}


def test_a_reinstatement_in_a_closed_sale_is_seen() -> None:
    journal = Journal()
    cancelled = journal.cancel(journal.hold())
    journal.close()
    journal.write(Reinstated("A", journal.paid(cancelled, OrderStatus.SETTLED, PaymentFate.SETTLED)))
    assert Rule.UNITS_RETURN in journal.broken
    assert Rule.NEVER_OVERSOLD in journal.broken


def test_a_payment_that_is_dropped_is_seen() -> None:
    journal = Journal()
    settled = journal.settle(journal.hold())
    second = journal.paid(settled, OrderStatus.SETTLED, PaymentFate.DUPLICATE, "p2")
    journal.write(DuplicatePayment("A", replace(second, payments=second.payments[1:])))
    assert journal.broken == {Rule.PAYMENTS_KEPT}


def test_a_payment_of_the_same_id_twice_is_seen() -> None:
    journal = Journal()
    settled = journal.settle(journal.hold())
    journal.write(DuplicatePayment("A", journal.paid(settled, OrderStatus.SETTLED, PaymentFate.DUPLICATE, "p1")))
    assert journal.broken == {Rule.PAYMENTS_KEPT}


def test_an_order_settled_by_another_amount_is_seen() -> None:
    journal = Journal()
    paid = journal.paid(journal.hold(), OrderStatus.SETTLED, PaymentFate.SETTLED)
    paid = journal.next_of(paid, OrderStatus.SETTLED, version=2, payments=[replace(paid.payments[0], amount_minor=1)])
    at_ms = journal.at_ms + 1000
    paid = replace(paid, settled_at_ms=at_ms, payments=[replace(paid.payments[0], at_ms=at_ms)])
    journal.write(Settled("A", paid))
    assert journal.broken == {Rule.PAYMENTS_KEPT}


def test_a_payment_that_comes_with_a_cancellation_is_seen() -> None:
    journal = Journal()
    record = journal.hold()
    paid = journal.paid(record, OrderStatus.CANCELLED, PaymentFate.TOO_LATE)
    journal.write(Cancelled("A", paid, True))
    assert journal.broken == {Rule.PAYMENTS_KEPT}


@pytest.mark.parametrize("entries", [[SalePaused(3)], [SalePaused(3), SaleResumed(4), SalePaused(5)]])
def test_a_hold_while_paused_is_seen(entries: list[Entry]) -> None:
    journal = Journal()
    for entry in entries:
        journal.write(entry)
    journal.hold()
    assert journal.broken == {Rule.HELD_ONLY_WHILE_OPEN}


@pytest.mark.parametrize(("seconds", "late"), [(3, True), (4, False)])
def test_a_hold_at_closes_at_is_seen(seconds: int, late: bool) -> None:
    journal = Journal(closes_at=f"2023-11-14T22:13:2{seconds}Z")  # START_MS is 22:13:20, the third entry comes at 23
    journal.hold()
    assert journal.broken == ({Rule.HELD_ONLY_WHILE_OPEN} if late else set())


@pytest.mark.parametrize(
    "limits", [{"buyer_limit": 3}, {"style_limits": {"TEE": 3}}, {"buyer_limit": 5, "style_limits": {"TEE": 3}}]
)
def test_a_buyer_who_gets_more_than_a_limit_is_seen(limits: dict[str, Any]) -> None:
    journal = Journal(**limits)
    journal.hold("A", 2)
    journal.cancel(journal.hold("B", 1), "B")
    journal.settle(journal.hold("C", 1), "C")
    assert journal.broken == set()
    journal.hold("D", 1, buyer="another")
    assert journal.broken == set()
    journal.hold("E", 1)
    assert journal.broken == {Rule.BUYER_LIMITS}


@pytest.mark.parametrize(
    "entry",
    [
        SaleOpened(3, False),
        SaleResumed(3),
        SalePaused(4),
        SaleDefined(3, True, definition(), [], []),
        SaleDefined(3, False, "{", [], []),
        SaleClosed(3, False, []),
        SaleDeleted([UnitsMoved("TEE-M", "shared", -5)]),
    ],
)
def test_a_change_of_the_sale_that_cannot_be_is_seen(entry: Entry) -> None:
    journal = Journal()
    journal.write(entry)
    assert Rule.SALE_CHANGES in journal.broken


def test_a_stock_document_applied_twice_is_seen() -> None:
    journal = Journal()
    journal.write(StockChanged(3, "D1", [UnitsMoved("TEE-M", "shared", 1)]))
    journal.write(StockChanged(4, "D1", [UnitsMoved("TEE-M", "shared", 1)]))
    assert journal.broken == {Rule.SALE_CHANGES}


def test_an_epoch_that_steps_back_is_seen() -> None:
    journal = Journal()
    journal.write(PartitionOpened(2, "restart", 0, 0))
    journal.write(PartitionOpened(2, "restart", 0, 0))
    assert journal.broken == {Rule.SALE_CHANGES}


def test_a_currency_that_changes_after_a_hold_is_seen() -> None:
    journal = Journal()
    journal.hold()
    journal.write(SaleDefined(3, False, definition(currency="USD"), [], []))
    assert journal.broken == {Rule.SALE_CHANGES}


def test_a_deleted_draft_leaves_nothing() -> None:
    fold = PartitionFold()
    moved = [UnitsMoved("TEE-M", "shared", 5), UnitsMoved("TEE-M", "withheld", 2), UnitsMoved("TEE-M", "douyin", 3)]
    fold.apply(1, START_MS, SaleDefined(1, True, definition(), moved, []))
    fold.apply(2, START_MS, SaleDeleted([replace(move, quantity=-move.quantity) for move in moved]))
    assert not fold.violation_counts
    assert (fold.status, fold.levels) == (None, {})


def test_words_are_bounded_and_violations_are_all_counted() -> None:
    journal = Journal()
    record = journal.held()
    for number in range(VIOLATIONS_KEPT_MAX + 50):
        journal.cancel(record, f"Z{number}")
    assert len(journal.fold.violations) == VIOLATIONS_KEPT_MAX
    assert journal.fold.violation_counts[Rule.HOLDS_END_ONCE] == VIOLATIONS_KEPT_MAX + 50


def test_thousands_of_orders_are_folded_in_well_under_a_second() -> None:
    """The target is 100,000 entries a second; the bound is a tenth of it, for machines busy with other tests."""
    journal = Journal(quantity=10)
    entries: list[bytes] = []
    for number in range(5_000):
        sequence = 2 * number + 3
        at_ms = journal.at_ms + 1
        held = journal.held(buyer=f"buyer-{number}", sequence=sequence, changed_sequence=sequence, created_at_ms=at_ms)
        held = replace(held, held_until_ms=at_ms + HOLD_MS)
        entries.append(msgspec.msgpack.encode(Held(f"digest-{number:015d}", held)))
        cancelled = replace(held, status=OrderStatus.CANCELLED, version=2, changed_sequence=sequence + 1)
        entries.append(msgspec.msgpack.encode(Cancelled(f"digest-{number:015d}", cancelled, True)))
    began = time.perf_counter()
    for sequence, encoded in enumerate(entries, 3):
        journal.fold.apply(sequence, journal.at_ms + 1, decode_entry(encoded))
    elapsed_seconds = time.perf_counter() - began
    assert not journal.fold.violations
    assert len(entries) / elapsed_seconds > 10_000, f"{len(entries) / elapsed_seconds:,.0f} entries a second"
