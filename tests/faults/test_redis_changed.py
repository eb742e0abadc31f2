"""A Redis that has lost something is never sold from: the sales concerned are frozen and say so, the others go on."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import redis.asyncio

from tests.faults.conftest import Report
from tests.faults.running_engine import Caller, RunningEngine, eventually

ORDERS = 10


def append_only_file(engine: RunningEngine) -> Path:
    """The file that Redis appends to; before Redis 7 it is one, since then the last of several."""
    home = engine.data_dir / "redis"
    parts = sorted((home / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)
    return parts[-1] if parts else home / "appendonly.aof"


async def test_a_sale_whose_last_record_was_cut_off_redis_file_stays_frozen_and_the_others_go_on(
    start_engine: Callable[..., RunningEngine], report: Report
) -> None:
    engine = start_engine()
    async with Caller(engine) as caller:
        for sale_id in ("whole", "cut"):
            await caller.open_sale(sale_id, {"TEE": 100})
            for number in range(ORDERS):
                assert (await caller.hold(sale_id, f"u-{number}", "key", {"TEE": 1})).status == 201
            await engine.wait_until_persisted(sale_id)
        size = append_only_file(engine).stat().st_size
        last = await caller.hold("cut", "u-last", "key", {"TEE": 1})
        assert last.status == 201
        sequence = await engine.wait_until_persisted("cut")
        assert engine.end() == 0
        with append_only_file(engine).open("r+b") as file:
            file.truncate(size)
        await engine.start_again()

        refused = await caller.hold("cut", "u-new", "key", {"TEE": 1})
        assert (refused.status, refused.code) == (503, "FROZEN")
        asked = await caller.ask("GET", f"/v1/orders/{last.document['order_id']}")
        assert (asked.status, asked.code) == (503, "FROZEN")
        assert (await caller.hold("whole", "u-new", "key", {"TEE": 1})).status == 201
        ready = await caller.probe("gateway")
        assert ready.status == 200
        reason = ready.document["frozen"]["cut"]
        assert str(sequence) in reason
        assert reason.rpartition(": ")[2] in engine.log("worker")
        shown = await caller.ask("GET", "/ops/v1/sales/cut")
        assert shown.status == 503 or shown.document["sale_id"] == "cut"
        status, said = await engine.audit()
        assert status == 1, said
        failed = [line for line in said.splitlines() if line.startswith("FAIL")]
        assert failed
        assert all(" cut " in line for line in failed), said
        reason_now = (await caller.probe("gateway")).document["frozen"]["cut"]  # the guard's, or the persister's by now
        assert str(sequence) in reason_now
        assert any(reason in line or reason_now in line for line in failed), said
        report("frozen because", reason)


async def test_a_flushed_redis_is_frozen_and_never_says_that_a_sale_does_not_exist(
    start_engine: Callable[..., RunningEngine], report: Report
) -> None:
    engine = start_engine()
    async with Caller(engine) as caller:
        await caller.open_sale("live", {"TEE": 100})
        orders = [(await caller.hold("live", f"u-{number}", "key", {"TEE": 1})).document for number in range(ORDERS)]
        await engine.wait_until_persisted("live")
        async with redis.asyncio.Redis.from_url(engine.endpoints["redis_url"]) as store:
            await store.flushall()
        codes: list[str] = []

        async def ask_everything() -> None:
            answers = [
                await caller.hold("live", "u-new", "key", {"TEE": 1}),
                await caller.ask("GET", f"/v1/orders/{orders[0]['order_id']}"),
                await caller.ask("POST", f"/v1/orders/{orders[0]['order_id']}/cancel"),
                await caller.settle(orders[1], "pay-1"),
                await caller.ask("GET", "/v1/sales/live/availability"),
                await caller.ask("POST", "/ops/v1/sales/live/pause"),
            ]
            codes.extend(answer.code for answer in answers)

        for _ in range(30):
            await ask_everything()
            await asyncio.sleep(0.05)
        assert set(codes) == {"FROZEN"}, set(codes)

        async def is_known() -> bool:
            ready = await caller.probe("gateway")
            return ready.status == 503 and "live" in ready.body.decode()

        await eventually(is_known, 10)
        ready = await caller.probe("gateway")
        assert ready.document["code"] == "FROZEN"
        await ask_everything()
        assert set(codes) == {"FROZEN"}, set(codes)
        status, said = await engine.audit()
        assert status == 1, said
        assert engine.end() == 0
        await engine.start_again()
        await ask_everything()
        assert set(codes) == {"FROZEN"}, "started again, it is as frozen as before"
        report("frozen because", ready.document["frozen"]["live"])
