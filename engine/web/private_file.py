"""Files that hold secrets: readable by their owner alone, and replaced whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def replace_private_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` with mode 0600: written and synced beside it first, then renamed over it.

    A reader sees the old content or the new, never a part, whatever is killed and whenever.
    Raises: OSError, with the old content still in place.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mode 0600 from the start
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make a rename last through a power cut: the name lives in the directory, not in the file."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
