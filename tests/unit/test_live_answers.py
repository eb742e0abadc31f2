"""What the people of a live accept as an answer, how many of them there are when, and what they are sold."""

import pytest

from loadtest.live.answers import Answer, Sent, complaint_about, complaint_about_no, complaint_about_order
from loadtest.live.catalogue import UNITS_A_PERSON, make_catalogue
from loadtest.live.promises import Promise
from loadtest.live.timetable import MINUTES, SHAPES

PROBLEM = {"type": "urn:x", "title": "Sold out", "detail": "Gone.", "status": 409, "code": "SOLD_OUT"}
HEADERS = {"content-type": "application/problem+json", "x-request-id": "r1"}
SENT = Sent(
    key="k1",
    body={
        "buyer_id": "b",
        "channel": "douyin",
        "reference": "R-1",
        "lines": [{"sku": "A", "quantity": 2}, {"sku": "B", "quantity": 1}],
        "discount_minor": 10,
        "freight_minor": 5,
        "expected_amount_minor": 295,
    },
    fair_amount_minor=295,
    prices_minor={"A": 100, "B": 100},
    currency="GBP",
)
ORDER = {
    **SENT.body,
    "lines": [
        {"sku": "A", "quantity": 2, "unit_price_minor": 100, "paid_minor": 193},
        {"sku": "B", "quantity": 1, "unit_price_minor": 100, "paid_minor": 97},
    ],
    "amount_minor": 295,
    "currency": "GBP",
    "sequence": 7,
}


def test_a_right_refusal_is_right_only_where_it_was_to_be_expected() -> None:
    answer = Answer(409, HEADERS, PROBLEM)
    assert complaint_about(answer, {"SOLD_OUT"}, "r1") == ""
    assert complaint_about(answer, {"SOLD_OUT"}, "") == ""
    assert "unexpected 409 SOLD_OUT" in complaint_about(answer, {"PRICE_CHANGED"}, "r1")


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (0, {}, {}),
        (500, HEADERS, {**PROBLEM, "status": 500, "code": "INTERNAL"}),
        (409, {**HEADERS, "content-type": "application/json"}, PROBLEM),
        (422, HEADERS, {**PROBLEM, "status": 422}),
        (409, HEADERS, {**PROBLEM, "status": 410}),
        (409, HEADERS, {**PROBLEM, "detail": ""}),
        (409, {**HEADERS, "x-request-id": "another"}, PROBLEM),
        (503, HEADERS, {**PROBLEM, "status": 503, "code": "FROZEN"}),
        (201, HEADERS, {}),
        (404, HEADERS, {}),
    ],
)
def test_an_answer_of_a_wrong_form_is_found(status: int, headers: dict[str, str], body: dict[str, object]) -> None:
    assert complaint_about(Answer(status, headers, body), {"SOLD_OUT"}, "r1")


def test_not_now_is_right_at_any_time_with_a_time_to_wait() -> None:
    body = {**PROBLEM, "status": 503, "code": "OVERLOADED"}
    assert complaint_about(Answer(503, {**HEADERS, "retry-after": "1"}, body), (), "r1") == ""
    assert complaint_about(Answer(503, {**HEADERS, "retry-after": "0"}, body), (), "r1")


def test_an_order_is_held_against_what_was_asked_for() -> None:
    assert complaint_about_order(ORDER, SENT) == ""
    for wrong in (
        {"buyer_id": "c"},
        {"reference": None},
        {"amount_minor": 294},
        {"currency": "EUR"},
        {"sequence": 0},
        {"lines": ORDER["lines"][:1]},
        {"lines": [{**ORDER["lines"][0], "paid_minor": 194}, ORDER["lines"][1]]},
    ):
        assert complaint_about_order({**ORDER, **wrong}, SENT), wrong


def test_a_refusal_is_held_against_what_was_asked_for() -> None:
    def words(code: str, **members: object) -> str:
        return complaint_about_no(Answer(409, HEADERS, {**PROBLEM, "code": code, **members}), SENT)

    assert words("SOLD_OUT", sku="A", available=1) == ""
    assert words("SOLD_OUT", sku="A", available=2)
    assert words("SOLD_OUT", sku="C", available=0)
    assert words("PRICE_CHANGED", amount_minor=295) == ""
    assert words("PRICE_CHANGED", amount_minor=300)
    assert words("BUYER_LIMIT_REACHED", scope="sale", limit=6, bought=4) == ""
    assert words("BUYER_LIMIT_REACHED", scope="sale", limit=6, bought=3)


def test_a_hold_may_end_at_its_deadline_and_must_have_ended_two_seconds_later() -> None:
    promise = Promise("o", "b", "douyin", "R", "k", 295, {"A": 2}, held_until=100.0, status="held", told_at=90.0)
    assert promise.may_be(98.0, 99.0) == {"held"}
    assert promise.may_be(99.0, 101.0) == {"held", "expired"}
    assert promise.may_be(103.0, 103.1) == {"expired"}
    assert promise.may_be(103.0, 103.1, slack_seconds=3.0) == {"held", "expired"}
    promise.asking = "cancel"
    assert promise.may_be(98.0, 99.0) == {"held", "cancelled"}
    promise.status, promise.asking = "settled", ""
    assert promise.may_be(200.0, 201.0) == {"settled"}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_link_goes_up_at_the_end_of_a_countdown_before_the_most_people(shape: str) -> None:
    timetable = SHAPES[shape](MINUTES[shape])
    assert timetable.length_seconds == pytest.approx(MINUTES[shape] * 60)
    for link_at in timetable.links_at_seconds:
        before, after = timetable.stage_at(link_at - 0.001), timetable.stage_at(link_at + 0.001)
        assert before is not None and after is not None
        assert before.name.startswith("countdown") and after.name.startswith("spike")
        assert timetable.people_at(link_at - 0.001, 1000) == 1000
    assert timetable.people_at(timetable.length_seconds + 1, 1000) is None
    assert timetable.people_at(0.0, 1000) == 100


def test_a_live_sells_colours_and_sizes_as_unequally_as_real_orders_do() -> None:
    catalogue = make_catalogue(8, 300)
    assert len(catalogue.items) == 8 * 2 * 20
    for items in catalogue.links.values():
        popularities = [item.popularity for item in items]
        assert max(popularities) > 3 * min(popularities)
    units = sum(item.quantity for item in catalogue.items.values())
    assert units >= 300 * UNITS_A_PERSON
    for item in catalogue.items.values():
        assert item.own_pool + item.kept_back < item.quantity
