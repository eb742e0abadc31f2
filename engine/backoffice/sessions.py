"""Signed-in browsers: a random token in a cookie stands for a key, so that the key itself stays out of the browser."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

SESSIONS_MAX = 1000
"""One more signs the oldest out."""
SESSION_SECONDS_MAX = 12 * 3600.0
"""A working day; then the key is asked for again."""
TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class _Session:
    key: str
    ends: float


class Sessions:
    """The sessions of this process. A restart signs everybody out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sessions: dict[str, _Session] = {}

    def begin(self, key: str) -> str:
        """A token that stands for `key` from now on."""
        now = self._clock()
        self._sessions = {token: session for token, session in self._sessions.items() if session.ends > now}
        while len(self._sessions) >= SESSIONS_MAX:
            del self._sessions[next(iter(self._sessions))]
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._sessions[token] = _Session(key, now + SESSION_SECONDS_MAX)
        return token

    def key_of(self, token: str) -> str | None:
        """The key that a token stands for; whether that key is still good is for the keys to say."""
        session = self._sessions.get(token)
        return session.key if session is not None and session.ends > self._clock() else None

    def end(self, token: str) -> None:
        """Sign out; an unknown token is signed out already."""
        self._sessions.pop(token, None)
