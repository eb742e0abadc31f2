"""PostgreSQL stopped, or killed again and again: no buyer notices before the backlog's bound, and nothing is lost."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.faults.conftest import Report
from tests.faults.running_engine import CANCELLED, HELD, SETTLED, Caller, RunningEngine, eventually

BACKLOG_MAX_ENTRIES = 200
ORDERS_BEFORE = 30
KILLS = 5


@contextmanager
def postgres_stopped(engine: RunningEngine) -> Iterator[None]:
    """Neither the server nor any of its connections' processes runs, and none of them is gone."""
    engine.send_all("postgres", signal.SIGSTOP)
    try:
        yield
    finally:
        engine.send_all("postgres", signal.SIGCONT)


async def postgres_killed_again_and_again(engine: RunningEngine) -> None:
    """It comes up between two kills, or does not get so far."""
    for _ in range(KILLS):
        engine.send_all("postgres", signal.SIGKILL)
        await asyncio.sleep(0.4)


async def test_past_the_backlogs_bound_new_holds_wait_while_payments_and_cancellations_go_on(
    start_engine: Callable[..., RunningEngine], report: Report
) -> None:
    engine = start_engine(ledger_backlog_max_entries=BACKLOG_MAX_ENTRIES)
    async with Caller(engine) as caller:
        await caller.open_sale("live", {"TEE": 10_000})
        orders = [(await caller.hold("live", f"u-{n}", "key", {"TEE": 1})).document for n in range(ORDERS_BEFORE)]
        await engine.wait_until_persisted("live")
        with postgres_stopped(engine):
            sequence = await engine.sequence("live")
            accepted = 0
            while (answer := await caller.hold("live", f"v-{accepted}", "key", {"TEE": 1})).status == 201:
                accepted += 1
                assert accepted <= 2 * BACKLOG_MAX_ENTRIES
            assert (answer.status, answer.code) == (503, "LEDGER_BEHIND")
            assert int(answer.headers["Retry-After"]) >= 1
            repeated = await caller.hold("live", "u-0", "key", {"TEE": 1})
            assert (repeated.status, repeated.document) == (200, orders[0]), (
                "what was answered before is answered again"
            )
            for number, order in enumerate(orders[:20]):
                if number % 2:
                    ended = await caller.settle(order, f"pay-{number}")
                else:
                    ended = await caller.ask("POST", f"/v1/orders/{order['order_id']}/cancel")
                assert ended.status == 200, ended
            assert (await caller.hold("live", "w", "key", {"TEE": 1})).code == "LEDGER_BEHIND"
            grown = await engine.sequence("live") - sequence
        report("accepted before LEDGER_BEHIND, entries in all", f"{accepted}, {grown}")
        assert accepted >= BACKLOG_MAX_ENTRIES - 20  # the last offset may have been noted a moment before the stop
        assert grown == accepted + 20

        async def is_taken() -> bool:
            return (await caller.hold("live", "w", "key", {"TEE": 1})).status in {200, 201}

        report("seconds from its return to the next hold", f"{await eventually(is_taken, 60):.2f}")
        await engine.wait_until_persisted("live")
        counts = await engine.sql("SELECT status, count(*) FROM order_states GROUP BY status")
        assert dict(map(tuple, counts)) == {HELD: ORDERS_BEFORE + accepted + 1 - 20, SETTLED: 10, CANCELLED: 10}
        assert len(await caller.feed()) == 10
        status, said = await engine.audit()
        assert status == 0, said


async def test_postgresql_killed_again_and_again_is_nothing_that_a_buyer_notices(
    engine: RunningEngine, report: Report
) -> None:
    async with Caller(engine) as caller:
        await caller.open_sale("killing", {"TEE": 10_000})
        killing = asyncio.create_task(postgres_killed_again_and_again(engine))
        sold = 0
        while not killing.done():
            order = await caller.hold("killing", f"u-{sold}", "key", {"TEE": 1})
            assert order.status == 201, order
            assert (await caller.settle(order.document, f"pay-{sold}")).status == 200
            sold += 1
            await asyncio.sleep(0.002)
        await killing

        async def is_written() -> bool:
            return await engine.persisted("killing") == await engine.sequence("killing")

        report("seconds from the last kill until the ledger has all", f"{await eventually(is_written, 60):.2f}")
        rows = [row for row in await caller.feed() if row["sale_id"] == "killing"]
        assert len({row["order_id"] for row in rows}) == len(rows) == sold
        status, said = await engine.audit("killing")
        assert status == 0, said
        report("sold while PostgreSQL was killed", f"{sold} in {KILLS} kills")
