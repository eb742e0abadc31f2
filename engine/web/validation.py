"""Says everything that is wrong with decoded JSON, field by field, by the same annotations that msgspec decodes by.

msgspec stops at the first wrong field, which is right for speed and wrong for whoever has to mend a request.
"""

import math
import re
from collections.abc import Hashable
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import Meta, inspect

from engine.domain.identifiers import (
    CHANNEL_PATTERN,
    CURRENCY_PATTERN,
    IDEMPOTENCY_KEY_PATTERN,
    POOL_PATTERN,
    SALE_ID_PATTERN,
    TEXT_PATTERN,
)
from engine.web.problems import FieldError

ERRORS_MAX = 1000
"""More than a checkout's largest request can have; a document of millions of wrong fields must not cost millions."""
FIELD_LENGTH_MAX = 200
"""Characters of a field's path: members of a map are named by their senders."""

_PATTERN_REASONS = {
    SALE_ID_PATTERN: "must be 1 to 64 letters, digits, dots, underscores or dashes, a letter or digit first",
    CHANNEL_PATTERN: "must be 1 to 32 lower-case letters, digits or underscores, a letter first, and neither "
    "'shared' nor 'withheld'",
    POOL_PATTERN: "must be 1 to 32 lower-case letters, digits or underscores, a letter first",
    TEXT_PATTERN: "must have no control characters and no lone surrogates",
    CURRENCY_PATTERN: "must be three capital letters, as in ISO 4217",
    IDEMPOTENCY_KEY_PATTERN: "must be 1 to 255 visible ASCII characters",
}
_WRONG_MOMENT = "must be a time by RFC 3339 with an offset, as in 2026-11-11T20:00:00+08:00"


@lru_cache(maxsize=256)
def described(kind: Hashable) -> inspect.Type:
    """What msgspec knows of an annotated type."""
    return inspect.type_info(kind)


def field_errors(kind: Any, value: object, where: str = "") -> list[FieldError]:
    """Everything that is wrong with `value` as a `kind`, in the order of the fields; empty where nothing is found.

    `value` is decoded JSON (dict, list, str, int, float, bool, None); at most ERRORS_MAX errors are listed.
    """
    errors: list[FieldError] = []
    _check(described(kind), value, where, errors)
    return errors[:ERRORS_MAX]


def _add(errors: list[FieldError], where: str, reason: str) -> None:
    # A lone surrogate in a member's name is well-formed JSON that no UTF-8 answer could repeat.
    named = where.encode("utf-8", "backslashreplace").decode() or "body"
    errors.append(FieldError(named[:FIELD_LENGTH_MAX], reason))


def _check(kind: inspect.Type, value: object, where: str, errors: list[FieldError]) -> None:
    if len(errors) >= ERRORS_MAX:
        return
    if isinstance(kind, inspect.StructType):
        _check_struct(kind, value, where, errors)
    elif isinstance(kind, inspect.ListType):
        _check_list(kind, value, where, errors)
    elif isinstance(kind, inspect.DictType):
        _check_dict(kind, value, where, errors)
    elif isinstance(kind, inspect.UnionType):
        _check_union(kind, value, where, errors)
    elif (reason := _scalar_reason(kind, value)) is not None:
        _add(errors, where, reason)


def _check_struct(kind: inspect.StructType, value: object, where: str, errors: list[FieldError]) -> None:
    if not isinstance(value, dict):
        _add(errors, where, "must be an object")
        return
    for field in kind.fields:
        path = f"{where}.{field.encode_name}" if where else field.encode_name
        if field.encode_name in value:
            _check(field.type, value[field.encode_name], path, errors)
        elif field.required:
            _add(errors, path, "is required")


def _check_list(kind: inspect.ListType, value: object, where: str, errors: list[FieldError]) -> None:
    if not isinstance(value, list):
        _add(errors, where, "must be an array")
        return
    if (reason := _length_reason(kind, len(value), "item")) is not None:
        _add(errors, where, reason)
    for position, item in enumerate(value[: kind.max_length]):
        _check(kind.item_type, item, f"{where}[{position}]", errors)
        if len(errors) >= ERRORS_MAX:
            return


def _check_dict(kind: inspect.DictType, value: object, where: str, errors: list[FieldError]) -> None:
    if not isinstance(value, dict):
        _add(errors, where, "must be an object")
        return
    if (reason := _length_reason(kind, len(value), "member")) is not None:
        _add(errors, where, reason)
    for name, member in value.items():
        path = f"{where}.{name}"
        if (reason := _scalar_reason(kind.key_type, name)) is not None:
            _add(errors, path, f"has a name that {reason}")
        _check(kind.value_type, member, path, errors)
        if len(errors) >= ERRORS_MAX:
            return


def _check_union(kind: inspect.UnionType, value: object, where: str, errors: list[FieldError]) -> None:
    """A union is right if one of its types is; of tagged objects the tag says which one is meant."""
    structs = {member.tag: member for member in kind.types if isinstance(member, inspect.StructType)}
    tag_field = next((member.tag_field for member in structs.values()), None)
    if tag_field is not None and isinstance(value, dict):
        path = f"{where}.{tag_field}" if where else tag_field
        tag = value.get(tag_field)
        if tag_field not in value:
            _add(errors, path, "is required")
        elif not isinstance(tag, str | int) or tag not in structs:
            _add(errors, path, "must be one of " + ", ".join(repr(known) for known in structs))
        else:
            _check_struct(structs[tag], value, where, errors)
        return
    attempts: list[list[FieldError]] = []
    for member in kind.types:
        attempt: list[FieldError] = []
        _check(member, value, where, attempt)
        if not attempt:
            return
        attempts.append(attempt)
    reasons = dict.fromkeys(attempt[0].reason for attempt in attempts)
    _add(errors, where, ", or ".join(reasons))


def _scalar_reason(kind: inspect.Type, value: object) -> str | None:  # noqa: PLR0911 - one line a kind
    """Why `value` is no such string, number, …; None where it is, or where the kind allows anything."""
    if isinstance(kind, inspect.StrType):
        return _string_reason(kind, value)
    if isinstance(kind, inspect.IntType):
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return _range_reason(kind, value) if is_integer else "must be an integer"
    if isinstance(kind, inspect.FloatType):
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
        return _range_reason(kind, value) if is_number else "must be a number"
    if isinstance(kind, inspect.BoolType):
        return None if isinstance(value, bool) else "must be true or false"
    if isinstance(kind, inspect.DateTimeType):
        return None if _is_moment(value) else _WRONG_MOMENT
    if isinstance(kind, inspect.LiteralType):
        known = isinstance(value, str | int) and not isinstance(value, bool) and value in kind.values
        return None if known else "must be one of " + ", ".join(repr(word) for word in kind.values)
    if isinstance(kind, inspect.EnumType):
        words = [member.value for member in kind.cls]
        known = isinstance(value, str | int) and not isinstance(value, bool) and value in words
        return None if known else "must be one of " + ", ".join(repr(word) for word in words)
    if isinstance(kind, inspect.NoneType):
        return None if value is None else "must be null"
    return None


def _string_reason(kind: inspect.StrType, value: object) -> str | None:
    if not isinstance(value, str):
        return "must be a string"
    if (reason := _length_reason(kind, len(value), "character")) is not None:
        return reason
    if kind.pattern is not None and re.search(kind.pattern, value) is None:
        return _PATTERN_REASONS.get(kind.pattern, f"must match {kind.pattern}")
    return None


def _length_reason(kind: inspect.StrType | inspect.ListType | inspect.DictType, length: int, what: str) -> str | None:
    if kind.min_length is not None and length < kind.min_length:
        return f"must have at least {kind.min_length} {what}{'' if kind.min_length == 1 else 's'}"
    if kind.max_length is not None and length > kind.max_length:
        return f"must have at most {kind.max_length} {what}s"
    return None


def _range_reason(kind: inspect.IntType | inspect.FloatType, value: Any) -> str | None:
    if kind.ge is not None and value < kind.ge:
        return f"must be at least {kind.ge}"
    if kind.gt is not None and value <= kind.gt:
        return f"must be more than {kind.gt}"
    if kind.le is not None and value > kind.le:
        return f"must be at most {kind.le}"
    if kind.lt is not None and value >= kind.lt:
        return f"must be less than {kind.lt}"
    return None


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer too large for a double
        return False


def _is_moment(value: object) -> bool:
    try:
        msgspec.convert(value, Annotated[datetime, Meta(tz=True)])
    except msgspec.ValidationError:
        return False
    return isinstance(value, str)
