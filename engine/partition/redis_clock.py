"""Redis' clock as seen from here: what `not_after` is counted by."""

import time

CLOCK_JUMP_MS = 1000
"""A clock that runs ahead of ours by more than this has jumped: nothing may expire by it until the guard has looked."""


class RedisClock:
    """Estimates Redis' time by the monotonic clock of this process and the times in Redis' answers."""

    def __init__(self) -> None:
        self._offset_ms: float | None = None

    @property
    def known(self) -> bool:
        """Whether an answer of Redis has been seen."""
        return self._offset_ms is not None

    def now_ms(self) -> int:
        """The time that it should be at Redis now. Only once it is known."""
        assert self._offset_ms is not None, "the clock has not been set"
        return int(time.monotonic() * 1000 + self._offset_ms)

    def observe(self, server_ms: int, sent_at: float) -> bool:
        """Learn from an answer to what was sent at `sent_at` (monotonic seconds). False if the clock jumped ahead.

        The answer was stamped between then and now. A jump is not learned from: see `adopt`.
        """
        received_ms = time.monotonic() * 1000
        if self._offset_ms is None:
            self.adopt(server_ms, sent_at)
            return True
        latest, earliest = server_ms - sent_at * 1000, server_ms - received_ms
        if earliest > self._offset_ms + CLOCK_JUMP_MS:
            return False
        # only as far as the answer proves the estimate wrong, so that a slow answer does not disturb it
        self._offset_ms = min(max(self._offset_ms, earliest), latest)
        return True

    def adopt(self, server_ms: int, sent_at: float) -> None:
        """Take Redis' time as it is, whatever it was before.

        As if it had answered at once: where it did not, the estimate runs ahead, which the next answer mends, while one
        that ran behind would make every later answer look like a jump.
        """
        self._offset_ms = server_ms - sent_at * 1000
