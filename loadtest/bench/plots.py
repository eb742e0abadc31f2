"""The results as pictures. matplotlib is in the extra `bench`; without it there are none, and that is said."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.bench.baseline_under_test import BASELINES
from loadtest.bench.engine_station import GENERATOR
from loadtest.bench.engine_under_test import SERVERS
from loadtest.bench.results import Results
from loadtest.bench.station import MAIN_CONNECTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENGINE_COLOUR, OTHER_COLOUR, CEILING_COLOUR = "#c8102e", "#8a8d91", "#3a6ea5"
DOTS_PER_INCH = 130
THOUSANDS = "{x:,.0f}"
CEILINGS = {
    "script.accepted_b256_f2": "the script alone, batches of 256",
    "script.one_order_a_call_c50": "the script alone, one order a call",
    f"echo.order_c{MAIN_CONNECTIONS}": "echo server, same HTTP stack",
}


def draw_plots(results: Results, directory: Path) -> list[Path]:
    """Draw what was measured; the files that were written. Raises ImportError where matplotlib is missing."""
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to load

    mpl.use("Agg")
    plots: dict[str, tuple[Callable[[Any, Results], bool], tuple[float, float]]] = {
        "accepted.png": (_accepted, (9.0, 4.6)),
        "connections.png": (_connections, (8.0, 4.4)),
        "latency.png": (_latency, (8.0, 4.4)),
        "scale.png": (_scale, (8.0, 4.0)),
        "processor.png": (_processor, (9.0, 4.2)),
    }
    return [path for name, (draw, size) in plots.items() if (path := _draw(directory / name, draw, size, results))]


def _draw(
    path: Path, draw: "Callable[[Axes, Results], bool]", size: tuple[float, float], results: Results
) -> Path | None:
    from matplotlib import pyplot  # noqa: PLC0415 - as above

    drawing, axes = pyplot.subplots(figsize=size, layout="constrained")
    try:
        if not draw(axes, results):
            return None
        axes.spines[["top", "right"]].set_visible(False)
        drawing.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})
    finally:
        pyplot.close(drawing)
    return path


def _accepted(axes: "Axes", results: Results) -> bool:
    """Holds a second of all systems, with the spread over the rounds."""
    engine = f"engine_g1.accepted_c{MAIN_CONNECTIONS}"
    rows = [(engine, "this engine, 1 gateway (durable)", ENGINE_COLOUR)]
    rows += [
        (f"baseline_{one.name}.accepted_c{MAIN_CONNECTIONS}", one.name.replace("_", " "), OTHER_COLOUR)
        for one in BASELINES
    ]
    rows += [(name, words, CEILING_COLOUR) for name, words in CEILINGS.items()]
    found = [(words, colour, series) for name, words, colour in rows if (series := results.series(f"{name}.rate"))]
    if not found:
        return False
    places = range(len(found), 0, -1)
    medians = [series.median for _, _, series in found]
    below = [series.median - series.least for _, _, series in found]
    above = [series.most - series.median for _, _, series in found]
    axes.barh(places, medians, color=[colour for _, colour, _ in found], xerr=(below, above), capsize=3)
    for place, median in zip(places, medians, strict=True):
        axes.annotate(f" {median:,.0f}", (median, place), va="bottom", fontsize=8)
    axes.set_yticks(places, [words for words, _, _ in found])
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set_xlabel(f"accepted orders a second, {MAIN_CONNECTIONS} connections (median, least to most)")
    return True


def _connections(axes: "Axes", results: Results) -> bool:
    """Accepted and sold out by number of connections."""
    drawn = False
    for gateways, style in ((1, "-"), (2, "--")):
        for kind, colour in (("accepted", ENGINE_COLOUR), ("sold_out", CEILING_COLOUR)):
            prefix = f"engine_g{gateways}.{kind}_c"
            found = sorted(
                (int(name.removeprefix(prefix).removesuffix(".rate")), series)
                for name, series in results.items()
                if name.startswith(prefix) and name.endswith(".rate")
            )
            if not found:
                continue
            drawn = True
            words = f"{kind.replace('_', ' ')}, {gateways} gateway{'s' if gateways > 1 else ''}"
            numbers, medians = [number for number, _ in found], [series.median for _, series in found]
            axes.plot(numbers, medians, style, marker="o", color=colour, label=words)
            least, most = [series.least for _, series in found], [series.most for _, series in found]
            axes.fill_between(numbers, least, most, color=colour, alpha=0.12)
    if drawn:
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
        axes.minorticks_off()
        axes.set_xlabel("connections")
        axes.yaxis.set_major_formatter(THOUSANDS)
        axes.set_ylabel("answers a second")
        axes.legend()
    return drawn


def _latency(axes: "Axes", results: Results) -> bool:
    """Percentiles by share of the maximum, engine and echo."""
    drawn = False
    for system, colour in (("engine", ENGINE_COLOUR), ("echo", CEILING_COLOUR)):
        for percentile, style in (("p50", ":"), ("p99", "-"), ("p999", "--")):
            prefix = f"open_loop.{system}_"
            found = sorted(
                (int(name.removeprefix(prefix).removesuffix(f".{percentile}")), series.median)
                for name, series in results.items()
                if name.startswith(prefix) and name.endswith(f".{percentile}")
            )
            if found:
                drawn = True
                words = f"{system} {percentile.replace('p999', 'p99.9')}"
                axes.plot(*zip(*found, strict=True), style, marker="o", color=colour, label=words)
    if drawn:
        axes.set_yscale("log")
        axes.set_xlabel("% of the engine's maximum; echo server at the same rates")
        axes.set_ylabel("milliseconds since a request was due")
        axes.legend()
    return drawn


def _scale(axes: "Axes", results: Results) -> bool:
    """Time of an order by the number of orders in its sale."""
    prefix, ending = "scale.order_at_", ".time"
    found = sorted(
        (int(name.removeprefix(prefix).removesuffix(ending)), series.median)
        for name, series in results.items()
        if name.startswith(prefix) and name.endswith(ending)
    )
    if not found:
        return False
    axes.plot(*zip(*found, strict=True), marker="o", color=ENGINE_COLOUR)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("orders in the sale")
    axes.set_ylabel("microseconds for one more, in batches of 256")
    return True


def _processor(axes: "Axes", results: Results) -> bool:
    """Processor seconds of a million answers, by kind of process."""
    rows = [
        (f"engine_g1.accepted_c{MAIN_CONNECTIONS}", "accepted, into the ledger"),
        (f"engine_g1.sold_out_c{MAIN_CONNECTIONS}", "sold out"),
        *((f"baseline_{one.name}.accepted_c{MAIN_CONNECTIONS}", one.name.replace("_", " ")) for one in BASELINES),
    ]
    kinds = (*SERVERS, "server", GENERATOR)
    found = [
        (words, [results.median(f"{name}.cpu_of_a_million.{kind}") or 0.0 for kind in kinds])
        for name, words in rows
        if results.series(f"{name}.rate")
    ]
    if not found:
        return False
    places = range(len(found), 0, -1)
    left = [0.0] * len(found)
    for at, kind in enumerate(kinds):
        widths = [seconds[at] for _, seconds in found]
        if any(widths):
            axes.barh(places, widths, left=left, label=kind)
            left = [before + width for before, width in zip(left, widths, strict=True)]
    axes.set_yticks(places, [words for words, _ in found])
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set_xlabel("processor seconds of a million answers")
    axes.legend(fontsize=8)
    return True
