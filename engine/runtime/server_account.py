"""PostgreSQL refuses to run as root, so a root's engine runs it as an unprivileged user that exists already.

The data directory may lie where that user cannot go (below root's own home, mode 0700). It therefore keeps one of
root's capabilities, the one that passes over file modes; `setpriv` (util-linux, on every Debian) hands it over and then
becomes the server itself, so the process number is the server's.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from engine.runtime.refusals import StartRefused

UNPRIVILEGED_USERS = ("postgres", "nobody")
CAPABILITY_NUMBERS = {"dac_override": 1, "dac_read_search": 2}  # linux/capability.h


@dataclass(frozen=True)
class ServerAccount:
    """The user that PostgreSQL runs as; None means this process' own."""

    user: pwd.struct_passwd | None

    def command(self, argv: tuple[str, ...], death_signal: signal.Signals) -> tuple[str, ...]:
        """`argv`, run as this account; the kernel sends `death_signal` when the starter ends.

        A change of user clears the death signal that was set at the fork, hence its place here.
        """
        if self.user is None:
            return argv
        capabilities = ",".join(f"+{name}" for name in _held_capabilities())
        passed_on = (f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}") if capabilities else ()
        return (
            *("setpriv", f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--clear-groups", *passed_on),
            *(f"--pdeathsig={death_signal.name.removeprefix('SIG')}", "--", *argv),
        )

    def give(self, path: Path) -> None:
        """Make this account the owner of `path` and all below it. Raises: OSError."""
        if self.user is None:
            return
        for entry in (path, *path.rglob("*")):
            if entry.lstat().st_uid != self.user.pw_uid:
                os.chown(entry, self.user.pw_uid, self.user.pw_gid, follow_symlinks=False)


def choose_server_account() -> ServerAccount:
    """This user, unless it is root: then the first of `UNPRIVILEGED_USERS` that exists.

    Raises: StartRefused.
    """
    if os.geteuid() != 0:
        return ServerAccount(None)
    if shutil.which("setpriv") is None:
        raise StartRefused(
            "PostgreSQL does not run as root, and setpriv is missing; install util-linux, or start as another user"
        )
    for name in UNPRIVILEGED_USERS:
        try:
            return ServerAccount(pwd.getpwnam(name))
        except KeyError:
            continue
    raise StartRefused("PostgreSQL does not run as root, and there is no user `nobody`; start as another user")


def _held_capabilities() -> list[str]:
    """Those of `CAPABILITY_NUMBERS` that this process may pass on; a container's root lacks some."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapPrm:"):
            held = int(line.split()[1], base=16)
            return [name for name, number in CAPABILITY_NUMBERS.items() if held >> number & 1]
    return []
