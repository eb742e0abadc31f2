"""Runs of wrk, the closed-loop generator: as many connections as are asked for, each sending when it is answered."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.runtime.child import die_with_parent
from loadtest.bench.child_processes import BenchFailed

THREADS = 2
ANSWER_SECONDS_MAX = 10
SCRIPTS = Path(__file__).parent / "wrk"
BUSY_SHARE = 0.95
"""A thread of wrk's that takes more of a core than this was perhaps what held the others up."""


@dataclass(frozen=True)
class WrkRun:
    """What one run saw; latencies in milliseconds."""

    requests: int
    seconds: float
    refused: int
    """Answers with a status of 400 or more."""
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    issued: list[int]
    """Requests begun by each thread; at the end as many as there are connections may be without an answer."""
    special: int
    """Those of another kind, as the script counts them."""
    cpu_seconds: float

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds

    @property
    def succeeded(self) -> int:
        """Answers with a status below 400."""
        return self.requests - self.refused

    @property
    def is_busy(self) -> bool:
        """Whether wrk itself may have been the bottleneck."""
        return self.cpu_seconds / self.seconds > BUSY_SHARE * THREADS


def require_wrk() -> str:
    """Where wrk is. Raises BenchFailed, saying how to get it."""
    if found := shutil.which("wrk"):
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for arguments in (("update",), ("install", "-y", "--no-install-recommends", "wrk")):
            subprocess.run(
                ["apt-get", "-qq", *arguments], env=environment, stdout=subprocess.DEVNULL, check=False
            )  # what comes of it is seen below
        if found := shutil.which("wrk"):
            return found
    raise BenchFailed("wrk is missing; install your system's package wrk (Debian: apt-get install wrk)")


def run_wrk(url: str, connections: int, seconds: float, script: str, arguments: Sequence[str]) -> WrkRun:
    """One run. Raises BenchFailed on any error of a socket, or an answer that did not come."""
    argv = [
        *(
            require_wrk(),
            "-t",
            str(min(THREADS, connections)),
            "-c",
            str(connections),
            "-d",
            f"{max(round(seconds), 1)}s",
        ),
        *("--timeout", f"{ANSWER_SECONDS_MAX}s", "-s", str(SCRIPTS / script), url, "--", *arguments),
    ]
    said, exit_status, cpu_seconds = _run_to_its_end(argv)
    lines = [line.partition("RESULT ")[2] for line in said.splitlines() if "RESULT " in line]
    if exit_status != 0 or len(lines) != 1:
        raise BenchFailed(f"wrk failed: {said[-2000:]}")
    found = json.loads(lines[0])
    errors = {name: found[name] for name in ("connect", "read", "write", "timeout") if found[name]}
    if errors or not found["requests"]:
        raise BenchFailed(f"wrk with {connections} connections at {url}: {found['requests']} answers, errors {errors}")
    return WrkRun(
        requests=found["requests"],
        seconds=found["duration_us"] / 1e6,
        refused=found["status"],
        p50_ms=found["p50_us"] / 1000,
        p99_ms=found["p99_us"] / 1000,
        p999_ms=found["p999_us"] / 1000,
        max_ms=found["max_us"] / 1000,
        issued=found["issued"],
        special=sum(found["special"]),
        cpu_seconds=cpu_seconds,
    )


def _run_to_its_end(argv: Sequence[str]) -> tuple[str, int, float]:
    """What it printed, its exit status, and the processor seconds that it took; it does not outlive us."""
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509 - it only calls prctl
    )
    assert process.stdout is not None
    try:
        said = process.stdout.read().decode(errors="replace")
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        process.stdout.close()
        if process.returncode is None:
            process.kill()
            process.wait()
    return said, process.returncode, usage.ru_utime + usage.ru_stime
