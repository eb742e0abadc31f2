"""Named points at which fault tests end the worker, as a power cut would: `MIAOCANG_CRASH_AT=before_commit:3`."""

import os
import signal

from engine.ledger.persister import Passing

POINTS = ("before_read", "after_read", "in_transaction", "before_commit", "after_commit", "before_trim", "after_trim")


class CrashAt(Passing):
    """Kills this process when the point is passed for the n-th time."""

    def __init__(self, wanted: str) -> None:
        """`wanted`: `point` or `point:n`. Raises ValueError where there is no such point."""
        self._point, _, times = wanted.partition(":")
        self._left = int(times or 1)
        if self._point not in POINTS:
            raise ValueError(f"there is no point {self._point!r}; there are {', '.join(POINTS)}")

    def at(self, point: str) -> None:
        """The point was reached."""
        if point != self._point:
            return
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def passing(crash_at: str | None) -> Passing:
    """What the persister tells its points to: nobody, but in a fault test."""
    return Passing() if crash_at is None else CrashAt(crash_at)
