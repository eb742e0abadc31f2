"""Bodies and query strings into typed values, or into the problem that says what is wrong with them.

Two paths give one answer. The fast one lets msgspec decode and check in one go. Where it says no, the slow one reads
the JSON by the standard library and looks at every field, so that all errors are listed, and so that what only
msgspec's strictness refused (an earlier, wrong value of a repeated member) is accepted after all.
"""

import json
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, Never, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from msgspec import inspect

from engine.web.problems import Code, FieldError, Problem, invalid
from engine.web.validation import described, field_errors

T = TypeVar("T")

INTEGER_DIGITS_MAX = 30
"""Longer integers are out of every range that we have, and Python refuses to read those of thousands of digits."""
QUERY_PARAMETERS_MAX = 100

Rule = Callable[[T], Sequence[FieldError]]
"""What a type's annotations cannot say, such as that line ids are unique in an order."""


class BodyDecoder(Generic[T]):
    """Decodes bodies of one type."""

    def __init__(self, kind: type[T], rule: Rule[T] | None = None) -> None:
        self.kind = kind
        self._rule = rule
        self._decoder = msgspec.json.Decoder(kind)

    def decode(self, body: bytes) -> T | Problem:
        """The value that `body` spells, or a problem: MALFORMED or INVALID with every wrong field."""
        try:
            # msgspec passes over members that it does not know without looking whether they are UTF-8
            if not body.isascii():
                body.decode()
            value = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            loaded = load_json(body)
            return loaded if isinstance(loaded, Problem) else self._convert(loaded)
        return self._obey(value)

    def _convert(self, loaded: Any) -> T | Problem:
        if errors := field_errors(self.kind, loaded):
            return invalid(errors)
        converted = convert(self.kind, loaded)
        return converted if isinstance(converted, Problem) else self._obey(converted)

    def _obey(self, value: T) -> T | Problem:
        errors = self._rule(value) if self._rule is not None else ()
        return invalid(errors) if errors else value


def load_json(body: bytes) -> Any | Problem:
    """Decoded JSON by RFC 8259, of a repeated member the last; MALFORMED where `body` is none."""
    try:
        return json.loads(body.decode(), parse_int=_integer, parse_constant=_refuse_constant)
    except RecursionError:
        return Problem(Code.MALFORMED, "The body is nested too deeply.")
    except UnicodeDecodeError as error:
        return Problem(Code.MALFORMED, f"The body is not UTF-8 at byte {error.start}.")
    except json.JSONDecodeError as error:
        return Problem(Code.MALFORMED, f"The body is not JSON at character {error.pos}: {error.msg}.")
    except ValueError as error:
        return Problem(Code.MALFORMED, f"The body is not JSON: {error}.")


def _integer(digits: str) -> int:
    if len(digits) <= INTEGER_DIGITS_MAX:
        return int(digits)
    beyond: int = 10**INTEGER_DIGITS_MAX
    return -beyond if digits.startswith("-") else beyond


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is no JSON number")


def convert(kind: type[T], loaded: Any) -> T | Problem:
    """Loaded data in which no error was found, as a `kind`."""
    try:
        try:
            return msgspec.convert(loaded, kind)
        except UnicodeEncodeError:
            return msgspec.convert(_without_unspeakable_names(loaded), kind)
    except msgspec.ValidationError as error:
        # msgspec is the judge: a rule of its that the list of errors does not know still refuses.
        reason, _, path = str(error).partition(" - at `$")
        return invalid([FieldError(path.rstrip("`").lstrip(".") or "body", reason)])


def _without_unspeakable_names(loaded: Any) -> Any:
    """The data without members whose names hold lone surrogates: none that we know does, and msgspec cannot look."""
    if isinstance(loaded, dict):
        return {name: _without_unspeakable_names(value) for name, value in loaded.items() if _is_speakable(name)}
    if isinstance(loaded, list):
        return [_without_unspeakable_names(value) for value in loaded]
    return loaded


def _is_speakable(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def decode_query(kind: type[T], query: str) -> T | Problem:
    """The parameters of a query string as a struct; of a repeated one the last counts, unknown ones are ignored."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape", max_num_fields=QUERY_PARAMETERS_MAX)
    except ValueError:
        return Problem(Code.MALFORMED, f"The query string has more than {QUERY_PARAMETERS_MAX} parameters.")
    loaded: dict[str, Any] = dict(pairs)
    for name in _integer_parameters(kind):
        if name in loaded:
            loaded[name] = _integer_or_text(loaded[name])
    errors = field_errors(kind, loaded)
    return invalid(errors) if errors else convert(kind, loaded)


def _integer_parameters(kind: type[Any]) -> list[str]:
    struct = described(cast(Hashable, kind))
    assert isinstance(struct, inspect.StructType), "query parameters are declared as a struct"
    return [field.encode_name for field in struct.fields if isinstance(field.type, inspect.IntType)]


def _integer_or_text(text: str) -> int | str:
    digits = text.removeprefix("-")
    return _integer(text) if digits.isascii() and digits.isdigit() else text
