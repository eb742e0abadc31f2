"""`DIR/endpoints.json`: where a running engine can be reached, and which processes it is made of."""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.runtime.process_identity import identify
from engine.web.private_file import replace_private_file


class Processes(msgspec.Struct, frozen=True):
    """Process numbers by kind; servers that the engine did not start are empty lists."""

    redis: list[int]
    postgres: list[int]
    gateway: list[int]
    worker: list[int]
    backoffice: list[int]


class Endpoints(msgspec.Struct, frozen=True):
    """The file's content, as the contract's §2 has it. The URLs of the stores carry their passwords."""

    gateway_url: str
    backoffice_url: str
    pid: int
    redis_url: str
    database_url: str
    processes: Processes
    keys: dict[str, str]


def write_endpoints(path: Path, endpoints: Endpoints) -> None:
    """Put the file in place, whole or not at all, mode 0600. Raises: OSError."""
    replace_private_file(path, msgspec.json.format(msgspec.json.encode(endpoints), indent=1) + b"\n")


def read_endpoints(path: Path) -> Endpoints | None:
    """The endpoints of the engine that runs on this directory; None if none does.

    A file that outlived a killed engine counts as none.
    Raises: msgspec.DecodeError, OSError.
    """
    try:
        endpoints = msgspec.json.decode(path.read_bytes(), type=Endpoints)
    except FileNotFoundError:
        return None
    return endpoints if identify(endpoints.pid) else None
