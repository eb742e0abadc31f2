"""Engines for the fault tests, and how large these are: `--full`, or `MIAOCANG_TEST_FULL=1`, for the full numbers."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.running_engine import RunningEngine

Report = Callable[[str, object], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Known only where this folder is named on the command line; the variable works everywhere."""
    parser.addoption("--full", action="store_true", default=False, help="Run the fault tests with their full numbers.")


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether the full numbers are wanted."""
    return bool(pytestconfig.getoption("--full", default=False)) or os.environ.get("MIAOCANG_TEST_FULL") == "1"


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Report:
    """Says a figure: it is shown at the end of the run, under the name of its test."""
    return record_property


@pytest.fixture
def start_engine(tmp_path: Path) -> Iterator[Callable[..., RunningEngine]]:
    """Starts engines on data directories of their own; each is gone at the end, whatever happened."""
    engines: list[RunningEngine] = []

    def start(name: str = "var", **options: Any) -> RunningEngine:
        engine = RunningEngine(tmp_path / name, **options)
        engines.append(engine)
        engine.start()
        return engine

    yield start
    for engine in engines:
        engine.clear_away()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    """One engine with two gateways for a module's tests, each of which has a sale of its own."""
    shared = RunningEngine(tmp_path_factory.mktemp("engine") / "var")
    try:
        shared.start()
        yield shared
    finally:
        shared.clear_away()
