"""Logs of children: each kind appends to one file, which is cut when it has grown, and keeps one predecessor.

Children write to the file themselves, so that a busy or dying supervisor never holds one up. It is therefore copied and
emptied in place: a rename would leave the child writing to the old one. A few lines written meanwhile may be lost.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

LOG_BYTES_MAX = 16 * 1024 * 1024
TAIL_BYTES_MAX = 16 * 1024


def open_log(path: Path) -> int:
    """Open for appending, mode 0600; returns the descriptor. Raises: OSError."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def cut_log_if_large(path: Path, bytes_max: int = LOG_BYTES_MAX) -> None:
    """Keep the file below about `bytes_max`, its former content in `NAME.1`. Raises: OSError."""
    if path.exists() and path.stat().st_size > bytes_max:
        shutil.copyfile(path, path.with_name(f"{path.name}.1"))
        os.truncate(path, 0)


def last_lines(path: Path, lines_max: int) -> list[str]:
    """The last lines of a log, for a person who has to be told why a child will not start; none if there is no log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES_MAX))
            return file.read().decode(errors="replace").splitlines()[-lines_max:]
    except FileNotFoundError:
        return []
