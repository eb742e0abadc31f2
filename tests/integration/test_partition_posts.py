"""post and post_if_short: told once and later, whatever becomes of the others of the batch."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from engine.domain.commands import Cancel, Command, GetAvailability, GetOrder
from engine.domain.errors import MiaocangError, OutcomeUnknown, Overloaded, PartitionFrozen, PartitionUnavailable
from engine.domain.identifiers import OrderId
from engine.domain.outcomes import Outcome
from engine.partition import keyspace, sold_out
from engine.partition.batcher import GROUP_SECONDS_MAX, BatchBounds, Batcher
from engine.partition.call import CallSettings, ScriptCaller, ScriptFailed
from engine.partition.codec import Reply, Travelling
from engine.partition.partitions import Partitions
from engine.partition.sold_out import CHECKS_PER_BATCH_MAX, SoldOutMemory
from tests.conftest import OwnRedis, own_redis
from tests.lua.shop import SALE, Shop, sku

QUICK = CallSettings(
    call_timeout_seconds=0.3, request_deadline_seconds=1.0, backlog_max_entries=10**6, retention_ms=10**9
)
ANSWERED_SECONDS_MAX = 10.0
SOLD_OUT = Reply(Outcome.SOLD_OUT, ["B", 0, 1990])
WANTED = ("douyin", "B", 1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnRedis]:
    with own_redis(tmp_path / "redis") as started:
        yield started


@pytest.fixture
async def shop(partitions: Partitions) -> Shop:
    """A is there, B is sold out."""
    opened = Shop(partitions)
    await opened.open(sku("A", 10_000), sku("B", 0))
    return opened


class Told:
    """What callers were told, in the order in which they were."""

    def __init__(self) -> None:
        self.answers: list[tuple[Any, Reply | MiaocangError | None]] = []

    def of(self, name: Any) -> Callable[[Reply | MiaocangError | None], None]:
        return lambda answer: self.answers.append((name, answer))

    async def all(self, count: int) -> dict[Any, Reply | MiaocangError | None]:
        """The answers by name, once there are so many, and after a while in which no more came."""
        async with asyncio.timeout(ANSWERED_SECONDS_MAX):
            while len(self.answers) < count:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        by_name = dict(self.answers)
        assert len(self.answers) == count == len(by_name)
        return by_name

    async def outcomes(self, count: int) -> dict[Any, Outcome]:
        answers = await self.all(count)
        return {name: answer.outcome for name, answer in answers.items() if isinstance(answer, Reply)}


def hold_of(shop: Shop, buyer: str, key: str = "k") -> Command:
    return shop.hold_command(buyer, key, ("A", 1))[1]


def digest_of(buyer: str) -> str:
    return OrderId.of(SALE, "douyin", buyer, "k").digest


class SizesCaller:
    """Keeps what the batches were that a real caller is given."""

    def __init__(self, partitions: Partitions) -> None:
        self.caller = ScriptCaller(partitions.connections, QUICK)
        self.batches: list[list[Command]] = []

    async def call(self, sale_id: str, commands: list[Command], deadline: float) -> list[Reply]:
        self.batches.append(commands)
        return await self.caller.call(sale_id, commands, deadline)


def batcher_of(caller: SizesCaller, memory: SoldOutMemory | None = None, **bounds: int) -> Batcher:
    return Batcher(SALE, caller, BatchBounds(**bounds), memory or SoldOutMemory(), lambda _sale_id: None)


def soon() -> float:
    return time.monotonic() + 20


# --- told once, later, in order ----------------------------------------------------------------------------------


async def test_each_post_is_answered_once_and_later_and_those_of_a_batch_in_their_order(shop: Shop) -> None:
    told = Told()
    for n in range(200):
        shop.partitions.post(SALE, hold_of(shop, f"u{n}"), told.of(n))
        shop.partitions.post_if_short(SALE, digest_of(f"w{n}"), *WANTED, told.of(f"check {n}"))
    assert told.answers == []
    answers = await told.all(400)
    assert [name for name, _ in told.answers if isinstance(name, int)] == list(range(200))
    sequences = [answer.held().sequence for name, answer in told.answers if isinstance(name, int)]  # type: ignore[union-attr]
    assert sequences == list(range(3, 203))
    assert {repr(answers[f"check {n}"]) for n in range(200)} == {repr(SOLD_OUT)}
    assert (await shop.levels("A")).held == 200


async def test_a_refusal_for_a_full_queue_comes_later_too_and_those_in_the_queue_are_kept(shop: Shop) -> None:
    told, batcher = Told(), batcher_of(SizesCaller(shop.partitions), queue_commands_max=10)
    for n in range(8):
        batcher.post(hold_of(shop, f"u{n}"), soon(), told.of(n))
    for n in range(8, 16):
        batcher.post_if_short(digest_of(f"u{n}")[:12], WANTED, soon(), told.of(n))
    batcher.post(hold_of(shop, "one more"), soon(), told.of(16))
    assert told.answers == []
    answers = await told.all(17)
    assert [n for n, answer in answers.items() if isinstance(answer, Overloaded)] == list(range(10, 17))
    assert [answers[n] for n in (8, 9)] == [SOLD_OUT] * 2
    assert (await shop.levels("A")).held == 8
    batcher.post(hold_of(shop, "one more"), soon(), told.of("after"))
    assert (await told.outcomes(18))["after"] is Outcome.DONE


async def test_posts_checks_and_submissions_of_one_tick_share_a_batch(shop: Shop) -> None:
    told, caller = Told(), SizesCaller(shop.partitions)
    batcher = batcher_of(caller)
    for n in range(300):
        batcher.post_if_short(digest_of(f"w{n}")[:12], WANTED, soon(), told.of(n))
    batcher.post(hold_of(shop, "u"), soon(), told.of("hold"))
    replies = await batcher.submit([GetOrder(digest_of("u"))], soon())
    assert replies[0].outcome is Outcome.DONE
    await told.all(301)
    assert [len(batch) for batch in caller.batches] == [3]


async def test_a_question_of_many_checks_is_bounded_and_the_rest_go_in_the_next(shop: Shop) -> None:
    told, caller = Told(), SizesCaller(shop.partitions)
    batcher = batcher_of(caller)
    for n in range(CHECKS_PER_BATCH_MAX + 5):
        batcher.post_if_short(digest_of(f"w{n}")[:12], WANTED, soon(), told.of(n))
    assert set(map(repr, (await told.all(CHECKS_PER_BATCH_MAX + 5)).values())) == {repr(SOLD_OUT)}
    assert [len(batch[0].buyers) for batch in caller.batches] == [CHECKS_PER_BATCH_MAX, 5]  # type: ignore[union-attr]


async def test_what_is_posted_by_one_who_was_just_answered_is_answered_too(shop: Shop) -> None:
    told = Told()

    def hold(checked: Reply | MiaocangError | None) -> None:
        told.of("checked")(checked)
        shop.partitions.post(SALE, hold_of(shop, "u"), told.of("held"))

    shop.partitions.post_if_short(SALE, digest_of("u"), "douyin", "A", 1, hold)
    answers = await told.all(2)
    assert answers["checked"] is None
    assert (await told.outcomes(2))["held"] is Outcome.DONE


async def test_the_same_hold_posted_twice_in_a_tick_is_done_and_repeated(shop: Shop) -> None:
    told = Told()
    for n in range(2):
        shop.partitions.post(SALE, hold_of(shop, "u"), told.of(n))
    assert await told.outcomes(2) == {0: Outcome.DONE, 1: Outcome.REPEATED}


async def test_a_posted_hold_is_not_left_with_due_holds_remaining(shop: Shop) -> None:
    await shop.partitions.register("brief")
    brief = Shop(shop.partitions, "brief")
    await brief.open(sku("A", 500), sku("B", 1), hold_ms=1000)
    await asyncio.gather(*(brief.hold(f"u{n}", "k", ("A", 1)) for n in range(500)))
    await asyncio.sleep(0.05)
    held_until_ms = (await brief.hold("v", "k", ("B", 1))).held().held_until_ms
    while await shop.partitions.guarding.server_time_ms() <= held_until_ms:
        await asyncio.sleep(0.05)
    told = Told()
    shop.partitions.post("brief", brief.hold_command("w", "k", ("B", 1))[1], told.of("held"))
    assert await told.outcomes(1) == {"held": Outcome.DONE}


# --- what goes wrong with one ------------------------------------------------------------------------------------


async def test_a_caller_that_fails_to_take_its_answer_hurts_nobody_else(shop: Shop) -> None:
    told = Told()

    def break_down(_answer: object) -> None:
        raise RuntimeError("a defect of one caller")

    for n in range(3):
        shop.partitions.post(SALE, hold_of(shop, f"broken{n}"), break_down)
        shop.partitions.post_if_short(SALE, digest_of("w"), *WANTED, break_down)
        shop.partitions.post(SALE, hold_of(shop, f"u{n}"), told.of(n))
        shop.partitions.post_if_short(SALE, digest_of(f"w{n}"), *WANTED, told.of(f"check {n}"))
    async with asyncio.timeout(ANSWERED_SECONDS_MAX):
        submitted = await shop.hold("submitted", "k", ("A", 1))
    assert submitted.outcome is Outcome.DONE
    outcomes = await told.outcomes(6)
    assert [outcomes[n] for n in range(3)] == [Outcome.DONE] * 3
    assert [outcomes[f"check {n}"] for n in range(3)] == [Outcome.SOLD_OUT] * 3
    assert (await shop.levels("A")).held == 7


async def test_a_command_that_the_script_fails_at_hurts_nobody_else(shop: Shop) -> None:
    told = Told()
    broken = replace(hold_of(shop, "broken"), lines=[("1", "A", "many")])
    shop.partitions.post(SALE, hold_of(shop, "u"), told.of("hold"))
    shop.partitions.post(SALE, broken, told.of("broken"))
    shop.partitions.post_if_short(SALE, digest_of("w"), *WANTED, told.of("check"))
    answers = await told.all(3)
    assert isinstance(answers["broken"], ScriptFailed)
    assert answers["check"] == SOLD_OUT
    assert (await told.outcomes(3))["hold"] is Outcome.DONE
    assert (await shop.levels("A")).held == 1


async def test_what_has_waited_for_too_long_is_turned_away_unsent(shop: Shop) -> None:
    told, caller = Told(), SizesCaller(shop.partitions)
    batcher, past = batcher_of(caller), time.monotonic() - 0.001
    batcher.post(hold_of(shop, "u"), past, told.of("hold"))
    batcher.post_if_short(digest_of("w")[:12], WANTED, past, told.of("check"))
    assert {type(answer) for answer in (await told.all(2)).values()} == {Overloaded}
    assert caller.batches == []
    batcher.post_if_short(digest_of("w")[:12], WANTED, soon(), told.of("in time"))
    assert (await told.all(3))["in time"] == SOLD_OUT


async def test_a_frozen_partition_is_told_to_every_one_of_them(shop: Shop) -> None:
    await shop.partitions.freeze(SALE, "a drill")
    told = Told()
    shop.partitions.post(SALE, hold_of(shop, "u"), told.of("hold"))
    shop.partitions.post_if_short(SALE, digest_of("w"), *WANTED, told.of("check"))
    assert {type(answer) for answer in (await told.all(2)).values()} == {PartitionFrozen}


async def test_a_lost_answer_leaves_a_hold_unknown_and_a_question_unavailable(server: OwnRedis) -> None:
    async with Partitions(server.url, QUICK, BatchBounds()) as partitions:
        await partitions.guarding.vouch_for(await partitions.guarding.server_run())
        shop = Shop(partitions)
        await shop.open(sku("A", 5), sku("B", 0))
        told = Told()
        os.kill(server.process.pid, signal.SIGSTOP)
        partitions.post(SALE, hold_of(shop, "u"), told.of("hold"))
        partitions.post(SALE, GetAvailability(""), told.of("question"))
        partitions.post_if_short(SALE, digest_of("w"), *WANTED, told.of("check"))
        answers = await told.all(3)
        os.kill(server.process.pid, signal.SIGCONT)
        assert isinstance(answers["hold"], OutcomeUnknown)
        for name in ("question", "check"):
            assert isinstance(answers[name], PartitionUnavailable)
            assert not isinstance(answers[name], OutcomeUnknown)


async def test_a_redis_that_is_away_is_unavailable_to_every_one_of_them(shop: Shop) -> None:
    async with Partitions("redis://127.0.0.1:1/0", CallSettings(0.2, 0.3, 10**6, 10**9), BatchBounds()) as nowhere:
        told = Told()
        nowhere.post(SALE, hold_of(shop, "u"), told.of("hold"))
        nowhere.post_if_short(SALE, digest_of("w"), *WANTED, told.of("check"))
        assert {type(answer) for answer in (await told.all(2)).values()} == {PartitionUnavailable}


# --- what is remembered ------------------------------------------------------------------------------------------


async def test_a_shortage_is_learned_from_holds_and_from_checks_and_forgotten_when_stock_is_back(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sold_out, "SHORT_SECONDS_MAX", 60.0)
    partitions = shop.partitions
    assert not partitions.is_short(SALE, "douyin", "B", 1)
    assert (await shop.hold("u", "k", ("B", 1))).outcome is Outcome.SOLD_OUT
    assert partitions.is_short(SALE, "douyin", "B", 1)
    assert not partitions.is_short(SALE, "tmall", "B", 1)
    assert not partitions.is_short("another-sale", "douyin", "B", 1)
    assert not partitions.is_short(SALE, "douyin", "A", 1)
    await shop.move("S1", ("B", "", "shared", 2))
    assert await checked(shop, 3) == Reply(Outcome.SOLD_OUT, ["B", 2, 1990])
    assert partitions.is_short(SALE, "douyin", "B", 3)
    assert not partitions.is_short(SALE, "douyin", "B", 2)
    assert await checked(shop, 2) is None
    assert not partitions.is_short(SALE, "douyin", "B", 3)


async def checked(shop: Shop, quantity: int) -> Reply | MiaocangError | None:
    """The answer to a check of B, at once."""
    answer: asyncio.Future[Reply | MiaocangError | None] = asyncio.get_running_loop().create_future()
    shop.partitions.post_if_short(SALE, digest_of("w"), "douyin", "B", quantity, answer.set_result)
    return await answer


async def test_a_hint_is_over_soon(shop: Shop) -> None:
    await shop.hold("u", "k", ("B", 1))
    await asyncio.sleep(sold_out.SHORT_SECONDS_MAX + 0.01)
    assert not shop.partitions.is_short(SALE, "douyin", "B", 1)


async def test_a_refusal_of_the_whole_sale_is_no_shortage(shop: Shop) -> None:
    told = Told()
    shop.partitions.post_if_short("no-such-sale", digest_of("w"), *WANTED, told.of(0))
    assert (await told.outcomes(1))[0] is Outcome.SALE_NOT_FOUND
    assert not shop.partitions.is_short("no-such-sale", *WANTED)


async def test_a_buyers_row_that_cannot_be_read_fails_that_buyer_alone(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 0))
    spoilt = shop.hold_command("spoilt", "k", ("A", 1))[0]
    keys = keyspace.partition_keys(shop.sale_id)
    await partitions.connections.execute("HSET", keys.buyers, spoilt.buyer_part, b"\xc1")
    answers: dict[str, object] = {}
    for name in ("spoilt", "u1", "u2"):
        digest = shop.hold_command(name, "k", ("A", 1))[0].digest
        partitions.post_if_short(shop.sale_id, digest, "douyin", "A", 1, partial(answers.__setitem__, name))
    while len(answers) < 3:
        await asyncio.sleep(0.01)
    assert answers["spoilt"] is None  # to be asked in full, which fails it alone
    assert [answers[name].outcome for name in ("u1", "u2")] == [Outcome.SOLD_OUT] * 2


async def test_whatever_ends_one_call_of_a_batch_that_is_made_one_by_one_all_are_told() -> None:
    class Broken:
        async def call(self, sale_id: str, commands: list[Command], deadline: float) -> list[Reply]:
            if len(commands) > 1:
                raise ScriptFailed("one of them is to blame")
            raise RuntimeError("a defect")

    told: list[object] = []
    batcher = Batcher("s", Broken(), BatchBounds(), SoldOutMemory(), lambda _: None)
    for number in range(5):
        batcher.post(Cancel(str(number) * 24), time.monotonic() + 5, told.append)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.get_running_loop(), "call_exception_handler", lambda _: None, raising=False)
        while len(told) < 5:
            await asyncio.sleep(0.01)
    assert all(isinstance(outcome, MiaocangError) for outcome in told)


async def test_of_posts_that_wait_together_only_those_of_one_moment_share_a_deadline(shop: Shop) -> None:
    told, caller = Told(), SizesCaller(shop.partitions)
    batcher, now = batcher_of(caller), time.monotonic()
    batcher.post(hold_of(shop, "early"), now - 0.001, told.of("early"))
    batcher.post(hold_of(shop, "same moment"), now - 0.001 + GROUP_SECONDS_MAX / 2, told.of("same moment"))
    batcher.post(hold_of(shop, "later"), now + 20, told.of("later"))
    answers = await told.all(3)
    assert {name for name, answer in answers.items() if isinstance(answer, Overloaded)} == {"early", "same moment"}
    assert [len(batch) for batch in caller.batches] == [1]


@pytest.mark.parametrize(
    ("bounds", "sizes"), [({"batch_orders_max": 4}, [4, 4, 2]), ({"batch_lines_max": 3}, [3, 3, 3, 1])]
)
async def test_posts_that_wait_together_are_no_more_than_a_batch_may_have(
    shop: Shop, bounds: dict[str, int], sizes: list[int]
) -> None:
    told, caller = Told(), SizesCaller(shop.partitions)
    batcher = batcher_of(caller, **bounds)
    for n in range(10):
        batcher.post(hold_of(shop, f"u{n}"), soon(), told.of(n))
    assert set((await told.outcomes(10)).values()) == {Outcome.DONE}
    assert [len(batch) for batch in caller.batches] == sizes


async def test_only_those_of_a_group_ask_again_that_are_not_done_and_before_what_came_later() -> None:
    class TwiceForOdd:
        """Has more to reclaim for some, once."""

        def __init__(self) -> None:
            self.batches: list[list[str]] = []

        async def call(self, sale_id: str, commands: Sequence[Travelling], deadline: float) -> list[Reply]:
            names = [command.digest for command in commands if isinstance(command, Cancel)]
            is_first = not self.batches
            self.batches.append(names)
            remains = [is_first and int(name[0]) % 2 == 1 for name in names]
            return [Reply(Outcome.DUE_HOLDS_REMAIN if each else Outcome.DONE, []) for each in remains]

    told, caller = Told(), TwiceForOdd()
    batcher = Batcher("s", caller, BatchBounds(batches_in_flight_max=1), SoldOutMemory(), lambda _: None)
    names = [str(number) * 24 for number in range(6)]
    for name in names[:5]:
        batcher.post(Cancel(name), soon(), told.of(name))
    await asyncio.sleep(0)  # the first batch has gone
    batcher.post(Cancel(names[5]), soon(), told.of(names[5]))
    assert set((await told.outcomes(6)).values()) == {Outcome.DONE}
    assert caller.batches == [names[:5], [names[1], names[3], names[5]]]


async def test_what_is_posted_after_a_submission_goes_behind_it(shop: Shop) -> None:
    told, caller = Told(), SizesCaller(shop.partitions)
    batcher = batcher_of(caller)
    before, after, between = hold_of(shop, "before"), hold_of(shop, "after"), GetOrder(digest_of("after"))
    batcher.post(before, soon(), told.of("before"))
    asked = asyncio.ensure_future(batcher.submit([between], soon()))
    asyncio.get_running_loop().call_soon(batcher.post, after, soon(), told.of("after"))
    assert (await asked)[0].outcome is Outcome.ORDER_NOT_FOUND
    await told.all(2)
    assert [command for batch in caller.batches for command in batch] == [before, between, after]
