"""Connections on the fast lane: handing over in mid-stream, slow and vanishing callers, bounds, and the end."""

import asyncio
import re
import socket
from collections.abc import Callable

import orjson
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from engine.gateway.application import hot_handlers
from engine.observability.aggregates import flush_buffers
from engine.partition.partitions import Partitions
from engine.web.fast_lane import HotRequest, LaneBounds
from tests.integration.fast_lane_rig import (
    AUTHORIZATION,
    HOST,
    ORDERS,
    PRINCIPALS,
    TYPE,
    Running,
    Seen,
    answers_in,
    ask_both,
    body_of,
    both_servers,
    hold,
    of_holds,
    on_uvloop,
    open_sale,
    request,
    running,
)

LAST = (b"Connection: close",)
CHUNKED = request(
    b"POST " + ORDERS + b" HTTP/1.1",
    [HOST, AUTHORIZATION, TYPE, b"Idempotency-Key: chunked", b"Transfer-Encoding: chunked"],
    b"%x\r\n%b\r\n0\r\n\r\n" % (len(body_of()), body_of()),
)
METRICS = request(b"GET /metrics HTTP/1.1", [HOST])
NOWHERE = request(b"GET /nowhere HTTP/1.1", [HOST, AUTHORIZATION])
REPEATED = hold("k").replace(b"live-@", b"live-a")
HASTY = LaneBounds(
    idle_seconds_max=0.3,
    head_seconds_max=0.3,
    body_seconds_max=0.3,
    write_seconds_max=0.3,
    linger_seconds_max=0.3,
    sweep_seconds=0.02,
)


class Keeper:
    """A hot handler that keeps its requests until it is told what to answer."""

    def __init__(self) -> None:
        self.kept: list[HotRequest] = []

    def take(self, hot_request: HotRequest) -> None:
        self.kept.append(hot_request)

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.kept) < count:
                await asyncio.sleep(0.002)


def echo(hot_request: HotRequest) -> None:
    """Answers each request at once, with its own key."""
    hot_request.answer(201, orjson.dumps(hot_request.own), "OK")


def counted(name: str, **labels: str) -> float:
    """A counter's value in this process."""
    flush_buffers()
    return REGISTRY.get_sample_value(f"{name}_total", labels) or 0.0


def bound_reached(bound: str) -> float:
    """How often a bound was reached in this process."""
    return counted("miaocang_bound_reached", bound=bound)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(5):
        while not is_so():
            await asyncio.sleep(0.005)


def statuses(seen: list[Seen]) -> list[int]:
    return [answer.status for answer in seen]


# --- handing over --------------------------------------------------------------------------------------------------


@on_uvloop
async def test_a_connection_is_handed_over_in_mid_stream_and_answers_keep_their_order(partitions: Partitions) -> None:
    async with both_servers(partitions) as both:
        handovers = counted("miaocang_fast_lane_handovers", reason="route")
        sent = [hold("a"), hold("b"), NOWHERE, hold("c"), CHUNKED, hold("d", None, b"X-Request-Id: given-d", *LAST)]
        for pieces in (sent, [b"".join(sent)]):
            seen = await ask_both(both, *pieces, half_close=False)
            assert [200 if status == 201 else status for status in statuses(seen)] == [200, 200, 404, 200, 200, 200]
            assert dict(seen[-1].headers)["x-request-id"] == "given-d"
        assert counted("miaocang_fast_lane_handovers", reason="route") == handovers + 2


@on_uvloop
async def test_chunked_and_expectant_requests_are_served_behind_plain_ones(partitions: Partitions) -> None:
    async with both_servers(partitions) as both:
        expectant = hold("expect", None, b"Expect: 100-continue", *LAST)
        seen = await ask_both(both, hold("a"), CHUNKED, expectant, half_close=False)
        assert statuses(seen) == [201, 201, 100, 201]


@on_uvloop
async def test_a_client_that_waits_for_100_continue_gets_it_before_its_body(partitions: Partitions) -> None:
    await open_sale(partitions, "live-a")
    async with running(partitions, "live-a", hot=hot_handlers) as lane:
        reader, writer = await lane.connect()
        head, _, body = hold("e", None, b"Expect: 100-continue", *LAST).replace(b"live-@", b"live-a").partition(b"{")
        writer.write(hold("first").replace(b"live-@", b"live-a") + head)
        async with asyncio.timeout(5):
            received = await reader.readuntil(b"100 Continue\r\n\r\n")
            writer.write(b"{" + body)
            received += await reader.read(-1)
        assert statuses(answers_in(received)) == [201, 100, 201]
        writer.close()


@on_uvloop
async def test_settling_and_asking_stay_on_the_lane(partitions: Partitions) -> None:
    async with both_servers(partitions) as both:
        taken = counted("miaocang_fast_lane_requests", by="general")
        ask = request(b"GET " + ORDERS + b"?channel=douyin&buyer_id=u-1 HTTP/1.1", [HOST, AUTHORIZATION])
        cancel = request(
            b"POST /v1/orders/abcdefghijklmnopqrstuvwx.live-@/cancel HTTP/1.1",
            [HOST, AUTHORIZATION, b"Content-Length: 0"],
        )
        seen = await ask_both(both, hold("a"), ask, cancel, hold("b", None, *LAST), half_close=False)
        assert statuses(seen) == [201, 200, 404, 201]
        assert counted("miaocang_fast_lane_requests", by="general") == taken + 2


@on_uvloop
async def test_what_comes_behind_an_offer_of_http_2_is_answered_too(partitions: Partitions) -> None:
    """aiohttp throws it away; then each later answer would be taken for another request's."""
    offer = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAAB")
    async with running(partitions, "live-a", hot=of_holds(echo)) as lane:
        written = hold("k1", None, *offer) + hold("k2") + hold("k3", None, *LAST)
        answers = answers_in(await lane.exchange(written))
        assert [orjson.loads(answer.body) for answer in answers] == ["k1", "k2", "k3"]


@on_uvloop
async def test_thousands_of_pipelined_requests_are_answered_in_their_order(partitions: Partitions) -> None:
    async with running(partitions, "live-a", hot=of_holds(echo)) as lane:
        keys = [f"k-{number}" for number in range(5000)]
        sent = b"".join(hold(key) for key in keys) + hold("end", None, *LAST)
        answers = answers_in(await lane.exchange(sent))
        assert [orjson.loads(answer.body) for answer in answers] == [*keys, "end"]
        assert lane.service.in_flight == 0


# --- slow callers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "bound"),
    [
        (b"", "lane_idle_seconds"),
        (b"POST /v1/sales/live-@/orders HT", "lane_head_seconds"),
        (b"POST /v1/sales/live-@/orders HTTP/1.1\r\nHost: x\r\nAuthor", "lane_head_seconds"),
    ],
)
@on_uvloop
async def test_who_sends_no_whole_head_is_closed_in_time(partitions: Partitions, sent: bytes, bound: str) -> None:
    async with running(partitions, "live-a", hot=of_holds(echo), bounds=HASTY) as lane:
        reached = bound_reached(bound)
        assert await lane.exchange(sent) == b""
        assert bound_reached(bound) == reached + 1


@on_uvloop
async def test_a_head_that_trickles_is_closed_in_time_however_steadily_it_comes(partitions: Partitions) -> None:
    async with running(partitions, "live-a", hot=of_holds(echo), bounds=HASTY) as lane:
        sent = hold("slow")
        drops = [sent[position : position + 1] for position in range(len(sent))]
        assert await lane.exchange(*drops, pause_seconds=0.02) == b""


@on_uvloop
async def test_a_body_that_comes_too_slowly_is_malformed(partitions: Partitions) -> None:
    async with both_servers(partitions, HASTY) as both:
        reached = bound_reached("lane_body_seconds")
        seen = await ask_both(both, hold("slow", None, b"X-Request-Id: given-slow")[:-10], half_close=False)
        assert statuses(seen) == [400]
        assert orjson.loads(seen[0].body)["detail"] == "The body did not arrive within 0.3 seconds."
        assert dict(seen[0].headers)["connection"] == "close"
        assert bound_reached("lane_body_seconds") == reached + 1


@pytest.mark.alone
@on_uvloop
async def test_a_connection_that_is_used_is_not_idle(partitions: Partitions) -> None:
    async with running(partitions, "live-a", hot=of_holds(echo), bounds=HASTY) as lane:
        sent = [hold(f"k-{number}") for number in range(10)]
        assert statuses(answers_in(await lane.exchange(*sent, pause_seconds=0.1))) == [201] * 10


@on_uvloop
async def test_a_slow_reader_makes_us_keep_little_and_loses_nothing(partitions: Partitions) -> None:
    async with running(partitions, "live-a", hot=of_holds(echo)) as lane:
        paused = bound_reached("lane_buffered_bytes")
        sent = b"".join(hold(f"k-{number}") for number in range(40_000)) + hold("end", None, *LAST)
        sent = sent.replace(b"live-@", b"live-a")
        with slow_socket(lane) as caller:
            loop = asyncio.get_running_loop()
            sending = asyncio.create_task(loop.sock_sendall(caller, sent))
            await until(lambda: bound_reached("lane_buffered_bytes") > paused)
            await asyncio.sleep(0.1)
            assert not sending.done(), "all of it was read in"
            (connection,) = lane.server.connections
            assert connection._kept_bytes() < 512 * 1024
            assert connection._transport.get_write_buffer_size() < 256 * 1024
            received = bytearray()
            async with asyncio.timeout(20):
                while chunk := await loop.sock_recv(caller, 1 << 20):
                    received += chunk
            await sending
        answers = answers_in(bytes(received[-2000:])[bytes(received[-2000:]).index(b"HTTP/1.1") :])
        assert received.count(b"HTTP/1.1 201 Created") == 40_001
        assert orjson.loads(answers[-1].body) == "end"


@on_uvloop
async def test_who_never_reads_is_cut_off(partitions: Partitions) -> None:
    async with running(partitions, "live-a", hot=of_holds(echo), bounds=HASTY) as lane:
        reached = bound_reached("lane_write_seconds")
        with slow_socket(lane) as caller:
            sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(caller, REPEATED * 60_000))
            await until(lambda: bound_reached("lane_write_seconds") > reached)
            with pytest.raises(OSError):
                await sending
        await until(lambda: not lane.server.connections)


def slow_socket(lane: Running) -> socket.socket:
    """A connection that reads only when it is told to, and has little room."""
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.connect(("127.0.0.1", lane.port))
    caller.setblocking(False)
    return caller


# --- too many ------------------------------------------------------------------------------------------------------


@on_uvloop
async def test_one_connection_too_many_is_told_so_and_the_others_do_not_notice(partitions: Partitions) -> None:
    async with running(partitions, "live-a", hot=of_holds(echo), bounds=LaneBounds(connections_max=2)) as lane:
        reached = bound_reached("lane_connections")
        (reader, writer), (_, second) = await lane.connect(), await lane.connect()
        second.write(NOWHERE)  # handed over, it goes on counting
        await until(lambda: lane.server.connection_count() == 1)
        for sent in (hold("k"), NOWHERE, b"\x16\x03\x01", hold("k") * 2000):
            (answer,) = answers_in(await lane.exchange(sent))
            assert (answer.status, orjson.loads(answer.body)["code"]) == (503, "OVERLOADED")
            assert {"retry-after": "1", "connection": "close"}.items() <= dict(answer.headers).items()
        assert bound_reached("lane_connections") == reached + 4
        writer.write(hold("k", None, *LAST).replace(b"live-@", b"live-a"))
        assert statuses(answers_in(await reader.read(-1))) == [201]
        writer.close()
        await until(lambda: len(lane.server.connections) == 1)
        assert statuses(answers_in(await lane.exchange(hold("k", None, *LAST)))) == [201]
        second.close()


@on_uvloop
async def test_who_is_turned_away_and_says_nothing_is_closed_in_time(partitions: Partitions) -> None:
    bounds = LaneBounds(connections_max=0, linger_seconds_max=0.2, sweep_seconds=0.02)
    async with running(partitions, "live-a", hot=of_holds(echo), bounds=bounds) as lane:
        assert await lane.exchange(b"") == b""
        with slow_socket(lane) as caller:  # it is told, and stays all the same
            await asyncio.get_running_loop().sock_sendall(caller, b"x")
            await until(lambda: bool(lane.server.connections))
            await until(lambda: not lane.server.connections)


@on_uvloop
async def test_one_request_in_flight_too_many_is_refused(partitions: Partitions) -> None:
    keeper = Keeper()
    bounds = LaneBounds(requests_in_flight_max=1)
    async with running(partitions, "live-a", hot=of_holds(keeper.take), bounds=bounds) as lane:
        first = asyncio.create_task(lane.exchange(hold("k", None, *LAST)))
        await keeper.wait_for(1)
        (refused,) = answers_in(await lane.exchange(hold("k", None, *LAST)))
        assert (refused.status, orjson.loads(refused.body)["code"]) == (503, "OVERLOADED")
        assert dict(refused.headers)["retry-after"] == "1"
        request = hold("k", None, *LAST)
        for body, code in ((b'{"buyer_id": 5}', "INVALID"), (b"no json", "MALFORMED")):  # which go first (contract §3)
            head = request.partition(b"\r\n\r\n")[0]
            head = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % len(body), head)
            (wrong,) = answers_in(await lane.exchange(head + b"\r\n\r\n" + body))
            assert orjson.loads(wrong.body)["code"] == code
        keeper.kept[0].answer(201, b"{}", "OK")
        assert statuses(answers_in(await first)) == [201]


# --- one caller's fate touches no other's --------------------------------------------------------------------------


@on_uvloop
async def test_an_answer_to_a_caller_that_has_gone_harms_nobody(partitions: Partitions) -> None:
    keeper = Keeper()
    async with running(partitions, "live-a", hot=of_holds(keeper.take)) as lane:
        staying = asyncio.create_task(lane.exchange(hold("stays", None, *LAST)))
        await keeper.wait_for(1)
        for number, resets in enumerate((False, True) * 5):
            caller = slow_socket(lane)
            if resets:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            await asyncio.get_running_loop().sock_sendall(caller, REPEATED * 2)
            await keeper.wait_for(number + 2)
            caller.close()
        await asyncio.sleep(0.05)
        stays, *gone = keeper.kept
        assert lane.service.in_flight == 11
        for hot_request in (*gone, stays):
            hot_request.answer(201, b"{}", "OK")
        assert statuses(answers_in(await staying)) == [201]
        for hot_request in keeper.kept[11:]:  # the second of those that only half closed
            hot_request.answer_generally()
        await until(lambda: lane.service.in_flight == 0)


@on_uvloop
async def test_a_caller_that_half_closes_gets_all_its_answers(partitions: Partitions) -> None:
    keeper = Keeper()
    async with running(partitions, "live-a", hot=of_holds(keeper.take)) as lane:
        asking = asyncio.create_task(lane.exchange(hold("a") + hold("b") + hold("c"), half_close=True))
        for number in range(3):
            await keeper.wait_for(number + 1)
            await asyncio.sleep(0.02)
            assert len(keeper.kept) == number + 1, "a request was taken before the one before it was answered"
            keeper.kept[number].answer(201, b"%d" % number, "OK")
        assert [answer.body for answer in answers_in(await asking)] == [b"0", b"1", b"2"]


@on_uvloop
async def test_a_handler_that_raises_costs_its_own_request_only(partitions: Partitions) -> None:
    def raise_on_bad(hot_request: HotRequest) -> None:
        if hot_request.own == "bad-after":
            hot_request.answer(201, b"{}", "OK")
        if hot_request.own.startswith("bad"):
            raise KeyError("secret")
        hot_request.answer(201, b"{}", "OK")

    async with running(partitions, "live-a", hot=of_holds(raise_on_bad)) as lane:
        sent = hold("good") + hold("bad") + hold("bad-after") + hold("good", None, *LAST)
        with capture_logs() as logs:
            seen = answers_in(await lane.exchange(sent))
        assert statuses(seen) == [201, 500, 201, 201]
        assert orjson.loads(seen[1].body)["code"] == "INTERNAL"
        assert b"secret" not in seen[1].body
        assert [log["event"] for log in logs] == ["request_defect"] * 2
        assert lane.service.in_flight == 0


@on_uvloop
async def test_a_second_answer_is_a_defect_that_nobody_sees(partitions: Partitions) -> None:
    def answer_twice(hot_request: HotRequest) -> None:
        for _ in range(2):
            hot_request.answer(201, orjson.dumps(hot_request.own), "OK")
        hot_request.answer_generally()

    async with running(partitions, "live-a", hot=of_holds(answer_twice)) as lane:
        with capture_logs() as logs:
            seen = answers_in(await lane.exchange(hold("a") + hold("b", None, *LAST)))
        assert [answer.body for answer in seen] == [b'"a"', b'"b"']
        assert {log["event"] for log in logs} == {"answered_twice"}


# --- keys, ids, metrics --------------------------------------------------------------------------------------------


@on_uvloop
async def test_a_revoked_key_stops_working_on_an_open_connection(partitions: Partitions) -> None:
    holder = PRINCIPALS["checkout-key"]
    try:
        async with running(partitions, "live-a", hot=of_holds(echo)) as lane:
            reader, writer = await lane.connect()
            plain = hold("k").replace(b"live-@", b"live-a")
            async with asyncio.timeout(5):
                for _ in range(2):
                    writer.write(plain)
                    assert b" 201 " in await reader.readuntil(b'"k"')
                del PRINCIPALS["checkout-key"]
                await asyncio.sleep(0.3)
                writer.write(plain)
                assert b" 401 " in await reader.readline()
            writer.close()
    finally:
        PRINCIPALS["checkout-key"] = holder


@on_uvloop
async def test_made_request_ids_are_all_different(partitions: Partitions) -> None:
    async with running(partitions, "live-a", hot=of_holds(echo)) as lane:
        received = await lane.exchange(*[hold("k") for _ in range(300)], hold("k", None, *LAST), pause_seconds=0.002)
        made = [line for line in received.split(b"\r\n") if line.startswith(b"X-Request-Id: ")]
        assert len(made) == len(set(made)) == 301
        assert len({line.partition(b".")[0] for line in made}) > 1, "their random part is never drawn anew"


@on_uvloop
async def test_answers_are_counted_as_the_general_server_counts_them(partitions: Partitions) -> None:
    route = {"interface": "gateway", "route": "/v1/sales/{sale_id}/orders"}
    async with both_servers(partitions) as (lane, main):
        counts = []
        for server in (lane, main):
            before = [counted("miaocang_http_requests", **route, **dict(labels)) for labels in LABELS]
            for sent in (hold("a"), hold("a"), hold("b", body_of(name="GONE")), hold("c", b"{")):
                await server.exchange(sent, half_close=True)
            after = [counted("miaocang_http_requests", **route, **dict(labels)) for labels in LABELS]
            counts.append([now - then for then, now in zip(before, after, strict=True)])
        assert counts == [[1, 1, 1, 1]] * 2


LABELS = [
    (("status", "201"), ("code", "OK")),
    (("status", "200"), ("code", "OK")),
    (("status", "409"), ("code", "SOLD_OUT")),
    (("status", "400"), ("code", "MALFORMED")),
]


# --- the end -------------------------------------------------------------------------------------------------------


@on_uvloop
async def test_draining_answers_what_is_in_flight_and_closes_with_the_answer(partitions: Partitions) -> None:
    keeper, draining = Keeper(), asyncio.Event()
    async with running(partitions, "live-a", hot=of_holds(keeper.take), draining=draining) as lane:
        asking = asyncio.create_task(lane.exchange(hold("k")))
        idle = asyncio.create_task(lane.exchange(b""))
        await keeper.wait_for(1)
        draining.set()
        lane.server.pre_shutdown()
        assert await idle == b""
        assert lane.service.in_flight == 1
        ready = request(b"GET /readyz HTTP/1.1", [HOST])
        (refused,) = answers_in(await lane.exchange(ready))
        assert (refused.status, dict(refused.headers)["connection"]) == (503, "close")
        keeper.kept[0].answer(201, b"{}", "OK")
        (answer,) = answers_in(await asking)
        assert (answer.status, dict(answer.headers)["connection"]) == (201, "close")
        assert lane.service.in_flight == 0
        await until(lambda: not lane.server.connections)


@on_uvloop
async def test_draining_waits_for_a_body_that_is_on_its_way(partitions: Partitions) -> None:
    draining = asyncio.Event()
    async with running(partitions, "live-a", hot=of_holds(echo), draining=draining) as lane:
        sent = hold("k")
        asking = asyncio.create_task(lane.exchange(sent[:-10], sent[-10:], pause_seconds=0.2))
        await until(lambda: lane.service.in_flight == 1)
        draining.set()
        lane.server.pre_shutdown()
        (answer,) = answers_in(await asking)
        assert (answer.status, dict(answer.headers)["connection"]) == (201, "close")
        assert lane.service.in_flight == 0


@on_uvloop
async def test_an_answer_that_cannot_be_written_is_a_defect_and_leaves_nothing_hanging(partitions: Partitions) -> None:
    def answer_with_text(hot_request: HotRequest) -> None:
        hot_request.answer(201, "text", "OK")  # type: ignore[arg-type]

    async with running(partitions, "live-a", hot=of_holds(answer_with_text)) as lane:
        with capture_logs():
            assert statuses(answers_in(await lane.exchange(hold("k", None, *LAST)))) == [500]
        assert lane.service.in_flight == 0


@on_uvloop
async def test_what_is_not_answered_in_time_ends_all_the_same(partitions: Partitions) -> None:
    keeper = Keeper()
    async with running(partitions, "live-a", hot=of_holds(keeper.take)) as lane:
        asking = asyncio.create_task(lane.exchange(hold("k")))
        await keeper.wait_for(1)
        await lane.server.shutdown(0.05)
        assert await asking == b""
    keeper.kept[0].answer(201, b"{}", "OK")
