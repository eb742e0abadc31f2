"""One connection on the fast lane: takes plain requests one after the other, and hands over whatever is not plain.

A request is taken only when it is there as a whole, and the next one only when it has been answered: answers keep the
order of their requests, and what a connection can make us keep is bounded. Where each message ends the connection
knows by itself (the empty line, and Content-Length), so that at a hand-over not a byte is lost or read twice.
"""

from time import perf_counter

import structlog

from engine.web.answers import Answer
from engine.web.fast_lane_answers import rendered
from engine.web.fast_lane_bounded import BODY, BUSY, HEAD, IDLE, BoundedConnection
from engine.web.fast_lane_head import (
    HEAD_BYTES_MAX,
    KEY_LINE,
    KEY_LINE_BYTES,
    ORDER_ID_BEFORE,
    ORDER_ID_START,
    Head,
    Lines,
    Unread,
    WholeHead,
    is_plain_key,
    is_plain_order_id,
    is_plain_value,
    may_become_plain,
)
from engine.web.fast_lane_request import HotRequest
from engine.web.headers import REQUEST_ID_LENGTH_MAX
from engine.web.problems import Code, Problem

_log = structlog.get_logger(__name__)


class LaneConnection(BoundedConnection):
    """The lane's protocol."""

    __slots__ = ()

    # --- taking requests -----------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Bytes have come.

        This is where the time goes, so the straight case is written out, and nothing in it is done once for each
        header: one whole hot request and no more, its head the same as the last one's but for its own value, which is
        its Idempotency-Key or its order's id.
        """
        frame = self._frame
        if self._phase == IDLE and not self._data and not self._write_deadline and data.startswith(frame.straight):
            own_end = data.find(frame.first_end, frame.own_start)
            if data.startswith(frame.after, own_end):
                head, body_start, now = frame.head, own_end + frame.after_bytes, perf_counter()
                own = data[frame.own_start : own_end].decode("latin-1")
                is_whole = body_start + head.body_bytes == len(data)
                if is_whole and frame.is_plain_own(own) and now < head.authorised_until:
                    body = data[body_start:]
                    self._answer_hot(head, HotRequest(self, head, head.request_id, head.sale_id, own, body, now))
                    return
        super().data_received(data)

    def _advance(self) -> None:
        """Take requests until one is in flight, or no whole one is there."""
        if self._later_bytes:
            self._data = b"".join((self._data[self._position :], *self._later))
            self._position = 0
            self._later.clear()
            self._later_bytes = 0
        self._is_taking = True
        while self._position < len(self._data) and self._take():
            if self._phase >= BUSY or self._write_deadline:
                break
        self._is_taking = False
        if self._position == len(self._data):
            self._data, self._position = b"", 0
        if self._has_ended or self._is_reading_paused or self._data:
            self._settle()

    def _take(self) -> bool:
        """Take one request. False if there is no whole one, or if the connection is not the lane's any more."""
        if self._frame.has_request_id and self._data.startswith(self._frame.before, self._position):
            return self._take_framed_with_id()
        return self._take_unframed()

    def _take_framed_with_id(self) -> bool:
        """The same for a caller that sends an X-Request-Id, in a line before or behind the other value."""
        data, frame = self._data, self._frame
        first_start = self._position + len(frame.before)
        first_end = data.find(frame.first_end, first_start)
        if data.startswith(frame.between, first_end):
            second_start = first_end + len(frame.between)
            second_end = data.find(b"\r\n", second_start)
            if data.startswith(frame.after, second_end):
                own_value, request_id = data[first_start:first_end], data[second_start:second_end]
                if not frame.is_own_first:
                    own_value, request_id = request_id, own_value
                head, own, now = frame.head, own_value.decode("latin-1"), perf_counter()
                is_plain = frame.is_plain_own(own) and is_plain_value(request_id)
                if is_plain and len(request_id) <= REQUEST_ID_LENGTH_MAX and now < head.authorised_until:
                    return self._take_hot(head, second_end + len(frame.after), own, request_id, now)
        return self._take_unframed()

    def _take_unframed(self) -> bool:
        """Take a request whose head is not framed like the last one's: look it up among those read before."""
        data, start = self._data, self._position
        end = data.find(b"\r\n\r\n", start)
        if end < 0:
            return self._wait_for_head()
        if data.startswith(ORDER_ID_BEFORE, start):
            piece_start = own_start = start + ORDER_ID_START
            own_end, is_plain = data.find(b"/", own_start, end), is_plain_order_id
        else:
            piece_start = data.find(KEY_LINE, start, end)
            own_start = piece_start + KEY_LINE_BYTES
            own_end, is_plain = data.find(b"\r\n", own_start, end + 2), is_plain_key
        is_there = piece_start >= 0 and own_end >= 0
        head = self.lane.remembered.get(data[start:piece_start] + data[own_end:end]) if is_there else None
        if head is None or head.frame is None or head.frame.has_request_id:
            return self._take_slowly(end)
        own, now = data[own_start:own_end].decode("latin-1"), perf_counter()
        if not is_plain(own) or not self.lane.authorises(head, now):
            return self._take_slowly(end)
        self._frame = head.frame
        return self._take_hot(head, end + 4, own, head.request_id, now)

    def _take_slowly(self, end: int) -> bool:
        """Take a request whose head must be looked at: for the hot handler, for the interface, or not at all."""
        if end - self._position > HEAD_BYTES_MAX:
            return self._hand_over("long")
        lines = Lines.of(self._data[self._position : end])
        head = self.lane.remembered.get(lines.rest) or self.lane.heads.read(lines.rest, lines.order_id_text)
        if isinstance(head, Unread):
            return self._hand_over(head.reason)
        if head.repeats(lines):
            return self._hand_over("repeated")
        own, now = head.own_of(lines), perf_counter()
        if own and self.lane.authorises(head, now):
            self._frame = head.framed(lines)
            return self._take_hot(head, end + 4, own, head.request_id_with(lines.request_id_text), now)
        body_start, body_end = end + 4, end + 4 + head.body_bytes
        if body_end > len(self._data):
            return self._hand_over("unfinished")  # whoever is going to be refused need not send the rest
        self._begin(body_end)
        self.lane.answer_generally(self, head.whole_of(lines), self._data[body_start:body_end], now)
        return True

    def _take_hot(self, head: Head, body_start: int, own: str, request_id: bytes, now: float) -> bool:
        data, body_end = self._data, body_start + head.body_bytes
        if body_end > len(data):
            if self._phase != BODY:
                self._enter(BODY, self.lane.bounds.body_seconds_max)
            self._need_bytes = body_end - self._position
            return False
        self._position, self._need_bytes = body_end, 0
        body = data[body_start:body_end]
        self._answer_hot(head, HotRequest(self, head, request_id, head.sale_id, own, body, now))
        return True

    def _answer_hot(self, head: Head, request: HotRequest) -> None:
        self._phase = BUSY
        lane = self.lane
        lane.in_flight += 1
        if lane.in_flight > lane.requests_in_flight_max:
            request.answer_overloaded()
            return
        route = head.hot_route
        assert route is not None, "a head without one authorises nothing"
        try:
            route.handler(request)
        except Exception:
            lane.defect(request, route)

    def _begin(self, body_end: int) -> None:
        self._position, self._need_bytes = body_end, 0
        self._phase = BUSY
        self.lane.in_flight += 1

    def _wait_for_head(self) -> bool:
        if not may_become_plain(self._data[self._position :]):
            return self._hand_over("spelling")
        if self._phase != HEAD:
            self._enter(HEAD, self.lane.bounds.head_seconds_max)
        return False

    # --- answering -----------------------------------------------------------------------------------------------

    def finish(self, answer: bytes, now: float, closes: bool) -> None:
        """Write the answer to the request in flight, if there still is anybody to read it, and go on."""
        lane = self.lane
        lane.in_flight -= 1
        transport = self._transport
        if transport is None or self._phase != BUSY:
            return
        self._phase = IDLE
        self._deadline = now + lane.idle_seconds_max
        try:
            transport.write(answer)
        except (RuntimeError, OSError) as error:  # it has just gone, which is no affair of whoever answers
            _log.debug("answer_unsent", reason=str(error))
            return
        if closes:
            self._close()
        elif (self._data and not self._is_taking) or self._has_ended:
            self._resume_soon()

    def finish_generally(self, answer: Answer, head: WholeHead, request_id: str) -> None:
        """Write the interface's answer, and go on."""
        closes = head.closes or answer.close or self.lane.is_draining()
        written = rendered(answer, request_id, closes, self.lane.date)
        self.finish(written, perf_counter(), closes and not answer.close)
        if answer.close and self._phase == IDLE:
            self._linger()

    def _refuse_slow_body(self, now: float) -> None:
        """Answer as if the body had been cut off: everything else about the request was right."""
        end = self._data.find(b"\r\n\r\n", self._position)
        lines = Lines.of(self._data[self._position : end])
        head = self.lane.heads.read(lines.rest, lines.order_id_text)
        assert isinstance(head, Head)
        self._begin(len(self._data))
        problem = Problem(
            Code.MALFORMED, f"The body did not arrive within {self.lane.bounds.body_seconds_max:g} seconds."
        )
        self.lane.answer_generally(self, head.whole_of(lines), problem, now)
