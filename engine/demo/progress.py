"""The demo while it runs: a live panel in a terminal, plain lines everywhere else."""

import asyncio
import time

import aiohttp
from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from engine.demo.caller import Caller, CannotTell
from engine.demo.live import Live

REFRESH_SECONDS = 0.25
LINE_SECONDS = 2.0
LOOK_SECONDS = 1.0
LAG_METRIC = "miaocang_persister_lag_entries "


class Progress:
    """Shows one sale until it is told to stop. Looking never disturbs the sale: a look that fails is shown as `?`."""

    def __init__(self, console: Console, live: Live, backoffice: Caller) -> None:
        self._console = console
        self._live = live
        self._backoffice = backoffice
        self._lag_entries: int | None = None
        self._looked_at = 0.0

    async def show(self) -> None:
        """Show until cancelled."""
        if self._console.is_terminal:
            await self._show_panel()
        else:
            await self._show_lines()

    async def _show_panel(self) -> None:
        with RichLive(self._panel(), console=self._console, auto_refresh=False, transient=True) as shown:
            while True:
                await self._look()
                shown.update(self._panel(), refresh=True)
                await asyncio.sleep(REFRESH_SECONDS)

    async def _show_lines(self) -> None:
        while True:
            await asyncio.sleep(LINE_SECONDS)
            await self._look()
            figures = "   ".join(f"{name} {value}" for name, value in self._figures())
            self._console.print(f"          {figures}", soft_wrap=True)

    async def _look(self) -> None:
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        try:
            self._lag_entries = parse_lag(await self._backoffice.read_text("/metrics"))
            self._live.levels = await self._live.operator.read_levels()
        except (aiohttp.ClientError, TimeoutError, CannotTell):
            self._lag_entries = None

    def _figures(self) -> list[tuple[str, str]]:
        tally, levels, now = self._live.buyers.tally, self._live.levels, time.monotonic()
        answers_a_second = sum(at > now - 1 for at in tally.answered_at[-5000:])
        accepted_a_second = sum(at > now - 1 for at in tally.accepted_at[-5000:])
        lag = "?" if self._lag_entries is None else f"{self._lag_entries:,}"
        return [
            ("clicks/s", f"{answers_a_second:,}"),
            ("accepted/s", f"{accepted_a_second:,}"),
            ("orders", f"{len(tally.orders):,}"),
            ("refused", ", ".join(f"{code} {count:,}" for code, count in tally.refused.most_common()) or "0"),
            ("paid", f"{len(tally.with_status('settled')):,}"),
            ("units on sale", f"{levels.available:,}"),
            ("held", f"{levels.held:,}"),
            ("settled", f"{levels.settled:,}"),
            ("persister lag", f"{lag} entries"),
        ]

    def _panel(self) -> Panel:
        table = Table.grid(padding=(0, 2))
        for name, value in self._figures():
            table.add_row(Text(name, style="dim"), value)
        return Panel(Group(Text(self._live.act, style="bold"), table), title="Miaocang", width=100)


def parse_lag(metrics: str) -> int | None:
    """How many journal entries the ledger is behind, out of the metrics' text; None where it is not told."""
    for line in metrics.splitlines():
        if line.startswith(LAG_METRIC):
            return int(float(line.removeprefix(LAG_METRIC)))
    return None
