"""A hot request as its handler sees it, and how its answer is written."""

from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec
import structlog

from engine.web.fast_lane_head import Head, WholeHead, target_with

if TYPE_CHECKING:
    from engine.web.fast_lane_connection import LaneConnection

_log = structlog.get_logger(__name__)


class HotRequest(msgspec.Struct, eq=False, gc=False):  # a third of the cost of a plain class; nothing refers to one
    """One request on the lane whose head was plain, waiting for its one answer."""

    _connection: "LaneConnection | None"
    _head: Head
    _request_id: bytes
    sale_id: str
    """Of the target, of a sale id's shape; empty where the route has none in it."""
    own: str
    """Where the route takes an Idempotency-Key that key: 1 to 255 visible ASCII characters. Elsewhere the order's id in
    the target, of an order id's shape."""
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
            _log.error("answered_twice", target=self._target(), code=code)
            return
        head, lane = self._head, connection.lane
        route = head.hot_route
        assert route is not None, "a hot request's head has one"
        now = perf_counter()
        kind = route.kinds.get((status, code, replayed)) or route.answer_kinds.kind(status, code, replayed)
        kind.count += 1
        route.observe_seconds(now - self.arrived)
        closes = head.closes or lane.is_draining()
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
            connection.lane.answer_generally(connection, self._whole_head(), self.body, self.arrived)

    def answer_overloaded(self) -> None:
        """Refuse it, because it is one too many; what else is wrong with it goes before that (contract §3)."""
        connection = self._take_leave()
        if connection is not None:
            connection.lane.answer_overloaded(connection, self._whole_head(), self.body, self.arrived)

    def _take_leave(self) -> "LaneConnection | None":
        connection, self._connection = self._connection, None
        if connection is None:
            _log.error("answered_twice", target=self._target(), code="general")
        return connection

    def _key_and_order_id(self) -> tuple[str, str]:
        route = self._head.hot_route
        return (self.own, "") if route is not None and route.takes_key else ("", self.own)

    def _target(self) -> str:
        _, order_id = self._key_and_order_id()
        return target_with(self._head.target, order_id)

    def _whole_head(self) -> WholeHead:
        request_id = self._request_id
        own_request_id = request_id.decode("ascii") if request_id != self._head.request_id else ""
        return self._head.whole_with(*self._key_and_order_id(), own_request_id)


HotHandler = Callable[[HotRequest], None]
"""Answers a hot request, at once or later; given to the lane by whoever owns the route."""
