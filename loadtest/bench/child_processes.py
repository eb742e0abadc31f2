"""Child processes of the benchmark: they die with it, and each is seen to be gone."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from engine.runtime.child import ChildPlan, die_with_parent
from loadtest.bench.cpu_time import tree_of

END_SECONDS_MAX = 20.0
LISTEN_SECONDS_MAX = 20.0
CHECKOUT = Path(__file__).resolve().parents[2]


class BenchFailed(Exception):
    """A scenario saw what it must never see, or could not be run; its figures do not count."""


def start(
    argv: Sequence[str],
    log_path: Path,
    environment: Mapping[str, str] | None = None,
    standard_input: IO[bytes] | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a process of which the kernel sees to it that it does not outlive us."""
    with log_path.open("ab") as log:
        return subprocess.Popen(
            list(argv),
            cwd=CHECKOUT,
            env=dict(os.environ if environment is None else environment),
            stdin=subprocess.DEVNULL if standard_input is None else standard_input,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - it only calls prctl
        )


def end(process: "subprocess.Popen[bytes]", number: signal.Signals = signal.SIGTERM) -> None:
    """End a process and wait until it and what it started are gone. Raises BenchFailed where it had to be killed."""
    pids = tree_of(process.pid)
    if process.poll() is None:
        process.send_signal(number)
    killed = False
    try:
        process.wait(END_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        killed = True
        process.kill()
        process.wait()
    deadline = time.monotonic() + END_SECONDS_MAX
    while left := [pid for pid in pids if _is_running(pid)]:
        if time.monotonic() > deadline:
            raise BenchFailed(f"processes {left} outlived {process.args!r}")
        time.sleep(0.02)
    if killed:
        raise BenchFailed(f"{process.args!r} did not end within {END_SECONDS_MAX:g} seconds and was killed")


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@contextmanager
def serving(
    module: str, arguments: Sequence[str], port: int, log_path: Path, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A Python module of this checkout as a server, from when its port answers."""
    process = start((sys.executable, "-m", module, *arguments), log_path, environment)
    try:
        wait_until_listening(port, process, log_path)
        yield process
    finally:
        end(process)


def wait_until_listening(port: int, process: "subprocess.Popen[bytes]", log_path: Path) -> None:
    """Raises BenchFailed where the process ends, or does not listen in time."""
    deadline = time.monotonic() + LISTEN_SECONDS_MAX
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                last = log_path.read_text(errors="replace")[-2000:]
                raise BenchFailed(f"{process.args!r} does not listen: {last}") from error
            time.sleep(0.02)
        else:
            return


def start_store(plan: ChildPlan, more_arguments: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
    """Start a store by the engine's own plan; ended with `end`, as it wants to be (`plan.stop_signals`)."""
    with plan.log_path.open("ab") as log:
        return subprocess.Popen(
            [*plan.argv, *more_arguments],
            env=dict(plan.environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=die_with_parent(plan.death_signal),  # noqa: PLW1509 - it only calls prctl
        )
