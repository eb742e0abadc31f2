"""Latency at shares of the maximum, from when each request was due; the echo server at the same rates."""

import json
import subprocess
import sys
from typing import Any

from loadtest.bench.child_processes import CHECKOUT, BenchFailed
from loadtest.bench.echo_station import running_echo
from loadtest.bench.engine_under_test import OTHER_SKU, PLENTY, EngineUnderTest, running_engine
from loadtest.bench.station import MAIN_CONNECTIONS, Bench
from loadtest.bench.wrk_run import run_wrk
from loadtest.load.open_loop import ANSWER_SECONDS_MAX
from loadtest.load.requests import PRICE_MINOR, SKU, Shop, buyer_of

MAXIMUM = f"engine_g1.accepted_c{MAIN_CONNECTIONS}.rate"
PREPARE_SECONDS_MAX = 60.0
LAG_SHARE_MAX = 0.5
"""Where so much of the 99th percentile is the generator's being late, the figure is more its than the server's."""
LIMIT_REQUESTS = 60_000


class OpenLoopStation:
    """The engine and the echo server in turn, at the same rates; and one hold with nothing else going on."""

    name = "open_loop"

    def visit(self, bench: Bench) -> None:
        """One round. Raises BenchFailed, also where the maximum has not been measured before."""
        maximum = bench.results.median(MAXIMUM)
        if maximum is None:
            raise BenchFailed("the open loop needs the engine's maximum: run the station engine_g1 as well")
        with (
            bench.directory(self.name) as directory,
            running_engine(directory / "engine") as engine,
            running_echo(directory, "order") as echo_port,
        ):
            echo = Shop("127.0.0.1", echo_port, "no-key", "sale-000001")
            self._lone_hold(bench, engine)
            self._own_limit(bench, echo)
            for share in bench.effort.open_loop_shares:
                name, rate = f"{round(share * 100)}", share * maximum
                sale_id = bench.sale_id("paced")
                engine.make_sale(sale_id, PLENTY)
                self._paced(bench, f"open_loop.engine_{name}", engine.shop(sale_id), rate)
                self._paced(bench, f"open_loop.echo_{name}", echo, rate)
                self._verify(engine, sale_id, f"{bench.prefix()}s", round(rate * bench.effort.open_loop_seconds))
            if bench.is_last_round:
                engine.audit()

    def _lone_hold(self, bench: Bench, engine: EngineUnderTest) -> None:
        """One connection, one hold after the other, and nothing else."""
        bench.say("open_loop: one lone hold")
        sale_id, prefix = bench.sale_id("lone"), bench.prefix()
        engine.make_sale(sale_id, PLENTY)
        for seconds, counts in ((bench.effort.warm_up_seconds, False), (bench.effort.side_run_seconds, True)):
            arguments = (
                *("accepted", sale_id, engine.checkout_key, prefix if counts else bench.prefix()),
                *(SKU, OTHER_SKU, str(PRICE_MINOR), "1", "1", f"{prefix}9"),
            )
            run = run_wrk(engine.gateway_url, 1, seconds, "orders.lua", arguments)
            if run.refused:
                raise BenchFailed(f"lone hold: {run.refused} of {run.requests} answers were refusals or failures")
            if counts:
                bench.results.add("lone_hold.p50", run.p50_ms, "ms")
                bench.results.add("lone_hold.p99", run.p99_ms, "ms")

    def _own_limit(self, bench: Bench, echo: Shop) -> None:
        """What the generator can do at all, against the cheapest server there is."""
        found = run_open_loop(echo, f"{bench.prefix()}p", 0.0, LIMIT_REQUESTS)
        bench.results.add("open_loop.generator_limit.rate", float(found["achieved_rate"]), "/s")
        bench.results.add(
            "open_loop.generator_limit.cpu_of_a_request", float(found["cpu_seconds"]) / LIMIT_REQUESTS * 1e6, "µs"
        )

    def _paced(self, bench: Bench, name: str, shop: Shop, rate: float) -> None:
        bench.say(f"{name} % of the maximum: {rate:,.0f} requests a second")
        self._require_good(name, run_open_loop(shop, f"{bench.prefix()}w", rate / 2, max(round(rate / 4), 100)))
        count = max(round(rate * bench.effort.open_loop_seconds), 100)
        found = run_open_loop(shop, f"{bench.prefix()}p", rate, count)
        self._require_good(name, found)
        for percentile in ("p50", "p99", "p999"):
            bench.results.add(f"{name}.{percentile}", found[f"{percentile}_seconds"] * 1000, "ms")
        bench.results.add(f"{name}.late_p99", found["late_p99_seconds"] * 1000, "ms")
        bench.results.add(f"{name}.rate", found["achieved_rate"], "/s")
        bench.results.add(f"{name}.generator_share", found["cpu_share"], "cores")
        if found["late_p99_seconds"] > max(LAG_SHARE_MAX * found["p99_seconds"], 0.002):
            bench.results.remark(f"{name}: the generator itself was late (see late_p99)")

    def _require_good(self, name: str, found: dict[str, Any]) -> None:
        if found["errors"] or found["unanswered"] or set(found["statuses"]) != {"201"}:
            raise BenchFailed(f"{name}: {found}")

    def _verify(self, engine: EngineUnderTest, sale_id: str, sampled: str, least: int) -> None:
        """The sequence numbers that were used: each answer had one."""
        last = engine.sequence(sale_id, buyer_of(sampled, 1))
        if last < least:
            raise BenchFailed(f"open loop: {least} orders were accepted, and the sequence is at {last}")
        engine.wait_for_ledger(sale_id, last)


def generator_arguments(shop: Shop, prefix: str, rate: float, count: int) -> list[str]:
    """The command line of one run of the generator; it gets the shop's key as a line on its standard input."""
    return [
        *(sys.executable, "-m", "loadtest.load.open_loop"),
        *("--host", shop.host, "--port", str(shop.port), "--sale", shop.sale_id, "--prefix", prefix),
        *("--rate", str(rate), "--count", str(count), "--connections", str(MAIN_CONNECTIONS)),
    ]


def run_open_loop(shop: Shop, prefix: str, rate: float, count: int) -> dict[str, Any]:
    """One run of the generator in a process of its own. Raises BenchFailed where it gives no result."""
    seconds = (count / rate if rate else 0) + ANSWER_SECONDS_MAX + PREPARE_SECONDS_MAX
    try:
        done = subprocess.run(
            generator_arguments(shop, prefix, rate, count),
            cwd=CHECKOUT,
            input=f"{shop.checkout_key}\n".encode(),
            capture_output=True,
            timeout=seconds,
            check=True,
        )
    except subprocess.SubprocessError as error:
        raise BenchFailed(f"the open loop failed: {error} {getattr(error, 'stderr', b'')!r}") from error
    found: dict[str, Any] = json.loads(done.stdout)
    return found
