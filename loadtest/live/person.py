"""Whoever takes part in a live: asks the engine, and holds every answer against the contract."""

import random
import uuid
from collections.abc import Collection, Mapping
from typing import Any

import gevent
from locust import FastHttpUser

from loadtest.live.answers import Answer, complaint_about
from loadtest.live.show import OnAir

ASKINGS_MAX = 20
"""How often one request is asked again after "not now" or after no answer."""
ASK_AGAIN_SECONDS = (0.2, 1.0)
"""Between two askings, spread out: or all who were refused in one moment would come back in one moment."""
OWN_REQUEST_ID_SHARE = 0.1
"""Of the requests: those that bring an X-Request-Id and must get it back."""
ANSWER_SECONDS_MAX = 20.0


class Person(FastHttpUser):
    """One client of the engine. `expected_codes` are the refusals that are right for a request; any other fails it."""

    abstract = True
    network_timeout = ANSWER_SECONDS_MAX
    connection_timeout = ANSWER_SECONDS_MAX

    def on_start(self) -> None:
        """Join the show that is on."""
        self.show = OnAir.present()
        self.book = self.show.book

    def ask(
        self,
        name: str,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        key: str = "",
        role: str = "checkout",
        expected_codes: Collection[str] = (),
    ) -> Answer | None:
        """Ask until it is answered for good; None where it never was, or the answer is one that may not be given."""
        target = (name, method, self.show.url(role) + path)
        headers = self.headers(role, key)
        for _ in range(ASKINGS_MAX):
            answer, complaint = self._ask_once(target, body, headers, expected_codes)
            if answer.status and not answer.is_not_now:
                return None if complaint else answer
            gevent.sleep(random.uniform(*ASK_AGAIN_SECONDS))
        self.defect(name, f"{method} {path} was not answered for good in {ASKINGS_MAX} askings")
        return None

    def _ask_once(
        self, target: tuple[str, str, str], body: Any, headers: dict[str, str], expected_codes: Collection[str]
    ) -> tuple[Answer, str]:
        """Ask a target (name, method, URL) once; the answer, and what is wrong with it."""
        name, method, url = target
        request_id = uuid.uuid4().hex if random.random() < OWN_REQUEST_ID_SHARE else ""
        own = {"X-Request-Id": request_id} if request_id else {}
        with self.client.request(
            method, url, json=body, headers=headers | own, name=name, catch_response=True, allow_redirects=False
        ) as response:
            answer = read_answer(response)
            complaint = complaint_about(answer, expected_codes, request_id)
            if complaint:
                response.failure(complaint)
                self.book.note_defect(f"{name}: {complaint}")
            else:
                if answer.code:
                    response.request_meta["name"] = f"{name}: {answer.code}"
                response.success()
        return answer, complaint

    def headers(self, role: str, key: str) -> dict[str, str]:
        """The headers that every request of this role has."""
        headers = {"Authorization": f"Bearer {self.show.endpoints['keys'][role]}"}
        return {**headers, "Idempotency-Key": key} if key else headers

    def defect(self, name: str, words: str) -> None:
        """Report what no answer may ever say, as a failure of its own."""
        self.book.note_defect(f"{name}: {words}")
        self.environment.events.request.fire(
            request_type="CHECK",
            name=name,
            response_time=0,
            response_length=0,
            exception=AssertionError(words),
            context={},
        )


def read_answer(response: Any) -> Answer:
    """A response of Locust's client as an answer; status 0 where none came."""
    if response.status_code == 0 or response.headers is None:
        return Answer(0, {}, {})
    headers = {name.lower(): value for name, value in response.headers.items()}
    try:
        body = response.json()
    except (ValueError, TypeError):  # TypeError: no body at all
        body = None
    return Answer(response.status_code, headers, body if isinstance(body, dict) else {})
