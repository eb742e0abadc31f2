"""`python -m loadtest.bench`: see loadtest/README.md."""

import argparse
import resource
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from loadtest.bench.child_processes import BenchFailed
from loadtest.bench.report import WIDTH_MIN
from loadtest.bench.run import run_bench, station_names
from loadtest.bench.station import FULL, QUICK

RESULTS = Path(__file__).resolve().parents[1] / "results"
CHECKOUT = Path(__file__).resolve().parents[2]
DESCRIPTORS = 16_384


def main() -> int:
    """The command line. Exit status 0: every run was clean; 1: one was not; 2: it could not begin."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short round of everything, in about two minutes")
    parser.add_argument("--rounds", type=int, help="rounds instead of five (one with --quick)")
    parser.add_argument(
        "--only", nargs="+", default=[], choices=station_names(), metavar="NAME", help="only these: %(choices)s"
    )
    parser.add_argument("--out", type=Path, help="where bench.json and the pictures go (loadtest/results)")
    parser.add_argument("--scratch", type=Path, default=CHECKOUT / "var", help="a directory on the disk to be measured")
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    if options.rounds:
        effort = replace(effort, rounds=options.rounds)
    _allow_descriptors()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    console = Console(highlight=False)
    if console.width < WIDTH_MIN:
        console = Console(highlight=False, width=WIDTH_MIN)
    options.scratch.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="bench-", dir=options.scratch))
    scratch.chmod(0o755)  # PostgreSQL, which will not run as root, must be able to get to its own directory
    out = options.out or (RESULTS / "quick" if options.quick or options.only else RESULTS)
    try:
        return run_bench(effort, options.only, out.resolve(), scratch, console)
    except BenchFailed as failure:
        console.print(f"bench: {failure}")
        return 2


def _allow_descriptors() -> None:
    """Two thousand connections need more than the usual thousand, here and in every process that is started."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    raise SystemExit(main())
