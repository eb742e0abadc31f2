"""The demo's sale: what is on sale, and that every run makes the same one."""

from collections import Counter
from datetime import date

import pytest

from engine.demo.catalogue import (
    CHANNEL_WEIGHTS,
    Catalogue,
    channel_of,
    days_of,
    make_catalogue,
    release_document,
    sale_document,
)
from engine.demo.draw import draw, draw_one
from engine.demo.orders_data import Cart, CartLine, OrdersData, find_orders_file, read_orders


@pytest.fixture(scope="module")
def data() -> OrdersData:
    return read_orders(find_orders_file())


@pytest.fixture(scope="module")
def catalogue(data: OrdersData) -> Catalogue:
    return make_catalogue(data)


def test_sixty_percent_of_what_is_asked_for_is_allocated_in_all_and_of_each_sku(
    data: OrdersData, catalogue: Catalogue
) -> None:
    asked = Counter[str]()
    for cart in data.carts:
        for line in cart.lines:
            asked[line.sku] += line.quantity
    assert len(catalogue) == len(asked) == 1_958
    assert sum(article.quantity for article in catalogue.values()) == 54_005  # 60 % of 90,009
    assert all(abs(article.quantity - 0.6 * asked[sku]) < 1 for sku, article in catalogue.items())


def test_no_sku_sets_more_units_apart_than_it_has(catalogue: Catalogue) -> None:
    assert all(article.quantity >= article.withheld + sum(article.channels.values()) for article in catalogue.values())


def test_an_article_has_its_median_price_and_its_digits_for_a_style() -> None:
    prices = [255, 255, 1_000]
    cart = Cart("1", "customer-1", date(2010, 12, 1), tuple(CartLine("85123A", 1, price) for price in prices))
    article = make_catalogue(OrdersData(carts=[cart], descriptions={"85123A": "HEART"}))["85123A"]
    assert (article.unit_price_minor, article.style, article.document()["colour"]) == (255, "85123", "A")


def test_the_host_gets_exactly_what_was_withheld(catalogue: Catalogue) -> None:
    changes = release_document(catalogue, "more")["changes"]
    withheld = sum(entry["withheld"] for entry in sale_document(catalogue, "live", 8)["skus"])
    assert sum(change["quantity"] for change in changes) == withheld == 4_722


def test_each_day_is_one_rush(data: OrdersData) -> None:
    assert [len(carts) for carts in days_of(data.carts)] == [131, 141, 70, 87]


def test_a_buyer_is_always_on_the_same_channel_and_every_channel_has_buyers(data: OrdersData) -> None:
    first, again = ([channel_of(cart.buyer_id) for cart in data.carts] for _ in range(2))
    assert first == again
    assert set(first) == set(CHANNEL_WEIGHTS)
    assert channel_of("customer-17850") == "wechat_channels", (
        "the seed has changed, and with it every figure of the demo"
    )


def test_draws_are_spread_evenly_and_follow_the_weights() -> None:
    draws = [draw("test", str(number)) for number in range(10_000)]
    assert all(0 <= number < 1 for number in draws)
    assert sum(draws) / len(draws) == pytest.approx(0.5, abs=0.02)
    chosen = Counter(draw_one({"a": 3, "b": 1}, "test", str(number)) for number in range(10_000))
    assert chosen["a"] / chosen["b"] == pytest.approx(3, rel=0.1)
