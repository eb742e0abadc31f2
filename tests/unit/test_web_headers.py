"""What is read from a request's head."""

import pytest

from engine.web.headers import (
    Headers,
    Target,
    bearer_key_of,
    idempotency_key_of,
    is_json,
    parse_target,
    request_id_of,
)
from engine.web.problems import Problem


def headers(*pairs: tuple[str, str]) -> Headers:
    return lambda name: [value for given, value in pairs if given.lower() == name.lower()]


@pytest.mark.parametrize("given", ["a", "x" * 1024, "a b", "~!@#", "6f1e-2b"])
def test_a_request_id_is_taken(given: str) -> None:
    assert request_id_of(headers(("X-Request-Id", given))) == given


@pytest.mark.parametrize("given", ["", "x" * 1025, " a", "é", "a\tb"])
def test_what_is_no_request_id_is_replaced(given: str) -> None:
    made = request_id_of(headers(("X-Request-Id", given)))
    assert made != given
    assert 1 <= len(made) <= 128


@pytest.mark.parametrize(
    ("value", "key"),
    [("Bearer k", "k"), ("bearer k", "k"), ("BEARER  k ", "k"), ("Basic k", None), ("Bearer", None), ("k", None)],
)
def test_the_scheme_is_bearer_in_any_case(value: str, key: str | None) -> None:
    assert bearer_key_of(headers(("Authorization", value))) == key


def test_two_different_keys_are_no_key() -> None:
    assert bearer_key_of(headers(("Authorization", "Bearer a"), ("Authorization", "Bearer b"))) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["k"], "k"),
        (["k", "k"], "k"),
        (["x" * 255], "x" * 255),
        ([], "IDEMPOTENCY_KEY_REQUIRED"),
        ([""], "IDEMPOTENCY_KEY_REQUIRED"),
        (["x" * 256], "MALFORMED"),
        (["a b"], "MALFORMED"),
        (["é"], "MALFORMED"),
        (["a", "b"], "MALFORMED"),
    ],
)
def test_an_idempotency_key_is_one_word_of_visible_ascii(values: list[str], expected: str) -> None:
    found = idempotency_key_of(headers(*(("Idempotency-Key", value) for value in values)))
    assert (found.code if isinstance(found, Problem) else found) == expected


@pytest.mark.parametrize(
    ("content_type", "right"),
    [
        (None, True),
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ('application/json;charset="utf-8"', True),
        ("application/json; profile=x", True),
        ("application/json; charset=latin-1", False),
        ("application/problem+json", False),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
    ],
)
def test_a_body_is_json_in_utf_8(content_type: str | None, right: bool) -> None:
    given = [("Content-Type", content_type)] if content_type is not None else []
    assert is_json(headers(*given)) is right


def test_a_compressed_body_is_not_taken() -> None:
    assert not is_json(headers(("Content-Encoding", "gzip")))


@pytest.mark.parametrize(
    ("target", "segments", "query"),
    [
        ("/v1/orders/a?b=c", ("v1", "orders", "a"), "b=c"),
        ("/v1/%6frders/a%2Fb", ("v1", "orders", "a/b"), ""),
        ("/v1/../x", ("v1", "..", "x"), ""),
        ("//x/", ("", "x", ""), ""),
        ("/%ff%00", ("\udcff\x00",), ""),
        ("/%zz%", ("%zz%",), ""),
        ("http://host:80/v1?x", ("v1",), "x"),
        ("http://host", (), ""),
        ("*", (), ""),
        ("", (), ""),
    ],
)
def test_a_target_is_taken_apart_and_never_guessed_at(target: str, segments: tuple[str, ...], query: str) -> None:
    assert parse_target(target) == Target(segments, query)
