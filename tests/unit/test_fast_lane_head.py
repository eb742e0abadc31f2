"""Which heads the fast lane takes, and why it leaves the others. Its own judgement, before llhttp's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.identifiers import OrderId
from engine.web.answers import Answer
from engine.web.fast_lane_head import Frame, Head, HeadReader, Lines, Unread, is_plain_order_id, may_become_plain
from engine.web.fast_lane_request import HotRequest
from engine.web.fast_lane_route import HotRoute
from engine.web.interface import Interface
from engine.web.problems import Problem
from engine.web.routes import Call, Route, RouteTable, Success

HOLD, SETTLE = "/v1/sales/{sale_id}/orders", "/v1/orders/{order_id}/settle"
FIRST = b"POST /v1/sales/live-1/orders HTTP/1.1"
LINES = (b"Host: x", b"Authorization: Bearer k", b"Content-Length: 5")


async def never(_call: Call) -> Answer | Problem:
    raise AssertionError


def unasked(_request: HotRequest) -> None:
    raise AssertionError


def reader() -> HeadReader:
    json, stream = {200: Success("")}, {200: Success("", content_type="text/event-stream")}
    routes = [
        Route("POST", HOLD, "checkout", never, "", json, takes_idempotency_key=True),
        Route("POST", SETTLE, "checkout", never, "", json),
        Route("GET", "/v1/sales/{sale_id}/orders", "checkout", never, "", json),
        Route("GET", "/v1/sales/{sale_id}/events", "checkout", never, "", stream),
    ]
    interface = Interface("test", RouteTable(routes), lambda _: None, 1000)
    return HeadReader(interface, {template: HotRoute(interface, template, unasked, "") for template in (HOLD, SETTLE)})


def template_of(read: Head) -> str | None:
    """The template of the hot route that a head is of."""
    return read.hot_route.route.template if read.hot_route is not None else None


def head(*lines: bytes, first: bytes = FIRST) -> bytes:
    return b"\r\n".join([first, *lines])


def test_a_plain_head_is_taken_and_remembered() -> None:
    heads = reader()
    read = heads.read(head(*LINES))
    assert isinstance(read, Head)
    assert (read.sale_id, read.key, read.body_bytes, read.closes) == ("live-1", b"k", 5, False)
    assert template_of(read) == HOLD
    assert heads.remembered == {head(*LINES): read}


def test_an_offer_of_http_2_is_passed_over() -> None:
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAAB")
    read = reader().read(head(*offer, *LINES))
    assert isinstance(read, Head)
    assert (template_of(read), read.closes, read.body_bytes) == (HOLD, False, 5)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ((b"Transfer-Encoding: chunked", *LINES[:2]), "framing"),
        ((b"Expect: 100-continue", *LINES), "framing"),
        ((b"Connection: Upgrade", b"Upgrade: websocket", *LINES), "framing"),
        ((b"TE: trailers", *LINES), "framing"),
        ((b"Sec-WebSocket-Key1: x", *LINES), "framing"),
        ((b"Transfer-Encoding: chunked", *LINES), "unreadable"),  # here llhttp is stricter still
        ((b"X: a", b"x: b", *LINES), "repeated"),
        ((b"Connection: x", *LINES), "connection"),
        (LINES[1:], "host"),
        ((b"Host: a b", *LINES[1:]), "host"),
        (LINES[:2], "length"),
        ((*LINES[:2], b"Content-Length: 05"), "length"),
        ((*LINES[:2], b"Content-Length: 1001"), "length"),
        ((*LINES[:2], b"Content-Length: +5"), "unreadable"),
        ((*LINES, b" folded"), "spelling"),
        ((*LINES, b"X:\ty"), "spelling"),
        ((*LINES, b"X : y"), "spelling"),
        ((*LINES, b"X: y "), "spelling"),
        ((*LINES, b"X: y\rz"), "spelling"),
        ((*LINES, b"X: y\nz: 1"), "spelling"),
        ((*LINES, b"X: \xc3\xa9"), "spelling"),
        ((*LINES, b"X: \x00"), "spelling"),
        (tuple(b"X%d: y" % number for number in range(96)) + LINES, "long"),
    ],
)
def test_whatever_could_be_read_in_two_ways_is_left(lines: tuple[bytes, ...], reason: str) -> None:
    heads = reader()
    assert heads.read(head(*lines)) == Unread(reason)
    assert not heads.remembered


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        (b"POST /v1/sales/live%2D1/orders HTTP/1.1", "spelling"),
        (b"POST http://x/v1/sales/live-1/orders HTTP/1.1", "spelling"),
        (b"POST /v1/sales/live-1/orders HTTP/1.0", "spelling"),
        (b"PUT /v1/sales/live-1/orders HTTP/1.1", "spelling"),
        (b"POST  /v1/sales/live-1/orders HTTP/1.1", "spelling"),
        (b"POST /v1/nowhere HTTP/1.1", "route"),
    ],
)
def test_other_targets_and_versions_are_left(first: bytes, reason: str) -> None:
    assert reader().read(head(*LINES, first=first)) == Unread(reason)


def test_a_route_that_streams_is_left() -> None:
    for last, expected in ((b"orders", Head), (b"events", Unread)):
        first = b"GET /v1/sales/live-1/" + last + b" HTTP/1.1"
        assert isinstance(reader().read(head(*LINES[:2], first=first)), expected)


@pytest.mark.parametrize("target", [b"/v1/sales/.live/orders", b"/v1/sales/live-1/orders?a=b"])
def test_what_only_looks_like_the_hot_route_is_not_hot(target: bytes) -> None:
    read = reader().read(head(*LINES, first=b"POST " + target + b" HTTP/1.1"))
    assert isinstance(read, Head)
    assert read.hot_route is None


def test_the_heads_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.web.fast_lane_head.HEADS_MAX", 10)
    heads = reader()
    for number in range(100):
        heads.read(head(*LINES, b"X: %d" % number))
        assert len(heads.remembered) <= 10
    heads.remembered.clear()
    heads.read(head(*LINES, b"X: " + b"a" * 3000))
    assert not heads.remembered


def test_the_two_lines_of_ones_own_are_cut_out_wherever_they_are() -> None:
    for names in ((b"Idempotency-Key", b"X-Request-Id"), (b"idempotency-key", b"x-request-id")):
        own = [name + b": " + value for name, value in zip(names, (b"k-1", b"r 1"), strict=True)]
        for lines in ((*own, *LINES), (*LINES, *own[::-1]), (own[1], *LINES, own[0]), (LINES[0], *own, *LINES[1:])):
            cut = Lines.of(head(*lines))
            assert cut.rest == head(*LINES)
            assert (cut.key_text, cut.request_id_text) == ("k-1", "r 1")


@pytest.mark.parametrize("value", [b"", b" a", b"a ", b"a\x00", b"a\rb", b"a\nb", b"\xc3\xa9", b"a\tb"])
def test_a_line_that_is_not_plain_is_not_cut_out(value: bytes) -> None:
    whole = head(*LINES, b"Idempotency-Key: " + value)
    assert Lines.of(whole).rest == whole


def test_a_frame_is_all_of_a_head_but_the_values() -> None:
    heads = reader()
    whole = head(LINES[0], b"X-Request-Id: r-1", *LINES[1:], b"Idempotency-Key: k-1")
    lines = Lines.of(whole)
    read = heads.read(lines.rest)
    assert isinstance(read, Head)
    frame = Frame(read, lines)
    assert (frame.has_request_id, frame.is_own_first) == (True, False)
    assert frame.before + b"r-1" + frame.between + b"k-1" + frame.after == whole + b"\r\n\r\n"


ORDER_ID = "abcdefghijklmnopqrstuv-_.live-1"
SETTLE_FIRST = b"POST /v1/orders/%b/settle HTTP/1.1"


def test_an_orders_id_is_cut_out_of_the_target_and_put_back() -> None:
    heads = reader()
    lines = Lines.of(head(*LINES, first=SETTLE_FIRST % ORDER_ID.encode()))
    assert (lines.rest, lines.order_id_text) == (head(*LINES, first=SETTLE_FIRST % b""), ORDER_ID)
    read = heads.read(lines.rest, lines.order_id_text)
    assert isinstance(read, Head)
    assert (template_of(read), read.own_of(lines), heads.remembered) == (SETTLE, ORDER_ID, {lines.rest: read})
    assert read.whole_of(lines).target == f"/v1/orders/{ORDER_ID}/settle"


@pytest.mark.parametrize(
    "order_id",
    [
        "", "a", "a" * 23 + ".live-1", "a" * 25 + ".live-1", "a" * 24, "a" * 24 + ".", "a" * 24 + "..live",
        "a" * 24 + "%2Elive-1", "a" * 24 + ".live-1?", "a" * 24 + ".live-1 ", "a" * 24 + ".live\r",
        "é" * 24 + ".live-1", "a" * 24 + "." + "b" * 65, "=" * 24 + ".live-1", "a" * 24 + ".live-1\n",
    ],
)  # fmt: skip
def test_an_id_that_is_not_plain_is_not_cut_out(order_id: str) -> None:
    whole = head(*LINES, first=SETTLE_FIRST % order_id.encode())
    assert (Lines.of(whole).rest, Lines.of(whole).order_id) == (whole, None)


def test_an_id_that_no_slash_ends_is_not_cut_out() -> None:
    whole = b"POST /v1/orders/" + ORDER_ID.encode()
    assert Lines.of(whole).order_id is None


def test_where_there_is_a_key_the_id_stays_and_the_head_is_not_hot() -> None:
    for key in (b"Idempotency-Key: k-1", b"idempotency-key: k-1", b"IDEMPOTENCY-KEY: k-1"):
        heads = reader()
        lines = Lines.of(head(*LINES, key, first=SETTLE_FIRST % ORDER_ID.encode()))
        read = heads.read(lines.rest, lines.order_id_text)
        assert isinstance(read, Head)
        assert (read.hot_route, read.own_of(lines), heads.remembered) == (None, "", {})
        assert read.whole_of(lines).target == f"/v1/orders/{ORDER_ID}/settle"


def test_a_target_without_an_id_has_none_of_its_own_even_where_such_a_head_is_remembered() -> None:
    heads = reader()
    cut = Lines.of(head(*LINES, first=SETTLE_FIRST % ORDER_ID.encode()))
    read = heads.read(cut.rest, cut.order_id_text)
    assert isinstance(read, Head)
    for more in ((), (b"Idempotency-Key: " + ORDER_ID.encode(),)):
        empty = Lines.of(head(*LINES, *more, first=SETTLE_FIRST % b""))
        assert heads.remembered[empty.rest] is read
        assert (read.own_of(empty), read.whole_of(empty).target) == ("", "/v1/orders//settle")


def test_a_frame_of_a_settlement_is_all_but_the_id_and_a_request_id() -> None:
    heads = reader()
    whole = head(*LINES, b"X-Request-Id: r-1", first=SETTLE_FIRST % ORDER_ID.encode())
    lines = Lines.of(whole)
    read = heads.read(lines.rest, lines.order_id_text)
    assert isinstance(read, Head)
    frame = Frame(read, lines)
    assert (frame.has_request_id, frame.is_own_first, frame.first_end) == (True, True, b"/")
    assert frame.before + ORDER_ID.encode() + frame.between + b"r-1" + frame.after == whole + b"\r\n\r\n"


@given(
    st.from_regex(r"[A-Za-z0-9_-]{22,26}\.?[A-Za-z0-9._-]{0,66}", fullmatch=True)
    | st.text("aZ0-_.%/ \n\r\0é", min_size=20, max_size=30)
)
def test_a_plain_order_id_is_what_can_be_taken_apart(text: str) -> None:
    assert (is_plain_order_id(text) is not None) == (OrderId.parse(text) is not None)


@pytest.mark.parametrize("template", ["/v1/nowhere", "/v1/sales/{sale_id}/events", "/v1/sales/{sale_id}/pause"])
def test_a_route_without_a_value_of_its_own_cannot_be_hot(template: str) -> None:
    routes = [Route("POST", "/v1/sales/{sale_id}/pause", "checkout", never, "", {200: Success("")})]
    with pytest.raises(ValueError, match="cannot be a hot route"):
        HotRoute(Interface("test", RouteTable(routes), lambda _: None, 1000), template, unasked, "")


def test_a_beginning_is_left_as_soon_as_it_cannot_become_plain() -> None:
    whole = head(*LINES) + b"\r\n\r\n"
    assert all(may_become_plain(whole[:length]) for length in range(len(whole)))
    for hopeless in (
        b"PUT",
        b"\x16\x03",
        b"POST  /",
        b"POST /\x00",
        head(b"a b"),
        head(b"X: y", b" z"),
        head(b"X: \n"),
    ):
        assert not may_become_plain(hopeless + b"\r\n") or hopeless == hopeless
    assert not may_become_plain(head(b"X: " + b"a" * 8192))
