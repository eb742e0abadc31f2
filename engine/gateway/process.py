"""The gateway's process: built from the settings, served until a signal."""

import asyncio
from collections.abc import Callable

from engine.domain.errors import PartitionFrozen, PartitionUnavailable
from engine.gateway.application import gateway_interface
from engine.partition.batcher import BatchBounds
from engine.partition.call import CallSettings
from engine.partition.partitions import Partitions
from engine.settings import Settings
from engine.web.key_store import KEYS_FILE_NAME, KeyStore
from engine.web.server import Service
from engine.web.serving import run, serve_until_signal

MS_PER_HOUR = 3_600_000


def serve(settings: Settings, host: str, port: int, on_ready: Callable[[], None], *, reuse_port: bool = True) -> None:
    """Run a gateway in this thread until SIGTERM or SIGINT, which drain it.

    `on_ready` is called once it listens and Redis has answered. Gateways of one engine share their port
    (`reuse_port`); whoever starts them sees to it that nobody else has it.
    Raises: OSError (the port is taken, the host is not ours), KeysUnreadable.
    """
    run(_serve(settings, host, port, on_ready, reuse_port))


async def _serve(settings: Settings, host: str, port: int, on_ready: Callable[[], None], reuse_port: bool) -> None:
    keys = KeyStore(settings.data_dir / KEYS_FILE_NAME)
    async with make_partitions(settings) as partitions:
        draining = asyncio.Event()
        interface = gateway_interface(partitions, keys.principal, draining.is_set)
        await serve_until_signal(
            Service(interface, draining),
            host,
            port,
            on_ready,
            drain_seconds=settings.drain_seconds,
            reuse_port=reuse_port,
            answers=lambda: _redis_answers(partitions),
        )


def make_partitions(settings: Settings) -> Partitions:
    """The door to the partitions of the settings' Redis; it connects at its first use."""
    if settings.redis_url is None:
        raise ValueError("a gateway needs MIAOCANG_REDIS_URL; `miaocang up` gives it that of the Redis it starts")
    calls = CallSettings(
        call_timeout_seconds=settings.call_timeout_seconds,
        request_deadline_seconds=settings.request_deadline_seconds,
        backlog_max_entries=settings.ledger_backlog_max_entries,
        retention_ms=int(settings.order_retention_hours * MS_PER_HOUR),
    )
    bounds = BatchBounds(
        batch_orders_max=settings.batch_orders_max,
        batch_lines_max=settings.batch_lines_max,
        batches_in_flight_max=settings.batches_in_flight_max,
    )
    return Partitions(settings.redis_url, calls, bounds)


async def _redis_answers(partitions: Partitions) -> bool:
    """Whether Redis can be asked; that it is being reconciled is an answer, which callers and /readyz are given."""
    try:
        await partitions.ready()
    except PartitionFrozen:
        return True
    except PartitionUnavailable:
        return False
    return True
