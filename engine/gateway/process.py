"""The gateway's process: built from the settings, served until a signal."""

import asyncio
from collections.abc import Callable

from engine.domain.errors import PartitionFrozen, PartitionUnavailable
from engine.gateway.application import gateway_interface, hot_handlers
from engine.observability.aggregates import buffers_flushed
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.web.key_store import KEYS_FILE_NAME, KeyStore
from engine.web.server import Service
from engine.web.serving import Slot, run, serve_until_signal


def serve(
    settings: Settings,
    host: str,
    port: int,
    on_ready: Callable[[], None],
    *,
    reuse_port: bool = True,
    slot: Slot | None = None,
) -> None:
    """Run a gateway in this thread until SIGTERM or SIGINT, which drain it.

    `on_ready` is called once it listens and Redis has answered. Gateways of one engine share their port: each has a
    `slot` of the supervisor's, or opens a socket of its own (`reuse_port`), and whoever starts them sees to it that
    nobody else has the port.
    Raises: OSError (the port is taken, the host is not ours), KeysUnreadable.
    """
    run(_serve(settings, host, port, on_ready, reuse_port=reuse_port, slot=slot))


async def _serve(
    settings: Settings, host: str, port: int, on_ready: Callable[[], None], *, reuse_port: bool, slot: Slot | None
) -> None:
    keys = KeyStore(settings.data_dir / KEYS_FILE_NAME)
    async with Partitions.from_settings(settings) as partitions, buffers_flushed():
        draining = asyncio.Event()
        interface = gateway_interface(partitions, keys.principal, draining.is_set)
        await serve_until_signal(
            Service(interface, draining, hot=hot_handlers(partitions)),
            host,
            port,
            on_ready,
            drain_seconds=settings.drain_seconds,
            reuse_port=reuse_port,
            answers=lambda: _redis_answers(partitions),
            slot=slot,
        )


async def _redis_answers(partitions: Partitions) -> bool:
    """Whether Redis can be asked; that it is being reconciled is an answer, which callers and /readyz are given."""
    try:
        await partitions.ready()
    except PartitionFrozen:
        return True
    except PartitionUnavailable:
        return False
    return True
