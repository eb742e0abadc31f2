"""Bodies: what is JSON, what is acceptable, and that every wrong field is named."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.domain.orders import HoldRequest
from engine.domain.sales import SaleDefinition, StockDocument
from engine.gateway.documents import BuyerOrdersQuery
from engine.gateway.handlers import unique_line_ids
from engine.web.body import BodyDecoder, decode_query
from engine.web.problems import Code, Problem
from engine.web.validation import ERRORS_MAX, field_errors

HOLD: dict[str, Any] = {"buyer_id": "u-1", "channel": "douyin", "lines": [{"sku": "TEE", "quantity": 1}]}
holds = BodyDecoder(HoldRequest, unique_line_ids)


def hold_bytes(**changes: Any) -> bytes:
    return json.dumps({**HOLD, **changes}).encode()


def with_raw_member(raw: bytes) -> bytes:
    return hold_bytes()[:-1] + b"," + raw + b"}"


def fields(problem: Any) -> list[str]:
    assert isinstance(problem, Problem), problem
    assert problem.code is Code.INVALID
    return [error["field"] for error in problem.members["errors"]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"nonsense",
        b"{'a': 1}",
        b"\xef\xbb\xbf" + hold_bytes(),
        hold_bytes().decode().encode("utf-16"),
        hold_bytes() + b"x",
        hold_bytes()[:-1],
        with_raw_member(b'"x": NaN'),
        with_raw_member(b'"x": Infinity'),
        with_raw_member(b'"x": -Infinity'),
        with_raw_member(b'"discount_minor": NaN'),
        with_raw_member(b'"x": 01'),
        with_raw_member(b'"x": 1.'),
        with_raw_member(b'"x": [1,]'),
        with_raw_member(b'"x": "\xff"'),
        with_raw_member(b'"reference": "\xff"'),
        with_raw_member(b'"reference": "\xed\xa0\x80"'),
        with_raw_member(b'"x": "a\tb"'),
        with_raw_member(b'"x": "\\x"'),
        with_raw_member(b'"x": ' + b"[" * 100_000 + b"]" * 100_000),
        b"[" * 60_000,
        b'{"a":' * 10_000,
    ],
)
def test_what_is_no_json_is_malformed(body: bytes) -> None:
    problem = holds.decode(body)
    assert isinstance(problem, Problem)
    assert problem.code is Code.MALFORMED


@pytest.mark.parametrize(
    "raw",
    [
        b'"discount_minor": "x", "discount_minor": 0',
        b'"buyer_id": 7, "buyer_id": "u-1"',
        b'"lines": [], "lines": [{"sku": "TEE", "quantity": 1}]',
        b'"x": "\\ud800"',
        b'"\\ud800": 1',
        b'"lines": [{"sku": "TEE", "quantity": 1, "\\udfff": {"\\ud800": []}}]',
        b'"x": ' + b"9" * 10_000,
        b'"x": 1e999',
        b'"x": [[[[[[[[[[]]]]]]]]]]',
        b'"reference": "\\ud83d\\ude00"',
        b'"discount_minor": -0',
    ],
)
def test_of_a_repeated_member_the_last_counts_and_unknown_ones_are_ignored(raw: bytes) -> None:
    assert isinstance(holds.decode(with_raw_member(raw)), HoldRequest)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (b'"reference": "\\ud800"', "reference"),
        (b'"discount_minor": 0, "discount_minor": "x"', "discount_minor"),
        (b'"discount_minor": ' + b"9" * 10_000, "discount_minor"),
        (b'"discount_minor": -' + b"9" * 10_000, "discount_minor"),
        (b'"discount_minor": 1e3', "discount_minor"),
        (b'"discount_minor": 1e999', "discount_minor"),
    ],
)
def test_well_formed_and_unacceptable_is_invalid(raw: bytes, field: str) -> None:
    assert fields(holds.decode(with_raw_member(raw))) == [field]


@pytest.mark.parametrize("body", [b"[]", b"1", b'"text"', b"null", b"true"])
def test_json_that_is_no_object_is_invalid_as_a_whole(body: bytes) -> None:
    assert fields(holds.decode(body)) == ["body"]


def test_every_wrong_field_is_named_at_once() -> None:
    body = {
        "channel": "Shared!",
        "lines": [{"sku": "", "quantity": 0}, {"quantity": True, "line_id": None}, 7],
        "discount_minor": -1,
        "freight_minor": 10**13,
        "expected_amount_minor": 1.0,
        "reference": "a\nb",
    }
    assert fields(holds.decode(json.dumps(body).encode())) == [
        "buyer_id",
        "channel",
        "lines[0].sku",
        "lines[0].quantity",
        "lines[1].sku",
        "lines[1].quantity",
        "lines[1].line_id",
        "lines[2]",
        "discount_minor",
        "freight_minor",
        "expected_amount_minor",
        "reference",
    ]


def test_line_ids_are_unique_with_defaults_filled_in() -> None:
    lines = [{"sku": "TEE", "quantity": 1, "line_id": "2"}, {"sku": "CAP", "quantity": 1}]
    assert fields(holds.decode(hold_bytes(lines=lines))) == ["lines[1].line_id"]


def test_a_sku_may_stand_in_several_lines() -> None:
    assert isinstance(holds.decode(hold_bytes(lines=HOLD["lines"] * 2)), HoldRequest)


def test_errors_are_bounded_and_their_fields_can_always_be_written() -> None:
    skus = [{"sku": 1}] * 2000
    body = json.dumps({"style_limits": {"\ud800": 0, "x" * 5000: 0}, "skus": skus}).encode()
    problem = BodyDecoder(SaleDefinition).decode(body)
    assert len(fields(problem)) == ERRORS_MAX
    assert max(map(len, fields(problem))) <= 200
    assert isinstance(problem, Problem)
    json.dumps(problem.document(), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sku": "T", "quantity": 1}, ["changes[0].kind"]),
        ({"kind": "steal", "sku": "T", "quantity": 1}, ["changes[0].kind"]),
        ({"kind": ["move"], "sku": "T", "quantity": 1}, ["changes[0].kind"]),
        ({"kind": "move", "sku": "T", "quantity": 0, "from": "withheld"}, ["changes[0].quantity", "changes[0].to"]),
        ({"kind": "allocate", "sku": "T", "quantity": -5}, []),
    ],
)
def test_the_kind_of_a_stock_change_says_which_fields_it_has(change: dict[str, Any], expected: list[str]) -> None:
    decoded = BodyDecoder(StockDocument).decode(json.dumps({"document_id": "d", "changes": [change]}).encode())
    assert (fields(decoded) if expected else decoded) == (expected or decoded)
    assert isinstance(decoded, StockDocument) is not bool(expected)


@pytest.mark.parametrize(
    ("moment", "right"),
    [
        ("2026-11-11T20:00:00+08:00", True),
        ("2026-11-11T12:00:00.123Z", True),
        ("2026-11-11T12:00:00", False),
        ("2026-13-11T12:00:00Z", False),
        ("tomorrow", False),
        (1_700_000_000, False),
        (None, False),
    ],
)
def test_times_are_rfc_3339_with_an_offset(moment: Any, right: bool) -> None:
    sale = {"title": "t", "currency": "CNY", "hold_seconds": 60, "skus": [], "opens_at": moment}
    decoded = BodyDecoder(SaleDefinition).decode(json.dumps(sale).encode())
    assert (decoded if right else fields(decoded)) == (decoded if right else ["opens_at"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=8,
)
line_like = st.fixed_dictionaries(
    {},
    optional={
        "sku": st.just("TEE") | json_values,
        "quantity": st.integers(-1, 10_001) | json_values,
        "line_id": st.text(max_size=3) | json_values,
    },
)
hold_like = st.fixed_dictionaries(
    {},
    optional={
        "buyer_id": st.just("u") | json_values,
        "channel": st.sampled_from(["douyin", "shared", "X"]) | json_values,
        "lines": st.lists(line_like, max_size=3) | json_values,
        "discount_minor": st.integers(-1, 10**12 + 1) | json_values,
        "reference": st.text(max_size=3) | json_values,
    },
)


@given(hold_like)
def test_the_list_of_errors_is_empty_exactly_where_msgspec_accepts(value: dict[str, Any]) -> None:
    try:
        msgspec.convert(value, HoldRequest)
        accepted = True
    except msgspec.ValidationError:
        accepted = False
    assert (field_errors(HoldRequest, value) == []) is accepted


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_body_at_all_raises(body: bytes) -> None:
    assert isinstance(holds.decode(body), Problem)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("channel=douyin&buyer_id=u", []),
        ("channel=douyin&buyer_id=u&idempotency_key=k&other=1", []),
        ("channel=X&channel=douyin&buyer_id=u", []),
        ("channel=douyin&buyer_id=%E5%B0%8F", []),
        ("", ["channel", "buyer_id"]),
        ("channel=shared&buyer_id=", ["channel", "buyer_id"]),
        ("channel=douyin&buyer_id=%ff", ["buyer_id"]),
        ("channel=douyin&buyer_id=a%00b", ["buyer_id"]),
        ("channel=douyin&buyer_id=u&idempotency_key=", ["idempotency_key"]),
        ("channel=douyin&buyer_id=u&idempotency_key=a%20b", ["idempotency_key"]),
        ("channel=douyin&buyer_id=%zz", []),
    ],
)
def test_query_parameters_are_validated_like_fields(query: str, expected: list[str]) -> None:
    decoded = decode_query(BuyerOrdersQuery, query)
    assert (fields(decoded) if expected else []) == expected
    assert isinstance(decoded, BuyerOrdersQuery) is not bool(expected)


class Page(msgspec.Struct):
    limit: int = 100
    after: str = ""


@pytest.mark.parametrize(("text", "right"), [("7", True), ("-1", True), ("", False), ("1.0", False), ("٣", False)])
def test_numbers_in_a_query_are_written_in_digits(text: str, right: bool) -> None:
    decoded = decode_query(Page, f"limit={text}")
    assert isinstance(decoded, Page) is right
