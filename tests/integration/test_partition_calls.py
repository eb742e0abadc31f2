"""Calls of the script when Redis forgets, stalls, dies or comes back: every waiting request gets the right answer."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from engine.domain.commands import GetAvailability, GetOrder, GetSale, Open
from engine.domain.errors import OutcomeUnknown, Overloaded, PartitionFrozen, PartitionUnavailable
from engine.domain.outcomes import Outcome
from engine.partition import keyspace
from engine.partition.batcher import BatchBounds, Batcher
from engine.partition.call import JUMP_BELIEVED_SECONDS, CallSettings, ScriptCaller, ScriptFailed
from engine.partition.codec import CALL_FORMAT, Header, Reply, decode_answer, encode_commands, encode_header
from engine.partition.connections import ResponseError
from engine.partition.partitions import Partitions
from engine.partition.redis_clock import RedisClock
from engine.partition.scripts import load_script
from engine.partition.sold_out import SoldOutMemory
from tests.conftest import OwnRedis, own_redis, running_store
from tests.lua.shop import SALE, Shop, definition, sku

QUICK = CallSettings(
    call_timeout_seconds=0.3, request_deadline_seconds=1.0, backlog_max_entries=10**6, retention_ms=10**9
)
PATIENT = CallSettings(
    call_timeout_seconds=0.3, request_deadline_seconds=20, backlog_max_entries=10**6, retention_ms=10**9
)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnRedis]:
    with own_redis(tmp_path / "redis") as started:
        yield started


async def vouch(partitions: Partitions) -> None:
    await partitions.guarding.vouch_for(await partitions.guarding.server_run())


async def test_a_forgotten_script_heals_itself(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 2))
    assert (await shop.hold("u", "1", ("A", 1))).outcome is Outcome.DONE
    await partitions.connections.execute("SCRIPT", "FLUSH")
    assert (await shop.hold("u", "2", ("A", 1))).outcome is Outcome.DONE


async def test_a_stalled_redis_is_asked_again_and_nothing_is_taken_twice(server: OwnRedis) -> None:
    async with Partitions(server.url, PATIENT, BatchBounds()) as partitions:
        await vouch(partitions)
        shop = Shop(partitions)
        await shop.open(sku("A", 100))
        os.kill(server.process.pid, signal.SIGSTOP)
        waiting = [asyncio.create_task(shop.hold(f"u{n}", "k", ("A", 1))) for n in range(20)]
        await asyncio.sleep(1.0)
        os.kill(server.process.pid, signal.SIGCONT)
        replies = await asyncio.gather(*waiting)
        assert {reply.outcome for reply in replies} <= {Outcome.DONE, Outcome.REPEATED}
        assert (await shop.levels("A")).held == 20


async def test_what_its_caller_has_given_up_on_is_not_done_later(server: OwnRedis) -> None:
    async with Partitions(server.url, QUICK, BatchBounds()) as partitions:
        await vouch(partitions)
        shop = Shop(partitions)
        await shop.open(sku("A", 100))
        await shop.hold("before", "k", ("A", 1))  # by which the epoch is known, so that the next hold is one to obey
        os.kill(server.process.pid, signal.SIGSTOP)
        with pytest.raises(OutcomeUnknown):
            await shop.hold("u", "k", ("A", 1))
        await asyncio.sleep(0.5)
        os.kill(server.process.pid, signal.SIGCONT)
        await asyncio.sleep(0.5)  # for Redis to get to what it was sent before
        assert (await shop.levels("A")).held == 1
        assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.DONE


async def test_a_redis_that_is_away_is_unavailable_and_not_unknown() -> None:
    settings = CallSettings(0.2, 0.3, 10**6, 10**9)
    async with Partitions("redis://127.0.0.1:1/0", settings, BatchBounds()) as partitions:
        with pytest.raises(PartitionUnavailable):
            await partitions.submit(SALE, GetSale())


async def test_a_killed_redis_comes_back_frozen_until_somebody_has_looked(server: OwnRedis) -> None:
    async with Partitions(server.url, PATIENT, BatchBounds()) as partitions:
        await vouch(partitions)
        shop = Shop(partitions)
        await shop.open(sku("A", 5))
        assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.DONE
        server.process.kill()
        server.process.wait()
        with ExitStack() as stack:
            await asyncio.to_thread(stack.enter_context, running_store(server.plan))
            with pytest.raises(PartitionFrozen):
                await shop.hold("u", "k", ("A", 1))
            with pytest.raises(PartitionFrozen):
                await partitions.submit("no-such-sale", GetSale())
            with pytest.raises(PartitionFrozen):
                await partitions.ready()
            with pytest.raises(PartitionFrozen):
                await partitions.submit("new-sale", definition(sku("A", 1)))
            sight = await partitions.guarding.look(SALE)
            run = await partitions.guarding.server_run()
            assert await partitions.guarding.open(SALE, sight, 2, run, "a test has looked")
            assert not await partitions.guarding.open(SALE, sight, 2, run, "twice")
            await vouch(partitions)
            assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.REPEATED
            snapshot = await shop.sale()
            assert (snapshot.state.epoch, snapshot.state.sequence) == (2, 4)
            assert (await partitions.submit("no-such-sale", GetSale()))[0].outcome is Outcome.SALE_NOT_FOUND


async def test_a_flushed_redis_is_frozen_and_not_a_shop_without_sales(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 5))
    await partitions.connections.execute("FLUSHALL")
    with pytest.raises(PartitionFrozen):
        await shop.hold("u", "k", ("A", 1))
    with pytest.raises(PartitionFrozen):
        await partitions.submit("new-sale", definition(sku("A", 1)))


async def test_a_frozen_partition_says_why_and_the_others_go_on(partitions: Partitions) -> None:
    frozen, other = Shop(partitions), Shop(partitions, "live-2")
    await frozen.open(sku("A", 5))
    await other.open(sku("A", 5))
    await partitions.freeze(SALE, "a person has doubts")
    with pytest.raises(PartitionFrozen, match="a person has doubts"):
        await frozen.hold("u", "k", ("A", 1))
    assert (await other.hold("u", "k", ("A", 1))).outcome is Outcome.DONE


async def test_a_late_command_of_an_older_epoch_is_refused(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 5))
    await partitions.freeze(SALE, "doubts")
    sight = await partitions.guarding.look(SALE)
    assert await partitions.guarding.open(SALE, sight, 2, await partitions.guarding.server_run(), "no doubts")
    _, command = shop.hold_command("u", "k", ("A", 1))
    keys = keyspace.partition_keys(SALE)
    header = Header(CALL_FORMAT, 1, 10**15, 10**6, 10**9, "")
    words = (load_script("partition").text, len(keys), *keys, encode_header(header), encode_commands([command]))
    answer = decode_answer(await partitions.connections.execute("EVAL", *words))
    assert (answer.outcome, answer.epoch, answer.replies) == (Outcome.STALE_EPOCH, 2, [])
    assert (await shop.levels("A")).held == 0
    assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.DONE


async def test_a_failing_script_has_written_nothing_and_hurts_only_the_request_to_blame(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 5))
    journal = keyspace.partition_keys(SALE).journal
    good = [shop.hold(f"u{n}", "k", ("A", 1)) for n in range(3)]
    _, broken = shop.hold_command("bad", "k", ("A", 1))
    bad = partitions.submit(SALE, replace(broken, lines=[("1", "A", "many")]))  # type: ignore[arg-type]
    *replies, failure = await asyncio.gather(*good, bad, return_exceptions=True)
    assert [reply.outcome for reply in replies] == [Outcome.DONE] * 3  # type: ignore[union-attr]
    assert isinstance(failure, ScriptFailed)
    assert (await shop.levels("A")).held == 3
    assert await partitions.connections.execute("XLEN", journal) == 4


async def test_no_memory_is_overloaded_and_changes_nothing(server: OwnRedis) -> None:
    async with Partitions(server.url, PATIENT, BatchBounds()) as partitions:
        await vouch(partitions)
        shop = Shop(partitions)
        await shop.open(sku("A", 5))
        await partitions.connections.execute("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Overloaded):
            await shop.hold("u", "k", ("A", 1))
        assert (await partitions.submit(SALE, GetAvailability("")))[0].outcome is Outcome.DONE
        await partitions.connections.execute("CONFIG", "SET", "maxmemory", "0")
        assert (await shop.levels("A")).held == 0
        assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.DONE


class CountingCaller:
    """Keeps the sizes of the batches that a real caller is given."""

    def __init__(self, caller: ScriptCaller) -> None:
        self.caller = caller
        self.sizes: list[int] = []
        self.in_flight = 0
        self.in_flight_most = 0

    async def call(self, sale_id: str, commands: list, deadline: float) -> list[Reply]:  # type: ignore[type-arg]
        self.sizes.append(len(commands))
        self.in_flight += 1
        self.in_flight_most = max(self.in_flight_most, self.in_flight)
        try:
            return await self.caller.call(sale_id, commands, deadline)
        finally:
            self.in_flight -= 1


async def test_a_tick_makes_one_batch_and_no_more_than_two_are_in_flight(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 10_000))
    counting = CountingCaller(ScriptCaller(partitions.connections, QUICK))
    bounds = BatchBounds(batch_orders_max=64)
    idle: list[str] = []
    batcher = Batcher(SALE, counting, bounds, SoldOutMemory(), idle.append)

    async def hold(n: int) -> Reply:
        _, command = shop.hold_command(f"u{n}", "k", ("A", 1))
        return (await batcher.submit([command], time.monotonic() + 20))[0]

    assert (await hold(0)).outcome is Outcome.DONE
    assert counting.sizes[0] == 1
    replies = await asyncio.gather(*(hold(n) for n in range(1, 501)))
    assert {reply.outcome for reply in replies} == {Outcome.DONE}
    assert counting.sizes == [1] + [64] * 7 + [52]
    assert counting.in_flight_most == 2
    assert idle


async def test_a_batch_is_bounded_in_lines_but_one_large_order_still_goes(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 10_000))
    counting = CountingCaller(ScriptCaller(partitions.connections, QUICK))
    batcher = Batcher(SALE, counting, BatchBounds(batch_lines_max=10), SoldOutMemory(), lambda _sale_id: None)

    async def hold(n: int, lines: int) -> Reply:
        _, command = shop.hold_command(f"u{n}", "k", *[("A", 1)] * lines)
        return (await batcher.submit([command], time.monotonic() + 20))[0]

    replies = await asyncio.gather(hold(1, 4), hold(2, 4), hold(3, 4), hold(4, 30), hold(5, 1))
    assert {reply.outcome for reply in replies} == {Outcome.DONE}
    assert counting.sizes == [2, 1, 1, 1]


async def test_a_full_queue_turns_requests_away_and_keeps_those_it_has(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 10_000))
    batcher = Batcher(
        SALE,
        ScriptCaller(partitions.connections, QUICK),
        BatchBounds(queue_commands_max=10),
        SoldOutMemory(),
        lambda _sale_id: None,
    )

    async def hold(n: int) -> Reply:
        _, command = shop.hold_command(f"u{n}", "k", ("A", 1))
        return (await batcher.submit([command], time.monotonic() + 20))[0]

    answers = await asyncio.gather(*(hold(n) for n in range(15)), return_exceptions=True)
    assert sum(isinstance(answer, Overloaded) for answer in answers) == 5
    assert (await shop.levels("A")).held == 10


async def test_a_request_whose_caller_has_gone_leaves_the_others_their_answers(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 100))
    tasks = [asyncio.create_task(shop.hold(f"u{n}", "k", ("A", 1))) for n in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [answer.outcome for answer in answers[1::2]] == [Outcome.DONE] * 5  # type: ignore[union-attr]
    order_id, _ = shop.hold_command("u1", "k", ("A", 1))
    assert (await shop.ask(GetOrder(order_id.digest), Open()))[0].outcome is Outcome.DONE


async def test_a_redis_that_works_on_something_long_is_overloaded_and_not_a_defect(server: OwnRedis) -> None:
    async with Partitions(server.url, PATIENT, BatchBounds()) as partitions:
        await vouch(partitions)
        shop = Shop(partitions)
        await shop.open(sku("A", 5))
        await partitions.connections.execute("CONFIG", "SET", "lua-time-limit", 1)
        endless = asyncio.create_task(partitions.connections.execute("EVAL", "while true do end", 0))
        with pytest.raises((Overloaded, OutcomeUnknown)):
            await shop.hold("u", "k", ("A", 1))
        with pytest.raises(PartitionUnavailable):
            await partitions.sale_ids()
        await partitions.connections.execute("SCRIPT", "KILL")
        with pytest.raises(ResponseError):
            await endless
        assert (await shop.hold("u", "k", ("A", 1))).outcome in (Outcome.DONE, Outcome.REPEATED)


async def test_the_same_question_asked_by_many_in_one_tick_is_asked_once(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 5))
    counting = CountingCaller(ScriptCaller(partitions.connections, QUICK))
    batcher = Batcher(SALE, counting, BatchBounds(), SoldOutMemory(), lambda _sale_id: None)
    asked = [batcher.submit([GetAvailability("")], time.monotonic() + 20) for _ in range(100)]
    _, command = shop.hold_command("u", "k", ("A", 1))
    *answers, held = await asyncio.gather(*asked, batcher.submit([command], time.monotonic() + 20))
    assert held[0].outcome is Outcome.DONE
    assert {repr(answer) for answer in answers} == {repr(answers[0])}
    assert counting.sizes == [1, 1]
    assert (await batcher.submit([GetAvailability("")], time.monotonic() + 20))[0].detail[2] == [["A", 4]]


async def test_a_clock_that_was_learned_from_a_late_answer_does_not_look_like_a_jump_later() -> None:
    clock = RedisClock()
    sent_at = time.monotonic() - 1.9
    clock.adopt(1_000_000, sent_at)
    assert clock.observe(1_000_000 + 1_950, time.monotonic())
    assert clock.observe(1_000_000 + 2_000, time.monotonic())
    assert not clock.observe(1_000_000 + 10_000, time.monotonic())


async def test_a_jump_of_the_clock_is_not_believed_because_there_was_another_long_ago(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 5))
    caller = ScriptCaller(partitions.connections, QUICK)

    async def call() -> None:
        await caller.call(SALE, [GetAvailability("")], time.monotonic() + 1)

    def step_back(seconds: float) -> None:
        """To the caller it looks as if Redis' clock had run ahead by so much."""
        caller._clock._offset_ms -= seconds * 1000  # type: ignore[operator]

    await call()
    step_back(10)
    with pytest.raises(PartitionFrozen, match="jumped"):
        await call()
    step_back(-10)
    await call()
    await asyncio.sleep(JUMP_BELIEVED_SECONDS + 0.1)
    step_back(10)
    for _ in range(2):
        with pytest.raises(PartitionFrozen, match="jumped"):
            await call()
