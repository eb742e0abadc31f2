"""Loops that run beside each other: one that fails is logged, counted and started again, and harms no other."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from engine.observability import metrics

FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
HEALTHY_AFTER_SECONDS = 30.0
"""A loop that ran for so long before it failed starts again after the shortest pause."""

log = structlog.get_logger(__name__)


class BackOff:
    """Pauses that double up to a bound, jittered so that several processes do not come back in step."""

    def __init__(
        self, first_seconds: float = FIRST_PAUSE_SECONDS, longest_seconds: float = LONGEST_PAUSE_SECONDS
    ) -> None:
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._next_seconds = first_seconds

    def reset(self) -> None:
        """It went well again."""
        self._next_seconds = self._first_seconds

    def next_seconds(self) -> float:
        """How long to pause this time."""
        seconds = self._next_seconds * random.uniform(0.5, 1.0)  # noqa: S311 - jitter needs no cryptography
        self._next_seconds = min(self._next_seconds * 2, self._longest_seconds)
        return seconds


async def keep_running(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    """Run a loop for good: what it raises is logged and counted, and after a pause it starts again."""
    back_off = BackOff()
    clock = asyncio.get_running_loop()
    while True:
        started_at = clock.time()
        try:
            return await loop()
        except Exception:  # whatever it is, the other loops go on, and this one does again
            log.exception("loop_failed", loop=name)
            metrics.LOOP_FAILURES.labels(loop=name).inc()
        if clock.time() - started_at > HEALTHY_AFTER_SECONDS:
            back_off.reset()
        await asyncio.sleep(back_off.next_seconds())
