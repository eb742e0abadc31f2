"""Each baseline under the same closed loop as the engine, by the same generator with the same requests."""

from loadtest.bench.baseline_under_test import CHECKOUT_KEY, SALE_ID, Baseline, BaselineUnderTest, baseline_stores
from loadtest.bench.child_processes import BenchFailed
from loadtest.bench.cpu_time import kinds_seconds, spent
from loadtest.bench.engine_station import GENERATOR, MILLION
from loadtest.bench.engine_under_test import OTHER_SKU
from loadtest.bench.sampler import Sampler
from loadtest.bench.station import MAIN_CONNECTIONS, Bench
from loadtest.bench.wrk_run import WrkRun, run_wrk
from loadtest.load.requests import PRICE_MINOR, SKU, buyer_of


class BaselineStation:
    """One baseline."""

    def __init__(self, baseline: Baseline) -> None:
        self.name = f"baseline_{baseline.name}"
        self._baseline = baseline

    def visit(self, bench: Bench) -> None:
        """One round on fresh stores. Raises BenchFailed."""
        with bench.directory(self.name) as directory, baseline_stores(self._baseline, directory) as running:
            running.start()
            bench.say(f"{self.name}: accepted, {MAIN_CONNECTIONS} connections")
            self._run(running, bench.prefix(), bench.effort.warm_up_seconds)
            counted_before = running.count_orders()
            cpu_before = kinds_seconds(running.processes())
            sampled = f"{bench.prefix()}s"

            def check(number: int) -> None:
                answer = running.order(buyer_of(sampled, number))
                if answer.status != 201:
                    raise BenchFailed(f"{self.name}: an order was answered {answer.status} {answer.body}")

            with Sampler(check) as sampler:
                run = self._run(running, bench.prefix(), bench.effort.run_seconds)
            accepted = running.count_orders() - counted_before - sampler.count
            if not run.requests <= accepted <= run.requests + MAIN_CONNECTIONS:
                raise BenchFailed(f"{self.name}: {run.requests} answers, but {accepted} orders on record")
            results = bench.results
            results.add(f"{self.name}.accepted_c{MAIN_CONNECTIONS}.rate", run.per_second, "/s")
            results.add(f"{self.name}.accepted_c{MAIN_CONNECTIONS}.p50", run.p50_ms, "ms")
            results.add(f"{self.name}.accepted_c{MAIN_CONNECTIONS}.p99", run.p99_ms, "ms")
            seconds = spent(cpu_before, kinds_seconds(running.processes()))
            for kind, value in {**seconds, GENERATOR: run.cpu_seconds}.items():
                name = f"{self.name}.accepted_c{MAIN_CONNECTIONS}.cpu_of_a_million.{kind}"
                results.add(name, value * MILLION / accepted, "s")

    def _run(self, running: BaselineUnderTest, prefix: str, seconds: float) -> WrkRun:
        arguments = (
            "accepted",
            SALE_ID,
            CHECKOUT_KEY,
            prefix,
            SKU,
            OTHER_SKU,
            str(PRICE_MINOR),
            "1",
            "1",
            f"{prefix}9",
        )
        run = run_wrk(running.url, MAIN_CONNECTIONS, seconds, "orders.lua", arguments)
        if run.refused:
            raise BenchFailed(f"{self.name}: {run.refused} of {run.requests} answers were refusals or failures")
        return run
