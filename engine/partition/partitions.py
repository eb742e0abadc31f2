"""The door to all partitions: what gateway, back office and worker hold in their hands."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from engine.domain.commands import Command
from engine.domain.errors import PartitionFrozen
from engine.domain.identifiers import BUYER_PART_LENGTH
from engine.partition import keyspace
from engine.partition.batcher import CONNECTIONS_MAX, BatchBounds, Batcher, OnReply
from engine.partition.call import CallSettings, ScriptCaller
from engine.partition.codec import Reply, Travelling
from engine.partition.connections import Connections, pairs
from engine.partition.guarding import Guarding
from engine.partition.journal_reader import JournalReader
from engine.partition.sold_out import OnChecked, SoldOutMemory
from engine.settings import Settings

MS_PER_HOUR = 3_600_000


class Partitions:
    """Sends commands to sales' partitions, merged into batches.

    One for each process; it connects at its first use. All of its methods may raise PartitionUnavailable (nothing was
    changed; PartitionFrozen and Overloaded are kinds of it) and, where something was sent, OutcomeUnknown.
    """

    def __init__(self, redis_url: str, calls: CallSettings, bounds: BatchBounds) -> None:
        self.connections = Connections(redis_url, bounds.connections_max)
        self.journals = JournalReader(self.connections)
        self.guarding = Guarding(self.connections)
        self._caller = ScriptCaller(self.connections, calls)
        self._bounds = bounds
        self._deadline_seconds = calls.request_deadline_seconds
        self._batchers: dict[str, Batcher] = {}
        self._sold_out = SoldOutMemory()
        self.is_short = self._sold_out.is_short
        """(sale_id, channel, sku, quantity): whether a moment ago fewer units were left for the channel. A hint, see
        sold_out.py."""

    @classmethod
    def from_settings(cls, settings: Settings, connections_max: int = CONNECTIONS_MAX) -> Self:
        """The door to the partitions of the settings' Redis. Raises ValueError where they name none."""
        if settings.redis_url is None:
            raise ValueError("MIAOCANG_REDIS_URL is missing; `miaocang up` gives it to the processes it starts")
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
            connections_max=connections_max,
        )
        return cls(settings.redis_url, calls, bounds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def submit(self, sale_id: str, *commands: Command) -> list[Reply]:
        """Apply commands to a sale's partition, in order and in one atom; the replies in the same order.

        They share a script call with whatever else arrives in the same tick of the event loop.
        """
        return await self._batcher(sale_id).submit(commands, time.monotonic() + self._deadline_seconds)

    def post(self, sale_id: str, command: Travelling, on_reply: OnReply) -> None:
        """Apply one command as `submit` does, for callers with thousands of them a second: no task, no future.

        `on_reply` is called once, from the event loop and never within this call, with the reply or with what `submit`
        would have raised.
        """
        batcher = self._batchers.get(sale_id) or self._batcher(sale_id)
        batcher.post(command, time.monotonic() + self._deadline_seconds, on_reply)

    def post_if_short(  # noqa: PLR0917 - what a cart of one line is made of
        self, sale_id: str, digest: str, channel: str, sku: str, quantity: int, on_checked: OnChecked
    ) -> None:
        """Ask whether a cart of one line, without discount and freight, is to be refused for want of stock.

        `digest` is the order's; its buyer's part alone will do.
        `on_checked` is called once, from the event loop and never within this call: with a refusal (SOLD_OUT with [sku,
        available, unit price], or what refuses every hold of the sale), with what `submit` would have raised, or with
        None where only a hold can tell: stock is back, or this buyer has orders in the sale, of which this may be one.
        """
        deadline = time.monotonic() + self._deadline_seconds
        batcher = self._batchers.get(sale_id) or self._batcher(sale_id)
        batcher.post_if_short(digest[:BUYER_PART_LENGTH], (channel, sku, quantity), deadline, on_checked)

    def _batcher(self, sale_id: str) -> Batcher:
        batcher = self._batchers.get(sale_id)
        if batcher is None:
            batcher = Batcher(sale_id, self._caller, self._bounds, self._sold_out, self._forget)
            self._batchers[sale_id] = batcher
        return batcher

    def _forget(self, sale_id: str) -> None:
        """A batcher with nothing to do costs nothing if it is not there."""
        del self._batchers[sale_id]

    async def register(self, sale_id: str) -> None:
        """Put a sale's name on the list of partitions, before it is made: a name too many does no harm."""
        await self.connections.execute("ZADD", keyspace.SALES, 0, sale_id)

    async def sale_ids(self, after: str = "", limit: int = 1_000_000) -> Sequence[str]:
        """The names of all partitions behind `after`, in their order."""
        first = f"({after}" if after else "-"
        found = await self.connections.execute("ZRANGEBYLEX", keyspace.SALES, first, "+", "LIMIT", 0, limit)
        return [name.decode() for name in found]

    async def sale_count(self) -> int:
        """How many partitions there are names of; names are only ever added."""
        count: int = await self.connections.execute("ZCARD", keyspace.SALES)
        return count

    async def ready(self) -> dict[str, str]:
        """The frozen sales with the reason for each. Raises PartitionUnavailable or PartitionFrozen if none is open."""
        marker, info, guard = await self.connections.execute_all(
            [("GET", keyspace.INSTANCE), ("INFO", "server"), ("HGETALL", keyspace.GUARD)]
        )
        if marker is None or f"run_id:{marker.decode()}" not in info.decode():
            raise PartitionFrozen("Redis has started anew and is being reconciled")
        found = {name.decode(): value.decode() for name, value in pairs(guard).items()}
        return {name.removeprefix("frozen:"): why for name, why in found.items() if name.startswith("frozen:")}

    async def freeze(self, sale_id: str, reason: str) -> None:
        """Freeze a partition, until the guard has reconciled it: nothing may be held or changed meanwhile."""
        await self.guarding.freeze(sale_id, reason)

    async def close(self) -> None:
        """Close the connections. Requests under way end in OutcomeUnknown."""
        await self.connections.close()
