"""Requests made to be read differently by two servers: none of them hides another request in its body.

Each message carries a second hold in a place where only a server that misreads the first would find it. What counts is
how many orders that second buyer has afterwards, and that the lane and aiohttp alone have made of it the same.
"""

import pytest

from engine.partition.partitions import Partitions
from tests.integration.fast_lane_rig import (
    AUTHORIZATION,
    HOST,
    ORDERS,
    TYPE,
    answers_in,
    body_of,
    both_servers,
    hold,
    on_uvloop,
    order_of,
    orders_of,
    request,
    settle,
    settle_body,
)

HIDDEN = hold("hidden", body_of("smuggled"))
BODY = body_of("honest")
POST = b"POST " + ORDERS + b" HTTP/1.1"
KEY = b"Idempotency-Key: honest"
LENGTH = b"Content-Length: %d"


def framed(*framing: bytes, body: bytes) -> bytes:
    """A hold with these lines in place of its Content-Length."""
    return request(POST, [HOST, AUTHORIZATION, TYPE, KEY, *framing], body)


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
WHOLE = BODY + HIDDEN
ALL, SOME = LENGTH % len(WHOLE), LENGTH % len(BODY)
TE = b"Transfer-Encoding: chunked"

AMBIGUOUS = {
    "two lengths, the larger last": framed(SOME, ALL, body=WHOLE),
    "two lengths, the larger first": framed(ALL, SOME, body=WHOLE),
    "two lengths, in another case": framed(ALL, b"content-length: %d" % len(BODY), body=WHOLE),
    "two lengths in one line": framed(b"Content-Length: %d, %d" % (len(WHOLE), len(BODY)), body=WHOLE),
    "the same length twice": framed(ALL, ALL, body=WHOLE),
    "length and chunked": framed(LENGTH % (len(CHUNKED + HIDDEN)), TE, body=CHUNKED + HIDDEN),
    "chunked and length": framed(TE, LENGTH % (len(CHUNKED + HIDDEN)), body=CHUNKED + HIDDEN),
    "chunked and a short length": framed(TE, LENGTH % 4, body=CHUNKED + HIDDEN),
    "length and chunked, one folded": framed(ALL, b"Transfer-Encoding:", b" chunked", body=WHOLE),
    "length and chunked behind a tab": framed(ALL, b"Transfer-Encoding:\tchunked", body=WHOLE),
    "length and chunked with a space before the colon": framed(ALL, b"Transfer-Encoding : chunked", body=WHOLE),
    "length and something like chunked": framed(ALL, b"Transfer-Encoding: xchunked", body=WHOLE),
    "length and chunked in quotes": framed(ALL, b'Transfer-Encoding: "chunked"', body=WHOLE),
    "length and chunked, identity": framed(ALL, b"Transfer-Encoding: chunked, identity", body=WHOLE),
    "length and identity": framed(ALL, b"Transfer-Encoding: identity", body=WHOLE),
    "length and chunked behind a vertical tab": framed(ALL, b"Transfer-Encoding: \x0bchunked", body=WHOLE),
    "length and chunked behind a NUL": framed(ALL, b"Transfer-Encoding: \x00chunked", body=WHOLE),
    "length and a name with an underscore": framed(ALL, b"Transfer_Encoding: chunked", body=WHOLE),
    "length with a sign": framed(b"Content-Length: +%d" % len(WHOLE), body=WHOLE),
    "length below nothing": framed(b"Content-Length: -1", body=WHOLE),
    "length in hexadecimal": framed(b"Content-Length: 0x%x" % len(WHOLE), body=WHOLE),
    "length with zeros before it": framed(b"Content-Length: 000%d" % len(WHOLE), body=WHOLE),
    "length with a space within": framed(b"Content-Length: %d 0" % len(WHOLE), body=WHOLE),
    "length with more lines to it": framed(ALL, b" 0", body=WHOLE),
    "length behind a tab": framed(b"Content-Length:\t%d" % len(WHOLE), body=WHOLE),
    "length with a space before the colon": framed(b"Content-Length : %d" % len(WHOLE), body=WHOLE),
    "length with a NUL": framed(ALL + b"\x00", body=WHOLE),
    "length past 64 bits": framed(b"Content-Length: %d" % (2**64 + len(BODY)), body=WHOLE),
    "length past 32 bits": framed(b"Content-Length: %d" % (2**32 + len(BODY)), body=WHOLE),
    "length behind a bare CR": framed(b"X: y\rContent-Length: %d" % len(WHOLE), body=WHOLE),
    "length behind a bare LF": framed(b"X: y\nContent-Length: %d" % len(BODY), ALL, body=WHOLE),
    "a bare LF as the empty line": framed(b"X: y\n\nZ: z", ALL, body=WHOLE),
    "a bare CR as the empty line": framed(b"X: y\r\rZ: z", ALL, body=WHOLE),
    "a request in a folded line": framed(ALL, b"X: y", b" " + HIDDEN.partition(b"\r\n")[0], body=WHOLE),
    "a request in the key's line": request(
        POST, [HOST, AUTHORIZATION, TYPE, KEY + b"\n\n" + HIDDEN.replace(b"\r\n", b"\n"), ALL], WHOLE
    ),
    "a key's line with a bare CR": request(POST, [HOST, AUTHORIZATION, TYPE, KEY + b"\r" + SOME, ALL], WHOLE),
    "a key's line with a length behind a bare LF": request(
        POST, [HOST, AUTHORIZATION, TYPE, KEY + b"\n" + SOME, ALL], WHOLE
    ),
    "a request id with a length behind a bare LF": request(
        POST, [HOST, AUTHORIZATION, TYPE, KEY, b"X-Request-Id: a\n" + SOME, ALL], WHOLE
    ),
    "an upgrade": framed(ALL, b"Connection: Upgrade", b"Upgrade: h2c", body=WHOLE),
    "length as a hop-by-hop header": framed(ALL, b"Connection: Content-Length", body=WHOLE),
    "HTTP/1.0 with chunked": framed(TE, ALL, body=WHOLE).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "chunks with an extension": framed(TE, body=b"%x;a=\r\n%b\r\n0\r\n\r\n" % (len(WHOLE), WHOLE)),
    "chunks with a bare LF in the extension": framed(TE, body=b"%x;\n%b\r\n0\r\n\r\n" % (len(WHOLE), WHOLE)),
    "chunks of a size with a sign": framed(TE, body=b"+%x\r\n%b\r\n0\r\n\r\n" % (len(WHOLE), WHOLE)),
    "chunks of a size in 0x": framed(TE, body=b"0x%x\r\n%b\r\n0\r\n\r\n" % (len(WHOLE), WHOLE)),
    "chunks past 64 bits": framed(TE, body=b"1000000000000000%x\r\n%b\r\n0\r\n\r\n" % (len(WHOLE), WHOLE)),
    "chunks with a trailer": framed(
        TE, body=b"%x\r\n%b\r\n0\r\nX: %b\r\n\r\n" % (len(BODY), BODY, HIDDEN.partition(b"\r\n")[0])
    ),
}


@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
@on_uvloop
async def test_nothing_is_smuggled(partitions: Partitions, sent: bytes) -> None:
    async with both_servers(partitions) as both:
        for server in both:
            for before in (b"", hold("before", body_of("before"))):  # as the first, and after one on the lane
                await server.exchange(before, sent, half_close=True, pause_seconds=0.001)
                await server.exchange(before + sent, half_close=True)
        made = [[await orders_of(server, buyer) for server in both] for buyer in BUYERS]
        assert made[0] == [0, 0], "the hidden hold was found"
        assert made[1][0] == made[1][1], "one server takes for a request what the other does not"
        assert made[2] == [1, 1]


BUYERS = ("smuggled", "honest", "before")
ORDER = order_of("to-be-settled-")


def as_settlement(sent: bytes) -> bytes:
    """The same with a settlement in place of the hold, whose bytes are as many."""
    sent = sent.replace(POST, b"POST /v1/orders/" + ORDER + b"/settle HTTP/1.1", 1).replace(KEY, b"X: y", 1)
    return sent.replace(BODY, settle_body().ljust(len(BODY)))


@pytest.mark.parametrize("sent", [*map(as_settlement, AMBIGUOUS.values())], ids=AMBIGUOUS.keys())
@on_uvloop
async def test_nothing_is_smuggled_in_a_settlement(partitions: Partitions, sent: bytes) -> None:
    async with both_servers(partitions) as both:
        statuses = []
        for server in both:
            await server.exchange(hold("to-be-settled-"), hold("before", body_of("before")), half_close=True)
            for before in (b"", settle(ORDER, settle_body(1))):  # as the first, and after one on the lane
                await server.exchange(before, sent, half_close=True, pause_seconds=0.001)
                await server.exchange(before + sent, half_close=True)
            assert await orders_of(server, "smuggled") == 0, "the hidden hold was found"
            read = request(b"GET /v1/orders/" + ORDER + b" HTTP/1.1", [HOST, AUTHORIZATION, b"Connection: close"])
            statuses.append(answers_in(await server.exchange(read)))
        assert statuses[0] == statuses[1], "one server takes for a settlement what the other does not"


@on_uvloop
async def test_what_does_follow_a_request_is_found(partitions: Partitions) -> None:
    async with both_servers(partitions) as both:
        for server in both:
            await server.exchange(framed(SOME, body=WHOLE), half_close=True)
            assert await orders_of(server, "smuggled") == 1
