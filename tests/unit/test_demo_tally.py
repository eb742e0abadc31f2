"""The demo's comparison of clients, feed and levels: it holds where they agree, breaks at each difference."""

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest

from engine.demo.orders_data import Cart
from engine.demo.tally import Tally, ToldOrder, busiest_second, compare, percentile, rows_expected

CART = Cart("536365", "customer-1", date(2010, 12, 1), ())


class World:
    """Two settled orders, one of them paid twice, one that is refund_due, and one that expired."""

    def __init__(self) -> None:
        self.tally = Tally()
        for order_id, status, due in [
            ("o1", "settled", set()),
            ("o2", "settled", {"pay-2"}),
            ("o3", "refund_due", {"pay-1"}),
            ("o4", "expired", set()),
        ]:
            line = {"sku": "A", "quantity": 2, "paid_minor": 510}
            self.tally.accepted(ToldOrder(order_id, CART, [line], 1005, "GBP", status, due))
        self.rows: list[dict[str, Any]] = [
            row("o1", "settled"),
            row("o2", "settled"),
            row("o2", "refund_due", "pay-2"),
            row("o3", "refund_due", "pay-1"),
        ]
        levels = {"allocated": 4, "withheld": 0, "available": 0, "held": 0, "settled": 4}
        self.sale: dict[str, Any] = {"status": "closed", "skus": [{"sku": "A", **levels}]}
        self.gaps = 0

    def broken(self) -> list[str]:
        return [
            agreement.name for agreement in compare(self.tally, self.rows, self.sale, self.gaps) if not agreement.holds
        ]


def row(order_id: str, change: str, *payments_due: str) -> dict[str, Any]:
    return {
        "order_id": order_id,
        "change": change,
        "amount_minor": 1005,
        "freight_minor": 495,
        "payments_due_for_refund": [{"payment_id": payment} for payment in payments_due],
        "lines": [{"paid_minor": 510, "quantity": 2}],
    }


def test_it_holds_where_all_sides_agree() -> None:
    world = World()
    assert world.broken() == []
    assert rows_expected(world.tally) == len(world.rows)


def units_settled(world: World, units: int) -> None:
    world.sale["skus"][0].update(settled=units, allocated=units)


@pytest.mark.parametrize(
    ("spoil", "broken_count"),
    [
        (lambda world: world.rows.pop(0), 2),  # the order, and its money
        (lambda world: world.rows.append(row("o1", "settled")), 2),
        (lambda world: world.rows.append(row("o4", "settled")), 2),
        (lambda world: world.rows[0].update(amount_minor=1006), 2),  # the money, and its lines
        (lambda world: world.rows[0]["lines"][0].update(paid_minor=509), 1),
        (lambda world: world.rows.pop(), 1),
        (lambda world: world.tally.orders["o1"].payments_due.add("pay-3"), 1),
        (lambda world: units_settled(world, 5), 1),
        (lambda world: world.sale["skus"][0].update(held=1, allocated=5), 1),
        (lambda world: world.sale.update(status="open"), 1),
        (lambda world: setattr(world, "gaps", 1), 1),
        (lambda world: world.tally.surprise("one key made 2 orders"), 1),
    ],
)
def test_it_breaks_at_each_single_difference(spoil: Callable[[World], None], broken_count: int) -> None:
    world = World()
    spoil(world)
    assert len(world.broken()) == broken_count


def test_two_amounts_that_are_wrong_by_the_same_in_opposite_ways_do_not_make_a_right() -> None:
    world = World()
    world.rows[0].update(amount_minor=1006, freight_minor=496)
    world.rows[1].update(amount_minor=1004, freight_minor=494)
    assert world.broken() == ["money settled: told = pulled, in all and for each order"]


def test_an_order_that_is_given_twice_is_a_surprise() -> None:
    world = World()
    world.tally.accepted(ToldOrder("o1", CART, [], 0, "GBP", "held"))
    assert world.tally.surprises == ["order o1 was given twice"]


def test_the_busiest_second_may_start_at_any_moment() -> None:
    assert busiest_second([0.0, 0.9, 1.1, 1.5, 1.89, 3.0]) == 4
    assert busiest_second([]) == 0


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (50.0, 99.0, 100.0)
    assert percentile([3.0], 99) == 3.0
    assert percentile([], 99) == 0.0
