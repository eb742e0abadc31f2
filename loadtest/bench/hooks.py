"""Benches that stand alone and are run with `--json`: the persister, a restart, an expiry of many holds at once."""

import json
import subprocess
import sys
from typing import Any

from loadtest.bench.child_processes import CHECKOUT, BenchFailed
from loadtest.bench.results import Results
from loadtest.bench.station import QUICK, Bench

SECONDS_MAX = 600.0
UNITS = {"seconds": "s", "per_second": "/s", "bytes": "bytes", "ms": "ms", "share": "share"}
ARGUMENTS = {"persister": ("--orders", "30000")}
QUICK_ARGUMENTS = {"persister": ("--orders", "10000"), "restart": ("--rounds", "1"), "expiry": ("--holds", "10000")}


class Hook:
    """One of them. What it prints as JSON becomes measures under its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def visit(self, bench: Bench) -> None:
        """Run it once. Exit status 1 says that a bound of its own was not kept, and is no failure of the run."""
        bench.say(f"{self.name}: python -m loadtest.bench.{self.name}")
        arguments = (QUICK_ARGUMENTS if bench.effort == QUICK else ARGUMENTS).get(self.name, ())
        try:
            done = subprocess.run(
                [sys.executable, "-m", f"loadtest.bench.{self.name}", "--json", *arguments],
                cwd=CHECKOUT,
                capture_output=True,
                timeout=SECONDS_MAX,
                check=False,
            )
            found = json.loads(done.stdout)
        except (subprocess.SubprocessError, ValueError) as error:
            raise BenchFailed(f"{self.name} gave no result: {error}") from error
        if done.returncode not in {0, 1}:
            raise BenchFailed(f"{self.name} ended with {done.returncode}: {done.stderr.decode()[-1000:]}")
        note_all(bench.results, self.name, found)


def note_all(results: Results, name: str, found: Any) -> None:
    """Every figure in a document.

    `{"median": …, "least": …, "most": …}` is one figure with its spread; things in a list tell their own
    `kind` or `name`.
    """
    if isinstance(found, dict) and "median" in found:
        median = float(found["median"])
        spread = float(found.get("least", median)), float(found.get("most", median))
        results.add_summary(name, median, spread, unit_of(name))
    elif isinstance(found, dict):
        for key, value in found.items():
            note_all(results, f"{name}.{key}", value)
    elif isinstance(found, list):
        for value in found:
            if isinstance(value, dict) and (kind := value.get("kind") or value.get("name")):
                note_all(results, f"{name}.{kind.replace(',', '').replace(' ', '_')}", value)
    elif isinstance(found, int | float) and not isinstance(found, bool):
        results.add(name, float(found), unit_of(name))


def unit_of(name: str) -> str:
    """By the last words of a name, as all names here end in their unit."""
    return next((unit for ending, unit in UNITS.items() if name.endswith(ending)), "")
