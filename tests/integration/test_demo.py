"""The demo as a person runs it, on the first rows of the file: its verdict, its exit status, what it leaves behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from engine.runtime.data_directory import DataDirectory
from engine.runtime.endpoints import read_endpoints
from engine.runtime.process_identity import processes_working_in

DEMO_SECONDS_MAX = 100.0
ROWS = 600
START = """
import sys
from pathlib import Path
from engine.demo.run import main
from engine.runtime.refusals import StartRefused
try:
    sys.exit(main(Path(sys.argv[1]), exit_when_done=sys.argv[2] == "exit", rows_max=int(sys.argv[3])))
except StartRefused as refusal:
    sys.exit(f"miaocang: {refusal}")
"""

pytestmark = pytest.mark.timeout(180)


def command(data_dir: Path, ending: str) -> list[str]:
    return [sys.executable, "-c", START, str(data_dir), ending, str(ROWS)]


@contextmanager
def running_demo(data_dir: Path) -> Iterator["subprocess.Popen[str]"]:
    """A demo that stays, started; it is ended afterwards, and the engine with it."""
    process = subprocess.Popen(
        command(data_dir, "stay"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


def wait_for_line(process: "subprocess.Popen[str]", part: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if part in line:
            return lines
    raise AssertionError(f"the demo ended without {part!r}: {''.join(lines)}")


def pids_of(data_dir: Path) -> set[int]:
    """Every process that was started for this directory, the stores' own included."""
    wanted = f"MIAOCANG_DATA_DIR={data_dir}".encode()
    pids = {identity.pid for identity in processes_working_in(data_dir / "postgres")}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command_line, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            if str(data_dir).encode() in command_line or wanted in environment.split(b"\0"):
                pids.add(int(entry.name))
    return pids


def wait_until_none_is_left(data_dir: Path, timeout_seconds: float) -> set[int]:
    deadline = time.monotonic() + timeout_seconds
    while (left := pids_of(data_dir)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


def run_demo(data_dir: Path) -> "subprocess.CompletedProcess[str]":
    """The demo with --exit, to its end."""
    return subprocess.run(
        command(data_dir, "exit"), check=False, capture_output=True, text=True, timeout=DEMO_SECONDS_MAX
    )


class FirstRun(NamedTuple):
    """A demo that has ended by itself, on a directory that was new."""

    data_dir: Path
    ran: "subprocess.CompletedProcess[str]"


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    data_dir = tmp_path_factory.mktemp("demo") / "var"
    return FirstRun(data_dir, run_demo(data_dir))


def test_the_demo_sells_real_orders_and_ends_with_a_verdict_that_holds_and_no_process(first_run: FirstRun) -> None:
    data_dir, ran = first_run
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "verdict: the figures agree" in ran.stdout
    assert "verdict: the audit holds" in ran.stdout
    assert "BROKEN" not in ran.stdout
    assert "rows read" in ran.stdout
    assert ran.stderr == ""
    assert pids_of(data_dir) == set()
    assert not (data_dir / "endpoints.json").exists()


def test_a_second_demo_on_the_same_directory_has_it_for_itself_and_takes_the_engine_along_when_killed(
    first_run: FirstRun,
) -> None:
    data_dir = first_run.data_dir
    with running_demo(data_dir) as demo:
        shown = "".join(wait_for_line(demo, "Ctrl-C ends the engine"))
        assert "verdict: the figures agree" in shown
        assert "verdict: the audit holds" in shown
        endpoints = read_endpoints(DataDirectory(data_dir).endpoints)
        assert endpoints is not None
        assert f"{endpoints.backoffice_url}/console/" in shown
        assert endpoints.keys["ops"] in shown

        second = run_demo(data_dir)
        assert second.returncode == 1
        assert second.stdout == ""
        assert second.stderr.count("\n") == 1
        assert f"an engine (process {endpoints.pid}) already runs on {data_dir}" in second.stderr

        demo.kill()
        assert wait_until_none_is_left(data_dir, 15.0) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_in_the_middle_leaves_no_process(data_dir: Path, number: signal.Signals) -> None:
    with running_demo(data_dir) as demo:
        wait_for_line(demo, "the links are up")
        demo.send_signal(number)
        assert demo.wait(20) == 130
        assert pids_of(data_dir) == set()
        assert not (data_dir / "endpoints.json").exists()
