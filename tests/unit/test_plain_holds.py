"""The quick decoder of holds against the general one: what it accepts, the general one accepts, and as the same."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from engine.domain.commands import Hold
from engine.domain.identifiers import OrderId
from engine.domain.orders import HoldRequest
from engine.gateway.handlers import unique_line_ids
from engine.gateway.hot_holds import hold_command
from engine.gateway.plain_holds import PlainHold, plain_hold
from engine.partition.codec import encode_commands
from engine.web.body import BodyDecoder

GENERAL = BodyDecoder(HoldRequest, unique_line_ids)
HOLD: dict[str, Any] = {"buyer_id": "u-1", "channel": "douyin", "lines": [{"sku": "TEE", "quantity": 1}]}

ODD_TEXTS = [
    "",
    "x" * 128,
    "x" * 129,
    "é" * 128,
    "小" * 129,
    "小明 ✓",
    "a\0",
    "\x7f",
    "\x85",
    "\xa0",
    "\ud800",
    "\u200d",
    "a\n",
]
ODD_CHANNELS = ["shared", "withheld", "sharedx", "", "a" * 32, "a" * 33, "Douyin", "1a", "a_1", "a-b", "a\n", "抖音"]
ODD_INTEGERS = [0, 1, -1, 1.0, True, "1", None, 9999, 10_000, 10**12, 10**12 + 1, 10**13, 10**13 + 1, 10**40]

texts = st.text(max_size=6) | st.sampled_from(ODD_TEXTS)
values = {
    "buyer_id": texts,
    "channel": st.sampled_from(ODD_CHANNELS),
    "discount_minor": st.sampled_from(ODD_INTEGERS),
    "freight_minor": st.sampled_from(ODD_INTEGERS),
    "expected_amount_minor": st.sampled_from(ODD_INTEGERS),
    "reference": texts,
    "more": texts | st.sampled_from(ODD_INTEGERS),
}
line_values = {
    "sku": texts,
    "quantity": st.sampled_from(ODD_INTEGERS),
    "line_id": texts | st.sampled_from(["1", "2", "3"]),
    "more": texts,
}


@st.composite
def bodies(draw: st.DrawFn) -> dict[str, Any]:
    """A right body with a few members that may be wrong."""
    lines = [{"sku": "TEE", "quantity": 1} for _ in range(draw(st.integers(0, 3)))]
    document: dict[str, Any] = {**HOLD, "lines": lines}
    for name in draw(st.lists(st.sampled_from(sorted(values)), max_size=2)):
        document[name] = draw(values[name])
    for line in lines:
        for name in draw(st.lists(st.sampled_from(sorted(line_values)), max_size=1)):
            line[name] = draw(line_values[name])
    return document


def plain_fields(request: HoldRequest) -> dict[str, Any]:
    fields = structs.asdict(request)
    return {**fields, "lines": [structs.asdict(line) for line in fields["lines"]]}


def assert_no_more_than_the_general_one(body: bytes) -> PlainHold | None:
    plain = plain_hold(body)
    if plain is not None:
        general = GENERAL.decode(body)
        assert isinstance(general, HoldRequest)
        assert plain_fields(plain) == plain_fields(general)
        order_id = OrderId.of("live-1", plain.channel, plain.buyer_id, "k")
        assert encode_commands([hold_command(plain, order_id.digest)]) == encode_commands([Hold.of(order_id, general)])
    return plain


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no finding
@given(bodies())
def test_what_it_accepts_the_general_decoder_accepts_as_the_same(document: dict[str, Any]) -> None:
    assert_no_more_than_the_general_one(json.dumps(document).encode())
    assert_no_more_than_the_general_one(json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_each_odd_text_in_each_place_is_accepted_by_both_or_left_to_the_general_one(text: str) -> None:
    line = {"sku": "TEE", "quantity": 1}
    for changes in (
        {"buyer_id": text},
        {"reference": text},
        {"lines": [{**line, "sku": text}]},
        {"lines": [line, {**line, "line_id": text}]},
    ):
        assert_no_more_than_the_general_one(json.dumps({**HOLD, **changes}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'{"more":"\xff",' + json.dumps(HOLD).encode()[1:],
        b'{"more":"\\ud800",' + json.dumps(HOLD).encode()[1:],
        b'{"channel":7,' + json.dumps(HOLD).encode()[1:],
        b'{"channel":"Douyin",' + json.dumps(HOLD).encode()[1:],
        json.dumps(HOLD).encode()[:-1] + b',"channel":"Douyin"}',
        json.dumps(HOLD).encode()[:-1] + b',"discount_minor":-0}',
        json.dumps(HOLD).encode()[:-1] + b',"discount_minor":1e0}',
        b"\xef\xbb\xbf" + json.dumps(HOLD).encode(),
        json.dumps(HOLD).encode() + b" x",
        b"[" * 5000,
        b'{"more":' + b"[" * 5000 + b"]" * 5000 + b"," + json.dumps(HOLD).encode()[1:],
    ],
)
def test_odd_bodies_are_no_exception(body: bytes) -> None:
    assert_no_more_than_the_general_one(body)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"reference": "6921000123", "discount_minor": 1, "freight_minor": 2, "expected_amount_minor": 1991},
        {"buyer_id": "小明 ✓", "lines": [{"sku": "T恤-黑", "quantity": 2, "line_id": "第一"}]},
        {"lines": [{"sku": "TEE", "quantity": 1}] * 200},
        {"lines": [{"sku": "TEE", "quantity": 1, "line_id": "2"}, {"sku": "CAP", "quantity": 9999, "line_id": "1"}]},
        {"expected_amount_minor": 0},
    ],
)
def test_what_checkouts_send_is_plain(changes: dict[str, Any]) -> None:
    assert assert_no_more_than_the_general_one(json.dumps({**HOLD, **changes}).encode()) is not None


def test_line_ids_that_are_not_unique_are_left_to_the_general_decoder() -> None:
    for given_ids in (["2", None], ["a", "a"]):
        lines = [{"sku": "TEE", "quantity": 1, **({"line_id": line_id} if line_id else {})} for line_id in given_ids]
        assert plain_hold(json.dumps({**HOLD, "lines": lines}).encode()) is None
