"""What the fast lane understands of a request's head; anything else is another server's to understand.

The lane is a recogniser, not a parser: it takes a head only if there is one way to read it. A head has to be spelled in
the plainest form of HTTP/1.1, and llhttp has to read the same in it; whoever comes after such a request on the
connection is then beyond doubt, and nothing can be smuggled past the checks.

Reading a head costs more than deciding an order, and a caller's heads are all the same but for the Idempotency-Key, or
the order's id in the target (and X-Request-Id, if it sends one). So those are cut out, and what is left is looked up
among the heads that have been read before: bytes that are equal mean the same.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import httptools

from engine.domain.identifiers import IDEMPOTENCY_KEY_PATTERN, ORDER_ID_PATTERN, is_sale_id
from engine.web.answers import JSON
from engine.web.bounds import HEADERS_MAX
from engine.web.headers import Headers, bearer_key_of, is_json, is_request_id, parse_target
from engine.web.interface import Interface
from engine.web.routes import Route

if TYPE_CHECKING:
    from engine.web.fast_lane_route import HotRoute

HOT_METHOD = "POST"
HEADS_MAX = 1024
"""Heads that are remembered; past it all are forgotten, because whoever sends so many makes each a new one."""
HEAD_REMEMBERED_BYTES_MAX = 2048
LENGTH_DIGITS_MAX = 7
"""More digits than any body has that is taken here."""

HEAD_BYTES_MAX = 8192
"""A longer head is another server's."""
KEY_LINE = b"\r\nIdempotency-Key: "
KEY_LINE_BYTES = len(KEY_LINE)
_KEY_LINES = (KEY_LINE, b"\r\nidempotency-key: ")
ORDER_ID_BEFORE = b"POST /v1/orders/"
"""What is before an order's id; behind it is a slash."""
ORDER_ID_START = len(ORDER_ID_BEFORE)
_REQUEST_ID_LINES = (b"\r\nX-Request-Id: ", b"\r\nX-Request-ID: ", b"\r\nx-request-id: ")

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = rb"(?:[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)?"
_PLAIN_FIRST_LINE = re.compile(rb"(GET|POST) (/[A-Za-z0-9._~!$&'()*+,;=:@/?-]*) HTTP/1\.1\Z")
_PLAIN_LINES = re.compile(rb"(?:\r\n" + _TOKEN + rb": ?" + _VALUE + rb")*\Z")
"""No escapes in the target, no bare CR or LF, no folded line, no tab, no byte beyond ASCII, no space where none must
be: each of them is known to be read differently by different servers."""
_PLAIN_LINE_BEGINNING = re.compile(rb"(?:" + _TOKEN + rb"(?::[\x20-\x7e]*)?)?\Z")
_PLAIN_VALUE = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?\Z")
is_plain_value = _PLAIN_VALUE.match
is_plain_key = re.compile(IDEMPOTENCY_KEY_PATTERN).match
"""What `is_idempotency_key` asks, without its call."""
is_plain_order_id = re.compile(ORDER_ID_PATTERN).match
"""What `OrderId.parse` asks: no escape, no slash, no query, so that there is one way to read it."""
_FIRST_LINE_BEGINNINGS = (b"POST /", b"GET /")
_HOST = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")
_LENGTH = re.compile(rf"(?:0|[1-9][0-9]{{0,{LENGTH_DIGITS_MAX - 1}}})\Z")
_BEYOND_THE_LANE = frozenset({"transfer-encoding", "expect", "te", "trailer", "proxy-connection", "keep-alive"})
"""Headers that change how a message is framed or a connection is used, whatever their value."""
_CONNECTION_OPTIONS = {
    "keep-alive": False,
    "close": True,
    "upgrade": False,
    "upgrade, http2-settings": False,
    "keep-alive, upgrade, http2-settings": False,
    "keep-alive, upgrade": False,
}
"""What a connection may be asked for, and whether it closes."""
_UPGRADE_PASSED_OVER = "h2c"
"""Many clients offer HTTP/2 with their first request; a server need not take it up (RFC 9110 §7.8)."""


class Unread(NamedTuple):
    """A head that is not for the lane."""

    reason: str
    """One of a few words, for the metrics."""


class Lines(NamedTuple):
    """A head's bytes (without its last CRLF and the empty line), taken apart."""

    whole: bytes
    rest: bytes
    """The head less what each request has of its own, where it is there and can be cut out."""
    key: "_Piece | None"
    order_id: "_Piece | None"
    """Cut out only where no key's line is: no route has both of its own."""
    request_id: "_Piece | None"

    @classmethod
    def of(cls, whole: bytes) -> "Lines":
        """Take a head apart."""
        key, request_id = _find_line(whole, _KEY_LINES), _find_line(whole, _REQUEST_ID_LINES)
        order_id = _find_order_id(whole) if key is None else None
        rest, position = b"", 0
        for piece in sorted(filter(None, (key, order_id, request_id))):
            rest, position = rest + whole[position : piece.start], piece.end
        return cls(whole, rest + whole[position:], key, order_id, request_id)

    @property
    def key_text(self) -> str:
        """The Idempotency-Key; empty where there is none that was cut out."""
        return self._text(self.key)

    @property
    def order_id_text(self) -> str:
        """The order's id in the target, likewise."""
        return self._text(self.order_id)

    @property
    def request_id_text(self) -> str:
        """The X-Request-Id, likewise."""
        return self._text(self.request_id)

    def _text(self, piece: "_Piece | None") -> str:
        return self.whole[piece.value_start : piece.end].decode("ascii") if piece is not None else ""


class _Piece(NamedTuple):
    """Where that is which is cut out: of a line all of it, from the CRLF before it on; of a target the id alone."""

    start: int
    value_start: int
    end: int


def _find_order_id(head: bytes) -> _Piece | None:
    if head.startswith(ORDER_ID_BEFORE):
        end = head.find(b"/", ORDER_ID_START)
        if end >= 0 and is_plain_order_id(head[ORDER_ID_START:end].decode("latin-1")):
            return _Piece(ORDER_ID_START, ORDER_ID_START, end)
    return None


def _find_line(head: bytes, spellings: tuple[bytes, ...]) -> _Piece | None:
    for spelling in spellings:
        start = head.find(spelling)
        if start >= 0:
            next_line = head.find(b"\r\n", start + 2)
            line = _Piece(start, start + len(spelling), next_line if next_line >= 0 else len(head))
            if _PLAIN_VALUE.match(head, line.value_start, line.end):
                return line
    return None


def may_become_plain(beginning: bytes) -> bool:
    """Whether these bytes, a head's beginning, can still become one for the lane."""
    if len(beginning) >= HEAD_BYTES_MAX:
        return False
    if not any(first.startswith(beginning[: len(first)]) for first in _FIRST_LINE_BEGINNINGS):
        return False
    first_line, separator, lines = beginning.partition(b"\r\n")
    if not separator:
        return first_line.isascii() and first_line.removesuffix(b"\r").decode("ascii").isprintable()
    whole, _, last = (b"\r\n" + lines).rpartition(b"\r\n")
    patterns = (_PLAIN_FIRST_LINE, first_line), (_PLAIN_LINES, whole), (_PLAIN_LINE_BEGINNING, last.removesuffix(b"\r"))
    return all(pattern.match(text) for pattern, text in patterns)


class WholeHead(NamedTuple):
    """A head with all that belongs to it, as the interface takes it."""

    method: str
    target: str
    headers: Headers
    closes: bool
    """Whether the connection is to end with the answer."""


class Head:
    """A head that was understood, less what each request has of its own."""

    __slots__ = (
        "authorised_until", "body_bytes", "closes", "frame", "headers", "hot_route", "key", "method", "request_id",
        "sale_id", "target",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        target: str,
        headers: Mapping[str, tuple[str, ...]],
        hot_route: "HotRoute | None" = None,
        sale_id: str = "",
    ) -> None:
        """`hot_route` is that of its target, if it is a hot one's and the ids in it have their shapes."""
        self.method = method
        self.target = target
        """Without the order's id, where that was cut out."""
        self.headers = headers
        """All values of each header by its name in lower case."""
        self.sale_id = sale_id
        """Of the target; empty where there is none in it."""
        self.body_bytes = int(headers["content-length"][0]) if "content-length" in headers else 0
        self.closes = _CONNECTION_OPTIONS[headers["connection"][0].lower()] if "connection" in headers else False
        self.key = (bearer_key_of(self.values) or "").encode("ascii")
        self.request_id = b""
        """The X-Request-Id in a line that could not be cut out."""
        if "x-request-id" in headers and is_request_id(headers["x-request-id"]):
            self.request_id = headers["x-request-id"][0].encode("ascii")
        has_no_other_key_line = "idempotency-key" not in headers
        is_right = self.key != b"" and has_no_other_key_line and is_json(self.values)
        self.hot_route = hot_route if is_right else None
        """The hot route that it is of, if nothing is wrong with it but, perhaps, the bearer's key."""
        self.authorised_until = float("-inf")
        """Until when, by `time.perf_counter`, the key is known to be of the role that the hot route asks for."""
        self.frame: Frame | None = None
        """How the last request looked that had this head."""

    def framed(self, lines: Lines) -> "Frame":
        """How a hot request with this head looks."""
        has_request_id = lines.request_id is not None
        if self.frame is None or self.frame.has_request_id != has_request_id:
            self.frame = Frame(self, lines)
        return self.frame

    def values(self, name: str) -> tuple[str, ...]:
        """All values of a header but those cut out, as `Headers` has it."""
        return self.headers.get(name.lower(), ())

    def request_id_with(self, cut_out: str) -> bytes:
        """The request's id, if it has given one that can be one, once."""
        if not cut_out:
            return self.request_id
        return cut_out.encode("ascii") if is_request_id((cut_out,)) else b""

    def repeats(self, lines: Lines) -> bool:
        """Whether a line that was cut out is there once more."""
        has_two_keys = lines.key is not None and "idempotency-key" in self.headers
        return has_two_keys or (lines.request_id is not None and "x-request-id" in self.headers)

    def own_of(self, lines: Lines) -> str:
        """What a request with these lines has of its own on this head's hot route; empty where that is not plain."""
        if self.hot_route is None:
            return ""
        if not self.hot_route.takes_key:
            return lines.order_id_text
        return lines.key_text if is_plain_key(lines.key_text) else ""

    def whole_of(self, lines: Lines) -> WholeHead:
        """It with what was cut out of these lines."""
        return self.whole_with(lines.key_text, lines.order_id_text, lines.request_id_text)

    def whole_with(self, key: str, order_id: str, request_id: str) -> WholeHead:
        """It with what was cut out; what is empty was not."""
        values = dict(self.headers)
        for name, value in (("idempotency-key", key), ("x-request-id", request_id)):
            if value:
                values[name] = (*values.get(name, ()), value)
        target = target_with(self.target, order_id)
        return WholeHead(self.method, target, lambda name: values.get(name.lower(), ()), self.closes)


def target_with(target: str, order_id: str) -> str:
    """A target with the order's id that was cut out of it; as it is where the id is empty, because none was."""
    start = ORDER_ID_START - len(f"{HOT_METHOD} ")
    return target[:start] + order_id + target[start:] if order_id else target


class Frame:
    """All bytes of a head but its own value (an Idempotency-Key, or an order's id) and, perhaps, an X-Request-Id: what
    the next one is held against.

    Bytes that begin with `before`, a plain value, and `after` (with `between` and another value amid them) are this
    head with other values, and their first empty line is the one at the end of `after`. No plain value has CRLF in it,
    and no plain order's id a slash, so the first one found is the end of the value.
    """

    __slots__ = (
        "after", "after_bytes", "before", "between", "first_end", "has_request_id", "head", "is_own_first",
        "is_plain_own", "own_start", "straight",
    )  # fmt: skip

    def __init__(self, head: Head, lines: Lines) -> None:
        own = lines.key or lines.order_id
        assert own is not None, "a hot request has one"
        whole, spans = lines.whole + b"\r\n\r\n", sorted(filter(None, (own, lines.request_id)))
        self.head = head
        self.has_request_id = len(spans) > 1
        self.is_own_first = spans[0] is own
        self.is_plain_own = is_plain_key if own is lines.key else is_plain_order_id
        self.before = whole[: spans[0].value_start]
        self.first_end = b"/" if spans[0] is lines.order_id else b"\r\n"
        """What ends the first value; the second is always a line's."""
        self.between = whole[spans[0].end : spans[1].value_start] if self.has_request_id else b""
        """Empty where there is no X-Request-Id."""
        self.after = whole[spans[-1].end :]
        self.after_bytes = len(self.after)
        self.own_start = len(self.before)
        self.straight = b"\n" if self.has_request_id else self.before
        """`before` where its own value is all that is between; else what no request on the lane begins with."""


NO_FRAME = Frame(Head("", "", {}), Lines(b"", b"", _Piece(0, 0, 0), None, None))
"""Of a connection that has had no request. Nothing is authorised by it."""


class HeadReader:
    """Reads heads, and remembers those that it has read."""

    def __init__(self, interface: Interface, hot_routes: "Mapping[str, HotRoute]") -> None:
        """`hot_routes` are by their templates."""
        self._interface = interface
        self._hot_routes = hot_routes
        self.remembered: dict[bytes, Head] = {}
        """Hot heads by their bytes without what is cut out and without the empty line at the end."""
        self._headers: dict[bytes, Mapping[str, tuple[str, ...]]] = {}
        """Headers by the bytes that follow the first line: a caller's are the same whatever it asks for."""

    def read(self, rest: bytes, order_id: str = "") -> Head | Unread:
        """The head that `rest` spells (its last CRLF and the empty line left out), or why it is none for the lane.

        `order_id` is what was cut out of the target; empty where nothing was.
        """
        first_line, _, lines = rest.partition(b"\r\n")
        first = _PLAIN_FIRST_LINE.match(first_line)
        if first is None:
            return Unread("spelling")
        headers = self._headers.get(lines) or self._read_headers(rest, lines)
        if isinstance(headers, Unread):
            return headers
        method, target = first[1].decode("ascii"), first[2].decode("ascii")
        length = headers.get("content-length", ("" if method == "POST" else "0",))[0]
        if not _LENGTH.match(length) or int(length) > (self._interface.body_bytes_max if method == "POST" else 0):
            return Unread("length")
        match = self._interface.routes.match(parse_target(target_with(target, order_id)).segments)
        route = match.routes.get(method) if match is not None else None
        if match is None or route is None or not _answers_with_json(route):
            return Unread("route")
        hot_route, sale_id = self._hot_routes.get(route.template), match.path.get("sale_id", "")
        if hot_route is not None:
            has_own = is_sale_id(sale_id) if hot_route.takes_key else order_id != ""
            hot_route = hot_route if method == HOT_METHOD and "?" not in target and has_own else None
        head = Head(method, target, headers, hot_route, sale_id)
        if head.hot_route is not None:
            _remember(self.remembered, rest, head)
        return head

    def _read_headers(self, rest: bytes, lines: bytes) -> Mapping[str, tuple[str, ...]] | Unread:
        if not _PLAIN_LINES.match(b"\r\n" + lines):
            return Unread("spelling")
        read = _lines_by_llhttp(rest)
        if read is None or len(read) != rest.count(b"\r\n"):
            return Unread("unreadable")
        if len(read) > HEADERS_MAX - len(("Idempotency-Key", "X-Request-Id")):
            return Unread("long")
        headers: dict[str, tuple[str, ...]] = {}
        for name_bytes, value in read:
            name = name_bytes.decode("ascii").lower()
            headers[name] = (*headers.get(name, ()), value.decode("ascii"))
        if (reason := _reason_against(headers)) is not None:
            return Unread(reason)
        _remember(self._headers, lines, headers)
        return headers


def _reason_against(headers: Mapping[str, tuple[str, ...]]) -> str | None:
    if not _BEYOND_THE_LANE.isdisjoint(headers) or any(name.startswith("sec-websocket-") for name in headers):
        return "framing"
    if any(len(values) > 1 for values in headers.values()):
        return "repeated"
    if headers.get("upgrade", (_UPGRADE_PASSED_OVER,))[0].lower() != _UPGRADE_PASSED_OVER:
        return "framing"
    if not _HOST.match(headers.get("host", ("",))[0]):
        return "host"
    if headers.get("connection", ("keep-alive",))[0].lower() not in _CONNECTION_OPTIONS:
        return "connection"
    return None


def _remember(remembered: dict[bytes, Any], read: bytes, meaning: Any) -> None:
    if len(read) > HEAD_REMEMBERED_BYTES_MAX:
        return
    if len(remembered) >= HEADS_MAX:
        remembered.clear()
    remembered[read] = meaning


def _answers_with_json(route: Route) -> bool:
    """Whether its answers can be had whole: a stream, say, is not for the lane."""
    return all(success.content_type == JSON for success in route.successes.values())


class _Listener:
    """What llhttp tells about a head."""

    def __init__(self) -> None:
        self.lines: list[tuple[bytes, bytes]] = []
        self.is_complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """One line."""
        self.lines.append((name, value))

    def on_headers_complete(self) -> None:
        """The empty line has been read."""
        self.is_complete = True


def _lines_by_llhttp(rest: bytes) -> list[tuple[bytes, bytes]] | None:
    """A head's lines as llhttp reads them; None if it refuses it."""
    listener = _Listener()
    parser = httptools.HttpRequestParser(listener)
    try:
        parser.feed_data(rest + b"\r\n\r\n")
    except httptools.HttpParserUpgrade:
        pass  # raised behind the empty line, when all of it has been read
    except httptools.HttpParserError:
        return None
    return listener.lines if listener.is_complete else None
