"""Reading a partition's keys as they lie in Redis, past the script: for the audit, which trusts nobody's word.

Scans are not atomic: what changes meanwhile may be given in its old or its new state, or twice; what is there all the
time is given. Nothing is changed. Every method raises PartitionUnavailable.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.exceptions import ResponseError

from engine.domain.errors import PartitionUnavailable
from engine.domain.orders import OrderRecord
from engine.partition import keyspace
from engine.partition.connections import Connections
from engine.partition.rows import BuyerRow, RowUnreadable, decode_order, decode_row

SCAN_COUNT = 1000


class PartitionInspection:
    """Reads the keys of partitions."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def execute(self, *words: str | bytes | int) -> Any:
        """A command that changes nothing; what Redis refuses counts as unavailable."""
        try:
            return await self._connections.execute(*words)
        except ResponseError as error:
            raise PartitionUnavailable(f"Redis refused {words[0]!s}: {error}") from error

    async def state(self, sale_id: str, names: Sequence[str]) -> dict[str, str]:
        """Some fields of the partition's state hash, an empty text for each that is not there."""
        found = await self.execute("HMGET", keyspace.partition_keys(sale_id).state, *names)
        return {name: (value or b"").decode() for name, value in zip(names, found, strict=True)}

    async def buyers(self, sale_id: str, currency: str) -> AsyncIterator[tuple[str, BuyerRow | None]]:
        """Each buyer's row, by the buyer's part of their orders' digests; None for one that cannot be read."""
        async for part, packed in self._scan("HSCAN", keyspace.partition_keys(sale_id).buyers):
            try:
                yield part, decode_row(part, packed, currency)
            except RowUnreadable:
                yield part, None

    async def moved_orders(self, sale_id: str, currency: str) -> AsyncIterator[tuple[str, OrderRecord | None]]:
        """Each order that has moved out of its buyer's row, with its digest; None for one that cannot be read."""
        async for digest, packed in self._scan("HSCAN", keyspace.partition_keys(sale_id).orders):
            try:
                yield digest, decode_order(packed, currency)
            except RowUnreadable:
                yield digest, None

    async def due(self, sale_id: str) -> AsyncIterator[tuple[str, int]]:
        """Each digest in the index of open holds with its deadline, milliseconds."""
        async for digest, score in self._scan("ZSCAN", keyspace.partition_keys(sale_id).due):
            yield digest, int(float(score))

    async def _scan(self, command: str, key: str) -> AsyncIterator[tuple[str, bytes]]:
        cursor = b"0"
        while True:
            cursor, found = await self.execute(command, key, cursor, "COUNT", SCAN_COUNT)
            for at in range(0, len(found), 2):
                yield found[at].decode(), found[at + 1]
            if int(cursor) == 0:
                return
