"""The back office's rules over real sockets: every field wrong in every way, who may call what, the order of checks."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.integration.running_backoffice import RunningBackOffice, sale_body, sku, whole_back_office
from tests.integration.running_gateway import Response


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, postgres_server: str) -> Iterator[RunningBackOffice]:
    with whole_back_office(tmp_path_factory.mktemp("requests"), postgres_server) as started:
        assert started.put("live-1", sale_body(sku("A", 100, withheld=10))).status == 201
        yield started


TEXT: list[Any] = [None, True, 7, 1.5, [], {}]
NAME: list[Any] = [*TEXT, "", "x" * 129, "a\u0000", "a\n", "\u007f", "\u0085", "\ud800"]
INTEGER: list[Any] = [None, True, 1.0, 1.5, "1", "", [], {}, 10**40, -(10**40)]
MOMENT: list[Any] = [None, 7, True, [], {}, "tomorrow", "2026-11-11", "2026-11-11T20:00:00", "2026-13-11T20:00:00Z"]
MOMENT_OUT_OF_RANGE = ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1970-01-01T00:00:00Z"]
CHANNELS: list[Any] = [
    None,
    7,
    "x",
    [],
    {"shared": 1},
    {"withheld": 1},
    {"Douyin": 1},
    {"": 1},
    {"a-b": 1},
    {"douyin": "1"},
]

SALE_FIELDS: dict[str, list[Any]] = {
    "title": [*TEXT, "x" * 1025, "a\u0000"],
    "currency": [*TEXT, "", "cny", "CN", "CNYY", "CNY\n", "元"],
    "hold_seconds": [*INTEGER, 0, -1, 604_801],
    "buyer_limit": [*INTEGER, 0, -1, 10**9 + 1],
    "style_limits": [None, 7, "x", [], {"TEE": 0}, {"TEE": "1"}, {"": 1}, {"TEE": 1.0}, {"x" * 129: 1}],
    "opens_at": [*MOMENT, *MOMENT_OUT_OF_RANGE],
    "closes_at": [*MOMENT, *MOMENT_OUT_OF_RANGE],
    "labels": [None, 7, "x", [], {"host": 1}, {"host": None}, {"": "x"}, {"host": "a\u0000"}, {"host": "x" * 1025}],
    "skus": [None, 7, "x", {}, [7], [None], [[]]],
    "skus[0].sku": NAME,
    "skus[0].style": NAME,
    "skus[0].unit_price_minor": [*INTEGER, -1, 10**9 + 1],
    "skus[0].unit_cost_minor": [*INTEGER, -1, 10**9 + 1],
    "skus[0].quantity": [*INTEGER, -1, 10**9 + 1],
    "skus[0].withheld": [*INTEGER, -1, 10**9 + 1],
    "skus[0].buyer_limit": [*INTEGER, 0, -1, 10**9 + 1],
    "skus[0].colour": [*TEXT, "x" * 1025, "\u0007"],
    "skus[0].size": [*TEXT, "x" * 1025, "\u0007"],
    "skus[0].image_url": [*TEXT, "x" * 1025],
    "skus[0].outer_code": [*TEXT, "x" * 1025],
    "skus[0].link_no": [None, True, 1.5, [], {}, "x" * 1025],
    "skus[0].channels": [
        *CHANNELS,
        {"douyin": "1"},
        {"douyin": -1},
        {"douyin": 10**9 + 1},
        {"douyin": None},
        {"x" * 33: 1},
    ],
    "skus[0].location": [None, "", "main", 7, {}],
}


def changed(body: Any, path: str, value: Any) -> Any:
    """A copy of the body with another value at a path such as `skus[0].sku`."""
    copy = json.loads(json.dumps(body))
    *parents, last = path.replace("[0]", ".0").split(".")
    place = copy
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    place[int(last) if last.isdigit() else last] = value
    return copy


def names_field(answer: Response, field: str) -> bool:
    """Whether INVALID names the field, or something in it."""
    assert (answer.status, answer.code) == (422, "INVALID"), answer
    assert all(set(error) == {"field", "reason"} for error in answer.json["errors"])
    return any(error["field"].startswith(field) for error in answer.json["errors"])


@pytest.mark.parametrize("field", SALE_FIELDS)
def test_every_wrong_field_of_a_sale_is_invalid_and_named(office: RunningBackOffice, field: str) -> None:
    for value in SALE_FIELDS[field]:
        answer = office.put("wrong", changed(sale_body(), field, value))
        assert names_field(answer, field), (field, value, answer.json)
    assert office.ask("GET", "/ops/v1/sales/wrong").code == "SALE_NOT_FOUND"


@pytest.mark.parametrize(
    "field", ["title", "currency", "hold_seconds", "skus", "skus[0].sku", "skus[0].style", "skus[0].quantity"]
)
def test_what_is_required_of_a_sale_is_missed(office: RunningBackOffice, field: str) -> None:
    body = sale_body()
    if "." in field:
        del body["skus"][0][field.split(".")[1]]
    else:
        del body[field]
    assert names_field(office.put("wrong", body), field)


def test_all_wrong_fields_are_listed(office: RunningBackOffice) -> None:
    answer = office.put("-", {"title": 1, "skus": [{"sku": "", "channels": {"shared": -1}}]})
    fields = {error["field"] for error in answer.json["errors"]}
    expected = {"sale_id", "title", "currency", "hold_seconds", "skus[0].sku", "skus[0].style"}
    assert fields >= {*expected, "skus[0].quantity", "skus[0].unit_price_minor", "skus[0].channels.shared"}


def test_rules_over_several_fields_are_invalid(office: RunningBackOffice) -> None:
    assert names_field(office.put("wrong", sale_body(sku("A"), sku("B"), sku("A"))), "skus[2].sku")
    at = "2036-01-01T00:00:00Z"
    assert names_field(office.put("wrong", sale_body(opens_at=at, closes_at=at)), "closes_at")
    later = sale_body(opens_at=at, closes_at="2036-01-01T07:59:59+08:00")
    assert names_field(office.put("wrong", later), "closes_at")


@pytest.mark.parametrize(
    "body",
    [
        sale_body(sku("x" * 128), title="", hold_seconds=604_800, buyer_limit=10**9),
        sale_body(sku("中文 / ?#%", 10**9, unit_price_minor=10**9, unit_cost_minor=0, link_no="3号")),
        sale_body(sku("A", 0), sku("a", 0), labels={}, style_limits={}, unknown={"a": [1]}),
        {**sale_body(), "skus": []},
        sale_body(sku("A", withheld=10), opens_at="2036-01-01t00:00:00z", closes_at="2036-01-01T00:00:00.001Z"),
        sale_body(sku("A", channels={"shop_2": 10, "a" * 32: 0}, location_hint="ignored")),
    ],
)
def test_what_the_limits_allow_is_taken_and_given_back(office: RunningBackOffice, body: dict[str, Any]) -> None:
    answer = office.put("taken", body)
    assert answer.status == 201, answer.json
    again = office.put("taken", office.sale("taken"))
    assert again.status == 200, again.json
    assert office.ask("DELETE", "/ops/v1/sales/taken").status == 204


def test_of_a_repeated_member_the_last_counts(office: RunningBackOffice) -> None:
    body = json.dumps(sale_body()).replace('"title":', '"title": 7, "title":').encode()
    assert office.put("repeated", body).status == 201


CHANGE = {"sku": "A", "kind": "allocate", "quantity": 1, "pool": "shared"}
MOVE = {"sku": "A", "kind": "move", "quantity": 1, "from": "withheld", "to": "shared"}
POOL: list[Any] = [*TEXT, "", "Shared", "a-b", "x" * 33, "shared\n"]
STOCK_FIELDS: list[tuple[dict[str, Any], str, list[Any]]] = [
    (CHANGE, "document_id", NAME),
    (CHANGE, "changes", [None, 7, "x", {}, [], [7], [None]]),
    (CHANGE, "changes[0].sku", NAME),
    (CHANGE, "changes[0].kind", [*TEXT, "", "remove", "Allocate"]),
    (CHANGE, "changes[0].quantity", [*INTEGER, 0, 10**9 + 1, -(10**9) - 1]),
    (CHANGE, "changes[0].pool", POOL),
    (MOVE, "changes[0].sku", NAME),
    (MOVE, "changes[0].quantity", [*INTEGER, 0, -1, 10**9 + 1]),
    (MOVE, "changes[0].from", POOL),
    (MOVE, "changes[0].to", [*POOL, "withheld"]),
]


@pytest.mark.parametrize(("change", "field", "values"), STOCK_FIELDS)
def test_every_wrong_field_of_a_stock_document_is_invalid_and_named(
    office: RunningBackOffice, change: dict[str, Any], field: str, values: list[Any]
) -> None:
    body = {"document_id": "wrong", "changes": [change]}
    for value in values:
        answer = office.ask("POST", "/ops/v1/sales/live-1/stock", changed(body, field, value))
        assert names_field(answer, field), (field, value, answer.json)


@pytest.mark.parametrize("field", ["document_id", "changes", "sku", "kind", "quantity", "from", "to"])
def test_what_is_required_of_a_stock_document_is_missed(office: RunningBackOffice, field: str) -> None:
    body: dict[str, Any] = {"document_id": "wrong", "changes": [dict(MOVE)]}
    del (body if field in body else body["changes"][0])[field]
    answer = office.ask("POST", "/ops/v1/sales/live-1/stock", body)
    assert names_field(answer, field if field in ("document_id", "changes") else f"changes[0].{field}")


QUERIES = {
    "/ops/v1/orders": ["status=paid", "status=HELD", "channel=Douyin", "sale_id=-", "sku=%00", "limit=0", "limit=1001"],
    "/erp/v1/orders": ["change=sold", "change=", "limit=0", "limit=1001", "limit=ten", "after=AAAA", "after=%FF"],
}


@pytest.mark.parametrize(("path", "query"), [(path, query) for path in QUERIES for query in QUERIES[path]])
def test_a_wrong_query_is_invalid_and_named(office: RunningBackOffice, path: str, query: str) -> None:
    assert names_field(office.ask("GET", f"{path}?{query}"), query.partition("=")[0])


@pytest.mark.parametrize("value", [None, 7, True, [], {}, "never-given", "AAAAAAAAAAHdJ8ZgLV-Oigd2Kt0", "x" * 300])
def test_a_cursor_that_was_never_given_cannot_be_acknowledged(office: RunningBackOffice, value: Any) -> None:
    answer = office.ask("POST", "/erp/v1/orders/acknowledge", {"up_to": value}, role="erp")
    assert names_field(answer, "up_to")


SALE = "/ops/v1/sales/live-1"
ROUTES = [
    ("PUT", SALE, "ops"),
    ("GET", SALE, "ops"),
    ("DELETE", SALE, "ops"),
    ("GET", "/ops/v1/sales", "ops"),
    *(("POST", f"{SALE}/{word}", "ops") for word in ("open", "pause", "resume", "close", "stock")),
    ("GET", f"{SALE}/audit", "ops"),
    ("GET", "/ops/v1/orders", "ops"),
    ("GET", "/console/", "ops"),
    ("GET", "/console", "ops"),
    ("GET", "/console/console.js", "ops"),
    ("GET", "/console/console.css", "ops"),
    ("POST", "/console/session", "ops"),
    ("DELETE", "/console/session", "ops"),
    ("GET", "/erp/v1/orders", "erp"),
    ("POST", "/erp/v1/orders/acknowledge", "erp"),
    ("GET", "/erp/v1/orders/acknowledge", "erp"),
]


@pytest.mark.parametrize(("method", "path", "role"), ROUTES)
def test_each_route_takes_its_roles_alone(office: RunningBackOffice, method: str, path: str, role: str) -> None:
    unknown = {"Authorization": "Bearer mc_ops_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}
    body: Any = {} if method in ("PUT", "POST") else None
    for headers in ({}, unknown, {"Authorization": f"Basic {office.keys[role]}"}):
        refused = office.ask(method, path, body, role=None, headers=headers)
        assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
        assert refused.headers["WWW-Authenticate"]
    for caller in ("checkout", "ops", "erp"):
        allowed = caller == role or (caller == "ops" and role == "erp" and method == "GET")
        if allowed and method in ("DELETE", "POST"):
            continue  # it would change what the other tests look at
        answer = office.ask(method, path, body, role=caller)
        assert (answer.status == 403) is not allowed, (caller, answer)
        if not allowed:
            assert answer.code == "FORBIDDEN"


@pytest.mark.parametrize(("method", "path", "role"), ROUTES)
def test_a_method_that_a_path_does_not_take_is_405(
    office: RunningBackOffice, method: str, path: str, role: str
) -> None:
    answer = office.ask("PATCH", path, {}, role="checkout")
    assert (answer.status, answer.code) == (405, "METHOD_NOT_ALLOWED")
    assert method in answer.headers["Allow"].split(", ")


@pytest.mark.parametrize(
    "path",
    [
        "/erp/v1/orders/AAAAAAAAAAAAAAAAAAAAAA.live-1/refunds",
        "/erp/v1/inventory",
        "/erp/v1/shipments",
        "/ops/v1/sales/live-1/costs",
        "/ops/v1/reports/sales/live-1",
        "/erp/v1/members/m",
        "/ops/v1/members/m",
        "/ops/v1/webhooks",
        "/ops/v1/sales/live-1/events",
        "/",
        "/ops/v1/sales/",
        "/console/none.js",
        "/console/../process.py",
        "/v1/sales/live-1/orders",
    ],
)
def test_what_is_not_built_is_not_found(office: RunningBackOffice, path: str) -> None:
    for method in ("GET", "PUT", "POST"):
        answer = office.ask(method, path)
        assert (answer.status, answer.code) == (404, "NOT_FOUND")
        assert office.ask(method, path, role=None).status == 401


@pytest.mark.parametrize("sale_id", ["-", ".a", "_a", "a" * 65, "a%20b", "a%2Fb", "%E6%8A%96", "a%0A", "a%ff"])
def test_a_sale_id_that_breaks_its_pattern(office: RunningBackOffice, sale_id: str) -> None:
    path = f"/ops/v1/sales/{sale_id}"
    assert names_field(office.ask("PUT", path, sale_body()), "sale_id")
    assert office.ask("GET", path).code == "SALE_NOT_FOUND"
    assert office.ask("DELETE", path).code == "SALE_NOT_FOUND"
    assert office.ask("POST", f"{path}/open").code == "SALE_NOT_FOUND"
    assert office.ask("POST", f"{path}/stock", {"document_id": "d", "changes": [CHANGE]}).code == "SALE_NOT_FOUND"
    assert office.ask("GET", f"{path}/audit").code == "SALE_NOT_FOUND"


@pytest.mark.parametrize("sale_id", ["a", "9", "a" * 64, "a.b_c-D", "a..b"])
def test_a_sale_id_of_every_allowed_shape(office: RunningBackOffice, sale_id: str) -> None:
    assert office.put(sale_id, sale_body()).status == 201
    assert office.sale(sale_id)["sale_id"] == sale_id


@pytest.mark.parametrize("body", [b"", b"{", b"[]x", b"\xff", b'{"a": NaN}', b"[" * 100_000])
def test_what_is_no_json_is_malformed(office: RunningBackOffice, body: bytes) -> None:
    answer = office.ask("PUT", SALE, body, headers={"Content-Length": str(len(body))})
    assert (answer.status, answer.code) == (400, "MALFORMED")


def test_a_body_of_16_mib_is_read_and_a_larger_one_refused(office: RunningBackOffice) -> None:
    body = json.dumps(sale_body()).encode()
    largest = body + b" " * (16 * 1024 * 1024 - len(body))
    assert office.put("largest", largest).status == 201
    answer = office.put("largest", largest + b" ")
    assert (answer.status, answer.code) == (413, "TOO_LARGE")


def test_another_content_type_is_415(office: RunningBackOffice) -> None:
    answer = office.put("live-1", json.dumps(sale_body()).encode(), **{"Content-Type": "text/plain"})
    assert (answer.status, answer.code) == (415, "UNSUPPORTED_MEDIA_TYPE")


def test_the_request_id_is_given_back(office: RunningBackOffice) -> None:
    assert office.ask("GET", SALE, headers={"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"
    assert office.ask("GET", SALE).headers["X-Request-Id"]


def test_probes_need_no_key(office: RunningBackOffice) -> None:
    assert office.ask("GET", "/healthz", role=None).json == {"alive": True}
    assert office.ask("GET", "/readyz", role=None).json == {"ready": True, "frozen": {}}
    metrics = office.ask("GET", "/metrics", role=None)
    assert b"miaocang_http_requests_total{" in metrics.body
    assert metrics.headers["Content-Type"].startswith("text/plain")


@pytest.fixture(scope="module")
def document(office: RunningBackOffice) -> dict[str, Any]:
    found: dict[str, Any] = office.ask("GET", "/openapi.json", role=None).json
    return found


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()


def test_the_document_names_every_route(document: dict[str, Any]) -> None:
    named = {
        (method.upper(), path.replace("{sale_id}", "live-1"))
        for path, operations in document["paths"].items()
        for method in operations
        if path not in ("/healthz", "/readyz", "/metrics", "/openapi.json")
    }
    assert named == {(method, path) for method, path, _ in ROUTES}


def described(document: dict[str, Any], method: str, template: str, answer: Response) -> None:
    """Hold an answer against the document: its status, content type, headers and body."""
    responses = document["paths"][template][method.lower()]["responses"]
    assert str(answer.status) in responses, f"{answer.status} is not described: {answer.body!r}"
    response = responses[str(answer.status)]
    for name in ("ETag", "Location", "Link", "Set-Cookie", "Idempotent-Replayed", "Retry-After", "Allow"):
        assert name not in answer.headers or name in response["headers"], name
    if "content" not in response:
        assert answer.body == b""
        return
    content_type = answer.headers["Content-Type"].partition(";")[0]
    schema = response["content"][content_type]["schema"]
    if content_type.endswith("json"):
        Draft202012Validator({**schema, "components": document["components"]}).validate(answer.json)


def test_every_answer_is_one_that_the_document_describes(office: RunningBackOffice, document: dict[str, Any]) -> None:
    template = "/ops/v1/sales/{sale_id}"
    stock = {"document_id": "d", "changes": [CHANGE, MOVE]}
    requests: list[tuple[str, str, str, Any, str, int]] = [
        ("PUT", template, "/ops/v1/sales/doc", sale_body(labels={"host": "x"}), "ops", 201),
        ("PUT", template, "/ops/v1/sales/doc", sale_body(sku("A", 20, withheld=3)), "ops", 200),
        ("PUT", template, "/ops/v1/sales/doc", {}, "ops", 422),
        ("PUT", template, "/ops/v1/sales/doc", b"{", "ops", 400),
        ("PUT", template, "/ops/v1/sales/doc", sale_body(sku("A", 0)), "ops", 200),
        ("GET", template, "/ops/v1/sales/doc", None, "ops", 200),
        ("GET", template, "/ops/v1/sales/none", None, "ops", 404),
        ("GET", template, "/ops/v1/sales/doc", None, "erp", 403),
        ("GET", "/ops/v1/sales", "/ops/v1/sales", None, "ops", 200),
        ("POST", f"{template}/stock", "/ops/v1/sales/live-1/stock", stock, "ops", 200),
        ("POST", f"{template}/stock", "/ops/v1/sales/live-1/stock", stock, "ops", 200),
        ("POST", f"{template}/stock", "/ops/v1/sales/doc/stock", stock, "ops", 409),
        ("POST", f"{template}/resume", "/ops/v1/sales/doc/resume", None, "ops", 409),
        ("POST", f"{template}/open", "/ops/v1/sales/doc/open", None, "ops", 200),
        ("DELETE", template, "/ops/v1/sales/doc", None, "ops", 409),
        ("POST", f"{template}/close", "/ops/v1/sales/doc/close", None, "ops", 200),
        ("GET", f"{template}/audit", "/ops/v1/sales/doc/audit", None, "ops", 200),
        ("PUT", template, "/ops/v1/sales/doc2", sale_body(), "ops", 201),
        ("DELETE", template, "/ops/v1/sales/doc2", None, "ops", 204),
        ("GET", "/ops/v1/orders", "/ops/v1/orders", None, "ops", 200),
        ("GET", "/erp/v1/orders", "/erp/v1/orders?limit=1", None, "erp", 200),
        ("GET", "/erp/v1/orders/acknowledge", "/erp/v1/orders/acknowledge", None, "ops", 200),
        ("POST", "/erp/v1/orders/acknowledge", "/erp/v1/orders/acknowledge", {"up_to": ""}, "erp", 200),
        ("GET", "/console", "/console", None, "ops", 308),
        ("GET", "/console/", "/console/", None, "ops", 200),
        ("GET", "/console/console.js", "/console/console.js", None, "ops", 200),
        ("POST", "/console/session", "/console/session", None, "ops", 204),
        ("DELETE", "/console/session", "/console/session", None, "ops", 204),
        ("GET", "/readyz", "/readyz", None, "ops", 200),
    ]
    office.put("live-1", sale_body(sku("A", 100, withheld=10)))
    office.transition("live-1", "open")
    for key in ("a", "b"):
        office.settle(office.hold("live-1", key, reference=f"ref-{key}"))
    for method, path_template, path, body, role, status in requests:
        answer = office.ask(method, path, body, role=role)
        assert answer.status == status, (method, path, answer.body)
        described(document, method, path_template, answer)


BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def test_a_browser_without_a_key_gets_the_401_as_a_page(office: RunningBackOffice) -> None:
    for path in ("/console/", "/console"):
        page = office.ask("GET", path, role=None, headers=BROWSER)
        assert page.status == 401
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert page.headers["WWW-Authenticate"].startswith("Bearer")
        policy = page.headers["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert page.headers["Cache-Control"] == "no-store"
    assert office.ask("GET", "/console/", role=None).code == "UNAUTHORIZED"
    assert office.ask("GET", "/ops/v1/sales", role=None, headers=BROWSER).code == "UNAUTHORIZED"
    assert office.ask("GET", "/console/", role="erp", headers=BROWSER).code == "FORBIDDEN"


def test_the_page_and_its_parts_are_strictly_its_own(office: RunningBackOffice) -> None:
    for path, content_type in (
        ("/console/", "text/html"),
        ("/console/console.js", "text/javascript"),
        ("/console/console.css", "text/css"),
    ):
        part = office.ask("GET", path)
        assert (part.status, part.headers["Content-Type"]) == (200, f"{content_type}; charset=utf-8")
        assert "script-src 'self'" in part.headers["Content-Security-Policy"]
        assert "unsafe" not in part.headers["Content-Security-Policy"]
        assert part.headers["X-Content-Type-Options"] == "nosniff"
        assert b"http://" not in part.body
        assert b"https://" not in part.body
    assert office.ask("GET", "/console").headers["Location"] == "/console/"


def test_a_session_stands_for_its_key_in_reads_alone(office: RunningBackOffice) -> None:
    begun = office.ask("POST", "/console/session")
    assert begun.status == 204
    cookie = begun.headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert office.keys["ops"] not in cookie
    session = {"Cookie": f"other=1; {cookie.partition(';')[0]}"}
    for path in ("/console/", "/ops/v1/sales", SALE, "/erp/v1/orders"):
        assert office.ask("GET", path, role=None, headers=session).status == 200
    for method, path in (("PUT", SALE), ("POST", f"{SALE}/close"), ("DELETE", SALE), ("POST", "/console/session")):
        assert office.ask(method, path, role=None, headers=session).code == "UNAUTHORIZED"
    wrong = {"Authorization": "Bearer wrong", **session}
    assert office.ask("GET", SALE, role=None, headers=wrong).status == 401
    forged = {"Cookie": "miaocang_console=" + "A" * 43}
    assert office.ask("GET", SALE, role=None, headers=forged).status == 401
    ended = office.ask("DELETE", "/console/session", role=None, headers=session)
    assert (ended.status, "Max-Age=0" in ended.headers["Set-Cookie"]) == (204, True)
    assert office.ask("GET", SALE, role=None, headers=session).status == 401


def test_behind_tls_the_cookie_is_for_tls_alone(office: RunningBackOffice) -> None:
    begun = office.ask("POST", "/console/session", headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in begun.headers["Set-Cookie"].split("; ")
    assert office.ask("POST", "/console/session", role="erp").code == "FORBIDDEN"
