"""Processor time by process, from /proc."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int, with_ended_children: bool = False) -> float:
    """User and system seconds of a process so far, to the kernel's tick; 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    last = 15 if with_ended_children else 13  # utime, stime, cutime, cstime are fields 14 to 17, counted from 1
    return sum(int(ticks) for ticks in fields[11:last]) / TICKS_A_SECOND


def children_of(pid: int) -> list[int]:
    """The children that a process has now."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):  # it has ended: before, or while it was looked at
        return []
    found = []
    for thread in threads:
        try:
            found += [int(child) for child in (thread / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def tree_of(pid: int) -> list[int]:
    """A process and all that come from it."""
    return [pid, *(each for child in children_of(pid) for each in tree_of(child))]


def kinds_seconds(processes: Mapping[str, Iterable[int]]) -> dict[str, float]:
    """Seconds by kind of process, those of their children included: PostgreSQL's backends are children of one."""
    return {
        kind: sum(process_seconds(each, with_ended_children=True) for pid in pids for each in tree_of(pid))
        for kind, pids in processes.items()
    }


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What each kind has spent in between."""
    return {kind: after[kind] - before[kind] for kind in after if kind in before}
