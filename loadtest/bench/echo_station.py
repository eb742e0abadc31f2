"""The echo server on the engine's HTTP stack: a ceiling for anything that answers a checkout over HTTP."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.runtime.ports import pick_free_port
from loadtest.bench.child_processes import serving
from loadtest.bench.engine_under_test import OTHER_SKU
from loadtest.bench.station import MAIN_CONNECTIONS, Bench
from loadtest.bench.wrk_run import run_wrk
from loadtest.load.requests import PRICE_MINOR, SKU

ANSWERS = ("order", "sold_out")


class EchoStation:
    """Echoes of both sizes, at the numbers of connections that the engine has."""

    name = "echo"

    def visit(self, bench: Bench) -> None:
        """One round. Raises BenchFailed."""
        for answer in ANSWERS:
            with bench.directory(self.name) as directory, running_echo(directory, answer) as port:
                self._run(bench, port, MAIN_CONNECTIONS, bench.effort.warm_up_seconds)
                for connections in bench.effort.connections:
                    bench.say(f"echo: {answer}, {connections} connections")
                    rate, p99_ms = self._run(bench, port, connections, bench.seconds_at(connections))
                    bench.results.add(f"echo.{answer}_c{connections}.rate", rate, "/s")
                    bench.results.add(f"echo.{answer}_c{connections}.p99", p99_ms, "ms")

    def _run(self, bench: Bench, port: int, connections: int, seconds: float) -> tuple[float, float]:
        prefix = bench.prefix()
        arguments = (
            "accepted",
            "sale-000001",
            "no-key",
            prefix,
            SKU,
            OTHER_SKU,
            str(PRICE_MINOR),
            "1",
            "1",
            f"{prefix}9",
        )
        run = run_wrk(f"http://127.0.0.1:{port}", connections, seconds, "orders.lua", arguments)
        if run.is_busy:
            bench.results.remark(f"echo at {connections} connections: wrk took all of its threads' time")
        return run.per_second, run.p99_ms


@contextmanager
def running_echo(directory: Path, answer: str) -> Iterator[int]:
    """An echo server; its port."""
    port = pick_free_port("127.0.0.1")
    arguments = ("--port", str(port), "--answer", answer)
    with serving("loadtest.load.echo_server", arguments, port, directory / "echo.log"):
        yield port
