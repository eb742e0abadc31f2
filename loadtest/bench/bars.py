"""The table "must show": each bar, what was measured, and whether it is met."""

from collections.abc import Sequence

from loadtest.bench.engine_station import GENERATOR
from loadtest.bench.engine_under_test import SERVERS
from loadtest.bench.ledger_station import HOLDS_PER_SECOND, SUSTAINED_SHARE
from loadtest.bench.results import Bar, Results
from loadtest.bench.station import FULL, MAIN_CONNECTIONS

ACCEPTED = f"engine_g1.accepted_c{MAIN_CONNECTIONS}"
SOLD_OUT = f"engine_g1.sold_out_c{MAIN_CONNECTIONS}"
ORDERS_FEW, ORDERS_MANY = 10_000, 5_000_000
LEDGER_LAG_SECONDS_MAX = 2.0
BACKLOG_SECONDS_MAX = 5.0
PERSISTER_PER_SECOND_MIN = 80_000
RESTART_MORE_SECONDS_MAX = 2.5
ENDED = ("cancelled", "settled", "expired")
NOTHING_BYTES = 1.0
"""An order whose sale has left Redis may cost this: what stays is the sale's name, not the order."""


def make_bars(results: Results) -> list[Bar]:
    """All bars, measured or not."""
    return [
        _ratio_bar(
            results,
            "durable holds/s over aiohttp + EVALSHA a request, same durability",
            f"{ACCEPTED}.rate",
            (f"baseline_evalsha_always.accepted_c{MAIN_CONNECTIONS}.rate",),
            7,
        ),
        _ratio_bar(
            results,
            "durable holds/s over the same baseline without any durability",
            f"{ACCEPTED}.rate",
            (f"baseline_evalsha_none.accepted_c{MAIN_CONNECTIONS}.rate",),
            5,
        ),
        _ratio_bar(
            results,
            "durable holds/s over the script without HTTP, batches of 256",
            f"{ACCEPTED}.rate",
            ("script.accepted_b256_f1.rate", "script.accepted_b256_f2.rate"),
            0.5,
        ),
        _ratio_bar(
            results,
            "sold-out answers/s (1 % repeats) over the echo server",
            f"{SOLD_OUT}.rate",
            (f"echo.sold_out_c{MAIN_CONNECTIONS}.rate",),
            0.5,
        ),
        _latency_bar(results),
        _most_or_least_bar(
            results,
            "persister alone, orders/s",
            "persister.holds.entries_per_second",
            PERSISTER_PER_SECOND_MIN,
            "/s",
            is_least=True,
        ),
        _lag_bar(results),
        _most_or_least_bar(
            results,
            f"ledger's backlog gone after a burst of {FULL.burst_orders:,} settled orders",
            "ledger.burst.backlog_gone_after",
            BACKLOG_SECONDS_MAX,
            "s",
        ),
        _ratio_bar(
            results,
            "time of an order at 5·10⁶ orders over that at 10⁴",
            f"scale.order_at_{ORDERS_MANY}.time",
            (f"scale.order_at_{ORDERS_FEW}.time",),
            1.5,
            is_least=False,
        ),
        _most_or_least_bar(results, "bytes of an open order in Redis", "scale.memory_open", 400, "bytes"),
        _ended_bar(results),
        _most_or_least_bar(
            results,
            "bytes of an order whose sale's retention has passed",
            "scale.memory_retired",
            NOTHING_BYTES,
            "bytes",
        ),
        _most_or_least_bar(
            results,
            "`miaocang up` on existing data beyond its stores' own start",
            "restart.more_seconds",
            RESTART_MORE_SECONDS_MAX,
            "s",
        ),
        _processor_bar(results, "CPU seconds of 10⁶ accepted, until they are in the ledger", ACCEPTED),
        _processor_bar(results, "CPU seconds of 10⁶ sold-out answers", SOLD_OUT),
    ]


def _ratio_bar(
    results: Results, name: str, above: str, below: Sequence[str], bound: float, *, is_least: bool = True
) -> Bar:
    """Over the best of `below`, round by round."""
    bar = f"{'≥' if is_least else '≤'} {bound:g} ×"
    known = [one for one in below if results.series(one) is not None]
    if not known:
        return Bar(name, bar, "", None)
    ratio = results.ratio(above, max(known, key=lambda one: results.median(one) or 0))
    if ratio is None:
        return Bar(name, bar, "", None)
    measured = f"{ratio.median:.2f} × ({ratio.least:.2f} to {ratio.most:.2f})"
    return Bar(name, bar, measured, ratio.median >= bound if is_least else ratio.median <= bound)


def _most_or_least_bar(
    results: Results, name: str, measure: str, bound: float, unit: str, *, is_least: bool = False
) -> Bar:
    bar = f"{'≥' if is_least else '≤'} {bound:,g} {unit}"
    series = results.series(measure)
    if series is None:
        return Bar(name, bar, "", None)
    spread = f" ({series.least:,.2f} to {series.most:,.2f})" if series.most > series.least else ""
    is_met = series.median >= bound if is_least else series.median <= bound
    return Bar(name, bar, f"{series.median:,.2f} {unit}{spread}", is_met)


def _latency_bar(results: Results) -> Bar:
    name, bar = "p99 at 50 % of maximum", "≤ the echo server's + 3 × a lone hold's"
    engine, echo, lone = (
        results.median(measure) for measure in ("open_loop.engine_50.p99", "open_loop.echo_50.p99", "lone_hold.p99")
    )
    if engine is None or echo is None or lone is None:
        return Bar(name, bar, "", None)
    bound = echo + 3 * lone
    return Bar(name, bar, f"{engine:.2f} ms against {echo:.2f} + 3 × {lone:.2f} = {bound:.2f} ms", engine <= bound)


def _lag_bar(results: Results) -> Bar:
    name, bar = f"ledger's lag at {HOLDS_PER_SECOND:,} accepted a second", f"≤ {LEDGER_LAG_SECONDS_MAX:g} s"
    lag, rate = results.series("ledger.lag_max"), results.median("ledger.lag_run.rate")
    if lag is None or rate is None:
        return Bar(name, bar, "", None)
    measured = f"{lag.median:.2f} s (at most {lag.most:.2f}) at {rate:,.0f}/s"
    return Bar(name, bar, measured, lag.median <= LEDGER_LAG_SECONDS_MAX and rate >= SUSTAINED_SHARE * HOLDS_PER_SECOND)


def _ended_bar(results: Results) -> Bar:
    name, bar = "bytes of an ended and persisted order in Redis", "≤ 200 bytes"
    found = {word: results.median(f"scale.memory_{word}") for word in ENDED}
    known = {word: value for word, value in found.items() if value is not None}
    if len(known) < len(ENDED):
        return Bar(name, bar, "", None)
    return Bar(name, bar, ", ".join(f"{word} {value:.0f}" for word, value in known.items()), max(known.values()) <= 200)


def _processor_bar(results: Results, name: str, measure: str) -> Bar:
    found = {kind: results.median(f"{measure}.cpu_of_a_million.{kind}") for kind in (*SERVERS, GENERATOR)}
    return Bar(
        name,
        "shown, by process",
        ", ".join(f"{kind} {value:.1f}" for kind, value in found.items() if value is not None),
        None,
    )
