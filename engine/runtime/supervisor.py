"""`miaocang up`: the whole engine in the foreground, each process replaced when it dies, all of them gone at the end.

Order of start: Redis and PostgreSQL, the ledger's migrations, then the processes that serve. Order of the end: gateways
and back office, which answer what is in flight; the worker, which carries the journal's rest to the ledger; the stores.

A gateway inherits the listening sockets of its slot, so that nobody who waits to be accepted notices whose turn it is.
SIGTERM to a gateway, and SIGHUP to the supervisor for all of them one by one, put a successor in its place first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from engine.domain.errors import LedgerUnavailable
from engine.ledger.migrate import is_at_head
from engine.runtime.child import ChildPlan, die_with_parent
from engine.runtime.data_directory import (
    DataDirectory,
    clear_last_run,
    lock_data_directory,
    open_data_directory,
    refusal_for,
)
from engine.runtime.endpoints import Endpoints, Processes, write_endpoints
from engine.runtime.keeper import Keeper
from engine.runtime.log_file import cut_log_if_large
from engine.runtime.ports import Slot, bind_slots, listen_in, pick_free_port, require_free_port, url_for
from engine.runtime.process_identity import ProcessIdentity, send_signal, wait_until_gone
from engine.runtime.processor_share import AS_IT_COMES, BEHIND_BUYERS, BUYERS_WAIT
from engine.runtime.refusals import StartRefused
from engine.runtime.secrets_file import Secrets, read_or_make_secrets
from engine.runtime.store_servers import Stores, plan_stores
from engine.settings import Settings, child_environment
from engine.web.private_file import replace_private_file

GATEWAYS_MAX = 64
MIGRATION_SECONDS_MAX = 600.0
LAST_RUN_SECONDS_MAX = 10.0
HOUSE_SECONDS = 0.5
LOOK_FOR_FAILURES_SECONDS = 0.2  # processes join those that are waited for while the engine starts
SERVING_SHARE_OF_DRAIN = 0.7  # of the time to drain, so that the worker and the stores have some left
WORKER_DRAIN_SECONDS_MIN = 1.0  # it gets what the serving processes have left of the time
STORES_STOP_SECONDS = 1.5

PROCESSOR_SHARES = {"gateway": BUYERS_WAIT, "worker": BEHIND_BUYERS}

# -P: a directory called `engine` where the command was typed must not be taken for ours.
ENGINE_COMMANDS: Mapping[str, tuple[str, ...]] = {
    kind: (sys.executable, "-P", "-m", "engine", kind) for kind in ("migrate", "gateway", "worker", "backoffice")
}


@dataclass(frozen=True)
class UpOptions:
    """What the command line of `miaocang up` says. Port 0 picks a free one."""

    host: str = "127.0.0.1"
    gateway_port: int = 8080
    backoffice_port: int = 8081
    gateways: int = 1


def has_terminal() -> bool:
    """Whether this process' session has a terminal. One that was closed is no longer there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


@dataclass
class _Signals:
    """What signals ask for: the first SIGTERM or SIGINT to stop, a second one to hurry; SIGHUP, other gateways."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    hasten: asyncio.Event = field(default_factory=asyncio.Event)
    replace: asyncio.Event = field(default_factory=asyncio.Event)
    had_terminal: bool = field(default_factory=has_terminal)

    def receive(self) -> None:
        if self.stop.is_set():
            self.hasten.set()
        self.stop.set()

    def receive_hang_up(self) -> None:
        if self.had_terminal and not has_terminal():
            self.receive()  # the terminal was closed, which is what the signal was made for
        else:
            self.replace.set()


class Supervisor:
    """Runs one engine on one data directory. `commands` gives the command line for each kind of process."""

    def __init__(
        self, settings: Settings, options: UpOptions, commands: Mapping[str, tuple[str, ...]] = ENGINE_COMMANDS
    ) -> None:
        self._settings = settings
        self._options = options
        self._commands = commands
        self._signals = _Signals()
        self._keepers: list[Keeper] = []
        self._keeping: set[asyncio.Task[None]] = set()
        self._identities: set[ProcessIdentity] = set()
        self._endpoints: Endpoints | None = None
        self._slots: list[Slot] = []
        self._unwritten = False
        self._last_trouble = ""

    async def run(self) -> None:
        """Start everything, print the `ready` line, keep it running until a signal, and end everything.

        Raises: StartRefused, with nothing left running.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signals.receive)
        loop.add_signal_handler(signal.SIGHUP, self._signals.receive_hang_up)
        directory = open_data_directory(self._settings.data_dir)
        lock = lock_data_directory(directory)
        try:
            await self._run_until_signal(directory)
        except OSError as error:
            raise refusal_for(error, directory.path) from error
        finally:
            await self._stop_everything()
            directory.endpoints.unlink(missing_ok=True)
            (directory.run / "processes.json").unlink(missing_ok=True)
            os.close(lock)

    async def _run_until_signal(self, directory: DataDirectory) -> None:
        """Start and wait; whatever fails first ends the wait. Raises: StartRefused, OSError."""
        starting = asyncio.create_task(self._start(directory))
        stopping = asyncio.create_task(self._signals.stop.wait())
        keeping_house = asyncio.create_task(self._keep_house(directory))
        replacing = asyncio.create_task(self._replace_when_asked())
        running: set[asyncio.Task[None]] = {starting, keeping_house, replacing}
        try:
            while not stopping.done():
                done, _ = await asyncio.wait(
                    {stopping, *running, *self._keeping},
                    timeout=LOOK_FOR_FAILURES_SECONDS,
                    return_when="FIRST_COMPLETED",
                )
                for task in done - {stopping}:
                    task.result()
                    running.discard(task)
        finally:
            ours = (starting, stopping, keeping_house, replacing)
            for task in ours:
                task.cancel()
            await asyncio.gather(*ours, return_exceptions=True)

    async def _start(self, directory: DataDirectory) -> None:
        options = self._options
        await _end_last_run(directory)
        clear_last_run(directory)
        secrets = read_or_make_secrets(directory)
        gateway_port = await self._take_gateway_port()
        backoffice_port = options.backoffice_port or pick_free_port(options.host)
        await require_free_port(options.host, backoffice_port, "--backoffice-port")
        stores = await plan_stores(self._settings, directory, secrets)
        await self._bring_up([plan for plan in (stores.redis, stores.postgres) if plan], directory)
        await self._migrate(directory, stores)
        ports = {"gateway": gateway_port, "backoffice": backoffice_port}
        listen_in(self._slots)
        await self._bring_up(
            [
                self._plan("worker", directory, stores),
                self._plan("backoffice", directory, stores, backoffice_port),
                *(self._plan("gateway", directory, stores, gateway_port, slot) for slot in self._slots),
            ],
            directory,
        )
        self._announce(directory, stores, secrets, ports)

    async def _take_gateway_port(self) -> int:
        host, port = self._options.host, self._options.gateway_port
        port = port or pick_free_port(host)
        await require_free_port(host, port, "--gateway-port")
        self._slots = bind_slots(host, port, self._options.gateways)
        return port

    async def _bring_up(self, plans: Iterable[ChildPlan], directory: DataDirectory) -> None:
        """Start these processes at once, and wait until each can serve."""
        fresh = [Keeper(plan, lambda: self._on_replaced(directory), _say) for plan in plans]
        self._keepers.extend(fresh)
        self._keeping.update(keeper.start() for keeper in fresh)
        for keeper in fresh:
            await keeper.ready.wait()

    def _plan(
        self, kind: str, directory: DataDirectory, stores: Stores, port: int | None = None, slot: Slot = ()
    ) -> ChildPlan:
        listen = () if port is None else ("--host", self._options.host, "--port", str(port))
        return ChildPlan(
            kind=kind,
            argv=(*self._commands[kind], *listen),
            environment=self._environment(kind, directory, stores),
            log_path=directory.log / f"{kind}.log",
            # to a process that can be replaced SIGTERM says that it is, and SIGINT that its accepting is over
            stop_signals=(signal.SIGINT,) if slot else (signal.SIGTERM,),
            leave_signals=(signal.SIGTERM, signal.SIGINT),
            slot=tuple(listener.fileno() for listener in slot),
            share=PROCESSOR_SHARES.get(kind, AS_IT_COMES),
        )

    def _environment(self, kind: str, directory: DataDirectory, stores: Stores) -> dict[str, str]:
        """What one kind of process is told. A gateway never learns where the ledger is."""
        told = {
            "MIAOCANG_DATA_DIR": str(directory.path),
            "MIAOCANG_REDIS_URL": stores.redis_url,
            "MIAOCANG_DRAIN_SECONDS": str(self._settings.drain_seconds * SERVING_SHARE_OF_DRAIN),
            "PROMETHEUS_MULTIPROC_DIR": str(directory.metrics),
        }
        if kind != "gateway":
            told["MIAOCANG_DATABASE_URL"] = stores.database_url
        return child_environment(("MIAOCANG_DATABASE_URL",), told)

    async def _migrate(self, directory: DataDirectory, stores: Stores) -> None:
        """Bring the ledger's tables to this version. Raises: StartRefused, with the migration's own last line."""
        # a process for it costs a third of a second, and there is seldom anything to do; if it cannot be told, it tells
        with contextlib.suppress(LedgerUnavailable):
            if await is_at_head(stores.database_url):
                return
        process = await asyncio.create_subprocess_exec(
            *self._commands["migrate"],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment("migrate", directory, stores),
            start_new_session=True,
            preexec_fn=die_with_parent(signal.SIGKILL),
        )
        try:
            async with asyncio.timeout(MIGRATION_SECONDS_MAX):
                _, said = await process.communicate()
        except TimeoutError as error:
            raise StartRefused(f"the ledger's migration did not end in {MIGRATION_SECONDS_MAX:g} seconds") from error
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            lines = said.decode(errors="replace").strip().splitlines() or ["it gave no reason"]
            raise StartRefused(f"the ledger could not be prepared: {lines[-1].removeprefix('miaocang: ')}")

    def _announce(self, directory: DataDirectory, stores: Stores, secrets: Secrets, ports: Mapping[str, int]) -> None:
        """The file first, then the line: whoever waits for the line may read the file at once."""
        self._endpoints = Endpoints(
            gateway_url=url_for(self._options.host, ports["gateway"]),
            backoffice_url=url_for(self._options.host, ports["backoffice"]),
            pid=os.getpid(),
            redis_url=stores.redis_url,
            database_url=stores.database_url,
            processes=self._processes(),
            keys=secrets.keys,
        )
        write_endpoints(directory.endpoints, self._endpoints)
        print(f"ready gateway={self._endpoints.gateway_url} backoffice={self._endpoints.backoffice_url}", flush=True)

    async def _replace_when_asked(self) -> None:
        """Replace every gateway, one after the other, each time that SIGHUP asks for it."""
        while True:
            await self._signals.replace.wait()
            self._signals.replace.clear()
            if self._endpoints is None:
                continue  # they are being started: there are no older ones
            for keeper in [keeper for keeper in self._keepers if keeper.plan.slot]:
                if not await keeper.replace():
                    _say("a gateway's successor does not become ready; the other gateways stay as they are")
                    break

    def _on_replaced(self, directory: DataDirectory) -> None:
        """Tell the world, and a run after this one, which processes there are now."""
        now = {identity for keeper in self._keepers for identity in keeper.identities}
        for gone in self._identities - now:
            from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415 - no start waits for it

            # Its gauges would be shown for ever; counters and histograms stay, because what they counted has happened.
            mark_process_dead(gone.pid, str(directory.metrics))  # type: ignore[no-untyped-call]
        self._identities = now
        self._write_down(directory)

    def _write_down(self, directory: DataDirectory) -> None:
        """Put both lists of processes in place; a full disk is told, and tried again by `_keep_house`."""
        try:
            identities = sorted(self._identities, key=lambda one: one.pid)
            replace_private_file(directory.run / "processes.json", msgspec.json.encode(identities))
            if self._endpoints is not None:
                self._endpoints = msgspec.structs.replace(self._endpoints, processes=self._processes())
                write_endpoints(directory.endpoints, self._endpoints)
            self._unwritten = False
        except OSError as error:
            self._unwritten = True
            self._say_once(f"cannot write down the processes: {refusal_for(error, directory.path)}")

    async def _keep_house(self, directory: DataDirectory) -> None:
        """Keep logs short, and write again what could not be written."""
        while True:
            await asyncio.sleep(HOUSE_SECONDS)
            if self._unwritten:
                self._write_down(directory)
            try:
                for path in directory.log.glob("*.log"):
                    cut_log_if_large(path)
            except OSError as error:
                self._say_once(f"cannot cut a log: {refusal_for(error, directory.log)}")

    def _say_once(self, line: str) -> None:
        if line != self._last_trouble:
            self._last_trouble = line
            _say(line)

    def _processes(self) -> Processes:
        def pids(kind: str) -> list[int]:
            return [keeper.pid for keeper in self._keepers if keeper.plan.kind == kind and keeper.pid is not None]

        return Processes(**{kind: pids(kind) for kind in Processes.__struct_fields__})

    async def _stop_everything(self) -> None:
        """Serving processes first, then the worker, then the stores; never raises for a process that will not end."""
        started_at = time.monotonic()
        for listener in (listener for slot in self._slots for listener in slot):
            listener.close()  # with the gateways' own, the port is closed
        serving_seconds = self._settings.drain_seconds * SERVING_SHARE_OF_DRAIN + 0.2
        await self._stop_kinds({"gateway", "backoffice"}, serving_seconds)
        left_seconds = self._settings.drain_seconds - (time.monotonic() - started_at) - STORES_STOP_SECONDS
        await self._stop_kinds({"worker"}, max(left_seconds, WORKER_DRAIN_SECONDS_MIN))
        await self._stop_kinds({"redis", "postgres"}, STORES_STOP_SECONDS)

    async def _stop_kinds(self, kinds: set[str], timeout_seconds: float) -> None:
        keepers = [keeper for keeper in self._keepers if keeper.plan.kind in kinds]
        await asyncio.gather(*(keeper.stop(timeout_seconds, self._signals.hasten) for keeper in keepers))


async def _end_last_run(directory: DataDirectory) -> None:
    """Wait for what a killed engine left on this directory, and end what does not end by itself.

    Raises: StartRefused, if something cannot be ended.
    """
    try:
        recorded = msgspec.json.decode((directory.run / "processes.json").read_bytes(), type=list[ProcessIdentity])
    except (FileNotFoundError, msgspec.DecodeError):
        return
    left = await wait_until_gone(recorded, LAST_RUN_SECONDS_MAX / 2)
    for number in (signal.SIGQUIT, signal.SIGKILL):  # PostgreSQL's children end with it on SIGQUIT, not on SIGKILL
        for identity in left:
            _say(f"process {identity.pid} of an earlier run is still there and gets {number.name}")
            send_signal(identity, number)
        left = await wait_until_gone(left, LAST_RUN_SECONDS_MAX / 4)
    if left:
        raise StartRefused(f"process {left[0].pid} of an earlier run does not end; end it, then start again")


def _say(line: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody reads any more, which is no reason to stop selling
        print(f"miaocang: {line}", file=sys.stderr, flush=True)
