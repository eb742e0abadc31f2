"""Read the real orders, tell goods from everything else, and account for every row.

Real data is dirty. Nothing is dropped in silence: each row is a line of a cart, or a cancellation that is played, or
set aside for exactly one reason, the first that applies; the three add up to the file.
"""

import csv
import gzip
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from itertools import islice
from pathlib import Path

from engine.domain.identifiers import LINE_QUANTITY_MAX, LINES_MAX

FILE_NAME = "online_retail_2010-12.csv.gz"
CURRENCY = "GBP"

_ARTICLE = re.compile(r"\d{5}[A-Z]*")
"""An article's code: five digits, then letters for its colour or size."""
_MINOR_PER_UNIT = 100


class SetAside(StrEnum):
    """Why a row is no part of the sale, in words for the printed table."""

    UNREADABLE = "not readable as an order line"
    CANCELLATION_OF_NO_ARTICLE = "cancellation of what is no article (a discount taken back)"
    CANCELLATION_WITHOUT_ORDER = "cancellation without an order (bought before the file begins, or by somebody else)"
    POSTAGE = "postage and carriage (POST, DOT, C2)"
    MANUAL = "entered by hand (M)"
    DISCOUNT = "discount (D)"
    BANK_CHARGES = "bank charges"
    NO_ARTICLE = "another code that is no article"
    NEGATIVE_QUANTITY = "negative or zero quantity outside a cancellation (damaged or lost goods)"
    NO_DESCRIPTION = "no description (a correction of stock, at no price)"
    ZERO_PRICE = "zero or negative price (samples, corrections)"
    QUANTITY_TOO_LARGE = f"more than {LINE_QUANTITY_MAX:,} pieces in one line"


_SERVICES: Mapping[str, SetAside] = {
    "POST": SetAside.POSTAGE,
    "DOT": SetAside.POSTAGE,
    "C2": SetAside.POSTAGE,
    "M": SetAside.MANUAL,
    "D": SetAside.DISCOUNT,
    "BANK CHARGES": SetAside.BANK_CHARGES,
}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the file, as it was read."""

    invoice: str
    sku: str
    description: str
    quantity: int
    price_minor: int
    customer: str
    """Empty for a guest."""
    day: date
    sku_was_lower_case: bool

    @property
    def is_cancellation(self) -> bool:
        return self.invoice.startswith("C")

    @property
    def is_article(self) -> bool:
        return _ARTICLE.fullmatch(self.sku) is not None

    @property
    def buyer_id(self) -> str:
        """The customer's number as a pseudonym; a guest is somebody else with each invoice."""
        return f"customer-{self.customer}" if self.customer else f"guest-{self.invoice}"


@dataclass(frozen=True, slots=True)
class CartLine:
    """One line of a cart, with the price that stood on the real invoice."""

    sku: str
    quantity: int
    invoice_price_minor: int


@dataclass(frozen=True, slots=True)
class Cart:
    """What one buyer asks for in one order: an invoice, or a part of one that has too many lines."""

    reference: str
    buyer_id: str
    day: date
    lines: tuple[CartLine, ...]
    is_cancelled: bool = False
    """The real customer took it back later, whole or in part."""

    @property
    def units(self) -> int:
        return sum(line.quantity for line in self.lines)


@dataclass(slots=True)
class OrdersData:
    """The file, accounted for: `rows = line_rows + cancellations_played + set_aside`."""

    rows: int = 0
    carts: list[Cart] = field(default_factory=list)
    descriptions: dict[str, str] = field(default_factory=dict)
    """The last description of each article."""
    invoices: int = 0
    cancellations_played: int = 0
    set_aside: Counter[SetAside] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    """What is odd about rows and invoices that were played all the same."""

    @property
    def line_rows(self) -> int:
        return sum(len(cart.lines) for cart in self.carts)

    @property
    def units(self) -> int:
        return sum(cart.units for cart in self.carts)


def find_orders_file() -> Path:
    """The file that lies beside the checkout, if there is one, else the copy that is shipped with the package."""
    checkout = Path(__file__).resolve().parents[2]
    beside = checkout.parent / "shared" / "data" / FILE_NAME
    if (checkout / "pyproject.toml").is_file() and beside.is_file():
        return beside
    return Path(__file__).with_name("data") / FILE_NAME


def read_orders(path: Path, rows_max: int | None = None) -> OrdersData:
    """Read the file, or its first `rows_max` rows. Raises: OSError."""
    data = OrdersData()
    goods: dict[str, list[Row]] = defaultdict(list)
    cancellations: list[Row] = []
    for row in _rows(path, rows_max, data):
        if row.is_cancellation and row.is_article:
            cancellations.append(row)
        elif reason := _why_not(row):
            data.set_aside[reason] += 1
        else:
            goods[row.invoice].append(row)
            data.descriptions[row.sku] = row.description
    data.invoices = len(goods)
    data.carts = [cart for rows in goods.values() for cart in _carts_of(rows)]
    _note_oddities(data, goods)
    _match_cancellations(data, cancellations)
    assert data.rows == data.line_rows + data.cancellations_played + data.set_aside.total(), "a row was lost"
    return data


def _rows(path: Path, rows_max: int | None, data: OrdersData) -> Iterator[Row]:
    with gzip.open(path, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as text:
        for fields in islice(csv.DictReader(text), rows_max):
            data.rows += 1
            row = _read_row(fields)
            if row is None:
                data.set_aside[SetAside.UNREADABLE] += 1
            else:
                yield row


def _read_row(fields: Mapping[str, str]) -> Row | None:
    """The row; None where a number or the date cannot be read, or the invoice or the code is missing."""
    try:
        code = fields["StockCode"].strip()
        row = Row(
            invoice=fields["InvoiceNo"].strip(),
            sku=code.upper(),
            description=fields["Description"].strip(),
            quantity=int(fields["Quantity"]),
            price_minor=round(Decimal(fields["UnitPrice"]) * _MINOR_PER_UNIT),
            customer=fields["CustomerID"].strip(),
            day=datetime.strptime(fields["InvoiceDate"], "%m-%d-%Y %H:%M").date(),
            sku_was_lower_case=code != code.upper(),
        )
    except (ValueError, ArithmeticError, AttributeError):  # ArithmeticError: Decimal's; AttributeError: a short row
        return None
    return row if row.invoice and row.sku else None


def _why_not(row: Row) -> SetAside | None:
    """Why this row is no line of a cart; None where it is one."""
    if row.is_cancellation:
        return SetAside.CANCELLATION_OF_NO_ARTICLE
    if not row.is_article:
        return _SERVICES.get(row.sku, SetAside.NO_ARTICLE)
    if row.quantity <= 0:
        return SetAside.NEGATIVE_QUANTITY
    if not row.description:
        return SetAside.NO_DESCRIPTION
    if row.price_minor <= 0:
        return SetAside.ZERO_PRICE
    return SetAside.QUANTITY_TOO_LARGE if row.quantity > LINE_QUANTITY_MAX else None


def _carts_of(rows: list[Row]) -> Iterator[Cart]:
    """One cart, or several where the invoice has more lines than an order may have."""
    first = rows[0]
    for part, start in enumerate(range(0, len(rows), LINES_MAX), 1):
        lines = tuple(CartLine(row.sku, row.quantity, row.price_minor) for row in rows[start : start + LINES_MAX])
        reference = first.invoice if len(rows) <= LINES_MAX else f"{first.invoice}-{part}"
        yield Cart(reference, first.buyer_id, first.day, lines)


def _note_oddities(data: OrdersData, goods: Mapping[str, list[Row]]) -> None:
    invoices = goods.values()
    data.notes["lines of guests, who get a pseudonym for each invoice"] = sum(
        not row.customer for rows in invoices for row in rows
    )
    data.notes["codes in lower case, read as the same article"] = sum(
        row.sku_was_lower_case for rows in invoices for row in rows
    )
    data.notes["lines that repeat an article of their invoice, played as lines of their own"] = sum(
        len(rows) - len({row.sku for row in rows}) for rows in invoices
    )
    data.notes[f"invoices of more than {LINES_MAX} lines, split into several orders"] = sum(
        len(rows) > LINES_MAX for rows in invoices
    )


def _match_cancellations(data: OrdersData, cancellations: Iterable[Row]) -> None:
    """Mark the latest earlier cart of the same customer that has the article; count those without one."""
    for row in cancellations:
        position = _position_of_match(data.carts, row)
        if position is None:
            data.set_aside[SetAside.CANCELLATION_WITHOUT_ORDER] += 1
        else:
            data.carts[position] = replace(data.carts[position], is_cancelled=True)
            data.cancellations_played += 1


def _position_of_match(carts: list[Cart], row: Row) -> int | None:
    if not row.customer:
        return None
    number = row.invoice.removeprefix("C")  # invoices and cancellations are numbered in one sequence
    for position in range(len(carts) - 1, -1, -1):
        cart = carts[position]
        is_earlier = cart.reference < number
        if is_earlier and cart.buyer_id == row.buyer_id and any(line.sku == row.sku for line in cart.lines):
            return position
    return None
