"""What is remembered to have been short, and for how long; and the checks of one batch, put together and told apart."""

import pytest

from engine.domain.outcomes import Outcome
from engine.partition import sold_out
from engine.partition.codec import Reply
from engine.partition.sold_out import SHORT_SECONDS_MAX, ShortChecks, SoldOutMemory, Wanted

A, B = ("douyin", "A", 1), ("tmall", "B", 3)


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> SoldOutMemory:
    return SoldOutMemory(clock)


def test_nothing_is_short_that_nobody_said_is(memory: SoldOutMemory) -> None:
    assert not memory.is_short("live-1", "douyin", "A", 9999)


def test_more_than_was_left_is_short_and_what_was_left_is_not(memory: SoldOutMemory, clock: Clock) -> None:
    memory.remember("live-1", "douyin", "A", 2, clock.now)
    assert [memory.is_short("live-1", "douyin", "A", quantity) for quantity in (1, 2, 3)] == [False, False, True]


def test_a_shortage_is_of_its_sale_channel_and_sku_alone(memory: SoldOutMemory, clock: Clock) -> None:
    memory.remember("live-1", "douyin", "A", 0, clock.now)
    others = [("live-2", "douyin", "A"), ("live-1", "tmall", "A"), ("live-1", "douyin", "B")]
    assert not any(memory.is_short(*other, 1) for other in others)


def test_a_hint_ages_from_the_moment_its_question_was_asked(memory: SoldOutMemory, clock: Clock) -> None:
    memory.remember("live-1", "douyin", "A", 0, clock.now - 0.04)
    clock.now += SHORT_SECONDS_MAX - 0.05
    assert memory.is_short("live-1", "douyin", "A", 1)
    clock.now += 0.02
    assert not memory.is_short("live-1", "douyin", "A", 1)


def test_an_answer_that_took_longer_than_a_hint_counts_is_none(memory: SoldOutMemory, clock: Clock) -> None:
    memory.remember("live-1", "douyin", "A", 0, clock.now - SHORT_SECONDS_MAX)
    assert not memory.is_short("live-1", "douyin", "A", 1)


def test_a_later_answer_takes_the_place_of_an_earlier_one(memory: SoldOutMemory, clock: Clock) -> None:
    memory.remember("live-1", "douyin", "A", 0, clock.now)
    memory.remember("live-1", "douyin", "A", 5, clock.now)
    assert not memory.is_short("live-1", "douyin", "A", 5)
    assert memory.is_short("live-1", "douyin", "A", 6)


def test_stock_that_is_back_is_forgotten_to_have_been_short(memory: SoldOutMemory, clock: Clock) -> None:
    memory.remember("live-1", "douyin", "A", 0, clock.now)
    memory.remember("live-1", "tmall", "A", 0, clock.now)
    memory.forget("live-1", "douyin", "A")
    memory.forget("live-1", "douyin", "never short")
    assert not memory.is_short("live-1", "douyin", "A", 1)
    assert memory.is_short("live-1", "tmall", "A", 1)


def test_no_more_shortages_are_remembered_than_there_is_room_for(
    memory: SoldOutMemory, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sold_out, "SHORTAGES_MAX", 3)
    for name in "ABCD":
        memory.remember("live-1", "douyin", name, 0, clock.now)
    assert [memory.is_short("live-1", "douyin", name, 1) for name in "ABCD"] == [False, False, False, True]


def ignore(_answer: object) -> None:
    """A caller whom this test does not ask."""


def checks_of(*carts: tuple[str, Wanted]) -> ShortChecks:
    checks = ShortChecks()
    for buyer, wanted in carts:
        checks.add(buyer, wanted, 5.0, ignore)
    return checks


def test_what_many_want_is_asked_once_and_each_buyer_points_at_it() -> None:
    question = checks_of(("u", A), ("v", B), ("w", A), ("u", B)).question()
    assert list(question.wanted) == [A, B]
    assert list(question.buyers) == ["u", "v", "w", "u"]
    assert list(question.places) == [0, 1, 0, 1]


def test_the_deadline_of_a_question_is_its_last_ones() -> None:
    checks = ShortChecks()
    for deadline in (5.0, 6.0, 7.0):  # each is later than those before
        checks.add("u", A, deadline, ignore)
    assert checks.deadline == 7.0


def test_verdicts_are_told_apart_by_what_was_wanted_and_known_buyers_are_left_to_the_hold() -> None:
    verdicts: list[tuple[Wanted, Reply | None]] = []
    checks = checks_of(("u", A), ("v", B), ("w", A), ("x", A))
    reply = Reply(Outcome.DONE, [[[int(Outcome.SOLD_OUT), 0, 1990], []], [3]])
    refused = Reply(Outcome.SOLD_OUT, ["A", 0, 1990])
    answers = checks.answer(reply, lambda wanted, refusal: verdicts.append((wanted, refusal)))
    assert answers == [refused, None, None, refused]
    assert verdicts == [(A, refused), (B, None)]


def test_a_refusal_of_the_whole_sale_is_everybodys() -> None:
    checks = checks_of(("u", A), ("v", B))
    closed = Reply(Outcome.DONE, [[[int(Outcome.SALE_CLOSED)], [int(Outcome.SALE_CLOSED)]], []])
    assert checks.answer(closed, lambda _wanted, _refusal: None) == [Reply(Outcome.SALE_CLOSED, [])] * 2
    missing = Reply(Outcome.SALE_NOT_FOUND, [])
    assert checks.answer(missing, lambda _wanted, _refusal: None) == [missing] * 2
