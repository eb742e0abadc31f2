"""Reading partitions' journals out of Redis."""

from collections.abc import Mapping, Sequence

from engine.partition import keyspace
from engine.partition.connections import Connections


class JournalReader:
    """Reads journals; changes nothing. Its methods raise PartitionUnavailable."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def records_after(self, sale_id: str, sequence: int, count: int) -> list[tuple[int, bytes]]:
        """At most `count` records behind a sequence number, oldest first: (the record's last number, its bytes)."""
        journal = keyspace.partition_keys(sale_id).journal
        found = await self._connections.execute("XRANGE", journal, f"({sequence}-0", "+", "COUNT", count)
        return [(_sequence(record_id), fields[1]) for record_id, fields in found]

    async def records_of(self, after: Mapping[str, int], count: int) -> dict[str, list[tuple[int, bytes]]]:
        """`records_after` for several sales, by the sequence number of each, in one round trip."""
        commands = [
            ("XRANGE", keyspace.partition_keys(sale_id).journal, f"({sequence}-0", "+", "COUNT", count)
            for sale_id, sequence in after.items()
        ]
        answers = await self._connections.execute_all(commands)
        return {
            sale_id: [(_sequence(record_id), fields[1]) for record_id, fields in found]
            for sale_id, found in zip(after, answers, strict=True)
        }

    async def tails(self, sale_ids: Sequence[str]) -> dict[str, int]:
        """The last sequence number in each journal, 0 where there is none."""
        commands = [
            ("XREVRANGE", keyspace.partition_keys(sale_id).journal, "+", "-", "COUNT", 1) for sale_id in sale_ids
        ]
        found = await self._connections.execute_all(commands)
        return {
            sale_id: _sequence(newest[0][0]) if newest else 0 for sale_id, newest in zip(sale_ids, found, strict=True)
        }


def _sequence(record_id: bytes) -> int:
    return int(record_id.partition(b"-")[0])
