"""Very many sales, of which few are on: what is over costs next to nothing, and all are opened soon after a restart."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.domain.commands import Close, Command, Delete
from engine.domain.journal import Expired, decode_entry, decode_record
from engine.domain.outcomes import Outcome
from engine.ledger.connect import LedgerPool
from engine.partition.batcher import BatchBounds
from engine.partition.codec import Reply
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.worker import roll
from engine.worker.guard import Guard
from engine.worker.roll import Roll
from engine.worker.schedule import Scheduler
from engine.worker.sweep import HOLDS_PER_CALL_MAX, Sweeper
from tests.conftest import CALL_SETTINGS, OwnRedis, own_redis
from tests.integration.ledger_pools import reading, writing
from tests.integration.test_guard import House
from tests.lua.shop import Shop, definition, sku

__all__ = ["reading", "writing"]  # fixtures

OVER = 300
ON = 5
LOOKS = 10


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnRedis]:
    with own_redis(tmp_path / "redis") as started:
        yield started


async def make_sales(partitions: Partitions, count: int, *, closed: bool, prefix: str) -> list[Shop]:
    shops = [Shop(partitions, f"{prefix}-{number:04}") for number in range(count)]
    await asyncio.gather(*(shop.open(sku("A", 5)) for shop in shops))
    if closed:
        await asyncio.gather(*(shop.ask(Close()) for shop in shops))
    return shops


async def test_the_loops_ask_redis_about_sales_that_are_on_and_hardly_ever_about_others(partitions: Partitions) -> None:
    over = await make_sales(partitions, OVER, closed=True, prefix="over")
    on = await make_sales(partitions, ON, closed=False, prefix="on")
    shared = Roll(partitions)
    assert set(await shared.lively()) == {shop.sale_id for shop in on}
    assert len(await shared.names()) == OVER + ON
    sweeper, scheduler = Sweeper(partitions, Settings(), shared), Scheduler(partitions, shared)
    began = await commands_done(partitions)
    for _ in range(LOOKS):
        await sweeper.look()
        await scheduler.look()
    assert await commands_done(partitions) - began < LOOKS * (2 * ON + 10)
    assert over


async def test_a_closed_sale_is_looked_at_until_its_last_hold_has_ended(partitions: Partitions) -> None:
    [shop] = await make_sales(partitions, 1, closed=False, prefix="held")
    assert (await shop.ask(definition(sku("A", 5), hold_ms=1_000)))[0].outcome is Outcome.DONE
    assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.DONE
    await shop.ask(Close())
    shared = Roll(partitions)
    assert list(await shared.lively()) == [shop.sale_id]
    sweeper = Sweeper(partitions, Settings(), shared)
    deadline = time.monotonic() + 5
    while (await shop.levels("A")).held:
        await sweeper.look()
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    while await shared.lively():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_new_sales_are_seen_at_once_and_a_deleted_one_stays_in_sight_for_it_may_be_made_anew(
    partitions: Partitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll, "SORT_SECONDS", 0.1)
    shared = Roll(partitions)
    assert await shared.lively() == []
    shop = Shop(partitions, "anew")
    await partitions.register(shop.sale_id)
    assert (await shop.ask(definition(sku("A", 1))))[0].outcome is Outcome.DONE
    await becomes(shared, ["anew"], 0.5)
    assert (await shop.ask(Delete()))[0].outcome is Outcome.DONE
    for _ in range(10):
        await asyncio.sleep(0.05)
        assert list(await shared.lively()) == ["anew"]


async def test_due_holds_of_many_sales_do_not_wait_in_one_line(partitions: Partitions) -> None:
    """Each call waits for Redis: were there one at a time, the last sale's would come after all the others' calls."""
    at_once = most_at_once = 0

    class Watched:
        connections = partitions.connections

        async def submit(self, sale_id: str, *commands: Command) -> list[Reply]:
            nonlocal at_once, most_at_once
            at_once += 1
            most_at_once = max(most_at_once, at_once)
            try:
                return await partitions.submit(sale_id, *commands)
            finally:
                at_once -= 1

    shops = await make_sales(partitions, 20, closed=False, prefix="due")
    for shop in shops:
        assert (await shop.ask(definition(sku("A", 5), hold_ms=100)))[0].outcome is Outcome.DONE
        assert (await shop.hold("u", "k", ("A", 1))).outcome is Outcome.DONE
    await asyncio.sleep(0.2)
    await Sweeper(Watched(), Settings(), Roll(partitions)).look()  # type: ignore[arg-type]  # all it needs of them
    assert [(await shop.levels("A")).held for shop in shops] == [0] * 20
    assert most_at_once > 1


@pytest.mark.alone
async def test_many_partitions_are_opened_together_and_one_that_disagrees_stays_frozen(
    server: OwnRedis, writing: LedgerPool
) -> None:
    house = House(server, writing)
    try:
        await house.guard.look()
        over = await make_sales(house.partitions, OVER, closed=True, prefix="over")
        on = await make_sales(house.partitions, ON, closed=False, prefix="on")
        for shop in (*over, *on):
            await house.persist(shop.sale_id)
        assert (await on[0].hold("u", "k", ("A", 1))).outcome is Outcome.DONE  # in the journal alone
        await writing.execute(
            "UPDATE stock SET settled = settled + 1, available = available - 1, pools = '{\"shared\": 4}'"
            " WHERE partition_id = (SELECT partition_id FROM partitions WHERE sale_id = $1)",
            on[1].sale_id,
        )
        await house.kill_redis()
        await house.start_redis()
        began_at = time.monotonic()
        await house.guard.look()
        assert time.monotonic() - began_at < 5.0
        assert list(await house.frozen()) == [on[1].sale_id]
        assert (await on[0].hold("u-2", "k", ("A", 1))).outcome is Outcome.DONE
        assert (await on[0].sale()).state.epoch == (await over[-1].sale()).state.epoch == 2
    finally:
        await house.close()


async def test_sales_that_are_over_are_opened_though_the_worker_dies_once_it_has_vouched_for_the_run(
    server: OwnRedis, writing: LedgerPool
) -> None:
    house = House(server, writing)
    try:
        await house.guard.look()
        [shop] = await make_sales(house.partitions, 1, closed=True, prefix="over")
        await house.persist(shop.sale_id)
        await house.kill_redis()
        await house.start_redis()
        await house.partitions.guarding.vouch_for(await house.partitions.guarding.server_run())  # and then it dies
        await Guard(house.partitions, writing, Settings()).look()
        assert (await shop.sale()).state.epoch == 2
    finally:
        await house.close()


@pytest.mark.alone
async def test_expiry_leaves_buyers_their_turn(partitions: Partitions, redis_server: str) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 3_000), sku("B", 1_000), hold_ms=1_500)
    commands = [shop.hold_command(f"u-{at}", "key", ("A", 1))[1] for at in range(3_000)]
    await asyncio.gather(*(partitions.submit(shop.sale_id, command) for command in commands))
    await asyncio.sleep(1.6)
    async with Partitions(redis_server, CALL_SETTINGS, BatchBounds()) as buyers:  # batches of their own
        sweeping = asyncio.create_task(Sweeper(partitions, Settings()).run())
        wanted = Shop(buyers)
        bought = 0
        while (await wanted.levels("A")).held:
            assert (await wanted.hold(f"b-{bought}", "key", ("B", 1))).outcome is Outcome.DONE
            bought += 1
        sweeping.cancel()
    ended = [
        sum(isinstance(decode_entry(entry), Expired) for entry in decode_record(encoded).entries)
        for _, encoded in await partitions.journals.records_after(shop.sale_id, 0, 1_000_000)
    ]
    assert sum(ended) == 3_000
    assert max(ended) <= HOLDS_PER_CALL_MAX
    assert bought >= 3_000 / HOLDS_PER_CALL_MAX / 2, "a buyer had a turn between most calls"


async def becomes(shared: Roll, lively: list[str], timeout_seconds: float) -> None:
    """Wait until these are the lively sales."""
    deadline = time.monotonic() + timeout_seconds
    while list(await shared.lively()) != lively:
        assert time.monotonic() < deadline, await shared.lively()
        await asyncio.sleep(0.02)


async def commands_done(partitions: Partitions) -> int:
    """Commands that Redis has carried out so far."""
    info: bytes = await partitions.connections.execute("INFO", "stats")
    [line] = [line for line in info.decode().splitlines() if line.startswith("total_commands_processed:")]
    return int(line.partition(":")[2])
