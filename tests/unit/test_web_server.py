"""The server with routes of its own: slow bodies, defects, and the path of a PUT."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from engine.domain.errors import LedgerUnavailable
from engine.domain.orders import SettleRequest
from engine.web.answers import Answer, json_answer
from engine.web.interface import Interface
from engine.web.key_store import Principal
from engine.web.problems import Code, Problem
from engine.web.routes import Call, Route, RouteTable
from engine.web.server import Service

BODY_SECONDS_MAX = 0.3
PRINCIPALS = {"ops-key": Principal("ops", "test"), "erp-key": Principal("erp", "test")}


async def echo(call: Call) -> Answer | Problem:
    """What the handler was given."""
    return json_answer(200, {"path": dict(call.path), "role": call.principal.role if call.principal else None})


async def break_down(_call: Call) -> Answer | Problem:
    raise KeyError("secret")


async def cannot_tell(_call: Call) -> Answer | Problem:
    raise LedgerUnavailable("connection refused")


ROUTES = RouteTable(
    [
        Route("PUT", "/sales/{sale_id}", "ops", echo, "", {}, request=SettleRequest),
        Route("GET", "/sales/{sale_id}", "ops", echo, "", {}),
        Route("GET", "/erp/things", "erp", echo, "", {}),
        Route("GET", "/defect", None, break_down, "", {}),
        Route("GET", "/ledger", None, cannot_tell, "", {}),
    ]
)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    service = Service(Interface("test", ROUTES, PRINCIPALS.get, 1000), asyncio.Event(), BODY_SECONDS_MAX)
    server = service.make_server()
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    yield listener.sockets[0].getsockname()[1]
    listener.close()
    server.pre_shutdown()
    await server.shutdown(1.0)


async def ask(port: int, method: str, path: str, body: bytes = b"", length: int | None = None) -> tuple[int, Any, str]:
    """(status, document, head) of one request, of whose body only `body` is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    length = len(body) if length is None else length
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ops-key\r\nContent-Length: {length}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
    received = await reader.read()
    writer.close()
    await writer.wait_closed()
    answer_head, _, answer_body = received.partition(b"\r\n\r\n")
    return int(received.split()[1]), json.loads(answer_body), answer_head.decode()


async def test_a_body_that_comes_too_slowly_is_taken_for_cut_off(port: int) -> None:
    started = asyncio.get_running_loop().time()
    status, document, head = await ask(port, "PUT", "/sales/a", b"{", length=100)
    assert (status, document["code"]) == (400, "MALFORMED")
    assert "Connection: close" in head
    assert BODY_SECONDS_MAX <= asyncio.get_running_loop().time() - started < 10


async def test_a_broken_id_in_the_path_of_a_put_is_invalid_beside_the_bodys_errors(port: int) -> None:
    status, document, _ = await ask(port, "PUT", "/sales/.broken", b'{"payment_id": "p", "currency": 1}')
    assert (status, document["code"]) == (422, "INVALID")
    assert [error["field"] for error in document["errors"]] == ["sale_id", "amount_minor", "currency"]


async def test_a_broken_id_in_any_other_path_is_not_found(port: int) -> None:
    status, document, _ = await ask(port, "GET", "/sales/.broken")
    assert (status, document["code"]) == (404, "SALE_NOT_FOUND")


async def test_ops_may_read_what_the_erp_may(port: int) -> None:
    assert (await ask(port, "GET", "/erp/things"))[:2] == (200, {"path": {}, "role": "ops"})


async def test_a_defect_is_logged_and_answered_without_its_details(port: int) -> None:
    with capture_logs() as logs:
        status, document, _ = await ask(port, "GET", "/defect")
    assert (status, document["code"]) == (500, Code.INTERNAL)
    assert "secret" not in json.dumps(document)
    assert [log["event"] for log in logs] == ["request_defect"]


async def test_a_ledger_that_is_away_is_behind(port: int) -> None:
    status, document, head = await ask(port, "GET", "/ledger")
    assert (status, document["code"]) == (503, "LEDGER_BEHIND")
    assert "Retry-After: " in head
