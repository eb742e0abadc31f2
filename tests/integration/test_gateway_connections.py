"""What a gateway does about bytes, connections, a Redis that is away, and its own end."""

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.partition import keyspace
from engine.partition.partitions import Partitions
from tests.integration.running_gateway import (
    Response,
    RunningGateway,
    running_gateway,
    running_redis,
    wait_until_refused,
)
from tests.lua.shop import Shop, sku

HOLD: dict[str, Any] = {"buyer_id": "u-1", "channel": "douyin", "lines": [{"sku": "TEE", "quantity": 1}]}
ORDERS = "/v1/sales/live-1/orders"
HASTY = {"CALL_TIMEOUT_SECONDS": "0.3", "REQUEST_DEADLINE_SECONDS": "1"}


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    with running_redis(tmp_path_factory.mktemp("redis")) as found:
        yield found


@pytest.fixture(scope="module")
def gateway(redis: tuple[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with running_gateway(tmp_path_factory.mktemp("gateway"), redis[0]) as started:
        started.on_partitions(lambda partitions: Shop(partitions).open(sku("TEE", 10_000)))
        yield started


def head(gateway: RunningGateway, *lines: str) -> bytes:
    """The head of a hold, with more lines."""
    first = [f"POST {ORDERS} HTTP/1.1", "Host: x", f"Authorization: Bearer {gateway.keys['checkout']}"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
        b"BREW /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nbad header: 1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 500 + b"\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET http:///x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_bytes_that_are_no_request_get_a_problem_document_and_the_end(gateway: RunningGateway, sent: bytes) -> None:
    answer = gateway.raw(sent, half_close=True)
    answer_head, _, body = answer.partition(b"\r\n\r\n")
    assert answer_head.split()[1] == b"400", answer
    assert b"Content-Type: application/problem+json" in answer_head
    assert b"X-Request-Id: " in answer_head
    assert json.loads(body)["code"] == "MALFORMED"
    assert gateway.process.poll() is None


@pytest.mark.parametrize(
    "target",
    [
        "/v1/orders/%", "/v1/orders/%zz", "/v1/orders/%C0%80", "/v1/orders/%ED%A0%80", "/%2e%2e/%2e%2e", "//", "/?",
        "/v1/orders/a?%ff=%ff", "/v1/orders/" + "a" * 7000, "*", "http://x/v1/orders/a", "/v1/orders/é", "/v1/[::]/",
        "/v1/orders/;a=b", "/v1//orders", "/.", "/v1/orders/a#b", "//[", "http://[/v1", "/\\",
        "/v1/orders/a?" + "b&" * 2000,
    ],
)  # fmt: skip
def test_no_target_makes_a_defect(gateway: RunningGateway, target: str) -> None:
    request = f"GET {target} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.keys['checkout']}\r\n\r\n"
    answer = gateway.raw(request.encode(), half_close=True)
    assert answer.split()[1] in (b"404", b"400"), answer
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Content-Length: 100", b'{"buyer_id":'),
        ("Transfer-Encoding: chunked", b"5\r\nabcde\r\n"),
        ("Transfer-Encoding: chunked", b"5\r\nab"),
    ],
)
def test_a_body_that_is_cut_off_is_malformed_at_once(gateway: RunningGateway, framing: str, body: bytes) -> None:
    started = time.monotonic()
    answer = gateway.raw(head(gateway, "Idempotency-Key: cut", framing) + body, half_close=True)
    assert (answer.split()[1], json.loads(answer.partition(b"\r\n\r\n")[2])["code"]) == (b"400", "MALFORMED")
    assert b"Connection: close" in answer
    assert time.monotonic() - started < 5


def test_a_body_whose_framing_breaks_later_is_malformed_at_once(gateway: RunningGateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as connection:
        connection.sendall(head(gateway, "Idempotency-Key: broken", "Transfer-Encoding: chunked") + b"2\r\nab\r\n")
        time.sleep(0.2)
        connection.sendall(b"ZZ\r\n")
        answer = connection.recv(65536)
    assert (answer.split()[1], b"its framing is broken" in answer) == (b"400", True)


def test_a_caller_who_hangs_up_touches_no_one_elses_order(gateway: RunningGateway) -> None:
    for number in range(20):
        connection = gateway.connect()
        headers = {"Authorization": f"Bearer {gateway.keys['checkout']}", "Idempotency-Key": f"gone-{number}"}
        connection.request("POST", ORDERS, json.dumps({**HOLD, "buyer_id": "gone"}), headers)
        connection.close()
        assert gateway.hold({**HOLD, "buyer_id": "stays"}, f"stays-{number}").status == 201
    assert b"defect" not in gateway.log_path.read_bytes()


def test_requests_on_one_connection_are_answered_in_their_order(gateway: RunningGateway) -> None:
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Request-Id: %d\r\n\r\n"
    last = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Request-Id: 9\r\n\r\n"
    answer = gateway.raw(b"".join(get % number for number in range(9)) + last)
    assert [line[14:] for line in answer.split(b"\r\n") if line.startswith(b"X-Request-Id")] == [
        str(number).encode() for number in range(10)
    ]


def test_a_refused_body_does_not_spoil_the_connection(gateway: RunningGateway) -> None:
    connection = gateway.connect()
    wrong_key = {"Authorization": "Bearer no"}
    assert gateway.ask("POST", ORDERS, b"x" * 50_000, headers=wrong_key, connection=connection).status == 401
    assert gateway.ask("GET", "/healthz", connection=connection).status == 200
    connection.close()


def test_a_client_that_waits_for_100_continue_is_told_to_go_on(gateway: RunningGateway) -> None:
    body = json.dumps(HOLD).encode()
    lines = ("Idempotency-Key: expect", f"Content-Length: {len(body)}", "Expect: 100-continue", "Connection: close")
    answer = gateway.raw(head(gateway, *lines) + body)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\n")


@pytest.mark.parametrize("path", ["/healthz", "/nowhere", ORDERS])
def test_a_request_id_is_given_back_on_every_answer(gateway: RunningGateway, path: str) -> None:
    assert gateway.ask("GET", path, headers={"X-Request-Id": "r-1"}).headers["X-Request-Id"] == "r-1"
    made = gateway.ask("GET", path, headers={"X-Request-Id": "x" * 1025}).headers["X-Request-Id"]
    assert 1 <= len(made) <= 128
    assert made != gateway.ask("GET", path).headers["X-Request-Id"]


# --- Redis is away -------------------------------------------------------------------------------------------------


def test_a_redis_that_went_away_makes_frozen_and_not_ready(tmp_path: Path) -> None:
    with (
        running_redis(tmp_path / "redis") as (url, redis_process),
        running_gateway(tmp_path / "gateway", url, **HASTY) as gateway,
    ):
        gateway.on_partitions(lambda partitions: Shop(partitions).open(sku("TEE", 10)))
        assert gateway.ask("GET", "/readyz", role=None).json == {"ready": True, "frozen": {}}
        redis_process.kill()
        redis_process.wait()
        refused = gateway.hold(HOLD, "k")
        assert (refused.status, refused.code) == (503, "FROZEN")
        assert int(refused.headers["Retry-After"]) >= 1
        not_ready = gateway.ask("GET", "/readyz", role=None)
        assert (not_ready.status, not_ready.code) == (503, "FROZEN")
        assert gateway.ask("GET", "/healthz", role=None).status == 200


def test_a_redis_that_does_not_answer_makes_the_outcome_unknown(tmp_path: Path) -> None:
    with (
        running_redis(tmp_path / "redis") as (url, redis_process),
        running_gateway(tmp_path / "gateway", url, **HASTY) as gateway,
    ):
        gateway.on_partitions(lambda partitions: Shop(partitions).open(sku("TEE", 10)))
        assert gateway.hold(HOLD, "warm").status == 201
        redis_process.send_signal(signal.SIGSTOP)
        unknown = gateway.hold(HOLD, "k")
        started = time.monotonic()
        not_ready = gateway.ask("GET", "/readyz", role=None)
        assert (not_ready.code, time.monotonic() - started < 3) == ("FROZEN", True)
        redis_process.send_signal(signal.SIGCONT)
        assert (unknown.status, unknown.code) == (503, "OUTCOME_UNKNOWN")
        assert int(unknown.headers["Retry-After"]) >= 1
        assert gateway.hold(HOLD, "k").status in (200, 201)


def test_a_redis_that_nobody_vouched_for_is_frozen(tmp_path: Path) -> None:
    with (
        running_redis(tmp_path / "redis") as (url, _),
        running_gateway(tmp_path / "gateway", url, **HASTY) as gateway,
    ):
        gateway.on_partitions(_forget)
        assert gateway.ask("GET", "/readyz", role=None).code == "FROZEN"
        assert gateway.hold(HOLD, "k").code == "FROZEN"


def test_it_is_ready_while_any_sale_is_open_and_says_which_are_frozen(tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as (url, _), running_gateway(tmp_path / "g", url) as gateway:
        gateway.on_partitions(lambda partitions: Shop(partitions, "a").open(sku("TEE", 10)))
        gateway.on_partitions(lambda partitions: Shop(partitions, "b").open(sku("TEE", 10)))
        gateway.on_partitions(_note_frozen("a"))
        assert gateway.ask("GET", "/readyz", role=None).json == {"ready": True, "frozen": {"a": "a gap"}}
        gateway.on_partitions(_note_frozen("b"))
        not_ready = gateway.ask("GET", "/readyz", role=None)
        assert (not_ready.status, not_ready.code) == (503, "FROZEN")
        assert not_ready.json["frozen"] == {"a": "a gap", "b": "a gap"}


def _note_frozen(sale_id: str) -> Callable[[Partitions], Awaitable[None]]:
    async def note(partitions: Partitions) -> None:
        await partitions.connections.execute("HSET", keyspace.GUARD, f"frozen:{sale_id}", "a gap")

    return note


async def _forget(partitions: Any) -> None:
    await partitions.connections.execute("DEL", keyspace.INSTANCE)


# --- its own end ---------------------------------------------------------------------------------------------------


@pytest.mark.alone
def test_draining_answers_what_is_in_flight_and_ends_with_0(tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as (url, redis_process), running_gateway(tmp_path / "g", url) as gateway:
        gateway.on_partitions(lambda partitions: Shop(partitions).open(sku("TEE", 10)))
        assert gateway.hold(HOLD, "warm").status == 201
        kept = gateway.connect()
        assert gateway.ask("GET", "/readyz", connection=kept).status == 200
        answers: list[Response] = []
        redis_process.send_signal(signal.SIGSTOP)
        asking = threading.Thread(target=lambda: answers.append(gateway.hold(HOLD, "in-flight")))
        asking.start()
        time.sleep(0.3)
        gateway.process.send_signal(signal.SIGTERM)
        wait_until_refused(gateway.port)
        draining = gateway.ask("GET", "/readyz", connection=kept)
        assert (draining.status, draining.headers["Connection"]) == (503, "close")
        with pytest.raises(ConnectionRefusedError):
            gateway.ask("GET", "/healthz")
        time.sleep(0.5)
        assert gateway.process.poll() is None
        redis_process.send_signal(signal.SIGCONT)
        asking.join()
        assert gateway.process.wait(5) == 0
        assert (answers[0].status, answers[0].headers["Connection"]) == (201, "close")
        kept.close()


@pytest.mark.alone
def test_draining_ends_in_time_whatever_is_in_flight(tmp_path: Path) -> None:
    more = {"DRAIN_SECONDS": "1", "CALL_TIMEOUT_SECONDS": "30", "REQUEST_DEADLINE_SECONDS": "30"}
    with (
        running_redis(tmp_path / "redis") as (url, redis_process),
        running_gateway(tmp_path / "g", url, **more) as gateway,
    ):
        gateway.on_partitions(lambda partitions: Shop(partitions).open(sku("TEE", 10)))
        half_sent = gateway.connect()
        half_sent.connect()
        half_sent.sock.sendall(head(gateway, "Content-Length: 100"))
        redis_process.send_signal(signal.SIGSTOP)
        asking = threading.Thread(target=_ask_and_hear_nothing, args=(gateway,))
        asking.start()
        time.sleep(0.3)
        started = time.monotonic()
        assert gateway.stop() == 0
        assert 0.8 < time.monotonic() - started < 3
        redis_process.send_signal(signal.SIGCONT)
        asking.join()
        half_sent.close()


def _ask_and_hear_nothing(gateway: RunningGateway) -> None:
    with pytest.raises(OSError):
        gateway.hold(HOLD, "unanswered")


@pytest.mark.alone
def test_an_idle_gateway_ends_at_once(tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as (url, _), running_gateway(tmp_path / "g", url) as gateway:
        kept = gateway.connect()
        assert gateway.ask("GET", "/healthz", connection=kept).status == 200
        started = time.monotonic()
        assert gateway.stop() == 0
        assert time.monotonic() - started < 3
        kept.close()
