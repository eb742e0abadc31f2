"""One run of the benchmark: stations visited round by round, the order turning, then what is measured once."""

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from loadtest.baselines.demonstrations import demonstrate
from loadtest.bench.bars import make_bars
from loadtest.bench.baseline_station import BaselineStation
from loadtest.bench.baseline_under_test import BASELINES
from loadtest.bench.child_processes import BenchFailed
from loadtest.bench.echo_station import EchoStation
from loadtest.bench.engine_station import EngineStation
from loadtest.bench.hooks import Hook
from loadtest.bench.ledger_station import LedgerStation
from loadtest.bench.machine import describe_machine, warnings_about
from loadtest.bench.open_loop_station import OpenLoopStation
from loadtest.bench.plots import draw_plots
from loadtest.bench.report import print_report
from loadtest.bench.results import Results
from loadtest.bench.scale import ScaleStation
from loadtest.bench.script_alone import ScriptStation
from loadtest.bench.station import FULL, Bench, Effort, Station
from loadtest.bench.wrk_run import require_wrk

HOOKS = ("restart", "expiry")


class DemonstrationStation:
    """What the baselines lose."""

    name = "demonstrations"

    def visit(self, bench: Bench) -> None:
        """Once. Raises BenchFailed."""
        found = demonstrate(bench.scratch, bench.effort.demonstration_seconds, bench.say)
        bench.results.demonstrations = [one.document() for one in found]


def closed_loop_stations(effort: Effort) -> list[Station]:
    """Visited in turns, so that what is compared was measured within minutes of each other."""
    return [
        *(EngineStation(gateways) for gateways in effort.gateways),
        *(BaselineStation(baseline) for baseline in BASELINES),
        EchoStation(),
        ScriptStation(),
    ]


def paced_stations() -> list[Station]:
    """Visited in turns once the maximum is known."""
    return [OpenLoopStation(), LedgerStation(), Hook("persister")]


def single_stations() -> list[Station]:
    """Visited once: they are about amounts, or have rounds of their own."""
    return [ScaleStation(), *(Hook(name) for name in HOOKS), DemonstrationStation()]


def station_names() -> list[str]:
    """What `--only` may name."""
    return [station.name for station in (*closed_loop_stations(FULL), *paced_stations(), *single_stations())]


def run_bench(effort: Effort, only: Sequence[str], out: Path, scratch: Path, console: Console) -> int:
    """Run, report and write; exit status 0 where every run was clean, whether the bars are met or not."""
    started_at = time.monotonic()

    def say(line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - started_at), 60)
        console.print(Text(f"{minutes:3}:{seconds:02}  {line}", style="dim"))

    require_wrk()
    scratch.mkdir(parents=True, exist_ok=True)
    bench = Bench(effort, scratch, Results(), say)
    bench.results.machine = describe_machine(scratch)
    for warning in warnings_about(bench.results.machine):
        bench.results.remark(warning)
    try:
        _visit_in_turns(bench, _chosen(closed_loop_stations(effort), only), effort.rounds)
        _visit_in_turns(bench, _chosen(paced_stations(), only), effort.rounds)
        _visit_in_turns(bench, _chosen(single_stations(), only), 1)
    except KeyboardInterrupt:
        bench.results.failures.append("interrupted: what was measured until then is given")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    bars = make_bars(bench.results)
    _write(bench.results, out, console)
    print_report(console, bench.results, bars)
    minutes = (time.monotonic() - started_at) / 60
    console.print(f"{minutes:.1f} minutes; {out / 'bench.json'}")
    return 1 if bench.results.failures else 0


def _chosen(stations: Iterable[Station], only: Sequence[str]) -> list[Station]:
    return [station for station in stations if not only or station.name in only]


def _visit_in_turns(bench: Bench, stations: Sequence[Station], rounds: int) -> None:
    """Each round begins with another station, so that none is always the first, or behind the same one."""
    for number in range(rounds):
        bench.is_last_round = number == rounds - 1
        for place in range(len(stations)):
            station = stations[(place + number) % len(stations)]
            bench.say(f"round {number + 1} of {rounds}: {station.name}")
            try:
                station.visit(bench)
            except BenchFailed as failure:
                bench.results.failures.append(f"round {number + 1}, {station.name}: {failure}")
                bench.say(f"FAILED: {failure}")


def _write(results: Results, out: Path, console: Console) -> None:
    out.mkdir(parents=True, exist_ok=True)
    document = results.document(make_bars(results))
    (out / "bench.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    try:
        for path in draw_plots(results, out):
            console.print(f"drawn: {path}", soft_wrap=True)
    except ImportError:
        console.print("no pictures: matplotlib is missing (pip install 'miaocang[bench]')")
