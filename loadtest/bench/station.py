"""What a run of the benchmark is made of: stations that are visited round by round, and what they may spend."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from loadtest.bench.results import Results

MAIN_CONNECTIONS = 256
"""What the bars are about."""
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Effort:
    """How long and how much. `quick` shows that everything works and about where it stands; `full` is for figures."""

    rounds: int
    run_seconds: float
    side_run_seconds: float
    """Of runs that no bar is about."""
    warm_up_seconds: float
    connections: tuple[int, ...]
    gateways: tuple[int, ...]
    seed_orders: int
    script_orders: int
    """Decided by the script in one run without HTTP, in batches; a tenth of it one by one."""
    open_loop_shares: tuple[float, ...]
    open_loop_seconds: float
    demonstration_seconds: float
    scale_orders: tuple[int, ...]
    """Numbers of orders in one sale at which the cost of the next one is measured."""
    memory_orders: int
    large_sale_skus: int
    waits_for_retirement: bool
    """A closed sale leaves Redis a minute and a half after its retention."""
    lag_seconds: float
    burst_orders: int


FULL = Effort(
    rounds=5,
    run_seconds=3,
    side_run_seconds=2,
    warm_up_seconds=1,
    connections=(64, 256, 2000),
    gateways=(1, 2),
    seed_orders=500,
    script_orders=100_000,
    open_loop_shares=(0.25, 0.5, 0.75, 0.9),
    open_loop_seconds=3,
    demonstration_seconds=2,
    scale_orders=(10_000, 100_000, 1_000_000, 5_000_000),
    memory_orders=100_000,
    large_sale_skus=20_000,
    waits_for_retirement=True,
    lag_seconds=8,
    burst_orders=200_000,
)
QUICK = Effort(
    rounds=1,
    run_seconds=1,
    side_run_seconds=1,
    warm_up_seconds=1,
    connections=(256,),
    gateways=(1,),
    seed_orders=100,
    script_orders=20_000,
    open_loop_shares=(0.5,),
    open_loop_seconds=1,
    demonstration_seconds=1,
    scale_orders=(10_000, 50_000),
    memory_orders=20_000,
    large_sale_skus=2_000,
    waits_for_retirement=False,
    lag_seconds=2,
    burst_orders=20_000,
)


@dataclass
class Bench:
    """One run: what it may spend, where it may write, what it has found."""

    effort: Effort
    scratch: Path
    results: Results
    say: Callable[[str], None]
    is_last_round: bool = True
    """In the last round what takes long is checked as well."""
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def prefix(self) -> str:
        """Three characters that no other run of a generator has had: buyers are never met again by chance."""
        number = next(self._numbers)
        assert number < len(DIGITS) ** 3
        return "".join(DIGITS[number // len(DIGITS) ** place % len(DIGITS)] for place in (2, 1, 0))

    def seconds_at(self, connections: int) -> float:
        """How long to run with so many connections: longest where the bars are."""
        return self.effort.run_seconds if connections == MAIN_CONNECTIONS else self.effort.side_run_seconds

    def sale_id(self, name: str) -> str:
        """The id of a sale that has not been there."""
        return f"{name}-{next(self._numbers)}"

    @contextmanager
    def directory(self, name: str) -> Iterator[Path]:
        """A directory of one's own, gone afterwards."""
        path = self.scratch / f"{name}-{next(self._numbers)}"
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


class Station(Protocol):
    """Something that is measured once a round. It starts its servers, measures, and leaves nothing running."""

    name: str

    def visit(self, bench: Bench) -> None:
        """One round. Raises BenchFailed where something was seen that must not be."""
        ...
