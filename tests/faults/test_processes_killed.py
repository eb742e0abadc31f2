"""Whatever is killed under load, and however: nobody is told anything that is not so afterwards."""

import asyncio
import signal
import time

import aiohttp
import pytest

from tests.faults.conftest import Report
from tests.faults.load import Load, require_all_true
from tests.faults.running_engine import Caller, RunningEngine, children_of, eventually

ANSWERS_BEFORE = 300
ANSWERS_AFTER = 300
REPLACED_SECONDS_MAX = 30.0
TOLD_SECONDS_MAX = 1.0
REDIS_STILL_SECONDS = 3.0
BUYERS_DO_NOT_NOTICE = {"worker", "backoffice", "postgres"}


async def replacement_told(engine: RunningEngine, kind: str, gone: int, before: set[int]) -> tuple[float, float]:
    """Seconds from now until there is a new process, and from then until `endpoints.json` names it."""
    started_at = time.monotonic()

    async def is_there() -> bool:
        return bool({*children_of(engine.endpoints["pid"])} - before)

    async def is_told() -> bool:
        return gone not in engine.pids(kind)

    await eventually(is_there, REPLACED_SECONDS_MAX)
    there_at = time.monotonic()
    await eventually(is_told, REPLACED_SECONDS_MAX)
    return there_at - started_at, time.monotonic() - there_at


@pytest.mark.parametrize("kind", ["gateway", "worker", "backoffice", "redis", "postgres"])
async def test_a_process_killed_under_load_is_replaced_and_costs_nobody_anything_but_time(
    engine: RunningEngine, kind: str, report: Report
) -> None:
    async with Load(engine, f"killed-{kind}") as load:
        await load.wait_for_answers(ANSWERS_BEFORE)
        before = {*children_of(engine.endpoints["pid"])}
        gone = engine.send(kind, signal.SIGKILL)
        replaced_seconds, told_seconds = await replacement_told(engine, kind, gone, before)
        await load.wait_for_answers(ANSWERS_AFTER)
        await load.stop()
        report(f"{kind} replaced after, told after, seconds", f"{replaced_seconds:.2f}, {told_seconds:.2f}")
        report_load(load, report, kind)
        assert told_seconds < TOLD_SECONDS_MAX
        assert identical_but_processes(engine)
        if kind in BUYERS_DO_NOT_NOTICE:
            assert not load.buyers.troubles
        await require_all_true(load)


async def test_everything_but_the_supervisor_killed_at_once_under_load_comes_back_by_itself(
    engine: RunningEngine, report: Report
) -> None:
    async with Load(engine, "killed-all") as load:
        await load.wait_for_answers(ANSWERS_BEFORE)
        for kind in ("gateway", "worker", "backoffice", "redis", "postgres"):
            engine.send_all(kind, signal.SIGKILL)
        await load.wait_for_answers(ANSWERS_AFTER)
        await load.stop()
        report_load(load, report, "all")
        await require_all_true(load)


async def test_a_redis_that_stands_still_for_longer_than_a_call_may_take_does_nothing_twice(
    engine: RunningEngine, report: Report
) -> None:
    async with Load(engine, "still") as load:
        await load.wait_for_answers(ANSWERS_BEFORE)
        engine.send("redis", signal.SIGSTOP)
        await asyncio.sleep(REDIS_STILL_SECONDS)
        engine.send("redis", signal.SIGCONT)
        await load.wait_for_answers(ANSWERS_AFTER)
        await load.stop()
        report_load(load, report, "still")
        await require_all_true(load)


async def test_a_supervisor_killed_under_load_goes_on_where_the_data_stands(
    engine: RunningEngine, report: Report
) -> None:
    async with Load(engine, "killed-supervisor") as load:
        await load.wait_for_answers(ANSWERS_BEFORE)
        engine.end(signal.SIGKILL)
        ready_seconds = await engine.start_again()
        await load.wait_for_answers(ANSWERS_AFTER)
        await load.stop()
        report("supervisor started again, ready after seconds", f"{ready_seconds:.2f}")
        report_load(load, report, "supervisor")
        await require_all_true(load)


async def test_an_engine_told_to_end_under_load_answers_what_it_has_and_goes_on_when_started_again(
    engine: RunningEngine, report: Report
) -> None:
    async with Load(engine, "ended") as load, Caller(engine) as caller:
        await load.wait_for_answers(ANSWERS_BEFORE)
        await caller.open_sale("in-flight", {"TEE": 20})
        engine.send("redis", signal.SIGSTOP)  # what is asked now has no answer before the engine is told to end
        asked = [asyncio.create_task(caller.hold("in-flight", f"u-{n}", "key", {"TEE": 1})) for n in range(20)]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in asked)
        told_at = time.monotonic()
        ending = asyncio.create_task(asyncio.to_thread(engine.end, signal.SIGTERM))
        await eventually(lambda: turns_newcomers_away(engine), 5)
        engine.send("redis", signal.SIGCONT)
        assert [answer.status for answer in await asyncio.gather(*asked)] == [201] * 20
        assert await ending == 0
        ended_seconds = time.monotonic() - told_at
        assert not engine.wait_until_gone()
        assert not engine.read_endpoints()
        ready_seconds = await engine.start_again()
        await load.wait_for_answers(ANSWERS_AFTER)
        await load.stop()
        report("ended after, ready again after, seconds", f"{ended_seconds:.2f}, {ready_seconds:.2f}")
        report_load(load, report, "SIGTERM")
        await require_all_true(load)
        status, said = await engine.audit()  # all sales of this module together
        assert status == 0, said


async def turns_newcomers_away(engine: RunningEngine) -> bool:
    """Whether a new connection to the gateways is refused, or told that they are draining."""
    async with aiohttp.ClientSession() as newcomer:
        try:
            async with newcomer.get(engine.endpoints["gateway_url"] + "/readyz") as response:
                return response.status == 503 and "draining" in await response.text()
        except aiohttp.ClientError:
            return True


def identical_but_processes(engine: RunningEngine) -> bool:
    """Whether everything but the processes is told as it was when the engine was ready."""
    return {**engine.read_endpoints(), "processes": 0} == {**engine.endpoints, "processes": 0}


def report_load(load: Load, report: Report, kind: str) -> None:
    """Say what its buyers and its operator went through."""
    report(f"{kind} requests, orders", f"{len(load.waits)}, {len(load.orders)}")
    waited = f"{load.longest_wait_seconds():.2f}, {load.longest_silence_seconds():.2f}"
    report(f"{kind} longest wait of a buyer, longest silence, seconds", waited)
    report(f"{kind} troubles of buyers", dict(load.buyers.troubles))
    report(f"{kind} troubles of the operator", dict(load.operator.troubles))
