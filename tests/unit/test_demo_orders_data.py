"""The demo's data: the real file, every row accounted for, against totals that were counted once by hand."""

import csv
import gzip
from pathlib import Path

import pytest

from engine.demo import orders_data
from engine.demo.orders_data import FILE_NAME, OrdersData, SetAside, find_orders_file, read_orders
from engine.domain.identifiers import LINES_MAX

SHIPPED = Path(orders_data.__file__).with_name("data") / FILE_NAME
HEADER = ["InvoiceNo", "StockCode", "Description", "Quantity", "InvoiceDate", "UnitPrice", "CustomerID", "Country"]


@pytest.fixture(scope="module")
def data() -> OrdersData:
    return read_orders(SHIPPED)


def file_of(path: Path, *rows: list[str]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8", newline="") as text:
        csv.writer(text).writerows([HEADER, *rows])
    return path


def row(
    invoice: str,
    code: str,
    quantity: str,
    *,
    price: str = "2.55",
    customer: str = "17850",
    description: str = "LANTERN",
) -> list[str]:
    return [invoice, code, description, quantity, "12-01-2010 08:26", price, customer, "United Kingdom"]


def test_the_real_file_has_ten_thousand_rows_and_each_is_accounted_for(data: OrdersData) -> None:
    assert data.rows == 10_000
    assert data.line_rows == 9_818
    assert data.cancellations_played == 10
    assert data.set_aside == {
        SetAside.CANCELLATION_WITHOUT_ORDER: 88,
        SetAside.CANCELLATION_OF_NO_ARTICLE: 2,
        SetAside.NEGATIVE_QUANTITY: 30,
        SetAside.POSTAGE: 25,
        SetAside.NO_DESCRIPTION: 13,
        SetAside.MANUAL: 10,
        SetAside.ZERO_PRICE: 3,
        SetAside.BANK_CHARGES: 1,
    }


def test_the_real_file_makes_429_carts_of_423_invoices_with_90009_units(data: OrdersData) -> None:
    assert data.invoices == 423
    assert len(data.carts) == 429
    assert data.units == 90_009
    assert sum(cart.is_cancelled for cart in data.carts) == 9
    assert len({cart.reference for cart in data.carts}) == 429
    assert max(len(cart.lines) for cart in data.carts) == LINES_MAX


def test_what_is_odd_and_played_all_the_same_is_counted(data: OrdersData) -> None:
    assert sorted(data.notes.values()) == [3, 36, 344, 2_239]


def test_the_file_that_is_found_holds_the_same_rows_as_the_one_that_is_shipped() -> None:
    assert gzip.decompress(find_orders_file().read_bytes()) == gzip.decompress(SHIPPED.read_bytes())


def test_a_guest_is_somebody_else_with_each_invoice_and_a_customer_is_not(tmp_path: Path) -> None:
    rows = [row("1", "85123A", "6", customer=customer) for customer in ("", "7")]
    rows += [row("2", "85123A", "6", customer=""), row("3", "85123A", "6", customer="7")]
    carts = read_orders(file_of(tmp_path / "rows.gz", *rows)).carts
    assert [cart.buyer_id for cart in carts] == ["guest-1", "guest-2", "customer-7"]


def test_the_same_article_twice_in_an_invoice_makes_two_lines(tmp_path: Path) -> None:
    path = file_of(tmp_path / "rows.gz", row("1", "85123A", "6"), row("1", "85123a", "2"))
    (cart,) = read_orders(path).carts
    assert [(line.sku, line.quantity) for line in cart.lines] == [("85123A", 6), ("85123A", 2)]


def test_an_invoice_of_201_lines_makes_two_orders(tmp_path: Path) -> None:
    path = file_of(tmp_path / "rows.gz", *(row("1", "85123A", "1") for _ in range(201)))
    assert [(cart.reference, len(cart.lines)) for cart in read_orders(path).carts] == [("1-1", 200), ("1-2", 1)]


def test_a_cancellation_is_played_only_for_an_earlier_order_of_the_same_customer(tmp_path: Path) -> None:
    path = file_of(
        tmp_path / "rows.gz",
        row("100", "85123A", "6"),
        row("C101", "85123A", "-6"),
        row("C102", "85123A", "-6", customer="9"),
        row("C103", "85123A", "-6", customer=""),
        row("C104", "71053", "-6"),
        row("105", "71053", "6"),
    )
    data = read_orders(path)
    assert [(cart.reference, cart.is_cancelled) for cart in data.carts] == [("100", True), ("105", False)]
    assert data.cancellations_played == 1
    assert data.set_aside == {SetAside.CANCELLATION_WITHOUT_ORDER: 3}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row("1", "85123A", "many"), SetAside.UNREADABLE),
        (row("1", "85123A", "6", price="Infinity"), SetAside.UNREADABLE),
        (row("1", "85123A", "6", price="NaN"), SetAside.UNREADABLE),
        (row("", "85123A", "6"), SetAside.UNREADABLE),
        (["1", "85123A"], SetAside.UNREADABLE),
        (row("1", "85123A", "-6"), SetAside.NEGATIVE_QUANTITY),
        (row("1", "85123A", "0"), SetAside.NEGATIVE_QUANTITY),
        (row("1", "85123A", "6", price="0"), SetAside.ZERO_PRICE),
        (row("1", "85123A", "6", description=""), SetAside.NO_DESCRIPTION),
        (row("1", "85123A", "10000"), SetAside.QUANTITY_TOO_LARGE),
        (row("1", "DOT", "1"), SetAside.POSTAGE),
        (row("1", "M", "1"), SetAside.MANUAL),
        (row("1", "BANK CHARGES", "1"), SetAside.BANK_CHARGES),
        (row("1", "gift_0001", "1"), SetAside.NO_ARTICLE),
        (row("C1", "D", "-1"), SetAside.CANCELLATION_OF_NO_ARTICLE),
    ],
)
def test_a_row_that_is_no_line_is_set_aside_for_its_reason(tmp_path: Path, bad: list[str], reason: SetAside) -> None:
    data = read_orders(file_of(tmp_path / "rows.gz", bad, row("2", "85123A", "9999")))
    assert data.set_aside == {reason: 1}
    assert data.units == 9_999
