"""The command `miaocang`. Each command imports its room when it runs, so that none waits for the others' libraries."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

from engine.runtime.refusals import StartRefused
from engine.settings import Settings, SettingsRefused, read_settings

if TYPE_CHECKING:
    from engine.runtime.data_directory import DataDirectory

app = typer.Typer(
    name="miaocang",
    help="Miaocang, the stock engine behind livestream flash sales.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
keys_app = typer.Typer(help="Named keys of callers: shown once, stored hashed.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="The data directory.", show_default="./var")
]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on.")]
ReadyDescriptor = Annotated[int | None, typer.Option("--ready-fd", help="Descriptor to write a byte to when serving.")]

CANNOT_TELL = 2
Answer = TypeVar("Answer")


def main() -> None:
    """Run the command line; what a person can put right ends as one line on standard error and status 1."""
    try:
        app()
    except (StartRefused, SettingsRefused) as refusal:
        _end(refusal)


@app.command()
def up(
    data_dir: DataDir = None,
    host: Host = "127.0.0.1",
    gateway_port: Annotated[int, typer.Option(min=0, max=65_535, help="0 picks a free one.")] = 8080,
    backoffice_port: Annotated[int, typer.Option(min=0, max=65_535, help="0 picks a free one.")] = 8081,
    gateways: Annotated[int, typer.Option(min=1, max=64, help="Gateway processes that share the port.")] = 1,
) -> None:
    """Run the whole engine in the foreground until SIGTERM or SIGINT, which drain it."""
    with importing():
        from engine.runtime.supervisor import Supervisor, UpOptions

    options = UpOptions(host, gateway_port, backoffice_port, gateways)

    async def run() -> None:
        await Supervisor(read_settings(data_dir), options).run()

    asyncio.run(run())


@app.command()
def demo(
    data_dir: DataDir = None,
    leave: Annotated[bool, typer.Option("--exit", help="End by itself; status 0 only if the audit holds.")] = False,
) -> None:
    """Run a livestream flash sale on real order data, show it, and audit it."""
    from engine.demo.run import main as run_demo

    raise typer.Exit(run_demo(read_settings(data_dir).data_dir, exit_when_done=leave))


@app.command()
def audit(sale_id: Annotated[str | None, typer.Argument()] = None, data_dir: DataDir = None) -> None:
    """Check every promise that can be recomputed, across Redis and the ledger.

    Status 0 only if all hold, 1 if one does not, 2 if it could not tell.
    """
    from engine.runtime.store_addresses import with_store_addresses

    try:
        settings = with_store_addresses(read_settings(data_dir))
    except (StartRefused, SettingsRefused) as refusal:
        _end(refusal, CANNOT_TELL)
    from engine.audit.command import main as run_audit

    raise typer.Exit(run_audit(settings, sale_id))


@app.command()
def doctor(data_dir: DataDir = None) -> None:
    """Check the configuration of the Redis and the PostgreSQL in use, and say what to change."""
    from engine.runtime.store_addresses import with_store_addresses

    settings = with_store_addresses(read_settings(data_dir))
    from engine.audit.doctor import main as run_doctor

    raise typer.Exit(run_doctor(settings))


@keys_app.command("create")
def keys_create(
    role: Annotated[str, typer.Option(help="checkout, ops or erp.")],
    name: Annotated[str, typer.Option(help="Who the key is for; several live keys may share a name.")],
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it, alone, on standard output: it cannot be shown again."""
    from engine.web.key_store import create_key

    key_text = _on_keys(data_dir, lambda path: create_key(path, role, name))
    print("This key is shown once; processes accept it within a second.", file=sys.stderr)
    print(key_text)


@keys_app.command("list")
def keys_list(data_dir: DataDir = None) -> None:
    """List every key, without the key: id, role, name, when it was made and when revoked."""
    from engine.web.key_store import read_keys

    rows = [("ID", "ROLE", "NAME", "CREATED", "REVOKED")]
    for key in _on_keys(data_dir, read_keys):
        revoked = f"{key.revoked_at:%Y-%m-%dT%H:%M:%SZ}" if key.revoked_at else "-"
        rows.append((key.id, key.role, key.name, f"{key.created_at:%Y-%m-%dT%H:%M:%SZ}", revoked))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@keys_app.command("revoke")
def keys_revoke(
    name: Annotated[str | None, typer.Option(help="Revoke every live key of this name.")] = None,
    role: Annotated[str | None, typer.Option(help="Only those of this role.")] = None,
    key_id: Annotated[str | None, typer.Option("--id", help="Revoke the one key with this id.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Revoke keys; running processes refuse them within a second."""
    from engine.web.key_store import revoke_keys

    count = _on_keys(data_dir, lambda path: revoke_keys(path, name=name, role=role, key_id=key_id))
    if count == 0:
        raise StartRefused("no live key matches; `miaocang keys list` shows them")
    print(f"{count} revoked", file=sys.stderr)


@app.command(hidden=True)
def migrate(data_dir: DataDir = None) -> None:
    """Bring the ledger's tables to this version."""
    _migrate(_start_process("migrate", data_dir))


@app.command(hidden=True)
def prepare(data_dir: DataDir = None) -> None:
    """What `miaocang up` does before it starts processes, for deployments that start them otherwise."""
    from engine.runtime.data_directory import open_data_directory
    from engine.runtime.secrets_file import read_or_make_secrets

    settings = _start_process("prepare", data_dir)
    directory = open_data_directory(settings.data_dir)
    read_or_make_secrets(directory)
    print(f"the bootstrap keys are in {directory.secrets}", file=sys.stderr)
    _migrate(settings)


@app.command(hidden=True)
def gateway(
    host: Host = "127.0.0.1",
    port: Port = 8080,
    ready_fd: ReadyDescriptor = None,
    listen_fd: Annotated[
        list[int] | None, typer.Option("--listen-fd", help="Listening socket to use in place of host and port.")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Run one gateway."""
    settings = _start_process("gateway", data_dir)
    with importing():
        from engine.gateway.process import serve
        from engine.web.serving import Slot

    pipe = ReadyPipe(ready_fd)
    listeners = tuple(socket.socket(fileno=descriptor) for descriptor in listen_fd or [])
    if listeners:
        serve(settings, host, port, pipe.report, slot=Slot(listeners, pipe.close))
    else:
        serve(settings, host, port, pipe.report_and_close)


@app.command(hidden=True)
def backoffice(
    host: Host = "127.0.0.1", port: Port = 8081, ready_fd: ReadyDescriptor = None, data_dir: DataDir = None
) -> None:
    """Run the back office."""
    settings = _start_process("backoffice", data_dir)
    with importing():
        from engine.backoffice.process import serve

    serve(settings, host, port, ReadyPipe(ready_fd).report_and_close)


@app.command(hidden=True)
def worker(ready_fd: ReadyDescriptor = None, data_dir: DataDir = None) -> None:
    """Run the loops beside: persist, sweep, guard, schedule."""
    settings = _start_process("worker", data_dir)
    with importing():
        from engine.worker.process import serve

    serve(settings, ReadyPipe(ready_fd).report_and_close)


@contextmanager
def importing() -> Iterator[None]:
    """While modules are imported nothing is garbage: looking for it would cost a fifth of a start.

    What was imported is never looked through again, which a process that serves is spared for all its life.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _start_process(process: str, data_dir: Path | None) -> Settings:
    with importing():
        from engine.observability.logging import configure_logging

    settings = read_settings(data_dir)
    configure_logging(settings, process)
    return settings


def _migrate(settings: Settings) -> None:
    """Bring the ledger's tables to this version; ends the process with one line if that cannot be done."""
    if settings.database_url is None:
        raise StartRefused("MIAOCANG_DATABASE_URL is not set")
    import structlog

    from engine.ledger.migrate import upgrade

    try:
        asyncio.run(upgrade(settings.database_url))
    except Exception as error:  # whatever the driver or the migration says, a person reads it in one line
        structlog.get_logger(__name__).debug("migration_failed", exc_info=True)
        _end(_one_line(error))


class ReadyPipe:
    """The line to the supervisor, if there is one: a byte says "I serve", its end "somebody else should"."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def report(self) -> None:
        """Say that this process can serve."""
        if self._descriptor is not None:
            os.write(self._descriptor, b"1")

    def close(self) -> None:
        """Say that this process is about to end, or has no more to say."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def report_and_close(self) -> None:
        """Say that this process can serve, and no more: its end will be noticed without a word."""
        self.report()
        self.close()


def _open_directory(data_dir: Path | None) -> DataDirectory:
    from engine.runtime.data_directory import open_data_directory

    return open_data_directory(read_settings(data_dir).data_dir)


def _on_keys(data_dir: Path | None, act: Callable[[Path], Answer]) -> Answer:
    """Do something to the keys file. Raises: StartRefused, for whatever a person can put right."""
    from engine.runtime.data_directory import refusal_for
    from engine.web.key_store import KeyRefused, KeysUnreadable

    path = _open_directory(data_dir).keys
    try:
        return act(path)
    except (KeyRefused, KeysUnreadable) as error:
        raise StartRefused(str(error)) from error
    except OSError as error:
        raise refusal_for(error, path) from error


def _one_line(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    return f"{said[0]} ({type(error).__name__})" if said else type(error).__name__


def _end(reason: object, status: int = 1) -> NoReturn:
    print(f"miaocang: {reason}", file=sys.stderr)
    raise SystemExit(status)
