"""The declared routes of an HTTP interface: the server routes by them, and the OpenAPI document is made from them."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.domain.identifiers import OrderId, is_sale_id
from engine.web.answers import Answer
from engine.web.body import BodyDecoder, Rule
from engine.web.headers import Headers
from engine.web.key_store import Principal
from engine.web.problems import Code, Problem


@dataclass(frozen=True, slots=True)
class Call:
    """One request as its handler sees it: checked, decoded, and of a caller who may make it."""

    principal: Principal | None
    """None only on routes that are open to all."""
    path: Mapping[str, str]
    """The ids in the path, each of the shape that its name asks for."""
    query: Any
    """Of the route's query type; None where it has none."""
    body: Any
    """Of the route's request type; None where it has none."""
    idempotency_key: str
    """Empty where the route does not ask for one."""
    headers: Headers
    request_id: str
    arrived: float
    """When the request's head had been read, by `time.perf_counter`."""


Handler = Callable[[Call], Awaitable[Answer | Problem]]


@dataclass(frozen=True, slots=True)
class PathId:
    """The shape of an id in a path, and what is answered to one that breaks it."""

    has_shape: Callable[[str], bool]
    not_found: Problem
    description: str


PATH_IDS: Mapping[str, PathId] = {
    "sale_id": PathId(
        is_sale_id,
        Problem(Code.SALE_NOT_FOUND, "There is no sale of this id."),
        "1 to 64 letters, digits, dots, underscores or dashes, a letter or digit first",
    ),
    "order_id": PathId(
        lambda text: OrderId.parse(text) is not None,
        Problem(Code.ORDER_NOT_FOUND, "There is no order of this id, or not any more."),
        "opaque, as given in the order",
    ),
}
"""Every parameter that a path template may have. In the path of a PUT a broken one is INVALID instead: it would make
the thing that the id names."""


@dataclass(frozen=True)
class Success:
    """One kind of success of a route."""

    description: str
    kind: Any = None
    """The type of the answer's document; None where it is no JSON."""
    content_type: str = "application/json"
    """Empty where the answer has no body."""
    headers: tuple[str, ...] = ()
    """Names of headers it may have beside those of every answer: see the OpenAPI document's components."""


@dataclass(frozen=True)
class Route:
    """One method of one path."""

    method: str
    template: str
    role: str | None
    """Who may call it; None for everyone, without a key."""
    handler: Handler
    summary: str
    successes: Mapping[int, Success]
    refusals: tuple[Code, ...] = ()
    """The codes it can be refused with, beside those that follow from the rest of this declaration."""
    request: type[Any] | None = None
    rule: Rule[Any] | None = None
    query: type[Any] | None = None
    takes_idempotency_key: bool = False
    check_headers: Callable[[Headers], Problem | None] | None = None
    """Says what is MALFORMED in headers that only this route reads."""
    optional_headers: Mapping[str, str] = field(default_factory=dict)
    """Those headers, each with its description."""
    decoder: BodyDecoder[Any] | None = field(init=False)
    segments: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        decoder = BodyDecoder(self.request, self.rule) if self.request is not None else None
        object.__setattr__(self, "decoder", decoder)
        object.__setattr__(self, "segments", tuple(self.template.split("/")[1:]))
        unknown = [name for name in self.parameters if name not in PATH_IDS]
        if unknown:
            raise ValueError(f"{self.template}: no shape is known for {unknown}")

    @property
    def parameters(self) -> list[str]:
        """The names of the ids in its path."""
        return [segment[1:-1] for segment in self.segments if segment.startswith("{")]

    def admits(self, role: str) -> bool:
        """Whether a key of this role may call it: the route's own; `ops` may read what the ERP may (contract §3)."""
        reads_for_erp = role == "ops" and self.role == "erp" and self.method == "GET"
        return self.role in (None, role) or reads_for_erp


@dataclass(frozen=True)
class Match:
    """The routes of one path, by method, with the path's parameters."""

    routes: Mapping[str, Route]
    path: Mapping[str, str]

    @property
    def is_open(self) -> bool:
        """Whether it can be called without a key, and so be told its methods without one."""
        return all(route.role is None for route in self.routes.values())

    def route(self, method: str) -> Route | None:
        """The route for a method; HEAD works where GET does."""
        return self.routes.get("GET" if method == "HEAD" else method)

    def allowed(self) -> str:
        """The value of `Allow`."""
        methods = set(self.routes) | ({"HEAD"} if "GET" in self.routes else set())
        return ", ".join(sorted(methods))


class RouteTable:
    """All routes of one interface. A literal part of a path goes before a parameter in its place."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: Sequence[Route] = tuple(routes)
        self._by_length: dict[int, dict[tuple[str, ...], dict[str, Route]]] = {}
        for route in self.routes:
            methods = self._by_length.setdefault(len(route.segments), {}).setdefault(route.segments, {})
            if route.method in methods:
                raise ValueError(f"{route.method} {route.template} is declared twice")
            methods[route.method] = route
        for templates in self._by_length.values():
            ordered = sorted(templates.items(), key=lambda item: [part.startswith("{") for part in item[0]])
            templates.clear()
            templates.update(ordered)

    def match(self, segments: tuple[str, ...]) -> Match | None:
        """The routes of the path that these parts make, or None if there is no such path."""
        for template, routes in self._by_length.get(len(segments), {}).items():
            path = _parameters(template, segments)
            if path is not None:
                return Match(routes, path)
        return None


def _parameters(template: tuple[str, ...], segments: tuple[str, ...]) -> dict[str, str] | None:
    path: dict[str, str] = {}
    for expected, given in zip(template, segments, strict=True):
        if expected.startswith("{"):
            if not given:
                return None
            path[expected[1:-1]] = given
        elif expected != given:
            return None
    return path
