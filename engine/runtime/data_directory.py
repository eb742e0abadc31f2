"""The data directory: where everything of one engine lies, and that it has one engine only.

lock              held by `miaocang up` for as long as it runs
secrets.json      passwords of the embedded stores, the bootstrap keys' text
keys.json         who may call, hashed
endpoints.json    where a running engine can be reached
redis/ postgres/  the embedded stores
run/              ports, process identities, metrics of the current run
log/              one bounded log for each kind of process
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from engine.runtime.refusals import StartRefused

DISK_FREE_BYTES_MIN = 64 * 1024 * 1024  # below this Redis and PostgreSQL would start only to stop again


@dataclass(frozen=True)
class DataDirectory:
    """Paths under one data directory, which is absolute."""

    path: Path

    @property
    def secrets(self) -> Path:
        return self.path / "secrets.json"

    @property
    def keys(self) -> Path:
        return self.path / "keys.json"

    @property
    def endpoints(self) -> Path:
        return self.path / "endpoints.json"

    @property
    def redis(self) -> Path:
        return self.path / "redis"

    @property
    def postgres(self) -> Path:
        return self.path / "postgres"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def metrics(self) -> Path:
        return self.run / "metrics"

    @property
    def log(self) -> Path:
        return self.path / "log"


def open_data_directory(path: Path) -> DataDirectory:
    """Make the directory if need be, private to its owner, and see that it can be written.

    Raises: StartRefused.
    """
    directory = DataDirectory(path.expanduser().absolute())
    try:
        directory.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.run.mkdir(mode=0o700, exist_ok=True)
        directory.log.mkdir(mode=0o700, exist_ok=True)
        _write_something(directory.run / "writable")
        free_bytes = shutil.disk_usage(directory.path).free
    except OSError as error:
        raise refusal_for(error, directory.path) from error
    if free_bytes < DISK_FREE_BYTES_MIN:
        raise StartRefused(
            f"only {free_bytes // 1024**2} MiB are free for {directory.path}; "
            f"make room for at least {DISK_FREE_BYTES_MIN // 1024**2} MiB"
        )
    return directory


def lock_data_directory(directory: DataDirectory) -> int:
    """Take the directory for this process; the kernel lets it go when the process ends, however it ends.

    Returns the open lock file's descriptor, which children do not inherit.
    Raises: StartRefused, if another engine has it.
    """
    descriptor = os.open(directory.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise StartRefused(
            f"an engine (process {holder}) already runs on {directory.path}; stop it, or choose another --data-dir"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def clear_last_run(directory: DataDirectory) -> None:
    """Remove what described a run that has ended: its endpoints and its metrics. Raises: OSError."""
    directory.endpoints.unlink(missing_ok=True)
    shutil.rmtree(directory.metrics, ignore_errors=True)
    directory.metrics.mkdir(mode=0o700, parents=True, exist_ok=True)


def refusal_for(error: OSError, path: Path) -> StartRefused:
    """The line for a person whose disk or rights stand in the way."""
    where = error.filename or path
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StartRefused(f"no space is left for {where}; make room, or choose another --data-dir")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return StartRefused(
                f"no right to use {where} ({error.strerror}); change its owner or mode, or choose another --data-dir"
            )
        case errno.EEXIST | errno.ENOTDIR:
            return StartRefused(f"{where} is no directory; move it away, or choose another --data-dir")
        case _:
            return StartRefused(f"cannot use {where}: {error.strerror or error}; choose another --data-dir")


def _write_something(path: Path) -> None:
    """A few kilobytes, because an empty file can be made on a full disk."""
    path.write_bytes(b"\0" * 8192)
    path.unlink()
