"""Tests that go on beside each other, and one that wants the machine to itself."""

import fcntl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.turns import Turns

WAIT_SECONDS_MAX = 10.0


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[list[Turns]]:
    """Each as a process has it: locks are between open files, whoever opened them."""
    with ExitStack() as stack:
        yield [stack.enter_context(closing(Turns(tmp_path))) for _ in range(3)]


class OneTest(threading.Thread):
    """One test in a process of the run, which lasts until it is told to end."""

    def __init__(self, turns: Turns, *, alone: bool) -> None:
        super().__init__(daemon=True)
        self.has_begun = threading.Event()
        self.may_end = threading.Event()
        self._turns, self._alone = turns, alone
        self.start()

    def run(self) -> None:
        with self._turns.taken(alone=self._alone):
            self.has_begun.set()
            self.may_end.wait(WAIT_SECONDS_MAX)


def wait_until_the_gate_is_closed(directory: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    with (directory / "gate.lock").open("w") as gate:
        while True:
            try:
                fcntl.flock(gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            fcntl.flock(gate, fcntl.LOCK_UN)
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_ordinary_tests_go_on_beside_each_other(processes: list[Turns]) -> None:
    tests = [OneTest(turns, alone=False) for turns in processes]
    assert all(test.has_begun.wait(WAIT_SECONDS_MAX) for test in tests)
    for test in tests:
        test.may_end.set()
        test.join()


def test_who_wants_to_be_alone_waits_for_the_others_and_is_not_passed_by(
    processes: list[Turns], tmp_path: Path
) -> None:
    before = OneTest(processes[0], alone=False)
    assert before.has_begun.wait(WAIT_SECONDS_MAX)
    alone = OneTest(processes[1], alone=True)
    wait_until_the_gate_is_closed(tmp_path)
    after = OneTest(processes[2], alone=False)
    assert not after.has_begun.wait(0.1), "there would always be another one"
    assert not alone.has_begun.is_set()
    before.may_end.set()
    assert alone.has_begun.wait(WAIT_SECONDS_MAX)
    assert not after.has_begun.wait(0.1)
    alone.may_end.set()
    assert after.has_begun.wait(WAIT_SECONDS_MAX)
    after.may_end.set()
    for test in (before, alone, after):
        test.join()
