"""One connection on the fast lane: takes plain requests one after the other, and hands over whatever is not plain.

A request is taken only when it is there as a whole, and the next one only when it has been answered: answers keep the
order of their requests, and what a connection can make us keep is bounded. Where each message ends the connection
knows by itself (the empty line, and Content-Length), so that at a hand-over not a byte is lost or read twice.
"""

import re
from time import perf_counter

import structlog

from engine.domain.identifiers import IDEMPOTENCY_KEY_PATTERN
from engine.web.answers import Answer
from engine.web.fast_lane_answers import rendered
from engine.web.fast_lane_bounded import BODY, BUSY, HEAD, IDLE, BoundedConnection
from engine.web.fast_lane_head import (
    HEAD_BYTES_MAX,
    KEY_LINE,
    KEY_LINE_BYTES,
    Head,
    Lines,
    Unread,
    is_plain_value,
    may_become_plain,
)
from engine.web.fast_lane_request import HotRequest
from engine.web.headers import REQUEST_ID_LENGTH_MAX
from engine.web.problems import Code, Problem

is_plain_key = re.compile(IDEMPOTENCY_KEY_PATTERN).match
"""What `is_idempotency_key` asks, without its call."""

_log = structlog.get_logger(__name__)


class LaneConnection(BoundedConnection):
    """The lane's protocol."""

    __slots__ = ()

    # --- taking requests -----------------------------------------------------------------------------------------

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
        """Take one request. False if there is no whole one, or if the connection is not the lane's any more.

        This is where the time goes, so the straight case is written out, and nothing here is done once for each header:
        one caller's heads are the same but for a line or two, which are where they were the last time.
        """
        data, start, frame = self._data, self._position, self._frame
        if data.startswith(frame.before, start):
            if frame.has_request_id:
                return self._take_framed_with_id()
            key_start = start + len(frame.before)
            key_end = data.find(b"\r\n", key_start)
            if data.startswith(frame.after, key_end):
                head, now = frame.head, perf_counter()
                idempotency_key = data[key_start:key_end].decode("latin-1")
                if is_plain_key(idempotency_key) and now < head.authorised_until:
                    return self._take_hot(head, key_end + len(frame.after), idempotency_key, head.request_id, now)
        return self._take_unframed()

    def _take_framed_with_id(self) -> bool:
        """The same for a caller that sends an X-Request-Id, in a line before or after the key's."""
        data, frame = self._data, self._frame
        first_start = self._position + len(frame.before)
        first_end = data.find(b"\r\n", first_start)
        if data.startswith(frame.between, first_end):
            second_start = first_end + len(frame.between)
            second_end = data.find(b"\r\n", second_start)
            if data.startswith(frame.after, second_end):
                key, request_id = data[first_start:first_end], data[second_start:second_end]
                if not frame.is_key_first:
                    key, request_id = request_id, key
                head, idempotency_key, now = frame.head, key.decode("latin-1"), perf_counter()
                is_plain = is_plain_key(idempotency_key) and is_plain_value(request_id)
                if is_plain and len(request_id) <= REQUEST_ID_LENGTH_MAX and now < head.authorised_until:
                    return self._take_hot(head, second_end + len(frame.after), idempotency_key, request_id, now)
        return self._take_unframed()

    def _take_unframed(self) -> bool:
        """Take a request whose head is not framed like the last one's: look it up among those read before."""
        data, start = self._data, self._position
        end = data.find(b"\r\n\r\n", start)
        if end < 0:
            return self._wait_for_head()
        line = data.find(KEY_LINE, start, end)
        key_start = line + KEY_LINE_BYTES
        key_end = data.find(b"\r\n", key_start, end + 2)
        head = self.lane.remembered.get(data[start:line] + data[key_end:end]) if line >= 0 else None
        if head is None or head.frame is None or head.frame.has_request_id:
            return self._take_slowly(end)
        idempotency_key = data[key_start:key_end].decode("latin-1")
        now = perf_counter()
        if not is_plain_key(idempotency_key) or not self.lane.authorises(head, now):
            return self._take_slowly(end)
        self._frame = head.frame
        return self._take_hot(head, end + 4, idempotency_key, head.request_id, now)

    def _take_slowly(self, end: int) -> bool:
        """Take a request whose head must be looked at: for the hot handler, for the interface, or not at all."""
        if end - self._position > HEAD_BYTES_MAX:
            return self._hand_over("long")
        lines = Lines.of(self._data[self._position : end])
        head = self.lane.remembered.get(lines.rest) or self.lane.heads.read(lines.rest)
        if isinstance(head, Unread):
            return self._hand_over(head.reason)
        if head.repeats(lines):
            return self._hand_over("repeated")
        now = perf_counter()
        if head.is_hot and is_plain_key(lines.key_text) and self.lane.authorises(head, now):
            self._frame = head.framed(lines)
            return self._take_hot(head, end + 4, lines.key_text, head.request_id_with(lines.request_id_text), now)
        body_start, body_end = end + 4, end + 4 + head.body_bytes
        if body_end > len(self._data):
            return self._hand_over("unfinished")  # whoever is going to be refused need not send the rest
        self._begin(body_end)
        headers = head.values_with(lines.key_text, lines.request_id_text)
        self.lane.answer_generally(self, head, headers, self._data[body_start:body_end], now)
        return True

    def _take_hot(self, head: Head, body_start: int, idempotency_key: str, request_id: bytes, now: float) -> bool:
        data, body_end = self._data, body_start + head.body_bytes
        if body_end > len(data):
            if self._phase != BODY:
                self._enter(BODY, self.lane.bounds.body_seconds_max)
            self._need_bytes = body_end - self._position
            return False
        self._position, self._need_bytes = body_end, 0
        self._phase = BUSY
        lane = self.lane
        lane.in_flight += 1
        request = HotRequest(self, head, request_id, head.sale_id, idempotency_key, data[body_start:body_end], now)
        if lane.in_flight > lane.requests_in_flight_max:
            request.answer_overloaded()
            return True
        try:
            lane.hot(request)
        except Exception:
            lane.defect(request)
        return True

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

    def finish_generally(self, answer: Answer, head: Head, request_id: str) -> None:
        """Write the interface's answer, and go on."""
        closes = head.closes or answer.close or self.lane.is_draining()
        written = rendered(answer, request_id, closes, self.lane.answer_kinds.date)
        self.finish(written, perf_counter(), closes and not answer.close)
        if answer.close and self._phase == IDLE:
            self._linger()

    def _refuse_slow_body(self, now: float) -> None:
        """Answer as if the body had been cut off: everything else about the request was right."""
        end = self._data.find(b"\r\n\r\n", self._position)
        lines = Lines.of(self._data[self._position : end])
        head = self.lane.heads.read(lines.rest)
        assert isinstance(head, Head)
        self._begin(len(self._data))
        problem = Problem(
            Code.MALFORMED, f"The body did not arrive within {self.lane.bounds.body_seconds_max:g} seconds."
        )
        headers = head.values_with(lines.key_text, lines.request_id_text)
        self.lane.answer_generally(self, head, headers, problem, now)
