"""Keep one process running: start it, start another when it dies, and stop it for good when asked."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

from engine.runtime.child import ChildPlan, RunningChild, start_child, wait_for_ready_byte
from engine.runtime.log_file import last_lines
from engine.runtime.process_identity import ProcessIdentity, identify
from engine.runtime.refusals import StartRefused

READY_POLL_SECONDS = 0.03
START_ATTEMPTS_MAX = 3  # before the engine was ever ready; afterwards nothing is given up
BACK_OFF_FIRST_SECONDS = 0.05
BACK_OFF_MAX_SECONDS = 2.0
STEADY_SECONDS = 5.0  # up for this long, the next end counts as the first again
LAST_LINES = 15
HASTENED_SECONDS = 0.3
KILLED_SECONDS_MAX = 5.0  # a killed process that the kernel does not let go of is left to it


class Keeper:
    """Keeps one process of a plan. `on_replaced` is called for each new process; `say` gets lines for people."""

    def __init__(self, plan: ChildPlan, on_replaced: Callable[[], None], say: Callable[[str], None]) -> None:
        self.plan = plan
        self.ready = asyncio.Event()
        self._on_replaced = on_replaced
        self._say = say
        self._child: RunningChild | None = None
        self._identity: ProcessIdentity | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process' number; None before the first one was started."""
        return self._child.pid if self._child else None

    @property
    def identity(self) -> ProcessIdentity | None:
        """Which process that is, for a later run that has to tell it from a stranger's."""
        return self._identity

    def start(self) -> asyncio.Task[None]:
        """Begin. The task ends only by StartRefused: the process could not be brought up even once."""
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.plan.kind}")
        return self._task

    async def stop(self, timeout_seconds: float, hasten: asyncio.Event) -> None:
        """End the process by its plan's signals within about `timeout_seconds`, then by SIGKILL; sooner if hastened."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)  # its refusal, if any, was read by the supervisor
        if self._child is None:
            return
        numbers = self.plan.stop_signals
        for number in numbers:
            if await self._end_by(number, timeout_seconds / len(numbers), hasten):
                break
        else:
            self._say(f"{self.plan.kind} ({self.pid}) did not end in time and is killed")
            if not await self._end_by(signal.SIGKILL, KILLED_SECONDS_MAX, asyncio.Event()):
                self._say(f"{self.plan.kind} ({self.pid}) is stuck in the kernel and left behind")
        self._child.close()
        self._child = None

    async def _end_by(self, number: signal.Signals, timeout_seconds: float, hasten: asyncio.Event) -> bool:
        """Send one signal; True if the process has ended in time."""
        assert self._child is not None
        process = self._child.process
        if process.returncode is not None:
            return True
        process.send_signal(number)
        ended, hastened = asyncio.create_task(process.wait()), asyncio.create_task(hasten.wait())
        await asyncio.wait({ended, hastened}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await asyncio.wait({ended}, timeout=HASTENED_SECONDS)
        for task in (ended, hastened):
            task.cancel()
        return process.returncode is not None

    async def _keep(self) -> None:
        ends_in_a_row = 0
        while True:
            started_at = time.monotonic()
            problem = await self._run_once()
            if time.monotonic() - started_at >= STEADY_SECONDS:
                ends_in_a_row = 0
            ends_in_a_row += 1
            if not self.ready.is_set() and ends_in_a_row >= START_ATTEMPTS_MAX:
                raise StartRefused(self._farewell(problem))
            self._say(f"{self.plan.kind} {problem}; starting another")
            delay_seconds = BACK_OFF_FIRST_SECONDS * 2.0 ** min(ends_in_a_row - 1, 16)
            await asyncio.sleep(min(BACK_OFF_MAX_SECONDS, delay_seconds))

    async def _run_once(self) -> str:
        """One process from its start to its end; returns what befell it.

        Raises: StartRefused, if a person has to act; once the engine was ready, that is only something that befell it.
        """
        try:
            await self.plan.before_start()
            child = await start_child(self.plan)
        except (StartRefused, OSError) as error:
            if isinstance(error, StartRefused) and not self.ready.is_set():
                raise
            return f"could not be started: {error}"
        if self._child is not None:
            self._child.close()
        self._child, self._identity = child, identify(child.pid)
        self._on_replaced()
        try:
            async with asyncio.timeout(self.plan.ready_seconds):
                if await self._wait_until_ready(child):
                    self.ready.set()
        except TimeoutError:
            child.process.kill()
            await child.process.wait()
            return f"({child.pid}) was not ready after {self.plan.ready_seconds:g} seconds and was killed"
        status = await child.process.wait()
        return f"({child.pid}) ended {_ending(status)}"

    async def _wait_until_ready(self, child: RunningChild) -> bool:
        """True when the process can serve, False if it ended first."""
        if child.ready_descriptor is not None:
            return await wait_for_ready_byte(child.ready_descriptor)
        assert self.plan.is_ready is not None
        while child.process.returncode is None:
            if await self.plan.is_ready(child.pid):
                return True
            await asyncio.sleep(READY_POLL_SECONDS)
        return False

    def _farewell(self, problem: str) -> str:
        lines = last_lines(self.plan.log_path, LAST_LINES)
        said = "".join(f"\n  {line}" for line in lines)
        return f"{self.plan.kind} {problem}, {START_ATTEMPTS_MAX} times; see {self.plan.log_path}, which ends:{said}"


def _ending(status: int) -> str:
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"  # a real-time signal has no name
