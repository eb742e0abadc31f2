"""Run one live: an engine, Locust in a process of its own, the comparison, the audit, the verdict."""

import asyncio
import csv
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.demo.engine_process import EngineProcess
from engine.runtime.child import die_with_parent
from engine.runtime.endpoints import Endpoints
from engine.runtime.refusals import StartRefused
from loadtest.live.answers import ASK_AGAIN_CODES
from loadtest.live.compare import CannotTell, Check, compare
from loadtest.live.promises import Book

ROOT = Path(__file__).resolve().parents[2]
LOCUSTFILE = ROOT / "loadtest" / "locustfile.py"
LEFT_BY_LOCUST = (
    *("locust.html", "locust.log", "locust_book.json"),
    *(f"locust_{table}.csv" for table in ("stats", "stats_history", "failures", "exceptions")),
)
LEAVING_SECONDS = 10
"""How long people may finish what they are doing when they are sent away: the rest of a short hold, at the most."""
ENDING_SECONDS_MAX = 60.0
"""On top of the live's own length and the leaving, for Locust to start, and to write its report."""
AUDIT_SECONDS_MAX = 600.0
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Plan:
    """One run, as it was asked for."""

    shape: str
    minutes: float
    people_max: int
    results: Path
    endpoints_path: Path | None
    """Of an engine that runs already; None: start one."""


async def run(plan: Plan) -> int:
    """Play the live; the exit status is 0 only if every answer was right, every promise kept, and the audit holds.

    130 where it was interrupted. No process is left behind.
    """
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    playing = asyncio.create_task(_play(plan))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((playing, stopping), return_when=asyncio.FIRST_COMPLETED)
    interrupted = not playing.done()
    for task in (playing, stopping):
        task.cancel()
    outcome, _ = await asyncio.gather(playing, stopping, return_exceptions=True)
    if interrupted:
        say("interrupted: everything has been stopped")
        return INTERRUPTED
    if isinstance(outcome, (CannotTell, StartRefused)):
        say(f"verdict: cannot tell: {outcome}")
        return 1
    if isinstance(outcome, BaseException):
        raise outcome
    return 0 if outcome else 1


async def _play(plan: Plan) -> bool:
    """Raises: CannotTell, StartRefused."""
    plan.results.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        if plan.endpoints_path is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="miaocang-live-"))) / "var"
            engine = EngineProcess(data_dir, say)
            stack.push_async_callback(engine.stop)
            say(f"starting an engine of our own in {data_dir}")
            await engine.start()
            endpoints_path = data_dir / "endpoints.json"
        else:
            endpoints_path = plan.endpoints_path
        checks, book = await _live_and_comparison(plan, endpoints_path)
        audited, audit_words = await _audit(endpoints_path.parent, book.sale_id)
        checks.append(Check("the audit holds", audited, audit_words))
        if plan.endpoints_path is None:
            await engine.stop()
            status = await engine.wait()
            checks.append(Check("the engine drains and ends in order", status == 0, f"exit status {status}"))
    return _report(plan, book, checks)


async def _live_and_comparison(plan: Plan, endpoints_path: Path) -> tuple[list[Check], Book]:
    endpoints = _read_endpoints(endpoints_path)
    book_path = plan.results / "locust_book.json"
    for name in LEFT_BY_LOCUST:
        (plan.results / name).unlink(missing_ok=True)  # an earlier run's would be taken for this one's, or added to
    sale_id = f"{plan.shape}-{time.strftime('%Y%m%d-%H%M%S')}"
    say(f"{plan.shape} of {plan.minutes:g} minutes with up to {plan.people_max} people, sale {sale_id}")
    status = await _locust(plan, endpoints_path, sale_id, book_path)
    try:
        book = Book.read(book_path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        words = f"Locust ended with status {status} and left no book, see {plan.results / 'locust.log'}: {error}"
        raise CannotTell(words) from error
    words = "; ".join(book.defects[:5]) or f"Locust's exit status is {status}"
    checks = [Check("every answer was one that the contract allows", status == 0 and not book.defects_count, words)]
    say("people have left; waiting for unpaid holds to end, then comparing what they were told")
    return checks + await compare(endpoints, book), book


def _read_endpoints(path: Path) -> Mapping[str, Any]:
    """Raises: CannotTell, where no engine runs there."""
    try:
        endpoints = msgspec.json.decode(path.read_bytes(), type=Endpoints)
    except (OSError, msgspec.DecodeError) as error:
        raise CannotTell(f"no engine runs there: {error}") from error
    read: Mapping[str, Any] = msgspec.to_builtins(endpoints)
    return read


async def _locust(plan: Plan, endpoints_path: Path, sale_id: str, book_path: Path) -> int:
    """Locust's exit status. It runs in a process of its own, because it replaces what blocks by gevent's."""
    arguments = ["-f", str(LOCUSTFILE), "--headless", "--only-summary", "--stop-timeout", str(LEAVING_SECONDS)]
    arguments += ["--html", str(plan.results / "locust.html"), "--csv", str(plan.results / "locust")]
    arguments += ["--live-shape", plan.shape, "--minutes", str(plan.minutes), "--people", str(plan.people_max)]
    arguments += ["--endpoints", str(endpoints_path), "--sale", sale_id, "--book", str(book_path)]
    if plan.endpoints_path is None:
        arguments.append("--acknowledge-feed")
    with (plan.results / "locust.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "locust", *arguments),
            cwd=ROOT,
            stdin=DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others in order
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
    return await _ended(process, plan.minutes * 60 + LEAVING_SECONDS + ENDING_SECONDS_MAX)


async def _audit(data_dir: Path, sale_id: str) -> tuple[bool, str]:
    """`miaocang audit` as a command: whether it holds, and its last line, or the checks that do not hold."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "engine", "audit", sale_id, "--data-dir", str(data_dir)),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        preexec_fn=die_with_parent(signal.SIGKILL),
    )
    reading = asyncio.create_task(process.communicate())
    status = await _ended(process, AUDIT_SECONDS_MAX)
    output, _ = await reading
    lines = output.decode(errors="replace").splitlines() or ["it said nothing"]
    broken = [line for line in lines if line.startswith(("FAIL", "?"))]
    return status == 0, "; ".join([*broken, lines[-1]])


async def _ended(process: Process, seconds_max: float) -> int:
    """Wait for a process; one that takes too long, or that nobody waits for any more, is killed."""
    try:
        async with asyncio.timeout(seconds_max):
            return await process.wait()
    except TimeoutError as error:
        raise CannotTell(f"process {process.pid} did not end within {seconds_max:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _report(plan: Plan, book: Book, checks: Sequence[Check]) -> bool:
    """Print what happened; whether all of it holds."""
    rows = _rows_of(plan.results / "locust_stats.csv")
    total = next(row for row in rows if row["Name"] == "Aggregated")
    say("")
    say(f"requests      {int(total['Request Count']):,} ({float(total['Requests/s']):,.0f}/s), as people made them")
    say(f"orders        {len(book.promises):,} accepted; clicks: {_words(book.answers)}")
    say(f"sold out      {book.answers['SOLD_OUT']:,}")
    say(f"failures      {int(total['Failure Count']):,}")
    for name in ("buy", "buy: SOLD_OUT", "settle", "availability"):
        for row in rows:
            if row["Name"] == name:
                say(f"{name:13} p50 {row['50%']} ms, p99 {row['99%']} ms of {int(row['Request Count']):,}")
    not_now = {row["Name"]: int(row["Request Count"]) for row in rows if _is_not_now(row["Name"])}
    say(f"not now       {_words(not_now) or 'never'}")
    say(f"report        {plan.results / 'locust.html'}")
    say("")
    for check in checks:
        say(f"  {'holds ' if check.holds else 'BROKEN'} {check.name}: {check.detail}")
    holds = all(check.holds for check in checks)
    say(f"verdict: {'every promise was kept' if holds else 'SOMETHING WAS BROKEN'}")
    return holds


def _rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _is_not_now(name: str) -> bool:
    return name.rpartition(": ")[2] in ASK_AGAIN_CODES


def _words(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda each: -each[1]))


def say(line: str) -> None:
    """A line for whoever watches."""
    print(line, flush=True)
