"""Answers of the hot routes' handlers, rendered as the lane writes them."""

import orjson

from engine.domain.errors import MiaocangError
from engine.web.problems import Problem, failure

Rendered = tuple[int, bytes, str, bool]
"""What `HotRequest.answer` takes: status, body, code, whether it is a replay."""


def rendered_problem(problem: Problem, replayed: bool = False) -> Rendered:
    """A problem's answer; its own headers but Idempotent-Replayed are not for the lane."""
    return problem.kind.status, orjson.dumps(problem.document()), problem.code.value, replayed


def rendered_failure(error: MiaocangError) -> Rendered:
    """The answer where a partition could not tell. Raises `error` where it is a defect."""
    problem = failure(error)
    if problem is None:
        raise error
    return rendered_problem(problem)
