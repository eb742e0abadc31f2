"""An answer as bytes, before any server has touched it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from engine.web.problems import CONTENT_TYPE, Code, Problem

JSON = "application/json"
SUCCESS_CODE = "OK"
"""Stands in metrics where a refusal would have its code."""
REPLAYED = ("Idempotent-Replayed", "true")

Header = tuple[str, str]


class Answer(NamedTuple):
    """Status, body and the headers that are this answer's own; `finished` adds those that every answer has."""

    status: int
    body: bytes
    headers: tuple[Header, ...]
    code: str = SUCCESS_CODE
    close: bool = False
    """Whether the connection must end, because the rest of the request is not going to be read."""


def json_answer(status: int, document: Any, headers: Sequence[Header] = ()) -> Answer:
    """An answer with a JSON document."""
    return Answer(status, orjson.dumps(document), (("Content-Type", JSON), *headers))


def problem_answer(problem: Problem, headers: Sequence[Header] = (), close: bool = False) -> Answer:
    """An answer with a problem document, and `Retry-After` where its code has one."""
    own: tuple[Header, ...] = (("Content-Type", CONTENT_TYPE), *problem.headers, *headers)
    if problem.kind.retry_after_seconds is not None:
        own = (*own, ("Retry-After", str(problem.kind.retry_after_seconds)))
    if problem.code is Code.UNAUTHORIZED:
        own = (*own, ("WWW-Authenticate", 'Bearer realm="miaocang"'))
    return Answer(problem.kind.status, orjson.dumps(problem.document()), own, problem.code, close)


def finished_headers(answer: Answer, request_id: str) -> list[Header]:
    """The answer's headers with those that every answer has; its length and date are the server's to add."""
    headers = [*answer.headers, ("X-Request-Id", request_id), ("Server", "miaocang")]
    if not any(name == "Cache-Control" for name, _ in answer.headers):
        headers.append(("Cache-Control", "no-store"))
    return headers
