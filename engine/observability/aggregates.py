"""Metrics for where a microsecond counts: plain integers in the process, handed to prometheus-client now and then.

An `inc()` or `observe()` of prometheus-client takes a lock and, in multiprocess mode, writes into a mapped file: a
microsecond or more, several times a request. A buffer here costs a tenth of that. It belongs to one thread, the event
loop's, which flushes it as well. What is in it when the process is killed is lost: it is for metrics alone.
"""

import asyncio
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol
from weakref import WeakSet

from prometheus_client import Counter, Histogram

FLUSH_INTERVAL_SECONDS = 0.25
"""How far the metrics of a process may lag; its own /metrics flushes them first."""


class Buffer(Protocol):
    """Something that holds observations back."""

    def flush(self) -> None:
        """Hand over what was held back."""
        ...


_buffers: "WeakSet[Buffer]" = WeakSet()


class CountBuffer:
    """Counts of one counter by its labels' values."""

    __slots__ = ("__weakref__", "_counter", "counts")

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self.counts: defaultdict[tuple[str, ...], int] = defaultdict(int)
        """By the labels' values, in their order; `()` where there are none. `counts[labels] += 1` is the cheap way to
        count, and the dictionary stays the same object, so that it may be kept at hand."""
        _buffers.add(self)

    def flush(self) -> None:
        """Hand over what was counted."""
        counts = self.counts
        while counts:
            labels, count = counts.popitem()
            (self._counter.labels(*labels) if labels else self._counter).inc(count)


class HistogramBuffer:
    """Observations of one histogram (of one child, where it has labels), sorted into its buckets all at once."""

    __slots__ = ("__weakref__", "_bounds", "_histogram", "_values", "observe")

    def __init__(self, histogram: Histogram) -> None:
        self._bounds: list[float] = list(histogram._upper_bounds)
        self._histogram = histogram
        self._values: list[float] = []
        self.observe: Callable[[float], None] = self._values.append
        """Count one value, as the histogram itself would. The list stays the same, and the function may be kept."""
        _buffers.add(self)

    def flush(self) -> None:
        """Hand over what was observed.

        prometheus-client has no way to observe many values at once, so this does what its `observe` does, with the sums
        of many. A test compares the two, in both of its modes.
        """
        if not self._values:
            return
        values = sorted(self._values)
        self._values.clear()
        self._histogram._sum.inc(sum(values))
        below = 0
        for position, bound in enumerate(self._bounds):
            up_to = bisect_right(values, bound)
            if up_to > below:
                self._histogram._buckets[position].inc(up_to - below)
                below = up_to


def flush_buffers() -> None:
    """Hand over what all buffers of this process hold; to be called in the thread that fills them."""
    for buffer in list(_buffers):
        buffer.flush()


@asynccontextmanager
async def buffers_flushed(interval_seconds: float = FLUSH_INTERVAL_SECONDS) -> AsyncIterator[None]:
    """Flush this process' buffers from time to time, and once more at the end."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def flush_and_go_on() -> None:
        nonlocal timer
        timer = loop.call_later(interval_seconds, flush_and_go_on)
        flush_buffers()

    timer = loop.call_later(interval_seconds, flush_and_go_on)
    try:
        yield
    finally:
        timer.cancel()
        flush_buffers()
