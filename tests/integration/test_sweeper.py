"""Holds that are due come back, in time and in number, and sales open and close by the clock."""

import asyncio
import time

import pytest

from engine.domain.commands import Close, GetOrder, Hold
from engine.domain.orders import OrderStatus
from engine.ledger.connect import LedgerPool
from engine.ledger.persister import LedgerWriter, Passing
from engine.ledger.sales import known_partition
from engine.partition.glance import Glance
from engine.partition.keyspace import partition_keys
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.worker.persist import Persister
from engine.worker.retire import Retirer
from engine.worker.schedule import Scheduler
from engine.worker.sweep import Sweeper
from tests.integration.ledger_pools import reading, writing
from tests.lua.shop import Shop, definition, sku

__all__ = ["reading", "writing"]  # fixtures


@pytest.mark.alone
async def test_twenty_thousand_holds_due_at_once_are_given_back_within_two_seconds(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 20_000), hold_ms=6_000)
    commands: list[Hold] = [shop.hold_command(f"u-{at}", "key", ("A", 1))[1] for at in range(20_000)]
    for start in range(0, 20_000, 4_000):
        await asyncio.gather(*(partitions.submit(shop.sale_id, command) for command in commands[start : start + 4_000]))
    assert (await shop.levels("A")).held == 20_000
    deadlines = await Glance(partitions.connections).earliest_deadlines([shop.sale_id])
    assert deadlines[shop.sale_id] > (await partitions.guarding.server_time_ms())
    await asyncio.sleep(6.0)
    sweeping = asyncio.create_task(Sweeper(partitions, Settings()).run())
    started_at = time.monotonic()
    while (await shop.levels("A")).held:
        assert time.monotonic() - started_at < 2
        await asyncio.sleep(0.05)
    sweeping.cancel()
    assert (await shop.levels("A")).pools == {"shared": 20_000}


async def test_a_hold_is_never_given_back_before_its_deadline_and_soon_after_it(partitions: Partitions) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 1), hold_ms=1_000)
    sweeping = asyncio.create_task(Sweeper(partitions, Settings()).run())
    order_id, command = shop.hold_command("u-1", "key", ("A", 1))
    held_until_ms = (await shop.ask(command))[0].held().held_until_ms
    while True:
        (reply,) = await shop.ask(GetOrder(order_id.digest))
        now_ms = await partitions.guarding.server_time_ms()
        if reply.order().status is OrderStatus.EXPIRED:
            break
        assert now_ms < held_until_ms + 1_000
        await asyncio.sleep(0.01)
    assert now_ms >= held_until_ms
    (entry,) = [entry for entry in await shop.journal() if entry[0] == reply.order().changed_sequence]
    assert entry[1] >= held_until_ms
    sweeping.cancel()


async def test_a_sale_opens_and_closes_at_its_time_with_nobody_calling(partitions: Partitions) -> None:
    now_ms = await partitions.guarding.server_time_ms()
    await partitions.register("live-1")
    await partitions.submit("live-1", definition(sku("A", 1), opens_at_ms=now_ms + 600, closes_at_ms=now_ms + 1_500))
    scheduling = asyncio.create_task(Scheduler(partitions).run())
    state = partition_keys("live-1").state
    seen = []
    while (status := await partitions.connections.execute("HGET", state, "status")) != b"closed":
        assert await partitions.guarding.server_time_ms() < now_ms + 4_000
        seen.append(status)
        await asyncio.sleep(0.02)
    assert seen[0] == b"draft" and seen[-1] == b"open"
    opened, closed = (await Shop(partitions).journal())[1:3]
    assert now_ms + 600 <= opened[1] < now_ms + 1_600 and now_ms + 1_500 <= closed[1] < now_ms + 2_500
    scheduling.cancel()


async def test_a_sale_is_retired_only_when_its_time_is_over_and_the_ledger_has_it_all(
    partitions: Partitions, writing: LedgerPool, reading: LedgerPool
) -> None:
    shop = Shop(partitions)
    await shop.open(sku("A", 5), definition='{"skus": [{"sku": "A"}]}')
    await shop.ask(Close())
    keys, connections = partition_keys(shop.sale_id), partitions.connections
    retirer = Retirer(partitions, reading, Settings(order_retention_hours=1))
    await retirer.look()
    assert await connections.execute("EXISTS", keys.stock) == 1  # its time is not over
    await connections.execute("HINCRBY", keys.state, "closed_at", -2 * 3_600_000)
    await retirer.look()
    assert await connections.execute("EXISTS", keys.stock) == 1  # the ledger has not got it
    persister = Persister(partitions, LedgerWriter(writing), Settings(), Passing())
    while await persister.round():
        pass
    await retirer.look()
    found = await known_partition(reading, shop.sale_id)
    assert found is not None and found.retired
    assert [await connections.execute("EXISTS", key) for key in keys] == [1, 0, 0, 0, 0, 0, 0, 0]
    assert await connections.execute("HGET", keys.state, "retired") == b"1"
    await retirer.look()
    assert not await persister.round()
    assert await partitions.guarding.freezes([shop.sale_id]) == {}
