"""One caller of the public HTTP interface: asks, and asks again with the same key where that may help."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from engine.demo.draw import draw

REQUEST_SECONDS_MAX = 15.0
ASK_AGAIN_SECONDS_MAX = 60.0
"""For how long one request is asked again: longer than a store takes to start and to be reconciled."""
PAUSE_SECONDS_MAX = 1.0
"""Between two askings, whatever Retry-After says: the show goes on."""
CONNECTIONS_MAX = 200

ASK_AGAIN_CODES = frozenset({"OUTCOME_UNKNOWN", "FROZEN", "OVERLOADED", "LEDGER_BEHIND", "RATE_LIMITED"})


class CannotTell(Exception):
    """The demo cannot go on, or cannot say what happened; the message is one line for a person."""


class NoAnswer(CannotTell):
    """Asking again did not help for as long as we ask: the outcome is not known."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered in the end."""

    status: int
    body: Mapping[str, Any]
    is_replay: bool
    seconds: float
    """Of the last asking alone, from sending to the whole answer."""
    sent: int
    """How often it was asked."""

    @property
    def is_yes(self) -> bool:
        return self.status < 300

    @property
    def code(self) -> str:
        """The problem's code; empty for a yes."""
        return "" if self.is_yes else str(self.body.get("code", f"HTTP {self.status}"))


class Unexpected(CannotTell):
    """An answer that the contract does not have for this request: a defect, not a refusal."""

    def __init__(self, what: str, answer: Answer) -> None:
        super().__init__(f"{what}: {answer.status} {answer.code} {answer.body.get('detail', '')}".rstrip())


class Caller:
    """Calls one process' interface with one key. At most `CONNECTIONS_MAX` requests are on their way at once."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, key: str) -> None:
        self._session = session
        self._base_url = base_url
        self._authorization = f"Bearer {key}"
        self._lanes = asyncio.Semaphore(CONNECTIONS_MAX)
        self.asked_again = 0

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, key: str | None = None
    ) -> Answer:
        """Send a request until it is answered for good; `key` is its Idempotency-Key.

        Raises: NoAnswer, after `ASK_AGAIN_SECONDS_MAX`.
        """
        headers = {"Authorization": self._authorization}
        if key is not None:
            headers["Idempotency-Key"] = key
        data = None if body is None else orjson.dumps(body)
        if data is not None:
            headers["Content-Type"] = "application/json"
        give_up_at = time.monotonic() + ASK_AGAIN_SECONDS_MAX
        sent = 0
        while True:
            sent += 1
            reason = await self._ask_once(method, path, data, headers, sent)
            if isinstance(reason, Answer):
                return reason
            if time.monotonic() > give_up_at:
                raise NoAnswer(f"{method} {path}: {reason}, asked {sent} times")
            self.asked_again += 1
            # Spread out, or all who were refused in one moment would come back in one moment.
            await asyncio.sleep(PAUSE_SECONDS_MAX * (0.2 + 0.8 * draw(path, key or "", str(sent))))

    async def _ask_once(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str], sent: int
    ) -> Answer | str:
        """The answer; a reason in words where it may be asked again."""
        async with self._lanes:
            started = time.perf_counter()
            try:
                async with self._session.request(method, self._base_url + path, data=data, headers=headers) as response:
                    raw = await response.read()
            except (aiohttp.ClientError, TimeoutError) as error:
                return f"{type(error).__name__}: {error}"
            seconds = time.perf_counter() - started
        body = orjson.loads(raw) if raw else {}
        is_replay = response.headers.get("Idempotent-Replayed") == "true"
        answer = Answer(response.status, body, is_replay, seconds, sent)
        return answer.code if answer.code in ASK_AGAIN_CODES else answer

    async def read_text(self, path: str) -> str:
        """A page in text, such as the metrics. Raises: aiohttp.ClientError, TimeoutError."""
        async with self._session.get(self._base_url + path) as response:
            response.raise_for_status()
            return await response.text()


def open_session() -> aiohttp.ClientSession:
    """A session whose connections are bounded by the callers, not by the pool."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS_MAX)
    )
