"""`If-Match` (RFC 9110, 13.1.1) over a sale's ETag, which is `"v"` and its version."""

import re
from dataclasses import dataclass

from engine.web.headers import Headers
from engine.web.problems import Code, Problem

_ENTITY_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_ENTITY_TAGS = re.compile(rf"[ \t,]*{_ENTITY_TAG}(?:[ \t]*,[ \t,]*{_ENTITY_TAG})*[ \t,]*\Z")
_OUR_TAG = re.compile(r'(?<!W/)"v([1-9][0-9]{0,14})"')


@dataclass(frozen=True, slots=True)
class Condition:
    """What a change asks of the sale that it changes."""

    asked: bool
    """Whether anything is asked; False is what most requests say."""
    any_version: bool = False
    """`*`: that there is a sale at all."""
    versions: frozenset[int] = frozenset()
    """Versions that it may have; none where only weak or foreign tags were given, which never match."""


UNCONDITIONAL = Condition(asked=False)
_MALFORMED = Problem(Code.MALFORMED, 'If-Match is `*` or entity tags as they were given, quotes included: "v3".')


def entity_tag(version: int) -> str:
    """The ETag of a sale's version."""
    return f'"v{version}"'


def malformed_condition(headers: Headers) -> Problem | None:
    """MALFORMED where `If-Match` cannot be read."""
    return None if (text := _if_match(headers)) is None or text == "*" or _ENTITY_TAGS.match(text) else _MALFORMED


def condition_of(headers: Headers) -> Condition:
    """What `If-Match` asks for, once it is known to be readable."""
    text = _if_match(headers)
    if text is None:
        return UNCONDITIONAL
    if text == "*":
        return Condition(asked=True, any_version=True)
    return Condition(asked=True, versions=frozenset(int(version) for version in _OUR_TAG.findall(text)))


def _if_match(headers: Headers) -> str | None:
    """The header's value: several fields of that name are one list, as everywhere in HTTP."""
    given = headers("If-Match")
    return ",".join(given).strip(" \t") if given else None
