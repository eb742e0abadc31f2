"""What a Redis server says of itself: its INFO, its CONFIG where it is shown, and whether scripts run on it."""

import time
from dataclasses import dataclass

from redis.exceptions import ResponseError

from engine.domain.errors import PartitionUnavailable
from engine.partition.connections import Connections, pairs

CONFIG_NAMES = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy", "maxmemory")
_PROBE = "redis.call('TIME'); redis.call('INFO', 'server'); return cmsgpack.unpack(cmsgpack.pack(1))"
"""What the partition's script needs of the server, without touching a key."""


@dataclass(frozen=True)
class RedisFacts:
    """A server as it was when asked."""

    info: dict[str, str]
    config: dict[str, str]
    """Of CONFIG_NAMES; without those that the server does not show."""
    config_refusal: str
    """Why the configuration is not shown, as some hosted servers have it; empty where it is."""
    script_refusal: str
    """Why scripts do not run; empty where they do."""
    clock_ahead_ms: float
    """Its clock less that of this machine, give or take half a round trip."""


async def read_redis_facts(connections: Connections) -> RedisFacts:
    """Ask a server what it is. Raises PartitionUnavailable where it cannot be asked at all."""
    try:
        info = await connections.execute("INFO", "everything")
        began_ms = time.time() * 1000
        seconds, microseconds = await connections.execute("TIME")
        here_ms = (began_ms + time.time() * 1000) / 2
    except ResponseError as error:
        raise PartitionUnavailable(f"Redis refuses to be asked: {error}") from error
    config, config_refusal = await _read_config(connections)
    return RedisFacts(
        info=_parse_info(info.decode()),
        config=config,
        config_refusal=config_refusal,
        script_refusal=await _probe_script(connections),
        clock_ahead_ms=int(seconds) * 1000 + int(microseconds) / 1000 - here_ms,
    )


def _parse_info(text: str) -> dict[str, str]:
    found = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#"):
            found[name] = value
    return found


async def _read_config(connections: Connections) -> tuple[dict[str, str], str]:
    """Some servers forbid the question and some answer nothing; both are no answer, and no error."""
    config: dict[str, str] = {}
    for name in CONFIG_NAMES:
        try:
            answer = pairs(await connections.execute("CONFIG", "GET", name))
        except ResponseError as error:
            return config, str(error)
        config.update({key.decode(): value.decode() for key, value in answer.items()})
    return config, ""


async def _probe_script(connections: Connections) -> str:
    try:
        await connections.execute("EVAL", _PROBE, 0)
    except ResponseError as error:
        return str(error)
    return ""
