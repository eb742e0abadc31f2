"""Thousands of holds that are due at once end in time, by the ledger's own times; and with no worker none is lost."""

import asyncio
import signal
import time

import msgspec

from engine.backoffice.definition import define_command
from engine.backoffice.documents import SaleBody
from engine.domain.commands import Open
from engine.domain.outcomes import Outcome
from engine.partition.batcher import BatchBounds
from engine.partition.partitions import Partitions
from tests.conftest import CALL_SETTINGS
from tests.faults.conftest import Report
from tests.faults.running_engine import EXPIRED, Caller, RunningEngine, eventually, sale_body
from tests.lua.shop import Shop

HOLDS = 5_000
HOLDS_FULL = 20_000
AT_ONCE = 1_000
HOLD_SECONDS = 5
EXPIRED_ENTRY = 4
ENDED_SECONDS_MAX = 2.0
OF_THE_SALE = "(SELECT partition_id FROM partitions WHERE sale_id = 'due') AS due JOIN"


async def hold_all(shop: Shop, holds: int) -> None:
    """As many holds in large batches, the later ones for fewer seconds, so that all are due within one second."""
    due_at = time.monotonic() + HOLD_SECONDS

    async def buy(number: int) -> None:
        _, command = shop.hold_command(f"u-{number}", "key", ("TEE", 1))
        (reply,) = await shop.ask(command)
        assert reply.outcome is Outcome.DONE, reply

    for first in range(0, holds, AT_ONCE):
        hold_seconds = round(due_at - time.monotonic())
        await shop.ask(define_command(msgspec.convert(sale_body({"TEE": holds}, hold_seconds), SaleBody), 0), Open())
        await asyncio.gather(*map(buy, range(first, min(first + AT_ONCE, holds))))


async def test_thousands_of_holds_due_at_once_end_between_their_deadline_and_two_seconds_after_it(
    engine: RunningEngine, full: bool, report: Report
) -> None:
    holds = HOLDS_FULL if full else HOLDS
    async with Partitions(engine.endpoints["redis_url"], CALL_SETTINGS, BatchBounds()) as partitions:
        shop = Shop(partitions, "due")
        await partitions.register("due")
        await hold_all(shop, holds)

        async def all_given_back() -> bool:
            return (await shop.levels("TEE")).held == 0

        await eventually(all_given_back, 60)
        assert (await shop.levels("TEE")).pools == {"shared": holds}
    await engine.wait_until_persisted("due")
    ended_at = dict(
        await engine.sql(
            f"SELECT sequence, at FROM {OF_THE_SALE} journal USING (partition_id) WHERE kind = $1", EXPIRED_ENTRY
        )
    )
    orders = await engine.sql(
        f"SELECT changed_sequence, held_until FROM {OF_THE_SALE} order_states USING (partition_id) WHERE status = $1",
        EXPIRED,
    )
    late = [(ended_at[sequence] - held_until).total_seconds() for sequence, held_until in orders]
    deadlines = [held_until for _, held_until in orders]
    due_within = (max(deadlines) - min(deadlines)).total_seconds()
    report("holds, due within seconds", f"{len(orders)}, {due_within:.2f}")
    report("ended after their deadline, first and last, seconds", f"{min(late):.3f}, {max(late):.3f}")
    assert len(orders) == len(ended_at) == holds
    assert 0 <= min(late) <= max(late) <= ENDED_SECONDS_MAX
    status, said = await engine.audit("due")
    assert status == 0, said


async def test_a_buyer_who_wants_the_unit_of_a_due_hold_gets_it_though_the_worker_stands_still(
    engine: RunningEngine, report: Report
) -> None:
    async with Caller(engine) as caller:
        await caller.open_sale("no-sweeper", {"TEE": 1}, hold_seconds=1)
        engine.send("worker", signal.SIGSTOP)
        try:
            first = await caller.hold("no-sweeper", "u-1", "key", {"TEE": 1})
            assert first.status == 201
            assert (await caller.hold("no-sweeper", "u-2", "key", {"TEE": 1})).code == "SOLD_OUT"
            held_at = time.monotonic()
            while (second := await caller.hold("no-sweeper", "u-2", "key", {"TEE": 1})).status != 201:
                assert second.code == "SOLD_OUT"
                assert time.monotonic() - held_at < 10
                await asyncio.sleep(0.02)
            report("seconds until the second buyer had it", f"{time.monotonic() - held_at:.2f}")
            now = await caller.ask("GET", f"/v1/orders/{first.document['order_id']}")
            assert now.document["status"] == "expired"
            assert second.document["held_until"] > first.document["held_until"]
        finally:
            engine.send("worker", signal.SIGCONT)
        await engine.wait_until_persisted("no-sweeper")
        status, said = await engine.audit("no-sweeper")
        assert status == 0, said
