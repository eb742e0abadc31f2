"""`python -m loadtest.live`: people in a live, and whether they were told the truth."""

import argparse
import asyncio
import importlib.util
import sys
from pathlib import Path

from loadtest.live.run import ROOT, Plan, run
from loadtest.live.timetable import MINUTES, SHAPES

USERS = 300
USERS_MIN = 5
RESULTS = ROOT / "loadtest" / "results"


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.live", description=__doc__)
    lengths = ", ".join(f"{minutes:g} for {shape}" for shape, minutes in MINUTES.items())
    parser.add_argument("--shape", choices=list(SHAPES), default="burst", help="one link, or three hours of eight")
    parser.add_argument("--minutes", type=float, help=f"play the whole shape within this time (default: {lengths})")
    parser.add_argument("--users", type=int, default=USERS, help=f"the most people at one time (default: {USERS})")
    parser.add_argument("--endpoints", type=Path, help="DIR/endpoints.json of an engine that runs already")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the report, the CSV and the book go")
    arguments = parser.parse_args()
    if arguments.users < USERS_MIN:
        parser.error(f"--users must be at least {USERS_MIN}")
    if arguments.minutes is not None and arguments.minutes <= 0:
        parser.error("--minutes must be more than 0")
    return arguments


def main() -> int:
    """Run it; the exit status."""
    arguments = read_arguments()
    if importlib.util.find_spec("locust") is None:
        print("Locust is not installed: pip install -e '.[embedded,load]'", file=sys.stderr)
        return 1
    plan = Plan(
        shape=arguments.shape,
        minutes=MINUTES[arguments.shape] if arguments.minutes is None else arguments.minutes,
        people_max=arguments.users,
        results=arguments.results.absolute(),
        endpoints_path=None if arguments.endpoints is None else arguments.endpoints.absolute(),
    )
    return asyncio.run(run(plan))


if __name__ == "__main__":
    sys.exit(main())
