"""A whole engine as a child process of the demo, started and ended as a person would do it."""

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.runtime.child import die_with_parent
from engine.runtime.data_directory import DataDirectory
from engine.runtime.endpoints import Endpoints, read_endpoints
from engine.runtime.refusals import StartRefused

GATEWAYS = 2
READY_SECONDS_MAX = 120.0
"""A first start makes a database, which takes a while on a slow disk."""
STOP_SECONDS_MAX = 20.0
"""Draining takes at most 10 seconds; after this the engine is killed, and the kernel ends its children with it."""
_PREFIX = "miaocang: "


class EngineProcess:
    """One `miaocang up` on a data directory. `say` gets each line that it prints on standard error."""

    def __init__(self, data_dir: Path, say: Callable[[str], None]) -> None:
        self._directory = DataDirectory(data_dir.expanduser().absolute())
        self._say = say
        self._process: Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self._last_line = ""
        self._is_ready = False

    @property
    def log_directory(self) -> Path:
        return self._directory.log

    def refuse_if_in_use(self) -> None:
        """Raises: StartRefused, where an engine runs on this directory; the engine itself makes sure of it again."""
        try:
            running = read_endpoints(self._directory.endpoints)
        except (OSError, msgspec.DecodeError):
            return  # the engine will meet the same, and has the words for it
        if running is not None:
            raise StartRefused(
                f"an engine (process {running.pid}) already runs on {self._directory.path}; "
                "stop it, or choose another --data-dir"
            )

    async def start(self) -> Endpoints:
        """Start the engine and wait until it can take orders.

        Raises: StartRefused, with the engine's own reason.
        """
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "engine", "up", "--data-dir", str(self._directory.path)),
            *("--gateway-port", "0", "--backoffice-port", "0", "--gateways", str(GATEWAYS)),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then ends the engine in order
            preexec_fn=die_with_parent(signal.SIGTERM),
        )
        self._listening = asyncio.create_task(self._listen(self._process))
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(READY_SECONDS_MAX):
                while line := await self._process.stdout.readline():
                    if line.startswith(b"ready "):
                        break
        except TimeoutError as error:
            raise StartRefused(
                f"the engine was not ready within {READY_SECONDS_MAX:g} seconds; see {self.log_directory}"
            ) from error
        endpoints = read_endpoints(self._directory.endpoints) if line else None
        if endpoints is None:
            await self._process.wait()
            await self._listening
            raise StartRefused(self._last_line or f"the engine did not start; see {self.log_directory}")
        self._is_ready = True
        return endpoints

    async def wait(self) -> int:
        """Wait for the engine to end by itself; its exit status."""
        assert self._process is not None
        return await self._process.wait()

    async def stop(self) -> None:
        """Drain the engine, and leave no process behind."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS_MAX):
                    await self._process.wait()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        if self._listening is not None:
            await self._listening

    async def _listen(self, process: Process) -> None:
        """Pass on what the engine says; before it is ready only keep it, since it becomes the reason of a refusal."""
        assert process.stderr is not None
        while raw := await process.stderr.readline():
            self._last_line = raw.decode(errors="replace").strip().removeprefix(_PREFIX)
            if self._is_ready:
                self._say(self._last_line)
