"""Start one child process so that it cannot outlive the supervisor, and learn when it can serve.

`PR_SET_PDEATHSIG` has the kernel end a child when the thread that forked it ends. All children are therefore started
from the main thread, which lives as long as the supervisor. Each gets a session of its own: a Ctrl-C in the terminal
then reaches the supervisor alone, which ends its children in the order that loses nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.runtime.log_file import open_log
from engine.runtime.processor_share import AS_IT_COMES, ProcessorShare, take

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: between fork and exec as little as possible may happen


async def _nothing() -> None:
    return


@dataclass(frozen=True)
class ChildPlan:
    """How to start, judge and stop one process.

    `is_ready(pid)` is asked until it says yes; where it is None the child says so itself, by a byte on the descriptor
    given as `--ready-fd`. `stop_signals` are sent one after the other, each with a share of the time that is left, and
    SIGKILL comes last. `death_signal` is what the kernel sends when the supervisor is no more.

    A process with a `slot` (descriptors of listening sockets, which it inherits) may be replaced while it serves: by
    closing the pipe it asks for that, and `leave_signals` tell it that its successor serves.

    `share` is what it is to have of the processors.
    """

    kind: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    log_path: Path
    before_start: Callable[[], Awaitable[None]] = _nothing
    is_ready: Callable[[int], Awaitable[bool]] | None = None
    ready_seconds: float = 60.0
    stop_signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)
    death_signal: signal.Signals = signal.SIGKILL
    slot: tuple[int, ...] = ()
    leave_signals: tuple[signal.Signals, ...] = (signal.SIGTERM,)
    share: ProcessorShare = AS_IT_COMES


@dataclass(frozen=True, eq=False)
class RunningChild:
    """A started process and, for one that reports by itself, the reading end of its ready pipe."""

    process: Process
    ready_descriptor: int | None

    @property
    def pid(self) -> int:
        return self.process.pid

    def close(self) -> None:
        """Let go of the ready pipe."""
        if self.ready_descriptor is not None:
            os.close(self.ready_descriptor)


async def start_child(plan: ChildPlan) -> RunningChild:
    """Start the process, its output going to the plan's log.

    Raises: OSError (no such program, log not writable).
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children are started from the main thread: the death signal follows the thread that forked")
    ready_read, ready_write = os.pipe() if plan.is_ready is None else (None, None)
    log_descriptor = None
    try:
        log_descriptor = open_log(plan.log_path)
        argv = plan.argv if ready_write is None else (*plan.argv, "--ready-fd", str(ready_write))
        for listening in plan.slot:
            argv = (*argv, "--listen-fd", str(listening))
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=DEVNULL,
            stdout=log_descriptor,
            stderr=log_descriptor,
            env=dict(plan.environment),
            pass_fds=plan.slot if ready_write is None else (*plan.slot, ready_write),
            start_new_session=True,
            preexec_fn=die_with_parent(plan.death_signal, plan.share),
        )
    except BaseException:
        if ready_read is not None:
            os.close(ready_read)
        raise
    finally:
        for descriptor in (ready_write, log_descriptor):
            if descriptor is not None:
                os.close(descriptor)
    return RunningChild(process, ready_read)


async def wait_for_ready_byte(descriptor: int) -> bool:
    """True once the child has written its byte; False if it ended or closed the pipe: at first, or afterwards."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, lambda: None if readable.done() else readable.set_result(None))
    try:
        await readable
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 1) != b""


def die_with_parent(death_signal: signal.Signals, share: ProcessorShare = AS_IT_COMES) -> Callable[[], None]:
    """What a forked child does before it becomes its program: ask to be sent `death_signal` when this process ends.

    And for its share of the processors.
    """
    parent_pid = os.getpid()

    def arrange() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent_pid:  # it ended before the line above: the kernel will not tell us any more
            os._exit(1)
        take(share)

    return arrange
