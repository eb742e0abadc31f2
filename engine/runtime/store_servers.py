"""Where Redis and PostgreSQL are: given by the settings, or embedded here and planned for this data directory."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from engine.runtime.child import ChildPlan
from engine.runtime.data_directory import DataDirectory
from engine.runtime.embedded_postgres import database_url, plan_postgres
from engine.runtime.embedded_redis import plan_redis, redis_url
from engine.runtime.ports import is_port_free, pick_free_port
from engine.runtime.refusals import StartRefused
from engine.runtime.secrets_file import Secrets
from engine.settings import Settings
from engine.web.private_file import replace_private_file

REACH_SECONDS_MAX = 5.0
REACH_INTERVAL_SECONDS = 0.2


class StorePorts(msgspec.Struct, frozen=True):
    """The embedded stores' ports, kept so that a restart on the same directory has the same URLs where it can."""

    redis: int
    postgres: int


@dataclass(frozen=True)
class Stores:
    """The URLs of both stores, and how to run those that are ours."""

    redis_url: str
    database_url: str
    redis: ChildPlan | None
    postgres: ChildPlan | None


async def plan_stores(settings: Settings, directory: DataDirectory, secrets: Secrets) -> Stores:
    """Decide for each store by itself whether it is ours to run. Raises: StartRefused, OSError."""
    ports = _choose_ports(directory.run / "ports.json")
    redis = postgres = None
    if settings.redis_url is None:
        redis = await plan_redis(directory, ports.redis, secrets.redis_password)
    else:
        await _require_reachable(settings.redis_url, "MIAOCANG_REDIS_URL", 6379)
    if settings.database_url is None:
        postgres = await plan_postgres(directory, ports.postgres, secrets.postgres_password)
    else:
        await _require_reachable(settings.database_url, "MIAOCANG_DATABASE_URL", 5432)
    return Stores(
        redis_url=settings.redis_url or redis_url(ports.redis, secrets.redis_password),
        database_url=settings.database_url or database_url(ports.postgres, secrets.postgres_password),
        redis=redis,
        postgres=postgres,
    )


def _choose_ports(path: Path) -> StorePorts:
    """The ports of the last run if nobody took them meanwhile, else others."""
    try:
        last = msgspec.json.decode(path.read_bytes(), type=StorePorts)
    except (FileNotFoundError, msgspec.DecodeError):
        last = StorePorts(0, 0)
    redis = last.redis if last.redis and is_port_free("127.0.0.1", last.redis) else pick_free_port()
    postgres = last.postgres if last.postgres and is_port_free("127.0.0.1", last.postgres) else pick_free_port()
    while postgres == redis:
        postgres = pick_free_port()
    chosen = StorePorts(redis, postgres)
    replace_private_file(path, msgspec.json.encode(chosen))
    return chosen


async def _require_reachable(url: str, variable: str, default_port: int) -> None:
    """Fail early, and in one line, if nothing listens there. Raises: StartRefused."""
    parts = urlsplit(url)
    if parts.scheme == "unix" or parts.hostname is None:
        return  # a socket file, or a host in the query: left to the client to open
    deadline = time.monotonic() + REACH_SECONDS_MAX
    while True:
        try:
            async with asyncio.timeout(REACH_SECONDS_MAX):
                _, writer = await asyncio.open_connection(parts.hostname, parts.port or default_port)
        except (OSError, TimeoutError) as error:
            if time.monotonic() >= deadline:
                where = f"{parts.hostname}:{parts.port or default_port}"
                raise StartRefused(
                    f"nothing answers at {where} ({type(error).__name__}); start it, or correct {variable}"
                ) from error
            await asyncio.sleep(REACH_INTERVAL_SECONDS)
        else:
            writer.close()
            return
