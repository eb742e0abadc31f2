"""The gateway's rules over real sockets: each field wrong in each way, the order of checks, what orders answer."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from engine.domain.commands import Close
from tests.integration.running_gateway import RunningGateway, running_gateway, running_redis
from tests.lua.shop import Shop, sku

HOLD: dict[str, Any] = {"buyer_id": "u-1", "channel": "douyin", "lines": [{"sku": "TEE", "quantity": 1}]}
ORDERS = "/v1/sales/live-1/orders"
NO_ORDER = "/v1/orders/AAAAAAAAAAAAAAAAAAAAAA.live-1"
LONGEST = "x" * 128


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    path = tmp_path_factory.mktemp("gateway")
    with running_redis(path / "redis") as (url, _), running_gateway(path / "gateway", url) as started:
        started.on_partitions(lambda partitions: Shop(partitions).open(sku("TEE", 100_000), sku("CAP", 1)))
        started.on_partitions(
            lambda partitions: Shop(partitions, "limited").open(sku("TEE", 10, buyer_limit=2), buyer_limit=5)
        )
        started.on_partitions(lambda partitions: Shop(partitions, "over").open(sku("TEE", 10)))
        assert started.hold(HOLD, "before-close", "over").status == 201
        started.on_partitions(_close)
        yield started


async def _close(partitions: Any) -> None:
    await partitions.submit("over", Close())


def wrong_values(kind: str) -> list[Any]:
    shared: list[Any] = [None, True, [], {}, 1.0, 1.5]
    return [*shared, "1", ""] if kind == "integer" else [*shared, 7]


HOLD_FIELDS = {
    "buyer_id": [*wrong_values("text"), "", "x" * 129, "a\u0000", "a\n", "\u007f", "\u0085", "\ud800"],
    "channel": [*wrong_values("text"), "", "Douyin", "1a", "a-b", "shared", "withheld", "a" * 33, "a\n", "抖音"],
    "reference": [*wrong_values("text"), "", "x" * 129, "a\u001f"],
    "discount_minor": [*wrong_values("integer"), -1, 10**12 + 1, 10**40],
    "freight_minor": [*wrong_values("integer"), -1, 10**12 + 1, -(10**40)],
    "expected_amount_minor": [*wrong_values("integer"), -1, 10**13 + 1],
    "lines": [None, True, 1, "x", {}, [], [{"sku": "TEE", "quantity": 1}] * 201],
    "lines[0].sku": [*wrong_values("text"), "", "x" * 129, "a\r"],
    "lines[0].quantity": [*wrong_values("integer"), 0, -1, 10_000, 2**63, 2**64],
    "lines[0].line_id": [*wrong_values("text"), "", "x" * 129, "a\u009f"],
    "lines[0]": [None, True, 1, "x", []],
}


def changed(body: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(body))
    if field == "lines[0]":
        copy["lines"][0] = value
    elif field.startswith("lines[0]."):
        copy["lines"][0][field.removeprefix("lines[0].")] = value
    else:
        copy[field] = value
    return copy


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in HOLD_FIELDS.items() for value in values]
)
def test_each_wrong_value_of_each_field_is_invalid_and_named(gateway: RunningGateway, field: str, value: Any) -> None:
    answer = gateway.hold(changed(HOLD, field, value), "wrong")
    assert (answer.status, answer.code) == (422, "INVALID")
    assert [error["field"] for error in answer.json["errors"]] == [field]
    assert all(error["reason"] for error in answer.json["errors"])


def test_line_ids_are_unique_in_an_order_defaults_included(gateway: RunningGateway) -> None:
    for lines, wrong in (
        ([{"line_id": "2"}, {}], ["lines[1].line_id"]),
        ([{"line_id": "a"}, {"line_id": "a"}, {"line_id": "a"}], ["lines[1].line_id", "lines[2].line_id"]),
    ):
        body = {**HOLD, "lines": [{"sku": "TEE", "quantity": 1, **line} for line in lines]}
        answer = gateway.hold(body, "twice")
        assert (answer.status, answer.code) == (422, "INVALID")
        assert [error["field"] for error in answer.json["errors"]] == wrong


@pytest.mark.parametrize("field", ["buyer_id", "channel", "lines"])
def test_each_required_field_is_missed(gateway: RunningGateway, field: str) -> None:
    body = {name: value for name, value in HOLD.items() if name != field}
    assert gateway.hold(body, "missing").json["errors"] == [{"field": field, "reason": "is required"}]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("buyer_id", LONGEST),
        ("buyer_id", "小明 ✓"),
        ("channel", "a" * 32),
        ("channel", "a_1"),
        ("reference", LONGEST),
        ("discount_minor", 1990),
        ("freight_minor", 10**12),
        ("expected_amount_minor", 1990),
        ("lines[0].quantity", 9999),
        ("lines[0].line_id", LONGEST),
        ("lines", [{"sku": "TEE", "quantity": 1}] * 200),
        ("name", {"ignored": [None]}),
    ],
)
def test_each_extreme_that_is_allowed_is_accepted(gateway: RunningGateway, field: str, value: Any) -> None:
    answer = gateway.hold(changed(HOLD, field, value), f"extreme-{field}-{len(str(value))}".replace(" ", ""))
    assert answer.status == 201, answer.body


SETTLE: dict[str, Any] = {"payment_id": "p", "amount_minor": 1990, "currency": "CNY"}
SETTLE_FIELDS = {
    "payment_id": [*wrong_values("text"), "", "x" * 129, "a\n"],
    "amount_minor": [*wrong_values("integer"), -1, 10**13 + 1],
    "currency": [*wrong_values("text"), "", "cny", "CNYY", "CN", "CNY\n"],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in SETTLE_FIELDS.items() for value in values]
)
def test_each_wrong_value_of_a_settlement_is_invalid_even_for_no_order(
    gateway: RunningGateway, field: str, value: Any
) -> None:
    for path in (NO_ORDER, "/v1/orders/no-order-id"):
        answer = gateway.ask("POST", f"{path}/settle", {**SETTLE, field: value})
        assert (answer.status, answer.code) == (422, "INVALID")
        assert [error["field"] for error in answer.json["errors"]] == [field]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (f"{ORDERS}", ["channel", "buyer_id"]),
        (f"{ORDERS}?channel=shared&buyer_id=u", ["channel"]),
        (f"{ORDERS}?channel=douyin&buyer_id=%00", ["buyer_id"]),
        (f"{ORDERS}?channel=douyin&buyer_id=u&idempotency_key=a%20b", ["idempotency_key"]),
        ("/v1/sales/.broken/orders?channel=X", ["channel", "buyer_id"]),
        ("/v1/sales/live-1/availability?channel=withheld", ["channel"]),
    ],
)
def test_query_parameters_are_named_like_fields(gateway: RunningGateway, path: str, fields: list[str]) -> None:
    answer = gateway.ask("GET", path)
    assert (answer.status, answer.code) == (422, "INVALID")
    assert [error["field"] for error in answer.json["errors"]] == fields


BIG = b" " * (64 * 1024 + 1)
ORDER_OF_CHECKS: list[tuple[str, str, Any, dict[str, Any], int, str]] = [
    ("POST", "/nowhere", BIG, {"role": None}, 401, "UNAUTHORIZED"),
    ("POST", ORDERS, BIG, {"headers": {"Authorization": "Bearer mc_checkout_wrong"}}, 401, "UNAUTHORIZED"),
    ("DELETE", ORDERS, None, {"role": None}, 401, "UNAUTHORIZED"),
    ("POST", "/nowhere", BIG, {"role": "erp"}, 404, "NOT_FOUND"),
    ("GET", "/", None, {}, 404, "NOT_FOUND"),
    ("GET", "/v1/sales/live-1/orders/", None, {}, 404, "NOT_FOUND"),
    ("GET", "//v1/sales/live-1/orders", None, {}, 404, "NOT_FOUND"),
    ("GET", "/v1/sales/live-1/events", None, {}, 404, "NOT_FOUND"),
    ("DELETE", ORDERS, BIG, {"role": "erp"}, 405, "METHOD_NOT_ALLOWED"),
    ("OPTIONS", ORDERS, None, {}, 405, "METHOD_NOT_ALLOWED"),
    ("POST", "/healthz", BIG, {"role": None}, 405, "METHOD_NOT_ALLOWED"),
    ("DELETE", "/openapi.json", None, {"role": None}, 405, "METHOD_NOT_ALLOWED"),
    ("POST", ORDERS, BIG, {"role": "ops", "headers": {"Content-Type": "text/plain"}}, 403, "FORBIDDEN"),
    ("GET", ORDERS, None, {"role": "erp"}, 403, "FORBIDDEN"),
    ("POST", ORDERS, BIG, {"headers": {"Content-Type": "text/plain"}}, 413, "TOO_LARGE"),
    ("POST", f"{NO_ORDER}/cancel", BIG, {}, 413, "TOO_LARGE"),
    ("POST", ORDERS, b"{", {"headers": {"Content-Type": "text/plain"}}, 415, "UNSUPPORTED_MEDIA_TYPE"),
    ("POST", ORDERS, b"{", {"headers": {"Content-Encoding": "gzip"}}, 415, "UNSUPPORTED_MEDIA_TYPE"),
    ("POST", ORDERS, b"{", {}, 400, "IDEMPOTENCY_KEY_REQUIRED"),
    ("POST", ORDERS, b"{", {"headers": {"Idempotency-Key": " "}}, 400, "IDEMPOTENCY_KEY_REQUIRED"),
    ("POST", ORDERS, b"{}", {"headers": {"Idempotency-Key": "a b"}}, 400, "MALFORMED"),
    ("POST", ORDERS, b"{}", {"headers": {"Idempotency-Key": "k" * 256}}, 400, "MALFORMED"),
    ("POST", "/v1/sales/.broken/orders", b"{", {"headers": {"Idempotency-Key": "k"}}, 400, "MALFORMED"),
    ("POST", "/v1/sales/.broken/orders", b"", {"headers": {"Idempotency-Key": "k"}}, 400, "MALFORMED"),
    ("POST", "/v1/sales/.broken/orders", {}, {"headers": {"Idempotency-Key": "k"}}, 422, "INVALID"),
    ("POST", "/v1/sales/.broken/orders", HOLD, {"headers": {"Idempotency-Key": "k"}}, 404, "SALE_NOT_FOUND"),
    ("POST", "/v1/sales/a%2Fb/orders", HOLD, {"headers": {"Idempotency-Key": "k"}}, 404, "SALE_NOT_FOUND"),
    ("POST", "/v1/sales/nope/orders", HOLD, {"headers": {"Idempotency-Key": "k"}}, 404, "SALE_NOT_FOUND"),
    ("GET", "/v1/sales/nope/orders?channel=a&buyer_id=b", None, {}, 404, "SALE_NOT_FOUND"),
    ("GET", "/v1/sales/nope/orders?channel=a&buyer_id=b&idempotency_key=k", None, {}, 404, "SALE_NOT_FOUND"),
    ("GET", "/v1/sales/%ff/availability", None, {}, 404, "SALE_NOT_FOUND"),
    ("GET", "/v1/sales/%2e%2e/availability", None, {}, 404, "SALE_NOT_FOUND"),
    ("GET", "/v1/orders/no-order-id", None, {}, 404, "ORDER_NOT_FOUND"),
    ("GET", "/v1/orders/AAAAAAAAAAAAAAAAAAAAAA.nope", None, {}, 404, "ORDER_NOT_FOUND"),
    ("GET", NO_ORDER, None, {}, 404, "ORDER_NOT_FOUND"),
    ("POST", f"{NO_ORDER}/cancel", b"not read", {"headers": {"Content-Type": "x/y"}}, 404, "ORDER_NOT_FOUND"),
    ("POST", "/v1/orders/%00/cancel", None, {}, 404, "ORDER_NOT_FOUND"),
    ("POST", f"{NO_ORDER}/settle", SETTLE, {}, 404, "ORDER_NOT_FOUND"),
    ("POST", "/v1/orders/AAAAAAAAAAAAAAAAAAAAAA.nope/settle", SETTLE, {}, 404, "ORDER_NOT_FOUND"),
]


@pytest.mark.parametrize(("method", "path", "body", "more", "status", "code"), ORDER_OF_CHECKS)
def test_of_several_refusals_the_contract_says_which(
    gateway: RunningGateway, method: str, path: str, body: Any, more: dict[str, Any], status: int, code: str
) -> None:
    answer = gateway.ask(method, path, body, **more)
    assert (answer.status, answer.code) == (status, code)
    if status == 405:
        assert "GET" in answer.headers["Allow"]
    if status == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_chunked_body_is_bounded_too(gateway: RunningGateway) -> None:
    connection = gateway.connect()
    headers = {"Authorization": f"Bearer {gateway.keys['checkout']}", "Content-Type": "text/plain"}
    connection.request("POST", ORDERS, iter([b" " * 40_000, b" " * 40_000]), headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_of_exactly_64_kib_is_read(gateway: RunningGateway) -> None:
    body = json.dumps(HOLD).encode()
    assert gateway.hold(body + b" " * (64 * 1024 - len(body)), "just-fits").status == 201


def test_a_repeated_key_header_with_different_values_is_malformed(gateway: RunningGateway) -> None:
    body = json.dumps(HOLD).encode()
    for second, expected in ((b"a", b"201"), (b"b", b"400")):
        sent = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: bearer %s\r\n" % (
            ORDERS.encode(),
            gateway.keys["checkout"].encode(),
        )
        sent += b"Idempotency-Key: a\r\nidempotency-key: %s\r\nContent-Length: %d\r\n\r\n" % (second, len(body))
        assert gateway.raw(sent + body).split()[1] == expected


def test_a_missing_content_type_and_other_spellings_of_json_are_accepted(gateway: RunningGateway) -> None:
    for position, given in enumerate(["", "application/json; charset=utf-8", "APPLICATION/JSON"]):
        assert gateway.hold(HOLD, f"content-type-{position}", headers={"Content-Type": given}).status == 201


def test_an_order_goes_from_held_to_settled_and_every_step_repeats(gateway: RunningGateway) -> None:
    body = {**HOLD, "buyer_id": "u-steps", "reference": "6921", "discount_minor": 90, "freight_minor": 100}
    made = gateway.hold(body, "steps")
    assert made.status == 201
    assert made.headers["Cache-Control"] == "no-store"
    order = made.json
    assert order | {"order_id": "", "held_until": "", "sequence": 0} == {
        "order_id": "",
        "sale_id": "live-1",
        "buyer_id": "u-steps",
        "channel": "douyin",
        "reference": "6921",
        "status": "held",
        "lines": [{"line_id": "1", "sku": "TEE", "quantity": 1, "unit_price_minor": 1990, "paid_minor": 1900}],
        "discount_minor": 90,
        "freight_minor": 100,
        "amount_minor": 2000,
        "currency": "CNY",
        "held_until": "",
        "sequence": 0,
    }
    path = f"/v1/orders/{order['order_id']}"
    payment = {"payment_id": "p-1", "amount_minor": 2000, "currency": "CNY"}
    again = gateway.hold(body, "steps")
    assert (again.status, again.headers["Idempotent-Replayed"], again.json) == (200, "true", order)
    assert gateway.hold({**body, "freight_minor": 0}, "steps").code == "IDEMPOTENCY_KEY_REUSED"
    mismatch = gateway.ask("POST", f"{path}/settle", {**payment, "amount_minor": 1})
    assert (mismatch.code, mismatch.json["amount_minor"]) == ("AMOUNT_MISMATCH", 2000)

    settled = gateway.ask("POST", f"{path}/settle", payment)
    assert (settled.status, settled.json) == (200, {**order, "status": "settled"})
    assert settled.headers["Idempotent-Replayed"] is None
    repeated = gateway.ask("POST", f"{path}/settle", payment)
    assert (repeated.status, repeated.headers["Idempotent-Replayed"], repeated.json) == (200, "true", settled.json)
    assert gateway.ask("POST", f"{path}/settle", {**payment, "currency": "USD"}).code == "IDEMPOTENCY_KEY_REUSED"
    assert gateway.ask("POST", f"{path}/cancel").code == "ORDER_NOT_HELD"

    for replayed in (None, "true"):
        second = gateway.ask("POST", f"{path}/settle", {**payment, "payment_id": "p-2"})
        assert (second.status, second.code) == (409, "DUPLICATE_PAYMENT")
        assert second.headers["Idempotent-Replayed"] == replayed
    current = gateway.hold(body, "steps")
    assert (current.status, current.json["status"]) == (200, "settled")
    assert gateway.ask("GET", path).json == settled.json


def test_a_cancelled_order_stays_cancelled_and_its_key_stays_used(gateway: RunningGateway) -> None:
    order = gateway.hold({**HOLD, "buyer_id": "u-cancel"}, "cancel").json
    path = f"/v1/orders/{order['order_id']}/cancel"
    assert gateway.ask("POST", path, b"\xff{").json == {**order, "status": "cancelled"}
    again = gateway.ask("POST", path)
    assert (again.status, again.json["status"], again.headers["Idempotent-Replayed"]) == (200, "cancelled", "true")
    assert gateway.hold({**HOLD, "buyer_id": "u-cancel"}, "cancel").json["status"] == "cancelled"


def test_a_late_payment_in_a_closed_sale_is_recorded_and_repeated_alike(gateway: RunningGateway) -> None:
    orders = gateway.ask("GET", "/v1/sales/over/orders?channel=douyin&buyer_id=u-1").json["orders"]
    path = f"/v1/orders/{orders[0]['order_id']}"
    assert gateway.ask("POST", f"{path}/cancel").status == 200
    answers = [gateway.ask("POST", f"{path}/settle", SETTLE) for _ in range(2)]
    assert [(answer.code, answer.headers["Idempotent-Replayed"]) for answer in answers] == [
        ("PAYMENT_TOO_LATE", None),
        ("PAYMENT_TOO_LATE", "true"),
    ]
    assert answers[0].json == answers[1].json
    assert gateway.ask("GET", path).json["status"] == "refund_due"
    assert gateway.hold(HOLD, "new", "over").code == "SALE_CLOSED"
    assert gateway.hold(HOLD, "before-close", "over").status == 200


def test_refusals_of_a_hold_carry_what_the_checkout_needs(gateway: RunningGateway) -> None:
    two_caps = {**HOLD, "lines": [{"sku": "CAP", "quantity": 2}]}
    sold_out = gateway.hold(two_caps, "r1")
    assert (sold_out.status, sold_out.code, sold_out.json["sku"]) == (409, "SOLD_OUT", "CAP")
    assert sold_out.json["available"] == 1
    limit = gateway.hold({**HOLD, "lines": [{"sku": "TEE", "quantity": 3}]}, "r2", "limited")
    assert (limit.status, limit.code) == (409, "BUYER_LIMIT_REACHED")
    assert {name: limit.json[name] for name in ("scope", "limit", "bought")} == {
        "scope": "sku",
        "limit": 2,
        "bought": 0,
    }
    price = gateway.hold({**HOLD, "expected_amount_minor": 1}, "r3")
    assert (price.status, price.code, price.json["amount_minor"]) == (409, "PRICE_CHANGED", 1990)
    unknown = gateway.hold({**HOLD, "lines": [{"sku": "HAT", "quantity": 1}]}, "r4")
    assert (unknown.status, unknown.code, unknown.json["sku"]) == (404, "SKU_NOT_FOUND", "HAT")
    discount = gateway.hold({**HOLD, "discount_minor": 1991}, "r5")
    assert (discount.status, discount.json["errors"][0]["field"]) == (422, "discount_minor")


def test_a_buyers_orders_are_listed_and_one_is_found_by_its_key(gateway: RunningGateway) -> None:
    body = {**HOLD, "buyer_id": "u list", "channel": "jd"}
    made = [gateway.hold(body, f"list/{number}+&").json["order_id"] for number in range(3)]
    path = f"{ORDERS}?channel=jd&buyer_id=u%20list"
    assert [order["order_id"] for order in gateway.ask("GET", path).json["orders"]] == made[::-1]
    one = gateway.ask("GET", f"{path}&idempotency_key=list%2F1%2B%26").json["orders"]
    assert [order["order_id"] for order in one] == [made[1]]
    assert gateway.ask("GET", f"{path}&idempotency_key=never").json == {"orders": []}
    assert gateway.ask("GET", f"{ORDERS}?channel=jd&buyer_id=nobody").json == {"orders": []}


def test_availability_counts_what_a_channel_can_buy(gateway: RunningGateway) -> None:
    answer = gateway.ask("GET", "/v1/sales/limited/availability?channel=jd")
    document = answer.json
    assert (document["sale_id"], document["status"]) == ("limited", "open")
    assert document["skus"] == [{"sku": "TEE", "available": 10}]
    assert document["as_of"].endswith("Z")
    head = gateway.ask("HEAD", "/v1/sales/limited/availability?channel=jd")
    assert (head.status, head.body, head.headers["Content-Length"]) == (200, b"", str(len(answer.body)))


def test_one_cap_and_two_hundred_buyers_make_one_order(gateway: RunningGateway) -> None:
    body = {**HOLD, "lines": [{"sku": "CAP", "quantity": 1}]}
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda n: gateway.hold({**body, "buyer_id": f"cap-{n}"}, "one"), range(200)))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 199


def test_of_concurrent_requests_with_one_key_the_first_gets_the_201(gateway: RunningGateway) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: gateway.hold({**HOLD, "buyer_id": "clicker"}, "click"), range(50)))
    assert sorted(answer.status for answer in answers) == [200] * 49 + [201]
    assert len({answer.json["order_id"] for answer in answers}) == 1


def test_metrics_count_requests_by_route_and_never_by_what_callers_write(gateway: RunningGateway) -> None:
    gateway.ask("GET", "/some/made-up/path")
    text = gateway.ask("GET", "/metrics", role=None).body.decode()
    assert 'route="/v1/sales/{sale_id}/orders",status="201"' in text
    assert 'route="unmatched"' in text
    assert "made-up" not in text
    assert 'miaocang_refusals_total{code="SOLD_OUT"}' in text
    assert "miaocang_hold_seconds_count" in text
