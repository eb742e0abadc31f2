"""The keys file `DIR/keys.json`: who may call, by role and name. Keys themselves are never in it, only their SHA-256.

A key is 192 random bits, so a plain SHA-256 cannot be searched backwards, and looking it up in a dictionary tells a
caller's stopwatch nothing about any key. Several live keys may share a role and a name, so that one can be replaced
without a gap: create the second, move the caller over, revoke the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from engine.web.private_file import replace_private_file

ROLES = ("checkout", "ops", "erp")
KEYS_FILE_NAME = "keys.json"
KEY_RANDOM_BYTES = 24  # 32 url-safe characters
LOOK_INTERVAL_SECONDS = 0.75
HOLDER_SECONDS_MAX = 0.25
"""How long whoever has asked may go by the answer; with the interval before, a revoked key works for a second."""
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_log = structlog.get_logger(__name__)


class KeysUnreadable(Exception):
    """The keys file is there and cannot be understood, so nobody can tell who may call."""


class KeyRefused(Exception):
    """What was asked about a key cannot be done; the message is one line that says why."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever holds a key. Role and name together are the owner that acknowledgements are kept for."""

    role: str
    name: str

    @property
    def owner(self) -> str:
        """`role:name`, unique among owners because neither part may hold a colon."""
        return f"{self.role}:{self.name}"


class KeyRecord(msgspec.Struct, frozen=True):
    """One key as it stands in the file. Times are UTC."""

    id: str
    role: str
    name: str
    sha256: str
    created_at: datetime
    revoked_at: datetime | None = None


class KeyStore:
    """Answers who holds a key, and notices within a second when the file has changed."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file at `path`; a missing one holds no keys yet.

        Raises: KeysUnreadable, OSError.
        """
        self._path = path
        self._clock = clock
        self._looked_at = clock()
        self._version = _file_version(path)
        self._principals = _live_principals(read_keys(path))

    def principal(self, key_text: str) -> Principal | None:
        """The holder of this key, or None if there is no such key or it is revoked. Never raises."""
        now = self._clock()
        if now - self._looked_at >= LOOK_INTERVAL_SECONDS:
            self._looked_at = now
            self._read_again_if_changed()
        return self._principals.get(_digest(key_text))

    def _read_again_if_changed(self) -> None:
        try:
            version = _file_version(self._path)
            if version == self._version:
                return
            self._principals = _live_principals(read_keys(self._path))
            self._version = version
        except (KeysUnreadable, OSError) as error:
            # Refusing every caller over a broken edit would stop the shop: go on with the keys known so far.
            _log.error("keys_unreadable", path=str(self._path), reason=str(error))


def read_keys(path: Path) -> list[KeyRecord]:
    """Every key in the file, oldest first; none if there is no file.

    Raises: KeysUnreadable, OSError.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        return msgspec.json.decode(content, type=list[KeyRecord])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeysUnreadable(f"{path} is not a list of keys: {error}") from error


def create_key(path: Path, role: str, name: str) -> str:
    """Make a key, store its hash, and return its text, which cannot be had again.

    Raises: KeyRefused (unknown role, bad name), KeysUnreadable, OSError.
    """
    key_text = new_key_text(role)
    register_key(path, role, name, key_text)
    return key_text


def new_key_text(role: str) -> str:
    """A fresh key: `mc_<role>_` and 32 url-safe random characters."""
    return f"mc_{role}_{secrets.token_urlsafe(KEY_RANDOM_BYTES)}"


def register_key(path: Path, role: str, name: str, key_text: str) -> None:
    """Store a key that exists already; one that is in the file, revoked or not, is left as it is.

    Raises: KeyRefused (unknown role, bad name), KeysUnreadable, OSError.
    """
    if role not in ROLES:
        raise KeyRefused(f"there is no role {role!r}; choose one of {', '.join(ROLES)}")
    if not NAME_PATTERN.fullmatch(name):
        raise KeyRefused("a key's name is 1 to 64 letters, digits, dots, dashes or underscores, the first no sign")
    digest = _digest(key_text)
    with _locked(path):
        records = read_keys(path)
        if any(record.sha256 == digest for record in records):
            return
        record = KeyRecord(secrets.token_hex(6), role, name, digest, created_at=datetime.now(UTC))
        _write_keys(path, [*records, record])


def revoke_keys(path: Path, *, name: str | None = None, role: str | None = None, key_id: str | None = None) -> int:
    """Revoke every live key that matches all that is given; returns how many there were.

    Raises: KeyRefused (neither name nor id given), KeysUnreadable, OSError.
    """
    if name is None and key_id is None:
        raise KeyRefused("say which key: --name NAME or --id ID")

    def matches(record: KeyRecord) -> bool:
        return (
            record.revoked_at is None
            and name in (None, record.name)
            and role in (None, record.role)
            and key_id in (None, record.id)
        )

    with _locked(path):
        records = read_keys(path)
        revoked_count = sum(map(matches, records))
        if revoked_count:
            now = datetime.now(UTC)
            _write_keys(
                path,
                [msgspec.structs.replace(record, revoked_at=now) if matches(record) else record for record in records],
            )
    return revoked_count


def _digest(key_text: str) -> str:
    # A header may carry lone surrogates; such a text is no key, but hashing it must not fail.
    return hashlib.sha256(key_text.encode("utf-8", "surrogatepass")).hexdigest()


def _live_principals(records: list[KeyRecord]) -> dict[str, Principal]:
    return {record.sha256: Principal(record.role, record.name) for record in records if record.revoked_at is None}


def _file_version(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever the file is replaced or edited; None while there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _write_keys(path: Path, records: list[KeyRecord]) -> None:
    replace_private_file(path, msgspec.json.format(msgspec.json.encode(records), indent=1) + b"\n")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep two commands from both reading the old list and losing one another's change.

    The lock has its own file because the list itself is replaced by rename.
    """
    with path.with_name(f".{path.name}.lock").open("a") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        yield
