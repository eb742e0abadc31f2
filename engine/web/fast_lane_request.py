"""A hot request as its handler sees it, and how its answer is written."""

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec
import structlog

from engine.web.fast_lane_head import Head
from engine.web.headers import Headers

if TYPE_CHECKING:
    from engine.web.fast_lane_connection import LaneConnection

_log = structlog.get_logger(__name__)


class HotRequest(msgspec.Struct, eq=False, gc=False):  # a third of the cost of a plain class; nothing refers to one
    """One request on the lane whose head was plain, waiting for its one answer."""

    _connection: "LaneConnection | None"
    _head: Head
    _request_id: bytes
    sale_id: str
    """Matches the sale id's pattern."""
    idempotency_key: str
    """1 to 255 visible ASCII characters."""
    body: bytes
    arrived: float
    """When it had been read, by `time.perf_counter`."""

    @property
    def key(self) -> bytes:
        """The bearer key's text: known, and of the route's role."""
        return self._head.key

    @property
    def is_answered(self) -> bool:
        """Whether it has had its answer, or has been left to the interface."""
        return self._connection is None

    def answer(self, status: int, body: bytes, code: str, replayed: bool = False) -> None:
        """Answer, once; `body` is JSON (a problem document where status >= 400), `code` as in metrics. Never raises."""
        connection = self._connection
        if connection is None:
            _log.error("answered_twice", sale_id=self.sale_id, code=code)
            return
        lane = connection.lane
        now = perf_counter()
        kind = lane.kinds.get((status, code, replayed)) or lane.answer_kinds.kind(status, code, replayed)
        kind.count += 1
        lane.note_seconds(now - self.arrived)
        closes = self._head.closes or lane.is_draining()
        # One piece, one system call. Percent formatting is the quickest way to join bytes and numbers.
        if self._request_id or closes:
            request_id = self._request_id or lane.request_ids.new()
            close = b"\r\nConnection: close" if closes else b""
            written = b"%b%b\r\nContent-Length: %d%b\r\n\r\n%b" % (kind.head, request_id, len(body), close, body)
        else:
            ids = lane.request_ids
            ids.number += 1
            values = (kind.head, ids.prefix, ids.number, len(body), body)
            written = b"%b%b%x\r\nContent-Length: %d\r\n\r\n%b" % values
        self._connection = None
        connection.finish(written, now, closes)

    def answer_generally(self) -> None:
        """Leave it to the interface's own handler: every refusal's document exists once, there. Never raises."""
        connection = self._take_leave()
        if connection is not None:
            connection.lane.answer_generally(connection, self._head, self._headers(), self.body, self.arrived)

    def answer_overloaded(self) -> None:
        """Refuse it, because it is one too many; what else is wrong with it goes before that (contract §3)."""
        connection = self._take_leave()
        if connection is not None:
            connection.lane.answer_overloaded(connection, self._head, self._headers(), self.body, self.arrived)

    def _take_leave(self) -> "LaneConnection | None":
        connection, self._connection = self._connection, None
        if connection is None:
            _log.error("answered_twice", sale_id=self.sale_id, code="general")
        return connection

    def _headers(self) -> Headers:
        head, request_id = self._head, self._request_id
        own_request_id = request_id.decode("ascii") if request_id != head.request_id else ""
        return head.values_with(self.idempotency_key, own_request_id)


HotHandler = Callable[[HotRequest], None]
"""Answers a hot request, at once or later; given to the lane by whoever owns the route."""
