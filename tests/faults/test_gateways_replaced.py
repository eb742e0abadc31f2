"""Gateways change under load, and no caller notices: what waits to be accepted, is in flight or is idle is not lost."""

import asyncio
import json
import os
import re
import signal
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

from engine.observability.aggregates import FLUSH_INTERVAL_SECONDS
from engine.runtime.process_identity import identify
from tests.faults.conftest import Report
from tests.faults.running_engine import Caller, RunningEngine, eventually, hold_body

KEEPING = 12
"""Callers that keep their connection, and ask on it one request after the other."""
OPENING = 4
"""Callers that open a connection for each request."""
UNITS = 1_000_000
REPLACED_SECONDS_MAX = 15.0
STALL_SECONDS_MAX = 5.0
FLUSHED_SECONDS = 2 * FLUSH_INTERVAL_SECONDS


class Broken(Exception):
    """A connection ended while an answer was awaited, or could not be made."""


class Callers:
    """Clients in a closed loop that never ask anything a second time: each request is answered, or is a failure."""

    def __init__(self, engine: RunningEngine, sale_id: str) -> None:
        self.failures: list[str] = []
        self.answered: Counter[str] = Counter()
        self.longest_seconds = 0.0
        self._port = int(engine.endpoints["gateway_url"].rpartition(":")[2])
        self._head = (
            f"POST /v1/sales/{sale_id}/orders HTTP/1.1\r\nHost: engine\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {engine.endpoints['keys']['checkout']}\r\n"
        )
        self._name = uuid4().hex[:8]
        self._requests = 0
        self._stopping = False

    @asynccontextmanager
    async def calling(self) -> Any:
        """They call for as long as this lasts; each ends its request before it ends."""
        tasks = [asyncio.create_task(self._call(keeps=number < KEEPING)) for number in range(KEEPING + OPENING)]
        try:
            yield
        finally:
            self._stopping = True
            async with asyncio.timeout(30):
                await asyncio.gather(*tasks)

    async def wait_for(self, answers: int) -> None:
        """Wait until so many more have been answered."""
        wanted = self.answered.total() + answers

        async def came() -> bool:
            return self.answered.total() >= wanted or bool(self.failures)

        await eventually(came, 30)

    async def _call(self, *, keeps: bool) -> None:
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._stopping:
            if streams is not None and streams[0].at_eof():  # closed between two requests, which is polite
                await _close(streams[1])
                streams = None
            started_at = time.monotonic()
            try:
                streams = streams or await asyncio.open_connection("127.0.0.1", self._port)
                closes = await self._ask(*streams, keeps=keeps)
            except (Broken, OSError) as error:
                self.failures.append(f"{'keeping' if keeps else 'opening'}: {error!r}")
                if streams is not None:
                    await _close(streams[1])
                streams = None
                continue
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - started_at)
            if closes:
                await _close(streams[1])
                streams = None
            await asyncio.sleep(0.005)
        if streams is not None:
            await _close(streams[1])

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, keeps: bool) -> bool:
        """One request; whether the connection ends with it."""
        self._requests += 1
        body = json.dumps(hold_body(f"{self._name}-{self._requests}", {"TEE": 1}))
        close = "" if keeps else "Connection: close\r\n"
        writer.write(f"{self._head}Idempotency-Key: k\r\nContent-Length: {len(body)}\r\n{close}\r\n{body}".encode())
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            found = re.search(rb"content-length: (\d+)", head)
            assert found is not None
            await reader.readexactly(int(found[1]))
        except asyncio.IncompleteReadError as error:
            raise Broken(f"closed after {error.partial!r}") from error
        self.answered[head.split(b" ")[1].decode()] += 1
        return b"connection: close" in head


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


async def replaced(engine: RunningEngine, before: list[int]) -> None:
    """Wait until none of these gateways is left, and there are two others."""

    async def all_gone() -> bool:
        now = engine.pids("gateway")
        return not any(map(identify, before)) and not set(now) & set(before) and len(now) == 2

    await eventually(all_gone, REPLACED_SECONDS_MAX)


async def test_gateways_are_replaced_one_by_one_and_by_themselves_without_a_request_that_fails(
    engine: RunningEngine, report: Report
) -> None:
    async with Caller(engine) as operator:
        await operator.open_sale("rolling", {"TEE": UNITS})
        callers = Callers(engine, "rolling")
        async with callers.calling():
            await callers.wait_for(200)
            for _ in range(2):
                before = engine.pids("gateway")
                engine.send("supervisor", signal.SIGHUP)
                await replaced(engine, before)
                await callers.wait_for(100)
            pids = engine.pids("gateway")
            os.kill(pids[0], signal.SIGTERM)
            told_at = time.monotonic()

            async def listed() -> bool:
                return pids[0] not in engine.pids("gateway")

            await eventually(listed, 1.0)
            report("a replaced gateway is out of the endpoints after seconds", f"{time.monotonic() - told_at:.2f}")
            await replaced(engine, pids[:1])
            await callers.wait_for(100)
        assert not callers.failures
        assert set(callers.answered) == {"201"}
        assert engine.pids("gateway")[1] == pids[1], "the other one stays"
        report("answers, longest in seconds", f"{callers.answered.total()}, {callers.longest_seconds:.2f}")
        assert callers.longest_seconds < STALL_SECONDS_MAX
        assert (await operator.stock("rolling"))["TEE"]["held"] == callers.answered.total()


async def test_a_killed_gateway_fails_what_it_had_in_hand_and_nobody_who_waits_to_be_accepted(
    engine: RunningEngine, report: Report
) -> None:
    async with Caller(engine) as operator:
        await operator.open_sale("killed", {"TEE": UNITS})
        port = int(engine.endpoints["gateway_url"].rpartition(":")[2])
        victims = engine.pids("gateway")
        for pid in victims:
            os.kill(pid, signal.SIGSTOP)  # from now on the kernel alone accepts
        waiting = Callers(engine, "killed")
        async with waiting.calling():
            await asyncio.sleep(0.3)
            assert waiting.answered.total() == 0
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            await waiting.wait_for(200)
        assert not waiting.failures, "they waited in the slots' queues, which the successors took over"
        assert set(waiting.answered) == {"201"}
        assert port == int(engine.endpoints["gateway_url"].rpartition(":")[2])

        under_load = Callers(engine, "killed")
        async with under_load.calling():
            await under_load.wait_for(200)
            engine.send("gateway", signal.SIGKILL)
            await under_load.wait_for(200)
        report(
            "of callers, failed with the process that they were at", f"{KEEPING + OPENING}, {len(under_load.failures)}"
        )
        assert len(under_load.failures) <= KEEPING + OPENING, "each had one request in hand at most"
        assert set(under_load.answered) == {"201"}


async def test_what_replaced_gateways_have_counted_stays_counted_once_and_their_gauges_go(
    engine: RunningEngine, report: Report
) -> None:
    async with Caller(engine) as operator:
        await operator.open_sale("counted", {"TEE": UNITS})
        await asyncio.sleep(FLUSHED_SECONDS)  # what was counted before this
        counted_before = await metric(engine, "miaocang_http_requests_total", status="201", interface="gateway")
        for round_number in range(2):
            callers = Callers(engine, "counted")
            async with callers.calling():
                await callers.wait_for(300)
            assert not callers.failures
            await asyncio.sleep(FLUSHED_SECONDS)
            before = engine.pids("gateway")
            files = sorted(path.name for path in (engine.data_dir / "run" / "metrics").iterdir())
            assert all(f"counter_{pid}.db" in files for pid in before), "each of them has counted something"
            counted = await metric(engine, "miaocang_http_requests_total", status="201", interface="gateway")
            for pid in before:
                os.kill(pid, signal.SIGKILL if round_number else signal.SIGTERM)
            await replaced(engine, before)
            again = await metric(engine, "miaocang_http_requests_total", status="201", interface="gateway")
            assert again == counted
            files = sorted(path.name for path in (engine.data_dir / "run" / "metrics").iterdir())
            assert not any("live" in name and f"_{pid}.db" in name for name in files for pid in before)
            assert await metric(engine, "miaocang_http_requests_in_flight", interface="gateway") <= 1
        held = (await operator.stock("counted"))["TEE"]["held"]
        assert counted - counted_before == held
        report("requests counted over four gateways and their successors", held)


async def metric(engine: RunningEngine, name: str, **labels: str) -> float:
    """The sum of the series of this name with these labels, as the gateway's port shows it."""
    async with Caller(engine) as caller:  # a connection that is kept would have a gateway that leaves wait for it
        text = (await caller.probe("gateway", "/metrics")).body.decode()
    found = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    wanted = [line for line in found if all(f'{label}="{value}"' in line for label, value in labels.items())]
    return sum(float(line.rpartition(" ")[2]) for line in wanted)
