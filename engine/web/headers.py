"""What is read from a request's headers and target; plain functions that know of no server."""

import re
import secrets
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from engine.domain.identifiers import is_idempotency_key
from engine.web.problems import Code, Problem

Headers = Callable[[str], Sequence[str]]
"""All values of a header by its name (in any case), in the order of arrival; empty where it is absent."""

REQUEST_ID_LENGTH_MAX = 1024
_REQUEST_ID = re.compile(rf"[\x21-\x7e]([\x20-\x7e]{{0,{REQUEST_ID_LENGTH_MAX - 2}}}[\x21-\x7e])?\Z")
_CONTENT_LENGTH = re.compile(r"[0-9]{1,18}\Z")


def request_id_of(headers: Headers) -> str:
    """The caller's X-Request-Id if it can be one (1 to 1024 printable ASCII characters, given once), else a new one."""
    given = headers("X-Request-Id")
    return given[0] if is_request_id(given) else new_request_id()


def is_request_id(given: Sequence[str]) -> bool:
    """Whether all the values that were given as X-Request-Id are one that can be one."""
    return len(given) == 1 and _REQUEST_ID.match(given[0]) is not None


def new_request_id() -> str:
    """A request id of 96 random bits."""
    return secrets.token_urlsafe(12)


def bearer_key_of(headers: Headers) -> str | None:
    """The key in `Authorization: Bearer KEY`; None where there is none, or more than one."""
    given = set(headers("Authorization"))
    if len(given) != 1:
        return None
    scheme, _, key = given.pop().partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def idempotency_key_of(headers: Headers) -> str | Problem:
    """The request's Idempotency-Key, or IDEMPOTENCY_KEY_REQUIRED or MALFORMED."""
    given = set(headers("Idempotency-Key"))
    if not any(given):
        return Problem(
            Code.IDEMPOTENCY_KEY_REQUIRED,
            "Send an Idempotency-Key of your own for each order, and the same one whenever you repeat it.",
        )
    if len(given) > 1:
        return Problem(Code.MALFORMED, "The header Idempotency-Key was given with different values.")
    key = given.pop()
    if not is_idempotency_key(key):
        return Problem(Code.MALFORMED, "An Idempotency-Key has 1 to 255 visible ASCII characters.")
    return key


def content_length_of(headers: Headers) -> int | None:
    """The length that the body is said to have, in bytes; None where it is not said."""
    given = headers("Content-Length")
    return int(given[0]) if given and _CONTENT_LENGTH.match(given[0]) else None


def is_json(headers: Headers) -> bool:
    """Whether the body is said to be JSON in UTF-8, uncompressed; saying nothing means that."""
    encodings = headers("Content-Encoding")
    if any(encoding.strip().lower() not in ("", "identity") for encoding in encodings):
        return False
    types = headers("Content-Type")
    if not any(types):
        return True
    media_type, *parameters = types[0].split(";")
    return media_type.strip().lower() == "application/json" and all(map(_is_no_other_charset, parameters))


def _is_no_other_charset(parameter: str) -> bool:
    name, _, value = parameter.partition("=")
    return name.strip().lower() != "charset" or value.strip().strip('"').lower() in ("utf-8", "utf8")


class Target(NamedTuple):
    """A request's target taken apart."""

    segments: tuple[str, ...]
    """The path between its slashes, each part percent-decoded by itself, so that `%2F` divides nothing."""
    query: str


def parse_target(target: str) -> Target:
    """Take a request's target apart. Never fails: bytes that are no UTF-8 become lone surrogates, which no id has.

    Dots and empty parts are left as they are: they name nothing here, and guessing would make two names for one thing.
    """
    if not target.startswith("/"):  # the absolute form, or `*`
        _, _, after_scheme = target.partition("://")
        _, slash, rest = after_scheme.partition("/")
        target = slash + rest
    path, _, query = target.partition("#")[0].partition("?")
    segments = path.split("/")[1:]
    if "%" in path:
        segments = [unquote(segment, errors="surrogateescape") for segment in segments]
    return Target(tuple(segments), query)
