"""Settlements on the lane and on aiohttp alone, in plain, odd and hostile ways: the same answers, the same orders paid.

The order's id is cut out of the target there, so the targets are what is odd most of all; and each case that is no
plain settlement is shown to have been none for the hot handler.
"""

import asyncio
import re
from collections.abc import Iterator

import orjson
import pytest

from engine.gateway.application import hot_handlers
from engine.partition.partitions import Partitions
from engine.web.fast_lane import LaneBounds
from tests.integration.fast_lane_rig import (
    AUTHORIZATION,
    HOST,
    PRINCIPALS,
    TYPE,
    Running,
    answers_in,
    ask_both,
    both_servers,
    hold,
    on_uvloop,
    open_sale,
    order_of,
    request,
    running,
    settle,
    settle_body,
)
from tests.integration.test_fast_lane_connections import counted
from tests.integration.test_fast_lane_same_answers import IS_LAST, MARK, MORE_LINES, TYPES, header_variants

LAST = b"Connection: close"
ID = order_of("this-case-----")
"""Stands for the id of an order that is new in each case."""
DIGEST = ID.partition(b".")[0]
TARGET = b"/v1/orders/" + ID + b"/settle"
PLAIN_LINES = {
    b"Host": b"x",
    b"Authorization": b"Bearer checkout-key",
    b"Content-Type": b"application/json",
    b"Content-Length": b"%d" % len(settle_body()),
}
OWN_LINES = {b"Idempotency-Key": b"key-1", b"X-Request-Id": b"given-1"}

TARGETS = [
    b"/v1/orders/" + DIGEST[:-1] + b".live-@/settle", b"/v1/orders/" + b"a" * 23 + b".live-@/settle",
    b"/v1/orders/" + DIGEST + b"a.live-@/settle", b"/v1/orders/a" + DIGEST + b".live-@/settle",
    b"/v1/orders/" + b"a" * 24 + b".live-@/settle", b"/v1/orders/" + DIGEST + b".nowhere/settle",
    b"/v1/orders/" + DIGEST + b"%2Elive-@/settle", b"/v1/orders/" + DIGEST + b"%2elive-@/settle",
    b"/v1/orders/" + DIGEST + b".live%2D@/settle", b"/v1/orders/" + ID + b"%2Fsettle",
    b"/v1/orders/" + ID + b"/%73ettle", b"/v1/orders/" + ID + b"/settle%20", b"/v1/orders/%61" + ID[1:] + b"/settle",
    b"/v1/orders/" + DIGEST + b"/settle", b"/v1/orders/" + DIGEST + b"./settle", b"/v1/orders/.live-@/settle",
    b"/v1/orders/" + DIGEST + b"..live-@/settle", b"/v1/orders/" + DIGEST + b".-live-@/settle",
    b"/v1/orders/" + DIGEST + b",live-@/settle", b"/v1/orders/" + DIGEST + b"+live-@/settle",
    b"/v1/orders/" + DIGEST + b"." + b"a" * 64 + b"/settle", b"/v1/orders/" + DIGEST + b"." + b"a" * 65 + b"/settle",
    b"/v1/orders/" + b"+" * 24 + b".live-@/settle", b"/v1/orders/" + b"=" * 24 + b".live-@/settle",
    b"/v1/orders//settle", b"/v1/orders/./settle", b"/v1/orders/../settle", b"/v1/orders/{order_id}/settle",
    b"/v1/orders//" + ID + b"/settle", b"/v1/orders/" + ID + b"//settle", b"//v1/orders/" + ID + b"/settle",
    b"/v1//orders/" + ID + b"/settle", b"/v1/./orders/" + ID + b"/settle", b"/v1/orders/../orders/" + ID + b"/settle",
    b"/v1/orders/" + ID + b"/../" + ID + b"/settle", b"/v1/orders/" + ID + b"/" + ID + b"/settle",
    b"/v1/orders/" + ID + b"/settle/settle", b"/v1/orders/" + ID + b"/settle/", b"/v1/orders/" + ID + b"/Settle",
    b"/V1/orders/" + ID + b"/settle", b"/v1/ORDERS/" + ID + b"/settle", b"/v1/orders/" + ID, b"/v1/orders/" + ID + b"/",
    b"/v1/orders/" + ID + b"/frob", b"/v1/orders/" + ID + b"/settl", b"/v1/orders/" + ID + b"/settlee",
    TARGET + b"?", TARGET + b"?a=b", TARGET + b"?a=/settle", b"/v1/orders/" + ID + b"?a=/settle", TARGET + b"#x",
    b"/v1/orders/" + ID + b"#/settle", TARGET + b";a", b"/v1/orders/" + ID + b";a/settle", TARGET + b"\t",
    b"/v1/orders/" + ID + b" /settle", b"/v1/orders/ " + ID + b"/settle", b"/v1/orders/" + ID + b"\t/settle",
    b"/v1/orders/" + ID + b"\\settle", b"/v1/orders/" + ID + b"\x00/settle", b"/v1/orders/\x00/settle",
    b"/v1/orders/" + ID + b"\xc3\xa9/settle", b"/v1/orders/" + ID + b"\r/settle", b"/v1/orders/" + ID + b"\n/settle",
    b"/v1/orders/" + DIGEST + b"\n.live-@/settle", b"/v1/orders/" + ID + b"\x7f/settle",
    b"/v1/orders/" + ID + b" HTTP/1.1\r\nX: /settle", b"/settle", b"v1/orders/" + ID + b"/settle",
    b"http://x/v1/orders/" + ID + b"/settle", b"https://x:8080/v1/orders/" + ID + b"/settle",
    b"//x/v1/orders/" + ID + b"/settle", b"/v1/orders/http://x/" + ID + b"/settle",
    b"/v1/sales/live-@/orders/" + ID + b"/settle", b"/v1/orders/" + b"a" * 8000 + b"/settle",
]  # fmt: skip

FIRST_LINES = [
    *(b"POST " + target + b" HTTP/1.1" for target in TARGETS),
    *(method + b" " + TARGET + b" HTTP/1.1" for method in [
        b"GET", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"post", b"POSTS", b"",
    ]),
    *(b"POST " + TARGET + version for version in [
        b" HTTP/1.0", b" HTTP/1.2", b" HTTP/2.0", b" http/1.1", b" HTTP/1.1 ", b"  HTTP/1.1", b"\tHTTP/1.1", b"",
        b" HTTP/1.1\x00", b" HTTP/1.1\nX: y",
    ]),
    b" POST " + TARGET + b" HTTP/1.1", b"POST  " + TARGET + b" HTTP/1.1", b"\r\nPOST " + TARGET + b" HTTP/1.1",
    b"POST\t" + TARGET + b" HTTP/1.1",
]  # fmt: skip

BODIES = [
    b"", b" ", b"{", b"{}", b"[]", b"null", b"\xff\xfe", b"\xef\xbb\xbf" + settle_body(), b" " + settle_body() + b"\n",
    settle_body() + b"x", settle_body(1), settle_body(-1), settle_body(10**13), settle_body(10**13 + 1),
    settle_body(payment_id=""), settle_body(payment_id="p" * 128), settle_body(payment_id="p" * 129),
    settle_body(payment_id="付款"), settle_body(payment_id="\\u0000"), settle_body(payment_id="\ud800"),
    settle_body(payment_id="\xa0"), settle_body(more=',"currency":"USD"'), settle_body(more=',"currency":"cny"'),
    settle_body(more=',"currency":"CNYY"'), settle_body(more=',"currency":null'), settle_body(more=',"currency":7'),
    settle_body(more=',"amount_minor":1990.0'), settle_body(more=',"amount_minor":"1990"'),
    settle_body(more=',"amount_minor":true'), settle_body(more=',"amount_minor":1e3'),
    settle_body(more=',"x":[{"a":1}]'), settle_body(more=',"payment_id":"pay-2"'), b"[" * 2000, b'{"a":' * 3000,
    settle_body(more=',"x":"%s"' % ("a" * 65_000)), settle_body(more=',"x":"%s"' % ("a" * 66_000)),
]  # fmt: skip

AUTHORIZATIONS = [b"bearer checkout-key", b"Bearer ops-key", b"Bearer erp-key", b"Bearer no", b"Bearer", b"Basic x"]


def cases() -> Iterator[tuple[str, bytes]]:
    """(what is odd, the bytes), each for an order that is held."""
    post = b"POST " + TARGET + b" HTTP/1.1"
    plain = [name + b": " + text for name, text in PLAIN_LINES.items()]
    for name, value in {**PLAIN_LINES, **OWN_LINES}.items():
        others = [other + b": " + text for other, text in PLAIN_LINES.items() if other != name]
        for odd, lines in header_variants(name, value):
            yield f"{name.decode()}: {odd}", request(post, [*lines, *others], settle_body())
            yield f"{name.decode()}, last: {odd}", request(post, [*others, *lines], settle_body())
    for line in MORE_LINES:
        yield f"more: {line[:60]!r}", settle(ID, None, line)
    for name, values in ((b"Content-Type", TYPES), (b"Authorization", AUTHORIZATIONS)):
        for value in values:
            lines = [other + b": " + (value if other == name else text) for other, text in PLAIN_LINES.items()]
            yield f"{name.decode()}: {value!r}", request(post, lines, settle_body())
    for first_line in FIRST_LINES:
        yield f"first line: {first_line[:80]!r}", request(first_line, plain, settle_body())
        with_key = [*plain, b"Idempotency-Key: " + ID]
        yield f"first line, with the id as a key: {first_line[:80]!r}", request(first_line, with_key, settle_body())
    for body in BODIES:
        yield f"body: {body[:60]!r}", settle(ID, body)
    for cut in (1, 10, 60, 100):
        yield f"cut off {cut} before the end", settle(ID)[:-cut]
    for kept in (6, 15, 16, 17, 30, 41, 60):
        yield f"cut off after {kept}", settle(ID)[:kept]


CASES = list(cases())


def case_key(group: str, number: int) -> str:
    """The Idempotency-Key of the order that a case is about."""
    return f"{group}-{number:05d}".ljust(14, "-")


async def make_orders(both: tuple[Running, Running], keys: list[str]) -> None:
    """Make an order with each of these keys at both servers."""
    seen = await ask_both(both, b"".join(map(hold, keys)) + MARK, half_close=False)
    assert [answer.status for answer in seen[:-1]] == [201] * len(keys)


async def assert_same_orders(both: tuple[Running, Running], keys: list[str]) -> list[str]:
    """The statuses of the orders of these keys, the same at both."""
    gets = [request(b"GET /v1/orders/" + order_of(key) + b" HTTP/1.1", [HOST, AUTHORIZATION]) for key in keys]
    seen = await ask_both(both, b"".join(gets) + MARK, half_close=False)
    return [orjson.loads(answer.body)["status"] for answer in seen[:-1]]


@pytest.mark.parametrize("group", ["alone", "follow"])
@on_uvloop
async def test_every_settlement_is_answered_alike(partitions: Partitions, group: str) -> None:
    """Alone on its connection; and behind another on the lane, with one more behind it."""
    async with both_servers(partitions) as both:
        keys = [case_key(group, number) for number in range(len(CASES))]
        await make_orders(both, [*keys, "first---------"])
        for key, (_, sent) in zip(keys, CASES, strict=True):
            own = sent.replace(ID, order_of(key)).replace(DIGEST, order_of(key).partition(b".")[0])
            if group == "alone":
                await ask_both(both, own, half_close=True)
            elif not IS_LAST.search(own):
                first = settle(order_of("first---------"))
                seen = await ask_both(both, first, own + MARK, half_close=True, pause_seconds=0.001)
                assert seen[0].status == 200
        statuses = await assert_same_orders(both, keys)
        assert 100 < statuses.count("settled") < len(CASES) - 100


def test_the_table_has_hundreds_of_settlements() -> None:
    assert len(CASES) > 500


# --- who answers ---------------------------------------------------------------------------------------------------


async def hot_count(server: Running, *pieces: bytes) -> tuple[list[int], float]:
    """The statuses of the answers to these, and how many of them were the hot handlers'."""
    before = counted("miaocang_fast_lane_requests", by="hot")
    answers = answers_in(await server.exchange(*pieces, pause_seconds=0.003))
    return [answer.status for answer in answers], counted("miaocang_fast_lane_requests", by="hot") - before


@on_uvloop
async def test_plain_settlements_are_the_hot_handlers_whatever_comes_between(partitions: Partitions) -> None:
    async with both_servers(partitions) as (lane, _):
        keys = [case_key("row", number) for number in range(6)]
        orders = list(map(order_of, keys))
        sent = [part for key in keys for part in (hold(key), settle(order_of(key)))]
        sent += [*map(settle, orders), settle(orders[0], None, LAST)]
        expected = [201, 200] * 6 + [200] * 7
        for pieces in (sent, [b"".join(sent)]):
            statuses, hot = await hot_count(lane, *pieces)
            assert (statuses, hot) == (expected, len(expected))
            expected = [200] * len(expected)


@on_uvloop
async def test_a_request_id_is_given_back_by_the_hot_handler(partitions: Partitions) -> None:
    async with both_servers(partitions) as both:
        await make_orders(both, ["first---------"])
        order, before = order_of("first---------"), counted("miaocang_fast_lane_requests", by="hot")
        ids = [b"X-Request-Id: given-%d" % number for number in range(5)]
        seen = await ask_both(
            both, *(settle(order, None, line) for line in ids), settle(order, None, LAST), half_close=False
        )
        assert [dict(answer.headers)["x-request-id"] for answer in seen] == [*(f"given-{n}" for n in range(5)), "made"]
        assert counted("miaocang_fast_lane_requests", by="hot") == before + 6


def has_right_shape(first_line: bytes) -> bool:
    """Whether this is a plain settlement after all, only of an order that does not exist."""
    ids = (b"a" * 24 + b".live-@", DIGEST + b".nowhere", DIGEST + b"." + b"a" * 64)
    return first_line in [b"POST /v1/orders/" + order_id + b"/settle HTTP/1.1" for order_id in ids]


@on_uvloop
async def test_an_odd_first_line_is_none_for_the_hot_handler(partitions: Partitions) -> None:
    order, others = order_of("first---------"), [HOST, AUTHORIZATION, TYPE, b"Content-Length: %d" % len(settle_body())]
    await open_sale(partitions, "live-a")
    async with running(partitions, "live-a", hot=hot_handlers) as lane:
        await lane.exchange(hold("first---------", None, LAST))
        for first_line in FIRST_LINES:
            for more, expected in (([], 2 if has_right_shape(first_line) else 1), ([b"Idempotency-Key: " + order], 1)):
                before = counted("miaocang_fast_lane_requests", by="hot")
                odd = request(first_line, [*others, *more], settle_body()).replace(ID, order)
                odd = odd.replace(DIGEST, order.partition(b".")[0])
                await lane.exchange(settle(order), odd, half_close=True, pause_seconds=0.002)
                assert counted("miaocang_fast_lane_requests", by="hot") == before + expected, first_line


@on_uvloop
async def test_an_id_in_the_keys_place_is_none_in_the_target(partitions: Partitions) -> None:
    """Without its id a target is spelled like one with an empty id, and heads are remembered by their spelling."""
    async with both_servers(partitions) as both:
        await make_orders(both, ["first---------", "second--------"])
        key = b"Idempotency-Key: " + order_of("second--------")
        sent = [settle(order_of("first---------")), settle(b"", None, key), settle(b""), MARK]
        seen = await ask_both(both, *sent, half_close=False, pause_seconds=0.002)
        assert [answer.status for answer in seen] == [200, 404, 404, 200]
        assert await assert_same_orders(both, ["first---------", "second--------"]) == ["settled", "held"]


# --- pieces, keys, bounds, the end ---------------------------------------------------------------------------------


@on_uvloop
async def test_it_does_not_matter_where_settlements_are_split(partitions: Partitions) -> None:
    async with both_servers(partitions) as both:
        lane, _ = both
        sent = (
            hold("first---------") + settle(order_of("first---------")) + settle(order_of("first---------"), None, LAST)
        )
        assert [answer.status for answer in await ask_both(both, sent, half_close=False)] == [201, 200, 200]
        expected = await ask_both(both, sent, half_close=False)
        assert [answer.status for answer in expected] == [200, 200, 200]
        for position in range(1, len(sent), 3):
            received = await lane.exchange(sent[:position], sent[position:], pause_seconds=0.001)
            assert answers_in(received) == expected, position


@on_uvloop
async def test_a_revoked_key_stops_settling_within_a_second(partitions: Partitions) -> None:
    holder = PRINCIPALS["checkout-key"]
    await open_sale(partitions, "live-a")
    async with running(partitions, "live-a", hot=hot_handlers) as lane:
        try:
            await lane.exchange(hold("first---------", None, LAST))
            reader, writer = await lane.connect()
            plain = lane.named(settle(order_of("first---------")))
            async with asyncio.timeout(5):
                for _ in range(2):
                    writer.write(plain)
                    assert b" 200 " in await reader.readuntil(b'"settled"')
                    await reader.readuntil(b"}")
                del PRINCIPALS["checkout-key"]
                await asyncio.sleep(0.3)
                writer.write(plain)
                assert b"HTTP/1.1 401 " in await reader.readuntil(b"UNAUTHORIZED")
            writer.close()
        finally:
            PRINCIPALS["checkout-key"] = holder


@on_uvloop
async def test_one_settlement_too_many_is_overloaded_unless_something_else_is_wrong(partitions: Partitions) -> None:
    async with both_servers(partitions, LaneBounds(requests_in_flight_max=0)) as (lane, main):
        order = order_of("first---------")
        await main.exchange(hold("first---------", None, LAST))
        sent = [settle(order, b"{"), settle(order, b"{}", LAST)]
        refused = answers_in(await lane.exchange(*sent))
        assert refused == answers_in(await main.exchange(*sent))
        (overloaded,) = answers_in(await lane.exchange(settle(order, None, LAST)))
        assert (overloaded.status, orjson.loads(overloaded.body)["code"]) == (503, "OVERLOADED")


@on_uvloop
async def test_while_draining_a_settlement_is_answered_and_closes(partitions: Partitions) -> None:
    async with both_servers(partitions) as both:
        await make_orders(both, ["first---------", "second--------"])
        for key, repeated in (("first---------", False), ("second--------", False), ("second--------", True)):
            for server in both:
                server.service.draining.set()
            (answer,) = await ask_both(both, settle(order_of(key)), half_close=False)
            headers = dict(answer.headers)
            assert (answer.status, headers["connection"]) == (200, "close")
            assert headers.get("idempotent-replayed") == ("true" if repeated else None)


@on_uvloop
async def test_each_routes_answers_have_the_date_of_their_time(partitions: Partitions) -> None:
    await open_sale(partitions, "live-a")
    async with running(partitions, "live-a", hot=hot_handlers) as lane:
        sent = [hold("first---------"), settle(order_of("first---------"), None, LAST)]
        dates = [set(re.findall(rb"Date: ([^\r]+)", await lane.exchange(*sent)))]
        await asyncio.sleep(1.5)
        dates.append(set(re.findall(rb"Date: ([^\r]+)", await lane.exchange(*sent))))
        assert not dates[0] & dates[1]


@on_uvloop
async def test_settlements_are_counted_as_the_general_server_counts_them(partitions: Partitions) -> None:
    route = {"interface": "gateway", "route": "/v1/orders/{order_id}/settle"}
    statuses = [("200", "OK"), ("409", "DUPLICATE_PAYMENT"), ("422", "AMOUNT_MISMATCH"), ("400", "MALFORMED")]
    names = [("miaocang_http_requests", {**route, "status": status, "code": code}) for status, code in statuses]
    names += [("miaocang_refusals", {"code": code}) for _, code in statuses[1:]]
    async with both_servers(partitions) as both:
        await make_orders(both, ["first---------"])
        order, counts = order_of("first---------"), []
        for server in both:
            before = [counted(name, **labels) for name, labels in names]
            bodies = [settle_body(1), b"{", settle_body(), settle_body(), settle_body(payment_id="pay-2")]
            for body in bodies:
                await server.exchange(settle(order, body, LAST))
            counts.append([counted(name, **labels) - then for (name, labels), then in zip(names, before, strict=True)])
        assert counts == [[2, 1, 1, 1, 1, 1, 0]] * 2
