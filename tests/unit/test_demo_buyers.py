"""How the demo's buyers cut their carts down, and what they come back for."""

from engine.demo.buyers import rest_of, trim
from engine.demo.orders_data import CartLine
from engine.demo.progress import parse_lag


def lines(*pairs: tuple[str, int]) -> list[CartLine]:
    return [CartLine(sku, quantity, 100) for sku, quantity in pairs]


def test_a_cart_is_cut_to_what_is_left_the_earlier_line_first() -> None:
    wanted = lines(("a", 3), ("b", 2), ("a", 3), ("c", 1))
    assert trim(wanted, {"a": 4, "b": 0}) == lines(("a", 3), ("a", 1), ("c", 1))


def test_nothing_is_left_of_a_cart_whose_every_sku_is_gone() -> None:
    assert trim(lines(("a", 3), ("a", 1)), {"a": 0}) == []


def test_buyers_come_back_for_exactly_what_they_went_without() -> None:
    wanted = lines(("a", 3), ("b", 2), ("a", 3))
    assert rest_of(wanted, lines(("a", 3), ("a", 1))) == lines(("b", 2), ("a", 2))
    assert rest_of(wanted, wanted) == []
    assert rest_of(wanted, []) == wanted


def test_the_persisters_lag_is_read_from_the_metrics_or_is_not_known() -> None:
    assert parse_lag("# HELP x\nmiaocang_persister_lag_entries 12.0\n") == 12
    assert parse_lag("miaocang_persister_lag_seconds 3.0\n") is None
