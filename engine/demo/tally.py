"""What the clients were told, and whether the ERP's feed and the sale's levels say the same."""

import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from engine.demo.caller import Answer
from engine.demo.orders_data import Cart

SURPRISES_SHOWN_MAX = 10


@dataclass(slots=True)
class ToldOrder:
    """One order as its buyer knows it."""

    order_id: str
    cart: Cart
    lines: Sequence[Mapping[str, Any]]
    amount_minor: int
    currency: str
    status: str
    """The last that the buyer was told."""
    payments_due: set[str] = field(default_factory=set)
    """Payments of which the buyer was told that the money comes back."""
    was_reinstated: bool = False

    def units_by_sku(self) -> Counter[str]:
        units: Counter[str] = Counter()
        for line in self.lines:
            units[line["sku"]] += line["quantity"]
        return units


@dataclass(slots=True)
class Tally:
    """Counts of one sale, kept by those who buy."""

    orders: dict[str, ToldOrder] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    """Business refusals of holds, by code, one for each try (a repeated click is no new try)."""
    sold_out_skus: set[str] = field(default_factory=set)
    """SKUs of which somebody was told that nothing is left."""
    tries: int = 0
    clicks: int = 0
    replays: int = 0
    """Clicks that were answered as a repeat."""
    payments_sent: int = 0
    payments_repeated: int = 0
    hold_seconds: list[float] = field(default_factory=list)
    """How long each click's answer took."""
    accepted_at: list[float] = field(default_factory=list)
    lines_accepted_at: list[float] = field(default_factory=list)
    answered_at: list[float] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    """Answers that no rule allows. One of these and the demo has failed."""

    def answered_click(self, answer: Answer) -> None:
        """Count the answer to one click on "buy"."""
        self.clicks += 1
        self.hold_seconds.append(answer.seconds)
        self.answered_at.append(time.monotonic())
        if answer.is_replay:
            self.replays += 1

    def refused_try(self, answer: Answer) -> None:
        """Count a business no."""
        self.refused[answer.code] += 1
        if answer.code == "SOLD_OUT" and answer.body["available"] == 0:
            self.sold_out_skus.add(answer.body["sku"])

    def accepted(self, order: ToldOrder) -> None:
        """Keep an order that its buyer was told is held."""
        if order.order_id in self.orders:
            self.surprise(f"order {order.order_id} was given twice")
        self.orders[order.order_id] = order
        self.accepted_at.append(time.monotonic())
        self.lines_accepted_at += [self.accepted_at[-1]] * len(order.lines)

    def surprise(self, what: str) -> None:
        """Keep an answer that no rule allows."""
        self.surprises.append(what)

    def with_status(self, status: str) -> list[ToldOrder]:
        """The orders that were last told to be in this state."""
        return [order for order in self.orders.values() if order.status == status]

    @property
    def settled_minor(self) -> int:
        return sum(order.amount_minor for order in self.with_status("settled"))


class Agreement(NamedTuple):
    """One figure, from two sides."""

    name: str
    holds: bool
    detail: str


def busiest_second(moments: Iterable[float]) -> int:
    """The most events within one second, where the second may start at any of them."""
    times = sorted(moments)
    best = first = 0
    for last, moment in enumerate(times):
        while times[first] <= moment - 1.0:
            first += 1
        best = max(best, last - first + 1)
    return best


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of them do not exceed; 0 where there is none."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def rows_expected(tally: Tally) -> int:
    """How many rows the feed must have for this sale: one for each order settled and each payment due for refund."""
    return len(tally.with_status("settled")) + sum(len(order.payments_due) for order in tally.orders.values())


def compare(
    tally: Tally, feed_rows: Sequence[Mapping[str, Any]], sale: Mapping[str, Any], feed_gaps: int
) -> list[Agreement]:
    """Hold what clients were told against what the ERP pulled of this sale, and both against the sale's levels."""
    settled_rows = [row for row in feed_rows if row["change"] == "settled"]
    settled = {order.order_id: order for order in tally.with_status("settled")}
    return [
        _same_orders(settled, settled_rows),
        _same_money(settled, settled_rows),
        _lines_add_up(settled_rows),
        _same_refunds(tally, feed_rows),
        Agreement("the feed has no gaps", feed_gaps == 0, f"{len(feed_rows)} rows of this sale, {feed_gaps} gaps"),
        _same_units(settled.values(), sale),
        _nothing_left_over(sale),
        Agreement(
            "every answer was one that the rules allow",
            not tally.surprises,
            f"{tally.clicks} clicks" if not tally.surprises else "; ".join(tally.surprises[:SURPRISES_SHOWN_MAX]),
        ),
    ]


def _same_orders(settled: Mapping[str, ToldOrder], rows: Sequence[Mapping[str, Any]]) -> Agreement:
    pulled = Counter(row["order_id"] for row in rows)
    twice = sum(count > 1 for count in pulled.values())
    missing, unknown = settled.keys() - pulled.keys(), pulled.keys() - settled.keys()
    return Agreement(
        "orders settled: told to clients = pulled by the ERP, each once",
        not (missing or unknown or twice),
        f"{len(settled)} told, {len(pulled)} pulled, {twice} twice, {len(missing)} missing, {len(unknown)} unknown",
    )


def _same_money(settled: Mapping[str, ToldOrder], rows: Sequence[Mapping[str, Any]]) -> Agreement:
    told = sum(order.amount_minor for order in settled.values())
    pulled = sum(row["amount_minor"] for row in rows)
    apart = sum(
        row["order_id"] in settled and row["amount_minor"] != settled[row["order_id"]].amount_minor for row in rows
    )
    return Agreement(
        "money settled: told = pulled, in all and for each order",
        told == pulled and apart == 0,
        f"{told} told, {pulled} pulled (minor units), {apart} orders differ",
    )


def _lines_add_up(rows: Sequence[Mapping[str, Any]]) -> Agreement:
    wrong = sum(
        sum(line["paid_minor"] for line in row["lines"]) + row["freight_minor"] != row["amount_minor"] for row in rows
    )
    detail = f"{wrong} orders do not add up"
    return Agreement("lines paid + freight = amount, for each order pulled", wrong == 0, detail)


def _same_refunds(tally: Tally, rows: Sequence[Mapping[str, Any]]) -> Agreement:
    told = {(order.order_id, payment) for order in tally.orders.values() for payment in order.payments_due}
    pulled = {
        (row["order_id"], payment["payment_id"])
        for row in rows
        if row["change"] == "refund_due"
        for payment in row["payments_due_for_refund"]
    }
    return Agreement(
        "payments due for refund: told = pulled", told == pulled, f"{len(told)} told, {len(pulled)} pulled"
    )


def _same_units(settled: Iterable[ToldOrder], sale: Mapping[str, Any]) -> Agreement:
    told: Counter[str] = Counter()
    for order in settled:
        told.update(order.units_by_sku())
    apart = [entry["sku"] for entry in sale["skus"] if entry["settled"] != told[entry["sku"]]]
    levels = sum(entry["settled"] for entry in sale["skus"])
    return Agreement(
        "units settled: told = the sale's levels, SKU by SKU",
        not apart and levels == told.total(),
        f"{told.total()} told, {levels} in the levels, {len(apart)} SKUs differ",
    )


def _nothing_left_over(sale: Mapping[str, Any]) -> Agreement:
    left: defaultdict[str, int] = defaultdict(int)
    for entry in sale["skus"]:
        for name in ("withheld", "available", "held"):
            left[name] += entry[name]
        left["allocated - settled"] += entry["allocated"] - entry["settled"]
    return Agreement(
        "after closing: allocated = settled, nothing held, nothing left on sale",
        sale["status"] == "closed" and not any(left.values()),
        f"{sale['status']}; " + ", ".join(f"{name} {units}" for name, units in left.items()),
    )
