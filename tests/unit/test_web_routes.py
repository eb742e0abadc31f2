"""Which route a path names, and who may call it."""

import pytest

from engine.web.answers import Answer, json_answer
from engine.web.problems import Problem
from engine.web.routes import Call, Route, RouteTable


async def nothing(_call: Call) -> Answer | Problem:
    return json_answer(200, {})


def route(method: str, template: str, role: str | None = "erp") -> Route:
    return Route(method, template, role, nothing, "", {})


TABLE = RouteTable(
    [
        route("GET", "/erp/v1/orders/{order_id}"),
        route("POST", "/erp/v1/orders/acknowledge"),
        route("PUT", "/erp/v1/inventory"),
        route("GET", "/erp/v1/inventory"),
        route("GET", "/healthz", None),
        route("GET", "/console/", None),
    ]
)


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/erp/v1/orders/acknowledge", "/erp/v1/orders/acknowledge"),
        ("/erp/v1/orders/x", "/erp/v1/orders/{order_id}"),
        ("/console/", "/console/"),
        ("/console", None),
        ("/erp/v1/orders/", None),
        ("/erp/v1/orders", None),
        ("", None),
    ],
)
def test_a_literal_goes_before_a_parameter_and_nothing_is_guessed(path: str, template: str | None) -> None:
    match = TABLE.match(tuple(path.split("/")[1:]))
    assert (next(iter(match.routes.values())).template if match else None) == template


def test_head_works_where_get_does() -> None:
    match = TABLE.match(("erp", "v1", "inventory"))
    assert match is not None
    assert match.route("HEAD") is match.route("GET") is not None
    assert match.allowed() == "GET, HEAD, PUT"
    assert match.route("POST") is None


@pytest.mark.parametrize(
    ("method", "owner", "caller", "may"),
    [
        ("GET", "erp", "erp", True),
        ("GET", "erp", "ops", True),
        ("PUT", "erp", "ops", False),
        ("GET", "ops", "erp", False),
        ("GET", "checkout", "ops", False),
        ("GET", "ops", "checkout", False),
        ("GET", None, "erp", True),
    ],
)
def test_ops_may_read_what_the_erp_may_and_roles_cross_nowhere_else(
    method: str, owner: str | None, caller: str, may: bool
) -> None:
    assert route(method, "/x", owner).admits(caller) is may


def test_a_route_is_declared_once_and_its_parameters_have_a_known_shape() -> None:
    with pytest.raises(ValueError, match="declared twice"):
        RouteTable([route("GET", "/x"), route("GET", "/x")])
    with pytest.raises(ValueError, match="no shape is known"):
        route("GET", "/{mystery}")
