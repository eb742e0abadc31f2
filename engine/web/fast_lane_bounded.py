"""What every connection on the fast lane has: its time, its room for what comes too early, and its end."""

import asyncio
from abc import ABC, abstractmethod
from enum import Enum
from time import perf_counter
from typing import TYPE_CHECKING, cast

from engine.observability.metrics import BOUND_REACHED
from engine.web.fast_lane_head import NO_FRAME

if TYPE_CHECKING:
    from engine.web.fast_lane import Lane


class Admitted(Enum):
    """What becomes of a new connection."""

    TAKEN = "taken"
    TURNED_AWAY = "turned away"
    """It gets its 503 when it asks."""
    REFUSED = "refused"
    """There are too many even of those, or it is all over: it is reset."""


# What a connection is at; plain integers, because they are compared for each request. Requests are taken up to BODY.
IDLE, HEAD, BODY, BUSY, TURNED_AWAY, LINGERING, CLOSING = range(7)
_BOUNDS = {
    IDLE: "lane_idle_seconds",
    HEAD: "lane_head_seconds",
    BODY: "lane_body_seconds",
    TURNED_AWAY: "lane_linger_seconds",
    LINGERING: "lane_linger_seconds",
    CLOSING: "lane_write_seconds",
}
"""The bound that each but BUSY has; a handler's own bounds limit that."""


class BoundedConnection(asyncio.Protocol, ABC):
    """A connection within its bounds; what is done with the bytes is `LaneConnection`'s."""

    __slots__ = (
        "_data", "_deadline", "_frame", "_has_ended", "_is_reading_paused", "_is_taking", "_later", "_later_bytes",
        "_need_bytes", "_phase", "_position", "_transport", "_write_deadline", "lane",
    )  # fmt: skip

    def __init__(self, lane: "Lane") -> None:
        self.lane = lane
        self._transport: asyncio.Transport | None = None
        """None before there is one, when it has gone, and when it is another protocol's."""
        self._phase = IDLE
        self._deadline = 0.0
        """Until when it may stay in its phase, by `time.perf_counter`."""
        self._frame = NO_FRAME
        """What the next head is most likely to look like."""
        self._data = b""
        self._position = 0
        """How much of the data has been taken."""
        self._later: list[bytes] = []
        """What has come since, to be joined with the data only when there is a use for it."""
        self._later_bytes = 0
        self._need_bytes = 0
        """How many bytes there must be before it is worth looking at them again."""
        self._write_deadline = 0.0
        """By when the other side must have read some of what was written; 0 while it keeps up."""
        self._is_taking = False
        self._is_reading_paused = False
        self._has_ended = False
        """Whether the other side will send no more."""

    # --- what the event loop calls -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A new connection: taken, or, if it is one too many, turned away."""
        self._transport = cast(asyncio.Transport, transport)
        admission = self.lane.admit(self)
        if admission is Admitted.TAKEN:
            self._enter(IDLE, self.lane.bounds.idle_seconds_max)
        elif admission is Admitted.TURNED_AWAY:
            self._enter(TURNED_AWAY, self.lane.bounds.linger_seconds_max)
        else:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The connection has gone. A request in flight goes on: its order may have been made already."""
        self._transport = None
        self._forget_data()
        self.lane.forget(self)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._position == len(self._data) and not self._later_bytes:
            self._data, self._position = data, 0
        else:
            self._later.append(data)
            self._later_bytes += len(data)
        if self._phase >= BUSY or self._write_deadline:
            self._keep()
        elif self._later_bytes == 0 or self._kept_bytes() >= self._need_bytes:
            self._advance()

    def eof_received(self) -> bool:
        """The other side will send no more; what it has asked is answered all the same."""
        self._has_ended = True
        if self._phase > BUSY:
            return False
        if self._phase == BUSY or self._write_deadline:
            return True
        if self._kept_bytes():
            self._hand_over("end")
            return True
        return False

    def pause_writing(self) -> None:
        """The other side does not read what it is sent: no more of its requests are taken until it does."""
        self._write_deadline = perf_counter() + self.lane.bounds.write_seconds_max

    def resume_writing(self) -> None:
        """It has caught up."""
        self._write_deadline = 0.0
        self._resume_soon()

    # --- for LaneConnection to do --------------------------------------------------------------------------------

    @abstractmethod
    def _advance(self) -> None:
        """Take requests until one is in flight, or no whole one is there."""

    @abstractmethod
    def _refuse_slow_body(self, now: float) -> None:
        """Answer the request whose body has not come in time, and end the connection."""

    @property
    def is_awaiting_body(self) -> bool:
        """Whether a request has begun to come that will be answered if the rest of it does."""
        return self._phase == BODY

    # --- time and room -------------------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """See whether it has used up its time."""
        transport = self._transport
        if transport is None:
            return
        if self._write_deadline and now > self._write_deadline:
            BOUND_REACHED.labels("lane_write_seconds").inc()
            transport.abort()
        elif self._phase != BUSY and now > self._deadline:
            BOUND_REACHED.labels(_BOUNDS[self._phase]).inc()
            if self._phase == BODY:
                self._refuse_slow_body(now)
            elif self._phase in (LINGERING, CLOSING):
                transport.abort()
            else:
                self._close()

    def close_if_idle(self) -> None:
        """End it, unless it is in the middle of something."""
        if self._phase in (IDLE, TURNED_AWAY):
            self._close()

    def abort(self) -> None:
        """End it, whatever it is in the middle of."""
        if self._transport is not None:
            self._transport.abort()

    def _enter(self, phase: int, seconds_max: float) -> None:
        self._phase = phase
        self._deadline = perf_counter() + seconds_max

    def _kept_bytes(self) -> int:
        return len(self._data) - self._position + self._later_bytes

    def _keep(self) -> None:
        """Keep what has come for later, or throw it away; stop reading while more has come than there is room for."""
        if self._phase > BUSY:
            self._forget_data()
            if self._phase == TURNED_AWAY:
                self._turn_away()
            return
        transport, bound = self._transport, self.lane.buffered_bytes_max
        if transport is None:
            return
        if self._kept_bytes() > bound and not self._is_reading_paused:
            self._is_reading_paused = True
            BOUND_REACHED.labels("lane_buffered_bytes").inc()
            transport.pause_reading()
        elif self._is_reading_paused and self._kept_bytes() <= bound // 2:
            self._is_reading_paused = False
            transport.resume_reading()

    def _settle(self) -> None:
        """After requests were taken: see to what is left, and to the end."""
        self._keep()
        if self._has_ended and self._phase < BUSY and not self._write_deadline and self._transport is not None:
            if self._kept_bytes():
                self._hand_over("end")
            else:
                self._close()

    def _resume_soon(self) -> None:
        """Go on with what has come meanwhile; not at once, because whoever answers is in the middle of something."""
        self.lane.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._transport is not None and self._phase < BUSY and not self._write_deadline:
            self._advance()

    def _turn_away(self) -> None:
        assert self._transport is not None
        self._transport.write(self.lane.turning_away())
        self._linger()

    def _linger(self) -> None:
        """End it after an answer that its sender may not be ready to read yet.

        Closing with bytes unread makes the system reset the connection, and the answer is lost with it.
        """
        if self._transport is None:
            return
        self._forget_data()
        if self._has_ended:
            self._close()
            return
        self._enter(LINGERING, self.lane.bounds.linger_seconds_max)
        self._transport.write_eof()
        self._keep_reading()

    def _close(self) -> None:
        """End it once everything is written."""
        self._forget_data()
        if self._transport is not None:
            self._enter(CLOSING, self.lane.bounds.write_seconds_max)
            self._transport.close()

    def _keep_reading(self) -> None:
        if self._is_reading_paused and self._transport is not None:
            self._is_reading_paused = False
            self._transport.resume_reading()

    def _forget_data(self) -> None:
        self._data, self._position, self._need_bytes = b"", 0, 0
        self._later.clear()
        self._later_bytes = 0

    def _hand_over(self, reason: str) -> bool:
        """Give the connection to the general protocol, with all that has come since the last request that was taken."""
        transport, self._transport = self._transport, None
        assert transport is not None
        data = b"".join((self._data[self._position :], *self._later))
        self._forget_data()
        self.lane.forget(self)
        if self._is_reading_paused:
            transport.resume_reading()
        self.lane.hand_over(transport, data, self._has_ended, reason)
        return False
