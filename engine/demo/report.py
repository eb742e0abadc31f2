"""What the demo prints when the sale is over: what happened, what the data was like, how fast, and the verdict."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine.demo.caller import CONNECTIONS_MAX
from engine.demo.live import Live
from engine.demo.orders_data import CURRENCY, OrdersData
from engine.demo.tally import Agreement, ToldOrder, busiest_second, percentile

_DETAIL_WIDTH = 110


def print_sale(console: Console, data: OrdersData, live: Live, feed_rows: Sequence[Mapping[str, Any]]) -> None:
    """What was asked, held, refused and why, settled, given back, and pulled by the ERP."""
    tally = live.buyers.tally
    table = _table("The sale", "orders", "units", CURRENCY)
    asked = len(data.carts)
    table.add_row("asked for: carts of the first visit", f"{asked:,}", f"{data.units:,}", "")
    table.add_row("  came back for what they went without", f"{live.second_visits:,}", "", "")
    table.add_row("  tries to order (a changed cart is a new try)", f"{tally.tries:,}", "", "")
    table.add_row("  clicks, of which answered as repeats", f"{tally.clicks:,} / {tally.replays:,}", "", "")
    asked_again = live.buyers.checkout.asked_again
    table.add_row("  asked again with the same key after a 503 or a broken connection", f"{asked_again:,}", "", "")
    _add_orders(table, "held", list(tally.orders.values()))
    for code, count in tally.refused.most_common():
        table.add_row(f"  tries refused: {code}", f"{count:,}", "", "")
    sold_out = f"{len(tally.sold_out_skus):,} of {len(live.buyers.catalogue):,}"
    table.add_row("  SKUs of which somebody was told that none is left", sold_out, "", "")
    _add_orders(table, "settled", tally.with_status("settled"))
    reinstated = [order for order in tally.with_status("settled") if order.was_reinstated]
    _add_orders(table, "  of these paid after their hold had run out, units taken anew", reinstated)
    _add_orders(table, "cancelled", tally.with_status("cancelled"))
    _add_orders(table, "expired unpaid", tally.with_status("expired"))
    _add_orders(table, "refund due: paid too late, units gone", tally.with_status("refund_due"))
    second = [order for order in tally.with_status("settled") if order.payments_due]
    _add_orders(table, "paid twice: one payment due for refund", second)
    payments = f"{tally.payments_sent:,} / {tally.payments_repeated:,}"
    table.add_row("payments reported, of which repeats", payments, "", "")
    table.add_section()
    _add_pulled(table, feed_rows)
    console.print(table)


def _add_orders(table: Table, name: str, orders: Sequence[ToldOrder]) -> None:
    units = sum(order.units_by_sku().total() for order in orders)
    money = _money(sum(order.amount_minor for order in orders))
    table.add_row(name, f"{len(orders):,}", f"{units:,}", money)


def _add_pulled(table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    for change, count in sorted(Counter(row["change"] for row in rows).items(), reverse=True):
        of_change = [row for row in rows if row["change"] == change]
        units = sum(line["quantity"] for row in of_change for line in row["lines"])
        money = sum(row["amount_minor"] for row in of_change)
        table.add_row(f"pulled by the ERP: {change}", f"{count:,}", f"{units:,}", _money(money))


def print_rows(console: Console, data: OrdersData) -> None:
    """Every row of the file: what became of it."""
    table = _table("The data: every row accounted for", "rows")
    table.add_row("rows read", f"{data.rows:,}")
    table.add_row(f"  lines of {len(data.carts):,} carts ({data.invoices:,} invoices)", f"{data.line_rows:,}")
    table.add_row(
        "  cancellations of an earlier cart: that buyer cancels the order, if it is held",
        f"{data.cancellations_played:,}",
    )
    for reason, count in data.set_aside.most_common():
        table.add_row(f"  set aside: {reason}", f"{count:,}")
    table.add_section()
    for note, count in data.notes.items():
        table.add_row(f"played all the same: {note}", f"{count:,}")
    console.print(table)


def print_speed(console: Console, live: Live) -> None:
    """How fast it was, and what that figure is worth."""
    tally = live.buyers.tally
    table = _table("Speed, as these clients saw it", "")
    table.add_row("orders accepted in the busiest second", f"{busiest_second(tally.accepted_at):,}")
    table.add_row("order lines accepted in the busiest second", f"{busiest_second(tally.lines_accepted_at):,}")
    table.add_row("clicks answered in the busiest second", f"{busiest_second(tally.answered_at):,}")
    for percent in (50, 99):
        milliseconds = percentile(tally.hold_seconds, percent) * 1000
        table.add_row(f"a click's answer, p{percent}", f"{milliseconds:,.1f} ms")
    table.caption = (
        f"The demo's own clients, a closed loop of at most {CONNECTIONS_MAX} connections in one Python process on the\n"
        "machine that also runs the engine and both stores, with carts of up to 200 lines: a look, no benchmark."
    )
    console.print(table)


def print_verdict(
    console: Console, agreements: Sequence[Agreement], audit: Mapping[str, Any], trouble: Sequence[str]
) -> bool:
    """The figures held against each other, and the audit's checks; returns whether all of it holds."""
    console.print(Text("\nThe figures, from both sides", style="bold"))
    for agreement in agreements:
        _print_check(console, agreement.name, agreement.holds, agreement.detail)
    console.print(Text("\nThe audit: Redis and the ledger, recomputed", style="bold"))
    for check in audit["checks"]:
        _print_check(console, check["name"], check["holds"], check["detail"])
    for line in trouble:
        console.print(Text(f"  note  {line}", style="yellow"))
    agree = all(agreement.holds for agreement in agreements)
    holds = bool(audit["holds"])
    console.print()
    console.print(_verdict("the figures agree", "THE FIGURES DO NOT AGREE", agree))
    console.print(_verdict("the audit holds", "THE AUDIT DOES NOT HOLD", holds))
    return agree and holds


def _verdict(yes: str, no: str, holds: bool) -> Text:
    return Text(f"verdict: {yes if holds else no}", style="bold green" if holds else "bold red")


def _print_check(console: Console, name: str, holds: bool, detail: str) -> None:
    mark = Text("  holds " if holds else "  BROKEN ", style="green" if holds else "bold red")
    shown = detail if not holds or len(detail) <= _DETAIL_WIDTH else detail[: _DETAIL_WIDTH - 1] + "…"
    console.print(mark + Text(f"{name}: ", style="default") + Text(shown, style="dim"), soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _money(minor: int) -> str:
    return f"{minor // 100:,}.{minor % 100:02d}"
