"""`miaocang demo`: a whole engine, a livestream flash sale on real orders, the ERP's pull, the audit, the verdict."""

import asyncio
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from engine.demo import report
from engine.demo.buyers import Buyers
from engine.demo.caller import Caller, CannotTell, open_session
from engine.demo.catalogue import make_catalogue
from engine.demo.engine_process import EngineProcess
from engine.demo.erp import Erp
from engine.demo.live import Live
from engine.demo.operator import Operator
from engine.demo.orders_data import OrdersData, find_orders_file, read_orders
from engine.demo.progress import Progress
from engine.demo.tally import Agreement, Tally, compare, rows_expected
from engine.runtime.endpoints import Endpoints

OK = 0
FAILED = 1
INTERRUPTED = 130
PLAIN_WIDTH = 140
"""Columns where nobody's terminal says how many it has."""
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(data_dir: Path, exit_when_done: bool, rows_max: int | None = None) -> int:
    """Run the demo on a data directory and return its exit status; `rows_max` plays only the file's first rows.

    0 only if the audit holds and the figures agree; 130 where it was interrupted before the verdict.
    Raises: StartRefused, where the engine does not start.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no such sign is no reason to stop
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    return asyncio.run(_Demo(console, data_dir, exit_when_done, rows_max).run())


class _Demo:
    def __init__(self, console: Console, data_dir: Path, exit_when_done: bool, rows_max: int | None) -> None:
        self._console = console
        self._engine = EngineProcess(data_dir, self._announce)
        self._exit_when_done = exit_when_done
        self._rows_max = rows_max
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """From the engine's start to its end, which comes whatever happens."""
        for number in ENDINGS:
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)
        showing = asyncio.create_task(self._start_and_show())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((showing, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not showing.done():
                self._console.print("interrupted: the engine is being stopped")
                return INTERRUPTED
            endpoints, status = showing.result()
            if not self._exit_when_done:
                await self._leave_console_open(endpoints, stopping)
            return status
        finally:
            await _cancel(showing, stopping)
            await self._engine.stop()

    async def _start_and_show(self) -> tuple[Endpoints, int]:
        """Where the engine is, and the demo's status. Raises: StartRefused."""
        self._engine.refuse_if_in_use()
        data = read_orders(find_orders_file(), self._rows_max)
        self._announce("starting a whole engine: Redis, PostgreSQL, two gateways, a worker, the back office")
        endpoints = await self._engine.start()
        status = FAILED
        try:
            status = await self._play_while_engine_runs(data, endpoints)
        except* CannotTell as failures:
            for failure in _leaves(failures):
                self._console.print(Text(f"the demo cannot tell: {failure}", style="bold red"))
        return endpoints, status

    async def _play_while_engine_runs(self, data: OrdersData, endpoints: Endpoints) -> int:
        playing = asyncio.create_task(self._play(data, endpoints))
        ending = asyncio.create_task(self._engine.wait())
        try:
            await asyncio.wait((playing, ending), return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                return playing.result()
            raise CannotTell(f"the engine ended by itself; see {self._engine.log_directory}")
        finally:
            await _cancel(playing, ending)

    async def _play(self, data: OrdersData, endpoints: Endpoints) -> int:
        """The sale, the ERP's pull, the report and the verdict. Raises: CannotTell, or a group of them."""
        sale_id = f"demo-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        catalogue = make_catalogue(data)
        async with open_session() as session:
            operators = Caller(session, endpoints.backoffice_url, endpoints.keys["ops"])
            buyers = Buyers(
                Caller(session, endpoints.gateway_url, endpoints.keys["checkout"]), sale_id, catalogue, Tally()
            )
            live = Live(buyers, Operator(operators, sale_id), data.carts, self._announce)
            erp = Erp(Caller(session, endpoints.backoffice_url, endpoints.keys["erp"]), sale_id)
            self._announce(f"sale {sale_id} through {endpoints.gateway_url}")
            progress = asyncio.create_task(Progress(self._console, live, operators).show())
            try:
                await live.run()
                self._announce("the ERP pulls the feed to its end")
                await erp.pull(rows_expected(buyers.tally))
                self._announce("the audit recomputes every promise")
                audit = await live.operator.audit()
                sale = await live.operator.read_sale()
            finally:
                await _cancel(progress)
        return self._report(data, live, erp, compare(buyers.tally, erp.rows, sale, erp.gaps), audit)

    def _report(
        self, data: OrdersData, live: Live, erp: Erp, agreements: Sequence[Agreement], audit: Mapping[str, Any]
    ) -> int:
        report.print_sale(self._console, data, live, erp.rows)
        report.print_rows(self._console, data)
        report.print_speed(self._console, live)
        return OK if report.print_verdict(self._console, agreements, audit, live.trouble) else FAILED

    async def _leave_console_open(self, endpoints: Endpoints, stopping: "asyncio.Task[Any]") -> None:
        """Leave the engine running, for people to look around, until a signal or the engine's own end."""
        self._console.print(Text(f"\nconsole   {endpoints.backoffice_url}/console/", style="bold"), soft_wrap=True)
        self._console.print(f"ops key   {endpoints.keys['ops']}", soft_wrap=True)
        self._console.print("Ctrl-C ends the engine and leaves no process behind.")
        ending = asyncio.create_task(self._engine.wait())
        try:
            await asyncio.wait((stopping, ending), return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                self._console.print(f"the engine ended by itself; see {self._engine.log_directory}")
        finally:
            await _cancel(ending)

    def _announce(self, line: str) -> None:
        self._console.print(Text(f"{datetime.now():%H:%M:%S}  {line}"), soft_wrap=True)


async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _leaves(group: BaseExceptionGroup[CannotTell]) -> Iterator[CannotTell]:
    for failure in group.exceptions:
        if isinstance(failure, BaseExceptionGroup):
            yield from _leaves(failure)
        else:
            yield failure
