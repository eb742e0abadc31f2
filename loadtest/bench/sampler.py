"""A few requests a second beside a generator, each answer read whole: the generators look at statuses alone."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from loadtest.bench.child_processes import BenchFailed

PAUSE_SECONDS = 0.04


class Sampler:
    """Within it, `check` is called again and again with 1, 2, 3 …; it raises BenchFailed where an answer is wrong."""

    def __init__(self, check: Callable[[int], None]) -> None:
        self._check = check
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._failure: BenchFailed | None = None
        self.count = 0
        """Checks that were made."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is None and self._failure is not None:
            raise self._failure
        if error is None and self.count == 0:
            raise BenchFailed("no answer could be sampled")

    def _run(self) -> None:
        while not self._ended.wait(PAUSE_SECONDS):
            try:
                self._check(self.count + 1)
            except BenchFailed as failure:
                self._failure = failure
                return
            self.count += 1
