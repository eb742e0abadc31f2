"""Turns between the processes of one test run: most tests go on beside others, some want the machine to themselves."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Turns:
    """A lock that ordinary tests hold together, and a test that is marked `alone` holds alone.

    Who wants to be alone closes the gate first: otherwise the others would pass it by for as long as there are any.
    No wait has a bound of its own, for every test ends at its time limit, and with a process that dies its locks go.
    """

    def __init__(self, directory: Path) -> None:
        """`directory` is the same for all processes of the run."""
        self._gate = (directory / "gate.lock").open("w")
        self._machine = (directory / "machine.lock").open("w")

    @contextmanager
    def taken(self, *, alone: bool) -> Iterator[None]:
        """Wait for one's turn, and have it for as long as this lasts."""
        how = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        fcntl.flock(self._gate, how)
        try:
            fcntl.flock(self._machine, how)
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._machine, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the files."""
        self._gate.close()
        self._machine.close()
