"""The results as tables on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from loadtest.bench.baseline_under_test import BASELINES
from loadtest.bench.results import Bar, Results, Series
from loadtest.bench.station import MAIN_CONNECTIONS

WIDTH_MIN = 120


def print_report(console: Console, results: Results, bars: Sequence[Bar]) -> None:
    """Everything: the bars first and last, so that they are seen."""
    _print_measures(console, results)
    _print_baselines(console, results)
    _print_demonstrations(console, results)
    _print_bars(console, bars)
    for remark in results.remarks:
        console.print(Text(f"note: {remark}", style="yellow"))
    for failure in results.failures:
        console.print(Text(f"FAILED: {failure}", style="bold red"))


def figure(value: float) -> str:
    """With as many digits as one can use."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 10 else f"{value:,.3f}"


def _print_measures(console: Console, results: Results) -> None:
    table = Table(title="All measures: median, least and most of the rounds", title_justify="left")
    table.add_column("measure")
    for column in ("median", "least", "most", "rounds"):
        table.add_column(column, justify="right")
    table.add_column("unit")
    for name, series in results.items():
        least, most = figure(series.least), figure(series.most)
        table.add_row(name, figure(series.median), least, most, str(len(series.values)), series.unit)
    console.print(table)


def _print_baselines(console: Console, results: Results) -> None:
    """The engine first, then what people write."""
    table = Table(title=f"Accepted, one process, {MAIN_CONNECTIONS} connections, one SKU a cart", title_justify="left")
    table.add_column("system")
    for column in ("accepted/s", "p99 ms", "engine is"):
        table.add_column(column, justify="right")
    for column in ("loses accepted orders", "oversells", "undersells"):
        table.add_column(column)
    engine = f"engine_g1.accepted_c{MAIN_CONNECTIONS}"
    rows = [("engine, 1 gateway", engine, "no", "no", "no")]
    rows += [
        (
            one.name,
            f"baseline_{one.name}.accepted_c{MAIN_CONNECTIONS}",
            one.may_lose,
            one.may_oversell,
            one.may_undersell,
        )
        for one in BASELINES
    ]
    for name, measure, *words in rows:
        rate, p99 = results.series(f"{measure}.rate"), results.median(f"{measure}.p99")
        if rate is None or p99 is None:
            continue
        table.add_row(
            name, _with_spread(rate), figure(p99), _ratio(results.ratio(f"{engine}.rate", f"{measure}.rate")), *words
        )
    if table.row_count:
        console.print(table)


def _with_spread(series: Series) -> str:
    return f"{figure(series.median)} ({figure(series.least)} to {figure(series.most)})"


def _ratio(ratio: Series | None) -> str:
    return "" if ratio is None else f"{ratio.median:.1f} ×"


def _print_demonstrations(console: Console, results: Results) -> None:
    if not results.demonstrations:
        return
    table = Table(title="Shown: what is lost when a process ends", title_justify="left")
    for column in ("system", "what was done"):
        table.add_column(column)
    for column in ("accepted", "lost", "oversold", "vanished"):
        table.add_column(column, justify="right")
    for one in results.demonstrations:
        counts = (str(one[word]) for word in ("accepted", "lost", "oversold", "vanished"))
        table.add_row(str(one["name"]), str(one["what"]), *counts)
    console.print(table)


def _print_bars(console: Console, bars: Sequence[Bar]) -> None:
    table = Table(title="Must show", title_justify="left")
    for column in ("what", "bar", "measured", "met"):
        table.add_column(column)
    words = {True: Text("yes", style="bold green"), False: Text("NO", style="bold red"), None: Text("")}
    for bar in bars:
        table.add_row(bar.name, bar.bar, bar.measured or "not measured in this run", words[bar.is_met])
    console.print(table)
