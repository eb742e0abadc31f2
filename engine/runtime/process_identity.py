"""Tell one process from another that was given the same number later.

A number alone may belong to a stranger after a crash or a reboot, and we end what we find; so a process is known by
its number together with the moment it started, which the kernel gives in ticks since boot, and the boot's own id.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import msgspec

POLL_SECONDS = 0.02


class ProcessIdentity(msgspec.Struct, frozen=True):
    """One process of one boot of this machine."""

    pid: int
    started_ticks: int
    boot_id: str


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a live process; None if there is none of this number, or only its unreaped remains."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command stands in brackets and may hold anything, so count the fields from its last bracket on.
    fields = status.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return ProcessIdentity(pid, started_ticks=int(fields[19]), boot_id=_boot_id())


def is_alive(identity: ProcessIdentity) -> bool:
    """True while this very process runs."""
    return identify(identity.pid) == identity


async def wait_until_gone(identities: list[ProcessIdentity], timeout_seconds: float) -> list[ProcessIdentity]:
    """Wait for these processes to end; returns those that still run after `timeout_seconds`."""
    deadline = time.monotonic() + timeout_seconds
    while left := [identity for identity in identities if is_alive(identity)]:
        if time.monotonic() >= deadline:
            return left
        await asyncio.sleep(POLL_SECONDS)
    return []


def send_signal(identity: ProcessIdentity, number: signal.Signals) -> None:
    """Signal this very process; nothing happens if it has ended."""
    if is_alive(identity):
        try:
            os.kill(identity.pid, number)
        except ProcessLookupError:
            return  # it ended between the two lines, which is what was wanted


def processes_working_in(directory: Path) -> list[ProcessIdentity]:
    """Live processes whose working directory is `directory`, as far as this user may see.

    PostgreSQL's processes all work in their data directory, also those that outlived a killed postmaster.
    """
    wanted = str(directory.resolve())
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    identities = [identify(pid) for pid in pids if _working_directory(pid) == wanted]
    return [identity for identity in identities if identity]


def _working_directory(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/cwd").readlink())
    except OSError:
        return None  # ended meanwhile, or another user's: not ours to know


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
