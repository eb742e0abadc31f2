"""Answers as the fast lane writes them, and what it counts of them, at a fraction of a microsecond each.

The heads of answers are the general ones (`web/answers.py`), rendered once for each kind of answer and kept until their
date has passed.
"""

import secrets
import time
from email.utils import formatdate
from http import HTTPStatus

from engine.observability.aggregates import CountBuffer
from engine.observability.metrics import FAST_LANE_REQUESTS, REQUESTS
from engine.web.answers import JSON, REPLAYED, Answer, Header, finished_headers, problem_answer
from engine.web.problems import Code, Problem

_REQUEST_ID = "X-Request-Id"


class AnswerKind:
    """What all answers of one status and code share."""

    __slots__ = ("answer", "count", "head", "labels")

    def __init__(self, answer: Answer, labels: tuple[str, ...]) -> None:
        self.answer = answer
        self.labels = labels
        self.count = 0
        self.head = b""
        """Everything up to the value of X-Request-Id, which is the last line but Content-Length and Connection."""


class AnswerKinds(CountBuffer):
    """All kinds of answers that one hot route has given; counts them."""

    __slots__ = ("_date", "_route", "kinds")

    def __init__(self, interface_name: str, template: str, date: str) -> None:
        super().__init__(REQUESTS)
        self._route = (interface_name, template)
        self.kinds: dict[tuple[int, str, bool], AnswerKind] = {}
        self._date = date

    def kind(self, status: int, code: str, replayed: bool) -> AnswerKind:
        """The kind of these answers, made if there were none yet."""
        found = self.kinds.get((status, code, replayed))
        if found is None:
            answer = _example(status, code, replayed)
            found = AnswerKind(answer, (*self._route, str(status), str(code)))
            found.head = _head_before_request_id(answer, self._date)
            self.kinds[status, code, replayed] = found
        return found

    def set_date(self, date: str) -> None:
        """Put this date into all heads."""
        self._date = date
        for kind in self.kinds.values():
            kind.head = _head_before_request_id(kind.answer, date)

    def flush(self) -> None:
        """Hand over what was counted."""
        total = 0
        for kind in self.kinds.values():
            if kind.count:
                self.counts[kind.labels] += kind.count
                total += kind.count
                kind.count = 0
        FAST_LANE_REQUESTS.labels("hot").inc(total)
        super().flush()


class RequestIds:
    """Makes ids for requests that have none: random bits for all of a short while, and a number."""

    __slots__ = ("number", "prefix")

    def __init__(self) -> None:
        self.number = 0
        """The last one given; never goes back."""
        self.prefix = b""
        self.renew()

    def renew(self) -> None:
        """Take other random bits; to be called now and then, so that one id tells little about others."""
        self.prefix = f"{secrets.token_urlsafe(12)}.".encode("ascii")

    def new(self) -> bytes:
        """An id never given before."""
        self.number += 1
        return b"%b%x" % (self.prefix, self.number)


def date_now() -> str:
    """The date as answers have it."""
    return formatdate(time.time(), usegmt=True)


def rendered(answer: Answer, request_id: str, closes: bool, date: str) -> bytes:
    """Any answer, as it goes on the wire."""
    head = _head_before_request_id(answer, date)
    connection = b"\r\nConnection: close" if closes else b""
    return b"%b%b\r\nContent-Length: %d%b\r\n\r\n%b" % (
        head,
        request_id.encode("ascii"),
        len(answer.body),
        connection,
        answer.body,
    )


def _example(status: int, code: str, replayed: bool) -> Answer:
    own: tuple[Header, ...] = (REPLAYED,) if replayed else ()
    if code in Code.__members__:
        return problem_answer(Problem(Code(code), ""), own)
    return Answer(status, b"", (("Content-Type", JSON), *own), code)


def _head_before_request_id(answer: Answer, date: str) -> bytes:
    lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in finished_headers(answer, "") if name != _REQUEST_ID]
    return "\r\n".join([*lines, f"Date: {date}", f"{_REQUEST_ID}: "]).encode()
