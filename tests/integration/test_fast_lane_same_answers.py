"""The fast lane and aiohttp alone are asked the same, in plain, odd and hostile ways, and must say the same.

Both decide on sales of their own that go through the same history, so that even the orders' sequence numbers are equal:
a request that only one of them took for an order would show in every answer after it.
"""

import re
from collections.abc import Iterator

import pytest

from engine.partition.partitions import Partitions
from tests.integration.fast_lane_rig import (
    AUTHORIZATION,
    HOST,
    ORDERS,
    TYPE,
    answers_in,
    ask_both,
    body_of,
    both_servers,
    hold,
    on_uvloop,
    request,
)

MARK = request(
    b"GET /v1/sales/live-@/availability HTTP/1.1",
    [HOST, AUTHORIZATION, b"X-Request-Id: given-mark", b"Connection: close"],
)


IS_LAST = re.compile(rb"(?i)\r\nconnection: close\r")
"""What comes after such a request is nobody's: aiohttp refuses both if it comes in the same piece."""

# --- the table -----------------------------------------------------------------------------------------------------

PLAIN_LINES = {
    b"Host": b"x",
    b"Authorization": b"Bearer checkout-key",
    b"Content-Type": b"application/json",
    b"Idempotency-Key": b"KEY",
    b"Content-Length": b"%d" % len(body_of()),
    b"X-Request-Id": b"given-1",
}


def header_variants(name: bytes, value: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """(what is odd, the lines in place of the plain one)."""
    line = name + b": " + value
    yield "missing", []
    yield "twice", [line, line]
    yield "twice, in another case", [line, name.lower() + b": " + value]
    yield "twice, different", [line, name + b": other"]
    yield "twice, different, the other first", [name + b": other", line]
    yield "twice, the second empty", [line, name + b":"]
    yield "lower case", [name.lower() + b": " + value]
    yield "upper case", [name.upper() + b": " + value]
    yield "odd case", [name.swapcase() + b": " + value]
    yield "empty", [name + b":"]
    yield "empty with a space", [name + b": "]
    yield "no space", [name + b":" + value]
    yield "two spaces", [name + b":  " + value]
    yield "trailing space", [line + b" "]
    yield "trailing tab", [line + b"\t"]
    yield "leading tab", [name + b":\t" + value]
    yield "space before the colon", [name + b" : " + value]
    yield "tab before the colon", [name + b"\t: " + value]
    yield "folded", [name + b":", b" " + value]
    yield "folded by a tab", [name + b":", b"\t" + value]
    yield "continued", [line, b" more"]
    yield "leading space", [b" " + line]
    yield "NUL", [line + b"\x00"]
    yield "bare CR", [line + b"\r"]
    yield "bare CR within", [name + b": a\rb"]
    yield "bare LF", [line + b"\nX: y"]
    yield "LF alone at the end", [line + b"\n"]
    yield "control character", [line + b"\x01"]
    yield "DEL", [line + b"\x7f"]
    yield "beyond ASCII", [line + "é".encode()]
    yield "Latin-1", [line + b"\xe9"]
    yield "spaces within", [name + b": a b"]
    yield "comma", [line + b", " + value]
    yield "quoted", [name + b': "' + value + b'"']
    yield "300 characters", [name + b": " + b"a" * 300]
    yield "1,100 characters", [name + b": " + b"a" * 1100]
    yield "3,000 characters", [name + b": " + b"a" * 3000]
    yield "8,150 characters", [name + b": " + b"a" * 8150]
    yield "9,000 characters", [name + b": " + b"a" * 9000]


MORE_LINES = [
    b"Connection: close", b"Connection: keep-alive", b"connection: Keep-Alive", b"Connection: CLOSE",
    b"Connection: close, keep-alive", b"Connection: upgrade", b"Connection: x", b"Connection:",
    b"Connection: close\r\nConnection: keep-alive", b"Proxy-Connection: close", b"Keep-Alive: timeout=5",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: gzip", b"Transfer-Encoding:",
    b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: xchunked", b"transfer-encoding: CHUNKED",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding:\tchunked",
    b"Expect: 100-continue", b"expect: 100-Continue", b"Expect: something", b"Upgrade: websocket",
    b"TE: trailers",
    b"Trailer: X", b"Sec-WebSocket-Key1: x", b"Content-Encoding: gzip", b"Content-Encoding: identity",
    b"Content-Encoding:", b"content-encoding: br", b"Content-Encoding: deflate", b"Content-Encoding: zstd",
    b"Accept: */*", b"Accept-Encoding: gzip", b"User-Agent: curl/8.0", b"Cookie: a=b; c=d", b"If-Match: x",
    b"X-Forwarded-For: 1.2.3.4", b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"no colon", b":", b": value", b"a b: c", b"a(b): c", b"X\x00: y", b"X: y\x00z", b"X", b"\xc3\xa9: x",
    b"X: " + b"a" * 8000, b"X: " + b"a" * 20_000, b"\r\n".join(b"X%d: y" % number for number in range(90)),
    b"\r\n".join(b"X%d: y" % number for number in range(94)), b"\r\n".join(b"X%d: y" % number for number in range(95)),
    b"\r\n".join(b"X%d: y" % number for number in range(96)), b"\r\n".join(b"X%d: y" % number for number in range(200)),
    b"Content-Length: 5", b"Content-Length: 0",
]  # fmt: skip

TYPES = [
    b"application/json; charset=utf-8", b"application/json;charset=UTF-8", b'application/json; charset="utf-8"',
    b"Application/JSON", b"application/json; charset=latin-1", b"text/plain", b"application/json; a=b", b"*/*",
    b"application/jsonx", b"application/problem+json", b";", b"application/json;",
]  # fmt: skip

AUTHORIZATIONS = [
    b"bearer checkout-key", b"BEARER checkout-key", b"Bearer  checkout-key", b"Bearer checkout-key2", b"Bearer ops-key",
    b"Bearer erp-key", b"Bearer", b"Bearer ", b"checkout-key", b"Basic Y2hlY2tvdXQta2V5", b"Bearer checkout-key,",
    b"Bearer checkout-key checkout-key",
]  # fmt: skip

LENGTHS = [
    b"+5", b"-5", b"0x10", b"5 5", b"5, 5", b"5,5", b"1e2", b"0", b"00", b"007", b"%07d" % len(body_of()), b"1",
    b"65536", b"65537", b"99999999", b"99999999999999999999999", b"18446744073709551617", b"5;", b"'5'", b"five",
]  # fmt: skip

FIRST_LINES = [
    *(method + b" " + ORDERS + b" HTTP/1.1" for method in [
        b"GET", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT", b"BREW", b"post", b"Post", b"POSTS",
        b"POS", b"", b"\x00", b"PO\x00ST",
    ]),
    *(b"POST " + target + b" HTTP/1.1" for target in [
        b"/v1/sales/live%2D@/orders", b"/v1/sales/live-@%2Forders", b"/v1/sales/live-@/order%73", b"/v1/sales//orders",
        b"http://x/v1/sales/live-@/orders", b"https://x:8080/v1/sales/live-@/orders", b"//x/v1/sales/live-@/orders",
        b"/v1/sales/live-@/orders/", b"/v1/sales/live-@/orders?", b"/v1/sales/live-@/orders?a=b",
        b"/v1/sales/live-@/orders#x", b"/v1/./sales/live-@/orders", b"/v1/sales/../sales/live-@/orders",
        b"//v1/sales/live-@/orders", b"/v1//sales/live-@/orders", b"/V1/sales/live-@/orders", b"*", b"/", b"",
        b"v1/sales/live-@/orders", b"/v1/sales/.live/orders", b"/v1/sales/" + b"a" * 64 + b"/orders",
        b"/v1/sales/" + b"a" * 65 + b"/orders", b"/v1/sales/nowhere/orders", b"/v1/sales/live-@/orders;a",
        b"/v1/sales/live-@;a/orders", b"/v1/sales/live\\@/orders", b"/v1/sales/\xc3\xa9/orders", b"/v1/sales/%/orders",
        b"/v1/sales/a b/orders", b"/v1/sales/live-@/orders\t", b"/v1/sales/live-@/orders\x00",
        b"/v1/sales/{sale_id}/orders",
        b"/v1/sales/live-@/orders" + b"?" + b"a" * 8000, b"/v1/orders/x/settle", b"/v1/orders/x/cancel", b"/healthz",
    ]),
    *(b"POST " + ORDERS + version for version in [
        b" HTTP/1.0", b" HTTP/1.2", b" HTTP/2.0", b" HTTP/0.9", b" http/1.1", b" HTTP/1.1 ", b"  HTTP/1.1",
        b"\tHTTP/1.1", b"", b" HTTP/1.10", b" HTTP/11", b" HTTPS/1.1", b" HTTP/1.1\x00", b" HTTP/1,1",
        b" ICE/1.0", b" HTTP/1.1\rX: y",
        b" HTTP/1.1\nX: y",
    ]),
    b" POST " + ORDERS + b" HTTP/1.1", b"\r\nPOST " + ORDERS + b" HTTP/1.1", b"\r\n\r\nPOST " + ORDERS + b" HTTP/1.1",
    b"\nPOST " + ORDERS + b" HTTP/1.1", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\nSM",
    b"\xef\xbb\xbfPOST " + ORDERS + b" HTTP/1.1",
]  # fmt: skip

BODIES = [
    b"", b" ", b"{", b"{}", b"[]", b"null", b"1", b'"x"', b"\xff\xfe", b"\xef\xbb\xbf" + body_of(),
    b" " + body_of() + b"\n", body_of() + b"x", body_of() + body_of(), b"NaN", body_of(name="GONE"),
    body_of(name="NONE"), body_of(name="LIMITED"),
    body_of(name="LIMITED"), body_of(more=',"expected_amount_minor":1990'), body_of(more=',"expected_amount_minor":1'),
    body_of(more=',"expected_amount_minor":1990.0'), body_of(more=',"expected_amount_minor":null'),
    body_of(more=',"discount_minor":10'), body_of(more=',"discount_minor":2000'), body_of(more=',"freight_minor":800'),
    body_of(more=',"reference":"6921"'), body_of(more=',"reference":""'), body_of(more=',"unknown":[{"a":1}]'),
    body_of(more=',"unknown":"\xff"').replace(b"\xc3\xbf", b"\xff"), body_of(more=',"buyer_id":"u-2"'),
    body_of(more=',"channel":"shared"'), body_of(more=',"channel":"Douyin"'), body_of(more=',"lines":[]'),
    body_of(more=',"lines":[{"sku":"TEE","quantity":0}]'), body_of(more=',"lines":[{"sku":"TEE","quantity":"1"}]'),
    body_of(more=',"lines":[{"sku":"TEE","quantity":1},{"sku":"TEE","quantity":2}]'),
    body_of(more=',"lines":[{"sku":"TEE","quantity":1,"line_id":"a"},{"sku":"TEE","quantity":2,"line_id":"a"}]'),
    body_of(more=',"lines":[{"sku":"TEE","quantity":1,"line_id":"2"},{"sku":"TEE","quantity":2}]'),
    body_of(more=',"lines":[{"sku":"GONE","quantity":1},{"sku":"NONE","quantity":2}]'),
    body_of("u\\u0000"), body_of("u\\ud800"), body_of("秒仓"), body_of("u" * 128), body_of("u" * 129), body_of(""),
    b"[" * 2000, b'{"a":' * 30_000, b"9" * 5000, body_of(more=' ,"x":"' + "a" * 60_000 + '"'),
]  # fmt: skip


def cases() -> Iterator[tuple[str, bytes]]:
    """(what is odd, the bytes): `KEY` stands for an Idempotency-Key that is new in each."""
    post = b"POST " + ORDERS + b" HTTP/1.1"
    for name, value in PLAIN_LINES.items():
        for odd, lines in header_variants(name, value):
            for others_first in (False, True):
                others = [other + b": " + text for other, text in PLAIN_LINES.items() if other != name]
                ordered = [*others, *lines] if others_first else [*lines, *others]
                place = "last" if others_first else "first"
                yield f"{name.decode()}, {place}: {odd}", request(post, ordered, body_of())
    for line in MORE_LINES:
        yield f"more: {line[:60]!r}", hold("KEY", None, line)
    for name, values in ((b"Content-Type", TYPES), (b"Authorization", AUTHORIZATIONS), (b"Content-Length", LENGTHS)):
        for value in values:
            lines = [other + b": " + (value if other == name else text) for other, text in PLAIN_LINES.items()]
            yield f"{name.decode()}: {value!r}", request(post, lines, body_of())
    plain_lines = [name + b": " + text for name, text in PLAIN_LINES.items()]
    for first_line in FIRST_LINES:
        yield f"first line: {first_line[:60]!r}", request(first_line, plain_lines, body_of())
    for body in BODIES:
        yield f"body: {body[:60]!r}", hold("KEY", body)
    yield "no lines", post + b"\r\n\r\n"
    yield "LF for CRLF", hold("KEY").replace(b"\r\n", b"\n")
    yield "CR for CRLF", hold("KEY").replace(b"\r\n", b"\r")
    for cut in (1, 4, 10, 40, 80, 120):
        yield f"cut off {cut} before the end", hold("KEY")[:-cut]
    for kept in (1, 4, 10, 30, 40, 45, 60):
        yield f"cut off after {kept}", hold("KEY")[:kept]


CASES = list(cases())


def test_the_table_has_hundreds_of_cases() -> None:
    assert len(CASES) > 700


@on_uvloop
async def test_every_request_is_answered_alike_where_nothing_more_is_sent(partitions: Partitions) -> None:
    async with both_servers(partitions) as both:
        for number, (_, sent) in enumerate(CASES):
            await ask_both(both, sent.replace(b"KEY", b"k-%d" % number), half_close=True)


@on_uvloop
async def test_every_request_is_answered_alike_where_another_follows(partitions: Partitions) -> None:
    async with both_servers(partitions) as both:
        for number, (_, sent) in enumerate(CASES):
            if not IS_LAST.search(sent):
                await ask_both(both, sent.replace(b"KEY", b"m-%d" % number) + MARK, half_close=True)


@on_uvloop
async def test_every_request_is_answered_alike_after_one_that_the_lane_has_answered(partitions: Partitions) -> None:
    async with both_servers(partitions) as both:
        for number, (_, sent) in enumerate(CASES):
            first = hold(f"first-{number}", body_of(name="GONE"))
            seen = await ask_both(
                both, first, sent.replace(b"KEY", b"n-%d" % number), half_close=True, pause_seconds=0.001
            )
            assert seen[0].status == 409


@on_uvloop
async def test_plain_requests_in_a_row_are_answered_alike_and_on_the_lane(partitions: Partitions) -> None:
    async with both_servers(partitions) as both:
        requests = [hold(f"row-{number}", None, b"X-Request-Id: given-%d" % number) for number in range(200)]
        seen = await ask_both(both, *requests, MARK, half_close=False)
        assert [answer.status for answer in seen] == [201] * 200 + [200]
        assert [dict(answer.headers)["x-request-id"] for answer in seen[:-1]] == [f"given-{n}" for n in range(200)]
        again = await ask_both(both, *requests, MARK, half_close=False)
        assert [dict(answer.headers).get("idempotent-replayed") for answer in again[:-1]] == ["true"] * 200


@pytest.mark.parametrize(
    "sent",
    [
        hold("split"),
        hold("split", None, b"X-Request-Id: given", b"Connection: close"),
        hold("split") + hold("split-2"),
        hold("bad", b"{"),
        hold("split").replace(AUTHORIZATION, b"Authorization: Bearer no"),
        hold("split", None, b"Transfer-Encoding: chunked"),
        request(b"GET /healthz HTTP/1.1", [HOST]),
        hold("split").replace(TYPE, b" folded"),
    ],
    ids=["plain", "request id", "two", "malformed", "unknown key", "smuggling", "another route", "folded"],
)
@on_uvloop
async def test_it_does_not_matter_where_a_request_is_split(partitions: Partitions, sent: bytes) -> None:
    async with both_servers(partitions) as both:
        lane, main = both
        expected = answers_in(await main.exchange(sent, half_close=True))
        await lane.exchange(sent, half_close=True)
        repeated = [answers_in(await server.exchange(sent, half_close=True)) for server in both]
        assert repeated[0] == repeated[1]
        for position in range(1, len(sent), 1 if len(sent) < 300 else 3):
            received = await lane.exchange(sent[:position], sent[position:], half_close=True, pause_seconds=0.001)
            assert answers_in(received) == repeated[0], (position, expected)


@on_uvloop
async def test_a_request_that_comes_byte_by_byte_is_answered_alike(partitions: Partitions) -> None:
    async with both_servers(partitions) as both:
        sent = hold("drops") + hold("drops-2")
        drops = [sent[position : position + 1] for position in range(len(sent))]
        seen = await ask_both(both, *drops, half_close=True)
        assert [answer.status for answer in seen] == [201, 201]


@pytest.mark.parametrize(
    "target", [b"/v1/sales/live-@/availability", b"/healthz", b"/nowhere", ORDERS, b"/openapi.json"]
)
@on_uvloop
async def test_a_head_is_answered_alike_without_a_body(partitions: Partitions, target: bytes) -> None:
    async with both_servers(partitions) as both:
        sent = request(b"HEAD " + target + b" HTTP/1.1", [HOST, AUTHORIZATION, b"Connection: close"])
        await ask_both(both, sent, half_close=False, to_head=True)
