"""The quick decoder of settlements against the general one: what it accepts, the general one accepts, as the same."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from engine.domain.orders import SettleRequest
from engine.gateway.plain_settles import PlainSettle, plain_settle
from engine.web.body import BodyDecoder
from tests.unit.test_plain_holds import ODD_INTEGERS, ODD_TEXTS

GENERAL = BodyDecoder(SettleRequest)
SETTLE: dict[str, Any] = {"payment_id": "pay-1", "amount_minor": 1990, "currency": "CNY"}
ODD_CURRENCIES = ["", "cny", "CN", "CNYY", "CNY\n", "ÇNY", "C Y", "CN1", "\ud800", None, 7, "USD"]

texts = st.text(max_size=6) | st.sampled_from(ODD_TEXTS)
values = {
    "payment_id": texts,
    "amount_minor": st.sampled_from(ODD_INTEGERS),
    "currency": st.sampled_from(ODD_CURRENCIES) | texts,
    "more": texts | st.sampled_from(ODD_INTEGERS),
}


def assert_no_more_than_the_general_one(body: bytes) -> PlainSettle | None:
    plain = plain_settle(body)
    if plain is not None:
        general = GENERAL.decode(body)
        assert isinstance(general, SettleRequest)
        assert structs.asdict(plain) == structs.asdict(general)
    return plain


@settings(deadline=None)  # a busy machine is no finding
@given(st.fixed_dictionaries({}, optional=values))
def test_what_it_accepts_the_general_decoder_accepts_as_the_same(changes: dict[str, Any]) -> None:
    document = {**SETTLE, **changes}
    assert_no_more_than_the_general_one(json.dumps(document).encode())
    assert_no_more_than_the_general_one(json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("payment_id", text) for text in ODD_TEXTS),
        *(("amount_minor", amount) for amount in ODD_INTEGERS),
        *(("currency", currency) for currency in ODD_CURRENCIES),
    ],
)
def test_each_odd_value_is_accepted_by_both_or_left_to_the_general_one(name: str, value: Any) -> None:
    assert_no_more_than_the_general_one(json.dumps({**SETTLE, name: value}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff", b"\xef\xbb\xbf" + json.dumps(SETTLE).encode(), b"[" * 5000,
        b'{"more":"\xff",' + json.dumps(SETTLE).encode()[1:], b'{"currency":"cny",' + json.dumps(SETTLE).encode()[1:],
        json.dumps(SETTLE).encode()[:-1] + b',"currency":"cny"}', json.dumps(SETTLE).encode() + b" x",
    ],
)  # fmt: skip
def test_odd_bodies_are_no_exception(body: bytes) -> None:
    assert_no_more_than_the_general_one(body)


@pytest.mark.parametrize("changes", [{}, {"payment_id": "付款 ✓"}, {"amount_minor": 0}, {"amount_minor": 10**13}])
def test_what_checkouts_send_is_plain(changes: dict[str, Any]) -> None:
    assert assert_no_more_than_the_general_one(json.dumps({**SETTLE, **changes}).encode()) is not None


def test_a_currency_that_is_none_is_left_to_the_general_decoder() -> None:
    assert all(
        plain_settle(json.dumps({**SETTLE, "currency": "CN" + end}).encode()) is None for end in ("y", "", "Y\n")
    )
