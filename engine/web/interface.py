"""One HTTP interface without its server: from a request's head and body to an answer, by the order of checks that
every interface has (contract §3).

    401 · NOT_FOUND · 405 · 403 · 413 · 415 · IDEMPOTENCY_KEY_REQUIRED · MALFORMED · INVALID · an id that breaks its
    shape · what the handler finds

The first half looks at the head alone and decides whether the body is worth reading; the second takes the body.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from engine.observability.metrics import REFUSALS
from engine.web.answers import Answer, problem_answer
from engine.web.body import decode_query
from engine.web.headers import (
    Headers,
    bearer_key_of,
    content_length_of,
    idempotency_key_of,
    is_json,
    parse_target,
    request_id_of,
)
from engine.web.key_store import Principal
from engine.web.problems import INTERNAL, Code, FieldError, Problem, failure, invalid
from engine.web.routes import PATH_IDS, Call, Match, Route, RouteTable

UNMATCHED_ROUTE = "unmatched"
"""The metrics' name for every path that is no route: callers must not be able to make label values."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Admission:
    """A request whose head has passed, waiting for its body; or, with an answer, one that has not."""

    request_id: str
    route: Route | None
    arrived: float
    headers: Headers
    refused: Answer | None = None
    principal: Principal | None = None
    match: Match | None = None
    query: str = ""

    @property
    def route_name(self) -> str:
        """The route's template, for metrics."""
        return self.route.template if self.route is not None else UNMATCHED_ROUTE


BodyOrProblem = bytes | Problem
"""A body as it was read, or why it could not be: TOO_LARGE or MALFORMED."""


class Interface:
    """The routes of one interface with the keys that open them."""

    def __init__(
        self, name: str, routes: RouteTable, principal: Callable[[str], Principal | None], body_bytes_max: int
    ) -> None:
        self.name = name
        self.routes = routes
        self.body_bytes_max = body_bytes_max
        self.principal = principal

    def admit(self, method: str, target: str, headers: Headers) -> Admission:
        """Look at a request's head: who calls what, and is its body worth reading?"""
        arrived = time.perf_counter()
        request_id = request_id_of(headers)
        parsed = parse_target(target)
        match = self.routes.match(parsed.segments)
        route = match.route(method) if match is not None else None
        principal = self._caller(headers) if match is None or not match.is_open else None
        refused = self._refuse_head(match, route, principal, headers)
        if refused is not None:
            return Admission(request_id, route, arrived, headers, refused=refused)
        return Admission(request_id, route, arrived, headers, None, principal, match, parsed.query)

    def _caller(self, headers: Headers) -> Principal | None:
        key = bearer_key_of(headers)
        return self.principal(key) if key is not None else None

    def _refuse_head(
        self, match: Match | None, route: Route | None, principal: Principal | None, headers: Headers
    ) -> Answer | None:
        problem: Problem | None = None
        too_large = False
        if principal is None and (match is None or not match.is_open):
            problem = Problem(Code.UNAUTHORIZED, "Send `Authorization: Bearer KEY` with a key that is known here.")
        elif match is None:
            problem = Problem(Code.NOT_FOUND, "There is nothing at this path; /openapi.json lists what there is.")
        elif route is None:
            allowed = match.allowed()
            problem = Problem(Code.METHOD_NOT_ALLOWED, f"This path takes {allowed}.", headers=(("Allow", allowed),))
        elif principal is not None and not route.admits(principal.role):
            problem = Problem(Code.FORBIDDEN, f"This takes a key of the role {route.role!r}, not {principal.role!r}.")
        elif (content_length_of(headers) or 0) > self.body_bytes_max:
            problem, too_large = self.too_large(), True
        return problem_answer(problem, close=too_large) if problem is not None else None

    def too_large(self) -> Problem:
        """The problem of a body past this interface's bound."""
        return Problem(Code.TOO_LARGE, f"A body may have {self.body_bytes_max} bytes at most.")

    async def answer(self, admission: Admission, body: BodyOrProblem) -> Answer:
        """Answer a request that was admitted. Never raises but for being cancelled."""
        call = self._call(admission, body)
        if isinstance(call, Problem):
            return problem_answer(call, close=isinstance(body, Problem))
        assert admission.route is not None
        try:
            outcome = await admission.route.handler(call)
        except Exception as error:
            return self._answer_error(error, admission)
        if isinstance(outcome, Problem):
            REFUSALS.labels(outcome.code).inc()
            return problem_answer(outcome)
        return outcome

    def check(self, admission: Admission, body: BodyOrProblem) -> Answer | None:
        """What is wrong with a request that was admitted, without carrying it out; None if nothing is."""
        call = self._call(admission, body)
        return problem_answer(call, close=isinstance(body, Problem)) if isinstance(call, Problem) else None

    def _answer_error(self, error: Exception, admission: Admission) -> Answer:
        problem = failure(error)
        if problem is None:
            _log.exception("request_defect", interface=self.name, route=admission.route_name, id=admission.request_id)
            problem = INTERNAL
        return problem_answer(problem)

    def _call(self, admission: Admission, body: BodyOrProblem) -> Call | Problem:  # noqa: PLR0911 - the order of checks
        route, match = admission.route, admission.match
        assert route is not None
        assert match is not None
        if isinstance(body, Problem) and body.code is Code.TOO_LARGE:
            return body
        if route.decoder is not None and not is_json(admission.headers):
            return Problem(
                Code.UNSUPPORTED_MEDIA_TYPE, "Send the body as application/json in UTF-8, without Content-Encoding."
            )
        key = idempotency_key_of(admission.headers) if route.takes_idempotency_key else ""
        if isinstance(key, Problem):
            return key
        if isinstance(body, Problem):
            return body
        malformed = route.check_headers(admission.headers) if route.check_headers is not None else None
        if malformed is not None:
            return malformed
        decoded = _decoded(route, match, admission.query, body)
        if isinstance(decoded, Problem):
            return decoded
        for name, text in match.path.items():
            if not PATH_IDS[name].has_shape(text):
                return PATH_IDS[name].not_found
        query, value = decoded
        return Call(
            principal=admission.principal,
            path=match.path,
            query=query,
            body=value,
            idempotency_key=key,
            headers=admission.headers,
            request_id=admission.request_id,
            arrived=admission.arrived,
        )


def _decoded(route: Route, match: Match, query_string: str, body: bytes) -> tuple[Any, Any] | Problem:
    """(query, body), or MALFORMED, or INVALID with the errors of path, query and body together."""
    value = route.decoder.decode(body) if route.decoder is not None else None
    query = decode_query(route.query, query_string) if route.query is not None else None
    path_errors = [
        FieldError(name, f"must be {PATH_IDS[name].description}")
        for name, text in match.path.items()
        if route.method == "PUT" and not PATH_IDS[name].has_shape(text)
    ]
    problems = [found for found in (query, value) if isinstance(found, Problem)]
    for problem in problems:
        if problem.code is not Code.INVALID:
            return problem
    if not problems and not path_errors:
        return query, value
    listed = [FieldError(**error) for problem in problems for error in problem.members["errors"]]
    return invalid([*path_errors, *listed])
