"""The OpenAPI document is valid, and every answer is one that it describes."""

from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from engine.domain.orders import HoldRequest
from engine.web.problems import Code
from engine.web.validation import field_errors
from tests.integration.running_gateway import Response, RunningGateway, running_gateway, running_redis
from tests.lua.shop import Shop, sku

HOLD: dict[str, Any] = {"buyer_id": "u-1", "channel": "douyin", "lines": [{"sku": "TEE", "quantity": 1}]}
SETTLE: dict[str, Any] = {"payment_id": "p", "amount_minor": 1990, "currency": "CNY"}
KEY = {"Idempotency-Key": "k"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    path = tmp_path_factory.mktemp("gateway")
    with running_redis(path / "redis") as (url, _), running_gateway(path / "gateway", url) as started:
        started.on_partitions(lambda partitions: Shop(partitions).open(sku("TEE", 2)))
        yield started


@pytest.fixture(scope="module")
def document(gateway: RunningGateway) -> dict[str, Any]:
    answer = gateway.ask("GET", "/openapi.json", role=None)
    assert answer.headers["Content-Type"] == "application/json"
    found: dict[str, Any] = answer.json
    return found


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_it_names_every_route_of_the_contract_that_is_built(document: dict[str, Any]) -> None:
    assert {(path, method) for path, operations in document["paths"].items() for method in operations} == {
        ("/v1/sales/{sale_id}/orders", "post"),
        ("/v1/sales/{sale_id}/orders", "get"),
        ("/v1/sales/{sale_id}/availability", "get"),
        ("/v1/orders/{order_id}", "get"),
        ("/v1/orders/{order_id}/settle", "post"),
        ("/v1/orders/{order_id}/cancel", "post"),
        ("/healthz", "get"),
        ("/readyz", "get"),
        ("/metrics", "get"),
        ("/openapi.json", "get"),
    }


def test_everything_but_the_probes_asks_for_a_key(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) is path.startswith("/v1/")


def test_patterns_are_those_of_ecmascript(document: dict[str, Any]) -> None:
    assert "\\\\Z" not in repr(document)


def described(document: dict[str, Any], method: str, template: str, answer: Response) -> None:
    """Hold an answer against the document: its status, content type, headers and body."""
    responses = document["paths"][template][method.lower()]["responses"]
    assert str(answer.status) in responses, f"{answer.status} is not described: {answer.body!r}"
    response = responses[str(answer.status)]
    content_type = answer.headers["Content-Type"].partition(";")[0]
    schema = response["content"][content_type]["schema"]
    for name, reference in response["headers"].items():
        header = document["components"]["headers"][reference["$ref"].rsplit("/", 1)[1]]
        if header.get("required"):
            assert name in answer.headers
    for name in ("Idempotent-Replayed", "Retry-After", "Allow", "WWW-Authenticate"):
        assert name not in answer.headers or name in response["headers"], name
    if content_type.endswith("json"):
        validator = Draft202012Validator({**schema, "components": document["components"]})
        validator.validate(answer.json)


ORDERS = "/v1/sales/{sale_id}/orders"
REQUESTS: list[tuple[str, str, str, Any, dict[str, Any], int]] = [
    ("POST", ORDERS, "/v1/sales/live-1/orders", HOLD, {"headers": KEY}, 201),
    ("POST", ORDERS, "/v1/sales/live-1/orders", HOLD, {"headers": KEY}, 200),
    ("POST", ORDERS, "/v1/sales/live-1/orders", {}, {"headers": KEY}, 422),
    ("POST", ORDERS, "/v1/sales/live-1/orders", {**HOLD, "freight_minor": 1}, {"headers": KEY}, 422),
    ("POST", ORDERS, "/v1/sales/live-1/orders", {**HOLD, "reference": "r"}, {"headers": {**KEY, "X": "1"}}, 422),
    ("POST", ORDERS, "/v1/sales/nope/orders", HOLD, {"headers": KEY}, 404),
    ("POST", ORDERS, "/v1/sales/live-1/orders", HOLD, {}, 400),
    ("POST", ORDERS, "/v1/sales/live-1/orders", HOLD, {"role": None}, 401),
    ("POST", ORDERS, "/v1/sales/live-1/orders", HOLD, {"role": "erp"}, 403),
    ("POST", ORDERS, "/v1/sales/live-1/orders", b" " * 65537, {"headers": KEY}, 413),
    ("POST", ORDERS, "/v1/sales/live-1/orders", HOLD, {"headers": {**KEY, "Content-Type": "a/b"}}, 415),
    ("PUT", ORDERS, "/v1/sales/live-1/orders", HOLD, {}, 405),
    ("GET", ORDERS, "/v1/sales/live-1/orders?channel=douyin&buyer_id=u-1", None, {}, 200),
    ("GET", ORDERS, "/v1/sales/live-1/orders", None, {}, 422),
    ("GET", "/v1/sales/{sale_id}/availability", "/v1/sales/live-1/availability", None, {}, 200),
    ("GET", "/v1/sales/{sale_id}/availability", "/v1/sales/nope/availability", None, {}, 404),
    ("GET", "/v1/orders/{order_id}", "/v1/orders/ORDER", None, {}, 200),
    ("GET", "/v1/orders/{order_id}", "/v1/orders/none", None, {}, 404),
    ("POST", "/v1/orders/{order_id}/settle", "/v1/orders/ORDER/settle", {**SETTLE, "amount_minor": 1}, {}, 422),
    ("POST", "/v1/orders/{order_id}/settle", "/v1/orders/ORDER/settle", SETTLE, {}, 200),
    ("POST", "/v1/orders/{order_id}/settle", "/v1/orders/ORDER/settle", SETTLE, {}, 200),
    ("POST", "/v1/orders/{order_id}/settle", "/v1/orders/ORDER/settle", {**SETTLE, "payment_id": "q"}, {}, 409),
    ("POST", "/v1/orders/{order_id}/settle", "/v1/orders/ORDER/settle", {**SETTLE, "payment_id": "q"}, {}, 409),
    ("POST", "/v1/orders/{order_id}/cancel", "/v1/orders/ORDER/cancel", None, {}, 409),
    ("GET", "/healthz", "/healthz", None, {"role": None}, 200),
    ("GET", "/readyz", "/readyz", None, {"role": None}, 200),
    ("GET", "/metrics", "/metrics", None, {"role": None}, 200),
    ("GET", "/openapi.json", "/openapi.json", None, {"role": None}, 200),
]


def test_every_answer_is_one_that_the_document_describes(gateway: RunningGateway, document: dict[str, Any]) -> None:
    order_id = ""
    for method, template, path, body, more, status in REQUESTS:
        answer = gateway.ask(method, path.replace("ORDER", order_id), body, **more)
        assert answer.status == status, (method, path, answer.body)
        described(document, "GET" if method == "PUT" else method, template, answer)
        if status == 201:
            order_id = answer.json["order_id"]


@pytest.mark.parametrize(
    "body",
    [
        HOLD,
        {**HOLD, "reference": "\x00"},
        {**HOLD, "channel": "shared"},
        {**HOLD, "lines": []},
        {**HOLD, "lines": [{"sku": "TEE", "quantity": 0}]},
        {**HOLD, "reference": None},
        {**HOLD, "unknown": 1},
        {},
    ],
)
def test_the_schema_of_a_hold_refuses_what_the_gateway_refuses(document: dict[str, Any], body: dict[str, Any]) -> None:
    operation = document["paths"][ORDERS]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**schema, "components": document["components"]})
    assert validator.is_valid(body) is (field_errors(HoldRequest, body) == [])


def test_the_codes_of_a_hold_are_listed_with_their_status(document: dict[str, Any]) -> None:
    responses = document["paths"][ORDERS]["post"]["responses"]
    listed = {
        code
        for response in responses.values()
        for schema in [response["content"].get("application/problem+json", {}).get("schema")]
        if schema
        for code in schema["allOf"][1]["properties"]["code"]["enum"]
    }
    assert {"SOLD_OUT", "BUYER_LIMIT_REACHED", "PRICE_CHANGED", "FROZEN", "OUTCOME_UNKNOWN", "LEDGER_BEHIND"} <= listed
    assert listed <= set(Code)
