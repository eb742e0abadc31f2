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

READY_POLL_SECONDS = 0.01
START_ATTEMPTS_MAX = 3  # before the engine was ever ready; afterwards nothing is given up
BACK_OFF_FIRST_SECONDS = 0.05
BACK_OFF_MAX_SECONDS = 2.0
STEADY_SECONDS = 5.0  # up for this long, the next end counts as the first again
LAST_LINES = 15
HASTENED_SECONDS = 0.3
LEAVE_SECONDS_MAX = 12.0  # a replaced process answers what is in flight, for ten seconds at most
CLOSED_TO_ENDED_SECONDS = 0.02  # a killed process' pipe is closed a moment before its end is known
KILLED_SECONDS_MAX = 5.0  # a killed process that the kernel does not let go of is left to it


class Keeper:
    """Keeps one process of a plan. `on_replaced` is called for each new process; `say` gets lines for people."""

    def __init__(self, plan: ChildPlan, on_replaced: Callable[[], None], say: Callable[[str], None]) -> None:
        self.plan = plan
        self.ready = asyncio.Event()
        self._on_replaced = on_replaced
        self._say = say
        self._child: RunningChild | None = None
        self._leaving: dict[RunningChild, asyncio.Task[None] | None] = {}
        """Predecessors that still live; those with a task have been told that somebody else serves."""
        self._identities: dict[RunningChild, ProcessIdentity] = {}
        self._replacement_wanted = asyncio.Event()
        self._replaced = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process' number; None before the first one was started."""
        return self._child.pid if self._child else None

    @property
    def identities(self) -> list[ProcessIdentity]:
        """Which processes these are, predecessors included, for a later run that has to tell them from a stranger's."""
        return list(self._identities.values())

    def start(self) -> asyncio.Task[None]:
        """Begin. The task ends only by StartRefused: the process could not be brought up even once."""
        self._task = asyncio.create_task(self._keep(), name=f"keep {self.plan.kind}")
        return self._task

    async def replace(self) -> bool:
        """Start another process in the slot and end the one that is there once the other serves; whether it does."""
        self._replaced.clear()
        self._replacement_wanted.set()
        try:
            async with asyncio.timeout(self.plan.ready_seconds):
                await self._replaced.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self, timeout_seconds: float, hasten: asyncio.Event) -> None:
        """End the process by its plan's signals within about `timeout_seconds`, then by SIGKILL; sooner if hastened."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)  # its refusal, if any, was read by the supervisor
        for leaving in filter(None, self._leaving.values()):
            leaving.cancel()
        children = [*self._leaving, *([self._child] if self._child else [])]
        await asyncio.gather(*(self._stop_child(child, timeout_seconds, hasten) for child in children))
        self._leaving.clear()
        self._child = None

    async def _stop_child(self, child: RunningChild, timeout_seconds: float, hasten: asyncio.Event) -> None:
        numbers = self.plan.stop_signals
        for number in numbers:
            if await _end_by(child, (number,), timeout_seconds / len(numbers), hasten):
                break
        else:
            self._say(f"{self.plan.kind} ({child.pid}) did not end in time and is killed")
            if not await _end_by(child, (signal.SIGKILL,), KILLED_SECONDS_MAX, asyncio.Event()):
                self._say(f"{self.plan.kind} ({child.pid}) is stuck in the kernel and left behind")
        child.close()

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
        """One process from its start until it needs a successor; returns what befell it.

        Raises: StartRefused, if a person has to act; once the engine was ready, that is only something that befell it.
        """
        try:
            await self.plan.before_start()
            child = await start_child(self.plan)
        except (StartRefused, OSError) as error:
            if isinstance(error, StartRefused) and not self.ready.is_set():
                raise
            return f"could not be started: {error}"
        self._put_in_place(child)
        try:
            async with asyncio.timeout(self.plan.ready_seconds):
                if await self._wait_until_ready(child):
                    self.ready.set()
                    self._replaced.set()
                    self._let_predecessors_go()
        except TimeoutError:
            child.process.kill()
            await child.process.wait()
            return f"({child.pid}) was not ready after {self.plan.ready_seconds:g} seconds and was killed"
        return await self._wait_until_leaving(child)

    def _put_in_place(self, child: RunningChild) -> None:
        if self._child is not None:
            self._leaving[self._child] = None
        self._child = child
        if identity := identify(child.pid):
            self._identities[child] = identity
        self._replacement_wanted.clear()
        for gone in [one for one in self._leaving if one.process.returncode is not None]:
            self._forget(gone)
        self._on_replaced()

    def _let_predecessors_go(self) -> None:
        for child, task in self._leaving.items():
            if task is None:
                self._leaving[child] = asyncio.create_task(self._see_off(child), name=f"see off {child.pid}")

    async def _see_off(self, child: RunningChild) -> None:
        """Let a predecessor answer what is in flight, and end."""
        if not await _end_by(child, self.plan.leave_signals, LEAVE_SECONDS_MAX, asyncio.Event()):
            self._say(f"{self.plan.kind} ({child.pid}) did not end in time and is killed")
            await _end_by(child, (signal.SIGKILL,), KILLED_SECONDS_MAX, asyncio.Event())
        self._forget(child)
        self._on_replaced()

    def _forget(self, child: RunningChild) -> None:
        self._leaving.pop(child, None)
        self._identities.pop(child, None)
        child.close()

    async def _wait_until_leaving(self, child: RunningChild) -> str:
        """Wait until the process ends, asks to be replaced, or is to be."""
        waits: dict[asyncio.Task[object], str] = {asyncio.create_task(child.process.wait()): "ended"}
        if self.plan.slot and child.ready_descriptor is not None:
            waits[asyncio.create_task(self._replacement_wanted.wait())] = "is to be replaced"
            waits[asyncio.create_task(wait_for_ready_byte(child.ready_descriptor))] = "is about to end"
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if child.process.returncode is None:
                await asyncio.wait({next(iter(waits))}, timeout=CLOSED_TO_ENDED_SECONDS)  # for the words' sake
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if child.process.returncode is None:
            return f"({child.pid}) {waits[done.pop()]}"
        return f"({child.pid}) ended {_ending(child.process.returncode)}"

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


async def _end_by(
    child: RunningChild, numbers: tuple[signal.Signals, ...], timeout_seconds: float, hasten: asyncio.Event
) -> bool:
    """Send these signals at once; True if the process has ended in time."""
    process = child.process
    if process.returncode is not None:
        return True
    for number in numbers:
        process.send_signal(number)
    ended, hastened = asyncio.create_task(process.wait()), asyncio.create_task(hasten.wait())
    try:
        await asyncio.wait({ended, hastened}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await asyncio.wait({ended}, timeout=HASTENED_SECONDS)
    finally:
        for task in (ended, hastened):
            task.cancel()
    return process.returncode is not None


def _ending(status: int) -> str:
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"  # a real-time signal has no name
