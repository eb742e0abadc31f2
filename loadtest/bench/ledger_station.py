"""How far the ledger is behind: while 25,000 holds a second are accepted, and after a burst."""

import asyncio
import time
from typing import Any

import asyncpg
import msgspec

from engine.domain.commands import Command, Settle
from engine.domain.outcomes import Outcome
from engine.partition.keyspace import partition_keys
from loadtest.bench.child_processes import BenchFailed
from loadtest.bench.engine_under_test import PLENTY, EngineUnderTest, persisted_sequence, running_engine
from loadtest.bench.open_loop_station import generator_arguments
from loadtest.bench.script_alone import RawRedis, ScriptCalls, make_holds, time_calls
from loadtest.bench.station import Bench
from loadtest.load.requests import CURRENCY, PRICE_MINOR, buyer_of

HOLDS_PER_SECOND = 25_000
SUSTAINED_SHARE = 0.97
LOOK_SECONDS = 0.05
BATCH = 256


class LedgerStation:
    """Lag under load, and the backlog of a burst."""

    name = "ledger"

    def visit(self, bench: Bench) -> None:
        """One round on a fresh engine. Raises BenchFailed."""
        with bench.directory(self.name) as directory, running_engine(directory) as engine:
            asyncio.run(self._lag(bench, engine))
            self._burst(bench, engine)

    async def _lag(self, bench: Bench, engine: EngineUnderTest) -> None:
        bench.say(f"ledger: lag at {HOLDS_PER_SECOND:,} holds a second")
        sale_id, count = bench.sale_id("lag"), round(HOLDS_PER_SECOND * bench.effort.lag_seconds)
        await asyncio.to_thread(engine.make_sale, sale_id, PLENTY)
        generator = await asyncio.create_subprocess_exec(
            *generator_arguments(engine.shop(sale_id), f"{bench.prefix()}p", HOLDS_PER_SECOND, count),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            answer = asyncio.create_task(generator.communicate(f"{engine.checkout_key}\n".encode()))
            lags = await self._watch(engine, sale_id, answer)
            said, _ = await answer
        finally:
            if generator.returncode is None:
                generator.kill()
                await generator.wait()
        if generator.returncode != 0:
            raise BenchFailed("the open loop failed")
        found: dict[str, Any] = msgspec.json.decode(said)
        if found["errors"] or set(found["statuses"]) != {"201"}:
            raise BenchFailed(f"ledger lag: {found}")
        # what was not answered in time was more than the engine can do, which the rate says; its lag still counts
        bench.results.add("ledger.lag_max", max(lags), "s")
        bench.results.add("ledger.lag_run.rate", found["achieved_rate"], "/s")
        bench.results.add("ledger.lag_run.p99", found["p99_seconds"] * 1000, "ms")
        if found["achieved_rate"] < SUSTAINED_SHARE * HOLDS_PER_SECOND:
            bench.results.remark(
                f"ledger: {HOLDS_PER_SECOND:,} holds a second were offered, {found['achieved_rate']:,.0f} were accepted"
            )

    async def _watch(self, engine: EngineUnderTest, sale_id: str, running: "asyncio.Task[Any]") -> list[float]:
        """How old the oldest entry is that the ledger lacks, look by look."""
        redis, ledger = RawRedis(engine.redis_url), await asyncpg.connect(engine.endpoints["database_url"])
        state = partition_keys(sale_id).state.encode()
        looks: list[tuple[float, int]] = []
        lags, oldest = [0.0], 0
        try:
            while not running.done():
                persisted = await persisted_sequence(ledger, sale_id)
                looks.append((time.monotonic(), int(redis.ask(b"HGET", state, b"sequence"))))
                while oldest < len(looks) and looks[oldest][1] <= persisted:
                    oldest += 1
                lags.append(looks[-1][0] - looks[oldest][0] if oldest < len(looks) else 0.0)
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            redis.close()
            await ledger.close()
        return lags

    def _burst(self, bench: Bench, engine: EngineUnderTest) -> None:
        """Orders and their payments straight into the partition, faster than any HTTP could bring them."""
        orders, sale_id = bench.effort.burst_orders, bench.sale_id("burst")
        bench.say(f"ledger: a burst of {orders:,} orders, each settled")
        engine.make_sale(sale_id, PLENTY)
        connection = RawRedis(engine.redis_url)
        try:
            calls = ScriptCalls(sale_id, connection)
            holds = make_holds(sale_id, f"{bench.prefix()}b", 1, orders)
            payments: list[Command] = [
                Settle(hold.digest, f"pay-{number}", PRICE_MINOR, CURRENCY) for number, hold in enumerate(holds)
            ]
            encoded = [
                calls.call(commands[at : at + BATCH])
                for commands in (holds, payments)
                for at in range(0, orders, BATCH)
            ]
            timing = time_calls(engine.endpoints["processes"]["redis"][0], connection, encoded, 2, Outcome.DONE)
        finally:
            connection.close()
        last = engine.sequence(sale_id, buyer_of(f"{bench.prefix()}s", 1))
        behind_seconds = engine.wait_for_ledger(sale_id, last)
        bench.results.add("ledger.burst.changes_per_second", 2 * orders / timing.seconds, "/s")
        bench.results.add("ledger.burst.backlog_gone_after", behind_seconds, "s")
