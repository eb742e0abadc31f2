"""The engine under a closed loop: accepted, sold out, mixed, a storm of repeats, settled; each run is verified."""

from collections.abc import Sequence
from pathlib import Path

from engine.domain.identifiers import OrderId
from loadtest.bench.child_processes import BenchFailed
from loadtest.bench.cpu_time import spent
from loadtest.bench.engine_under_test import OTHER_SKU, PLENTY, EngineUnderTest, running_engine
from loadtest.bench.sampler import Sampler
from loadtest.bench.station import MAIN_CONNECTIONS, Bench
from loadtest.bench.wrk_run import THREADS, WrkRun, run_wrk
from loadtest.load.requests import CHANNEL, PRICE_MINOR, SKU, buyer_of, key_of

SPECIAL_EVERY = 100
"""One request in so many is a repeat, or buys what is there."""
STORM_KEYS = 64
MILLION = 1_000_000
GENERATOR = "generator"


class EngineStation:
    """One engine with so many gateways."""

    def __init__(self, gateways: int) -> None:
        self.name = f"engine_g{gateways}"
        self._gateways = gateways

    def visit(self, bench: Bench) -> None:
        """One round on a fresh engine. Raises BenchFailed."""
        with bench.directory(self.name) as directory, running_engine(directory, self._gateways) as engine:
            visit = _Visit(bench, engine, self.name)
            visit.warm_up()
            for connections in bench.effort.connections:
                visit.accepted(connections)
            for connections in bench.effort.connections:
                visit.sold_out(connections)
            if self._gateways == 1:
                visit.mixed()
                visit.storm()
                visit.settle()
            visit.audit()


class _Visit:
    """One round on one engine."""

    def __init__(self, bench: Bench, engine: EngineUnderTest, name: str) -> None:
        self._bench = bench
        self._engine = engine
        self._name = name
        self._main_sale_id = ""

    def audit(self) -> None:
        """Everything in the last round; before, the sale of the bars, for a million orders are audited for a while."""
        self._bench.say(f"{self._name}: the audit")
        if self._bench.is_last_round or not self._main_sale_id:
            self._engine.audit()
        else:
            self._engine.audit(self._main_sale_id)

    def warm_up(self) -> None:
        """Everything has run once before anything counts."""
        sale_id = self._bench.sale_id("warm")
        self._engine.make_sale(sale_id, PLENTY)
        self._wrk("accepted", sale_id, MAIN_CONNECTIONS, self._bench.effort.warm_up_seconds, self._bench.prefix())

    def accepted(self, connections: int) -> None:
        """Every request is a new order; all get one, and the sequence numbers that were used tell how many."""
        engine, measure = self._engine, f"accepted_c{connections}"
        sale_id, prefix, sampled = self._bench.sale_id("accepted"), self._bench.prefix(), f"{self._bench.prefix()}s"
        if connections == MAIN_CONNECTIONS:
            self._main_sale_id = sale_id
        engine.make_sale(sale_id, PLENTY)
        first = engine.sequence(sale_id, buyer_of(sampled, 0))
        cpu_before = engine.cpu_seconds()

        def check(number: int) -> None:
            engine.sequence(sale_id, buyer_of(sampled, number))

        with Sampler(check) as sampler:
            run = self._wrk("accepted", sale_id, connections, self._bench.seconds_at(connections), prefix)
        last = engine.sequence(sale_id, buyer_of(sampled, sampler.count + 1))
        self._require_no_refusal(measure, run)
        self._require_between(measure, last - first - 1 - sampler.count, run.requests, run.requests + connections)
        ledger_seconds = engine.wait_for_ledger(sale_id, last)
        self._note_run(measure, run)
        self._note_cpu(measure, run, spent(cpu_before, engine.cpu_seconds()), last - first)
        self._note(f"{measure}.ledger_lag", ledger_seconds, "s")
        # what wrk left unanswered in one gateway may be decided behind what is asked of another
        under_way = connections if len(engine.endpoints["processes"]["gateway"]) > 1 else 0
        self._require_between(measure, engine.held(sale_id), last - first + 1, last - first + 1 + under_way)

    def sold_out(self, connections: int) -> None:
        """Nothing is left; one request in a hundred repeats an order that was accepted, and must get it."""
        engine, measure = self._engine, f"sold_out_c{connections}"
        sale_id, seed_prefix, other = (
            self._bench.sale_id("gone"),
            f"{self._bench.prefix()}0",
            f"{self._bench.prefix()}s",
        )
        seeds = self._bench.effort.seed_orders
        engine.make_sale(sale_id, seeds)
        orders = list(engine.seed_orders(sale_id, seed_prefix, seeds).items())
        cpu_before = engine.cpu_seconds()

        def check(number: int) -> None:
            buyer_id, order_id = orders[number % len(orders)]
            repeat = engine.order(sale_id, buyer_id)
            if (
                repeat.status != 200
                or repeat.body["order_id"] != order_id
                or "idempotent-replayed" not in repeat.headers
            ):
                raise BenchFailed(f"the repeat of {order_id} was answered {repeat.status} {repeat.body}")
            late = engine.order(sale_id, buyer_of(other, number))
            if late.status != 409 or late.body.get("code") != "SOLD_OUT" or late.body.get("available") != 0:
                raise BenchFailed(f"a buyer who is too late was answered {late.status} {late.body}")

        with Sampler(check):
            run = self._wrk(
                "sold_out",
                sale_id,
                connections,
                self._bench.seconds_at(connections),
                self._bench.prefix(),
                seeds=seeds,
                seed_prefix=seed_prefix,
            )
        self._require_between(measure, run.succeeded, run.special - connections, run.special)
        self._require_between(measure, engine.held(sale_id), seeds, seeds)
        self._note_run(measure, run)
        self._note_cpu(measure, run, spent(cpu_before, engine.cpu_seconds()), run.requests)

    def mixed(self) -> None:
        """A live: one request in a hundred buys what is there, the others come too late."""
        engine, seeds = self._engine, self._bench.effort.seed_orders
        sale_id = self._bench.sale_id("mixed")
        engine.make_sale(sale_id, seeds, PLENTY)
        engine.seed_orders(sale_id, f"{self._bench.prefix()}0", seeds)
        run = self._wrk("mixed", sale_id, MAIN_CONNECTIONS, self._bench.effort.side_run_seconds, self._bench.prefix())
        self._require_between("mixed", run.succeeded, run.special - MAIN_CONNECTIONS, run.special)
        held = engine.held(sale_id, OTHER_SKU)
        self._require_between("mixed", held, run.succeeded, run.succeeded + MAIN_CONNECTIONS)
        self._require_between("mixed", engine.held(sale_id), seeds, seeds)
        self._note_run("mixed", run)

    def storm(self) -> None:
        """A few keys, repeated by everybody: each makes one order, and every answer is that order."""
        sale_id, seed_prefix = self._bench.sale_id("storm"), f"{self._bench.prefix()}0"
        self._engine.make_sale(sale_id, PLENTY)
        run = self._wrk(
            "storm",
            sale_id,
            MAIN_CONNECTIONS,
            self._bench.effort.side_run_seconds,
            self._bench.prefix(),
            seeds=STORM_KEYS,
            seed_prefix=seed_prefix,
        )
        self._require_no_refusal("storm", run)
        self._require_between("storm", self._engine.held(sale_id), STORM_KEYS, STORM_KEYS)
        self._note_run("storm", run)

    def settle(self) -> None:
        """Payments of orders that were held just before, each once."""
        engine, prefix, sale_id = self._engine, self._bench.prefix(), self._bench.sale_id("settle")
        engine.make_sale(sale_id, PLENTY)
        held = self._wrk("accepted", sale_id, MAIN_CONNECTIONS, 2 * self._bench.effort.side_run_seconds, prefix)
        self._require_no_refusal("settle", held)
        path = engine.data_dir / "orders.txt"
        self._write_order_ids(path, sale_id, prefix, held.issued)
        arguments = (engine.checkout_key, str(PRICE_MINOR), str(path), str(THREADS))
        run = run_wrk(
            engine.gateway_url, MAIN_CONNECTIONS, self._bench.effort.side_run_seconds, "settle.lua", arguments
        )
        self._require_no_refusal("settle", run)
        if run.special:
            raise BenchFailed("settle: there were not enough held orders to be settled")
        self._require_between("settle", engine.settled(sale_id), run.requests, run.requests + MAIN_CONNECTIONS)
        self._note_run("settle", run)

    def _write_order_ids(self, path: Path, sale_id: str, prefix: str, issued: Sequence[int]) -> None:
        """Orders that were certainly made: wrk never sends its first request, nor waits for the last ones."""
        with path.open("w") as file:
            for thread, count in enumerate(issued):
                for number in range(2, count - 2 * MAIN_CONNECTIONS):
                    buyer_id = buyer_of(f"{prefix}{thread}", number)
                    file.write(f"{OrderId.of(sale_id, CHANNEL, buyer_id, key_of(buyer_id))}\n")

    def _wrk(
        self,
        mode: str,
        sale_id: str,
        connections: int,
        seconds: float,
        prefix: str,
        *,
        seeds: int = 1,
        seed_prefix: str = "",
    ) -> WrkRun:
        self._bench.say(f"{self._name}: {mode}, {connections} connections")
        arguments = (
            *(mode, sale_id, self._engine.checkout_key, prefix, SKU, OTHER_SKU, str(PRICE_MINOR)),
            *(str(SPECIAL_EVERY), str(seeds), seed_prefix or f"{prefix}9"),
        )
        return run_wrk(self._engine.gateway_url, connections, seconds, "orders.lua", arguments)

    def _require_no_refusal(self, measure: str, run: WrkRun) -> None:
        if run.refused:
            raise BenchFailed(
                f"{self._name} {measure}: {run.refused} of {run.requests} answers were refusals or failures"
            )

    def _require_between(self, measure: str, found: int, least: int, most: int) -> None:
        if not least <= found <= most:
            raise BenchFailed(f"{self._name} {measure}: {found} where {least} to {most} must be")

    def _note(self, measure: str, value: float, unit: str) -> None:
        self._bench.results.add(f"{self._name}.{measure}", value, unit)

    def _note_run(self, measure: str, run: WrkRun) -> None:
        self._note(f"{measure}.rate", run.per_second, "/s")
        self._note(f"{measure}.p50", run.p50_ms, "ms")
        self._note(f"{measure}.p99", run.p99_ms, "ms")
        self._note(f"{measure}.p999", run.p999_ms, "ms")
        if run.is_busy:
            self._bench.results.remark(
                f"{self._name} {measure}: wrk took all of its threads' time; more may be possible"
            )

    def _note_cpu(self, measure: str, run: WrkRun, seconds: dict[str, float], count: int) -> None:
        """Processor seconds for a million answers, by kind of process."""
        for kind, value in {**seconds, GENERATOR: run.cpu_seconds}.items():
            self._note(f"{measure}.cpu_of_a_million.{kind}", value * MILLION / count, "s")
