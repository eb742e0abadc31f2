"""Reading a partition's keys as they lie in Redis, past the script: for the audit, which trusts nobody's word.

Scans are not atomic: what changes meanwhile may be given in its old or its new state, or twice; what is there all the
time is given. Nothing is changed. Every method raises PartitionUnavailable.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from redis.exceptions import ResponseError

from engine.domain.errors import PartitionUnavailable
from engine.domain.identifiers import ORDER_DIGEST_LENGTH
from engine.domain.orders import OrderRecord
from engine.partition import keyspace
from engine.partition.connections import Connections, scored
from engine.partition.rows import BuyerRow, RowUnreadable, SaleFacts, decode_order, decode_row

SCAN_COUNT = 1000
BUNCHES_AT_ONCE = 50
"""Of the index of open holds: a few hundred kilobytes, of full batches."""


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

    async def facts(self, sale_id: str) -> SaleFacts:
        """What the rows and orders below do not repeat."""
        state = await self.state(sale_id, ("currency", "made_at"))
        return SaleFacts(state["currency"], int(state["made_at"] or 0))

    async def buyers(self, sale_id: str) -> AsyncIterator[tuple[str, BuyerRow | None]]:
        """Each buyer's row, by the buyer's part of their orders' digests; None for one that cannot be read."""
        facts = await self.facts(sale_id)
        async for part, packed in self._scan("HSCAN", keyspace.partition_keys(sale_id).buyers):
            try:
                yield part, decode_row(part, packed, facts)
            except RowUnreadable:
                yield part, None

    async def moved_orders(self, sale_id: str) -> AsyncIterator[tuple[str, OrderRecord | None]]:
        """Each order that has moved out of its buyer's row, with its digest; None for one that cannot be read."""
        facts = await self.facts(sale_id)
        async for digest, packed in self._scan("HSCAN", keyspace.partition_keys(sale_id).orders):
            try:
                yield digest, decode_order(packed, facts)
            except RowUnreadable:
                yield digest, None

    async def due(self, sale_id: str) -> AsyncIterator[tuple[str, int]]:
        """Each digest in the index with its deadline, milliseconds, the earliest first: open holds and some ended ones.

        All bunches of one deadline are read in one atom, for the script puts what is left of one back under it.
        """
        key, lowest, count = keyspace.partition_keys(sale_id).due, "-inf", BUNCHES_AT_ONCE
        while True:
            found = await self.execute("ZRANGEBYSCORE", key, lowest, "+inf", "WITHSCORES", "LIMIT", 0, count)
            bunches = [(bunch.decode(), int(float(score))) for bunch, score in scored(found)]
            is_last = len(bunches) < count
            last_deadline = bunches[-1][1] if bunches else 0
            whole = bunches if is_last else [each for each in bunches if each[1] != last_deadline]
            for bunch, deadline_ms in whole:
                for at in range(0, len(bunch), ORDER_DIGEST_LENGTH):
                    yield bunch[at : at + ORDER_DIGEST_LENGTH], deadline_ms
            if is_last:
                return
            lowest = str(last_deadline)
            count = BUNCHES_AT_ONCE if whole else 2 * count

    async def _scan(self, command: str, key: str) -> AsyncIterator[tuple[str, bytes]]:
        cursor = b"0"
        while True:
            cursor, found = await self.execute(command, key, cursor, "COUNT", SCAN_COUNT)
            for at in range(0, len(found), 2):
                yield found[at].decode(), found[at + 1]
            if int(cursor) == 0:
                return
