"""What the worker's loops look at again and again: a few small fields of many partitions, in few round trips.

Each question reads plain keys and changes nothing. What it finds may be out of date by the time it is acted on; whoever
acts does so through the script, which decides. Raises PartitionUnavailable.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from engine.domain.sales import StockLevels
from engine.partition.connections import Connections, scored
from engine.partition.keyspace import partition_keys, state_key

PARTITIONS_PER_ROUND_TRIP = 1000
"""So that one pipeline's answers stay small, and no other client waits long for its turn."""

MOVED_PER_CALL = 500
"""No other client is kept waiting for longer than a fraction of a millisecond."""
MOVED = """\
local moved = {}
for i, key in ipairs(KEYS) do
  if (redis.call('HGET', key, 'sequence') or '') ~= ARGV[i] then moved[#moved + 1] = i end
end
return moved"""
"""KEYS: partitions' states; ARGV: the sequence number known of each, empty where there is none."""

_decode_levels = msgspec.msgpack.Decoder(StockLevels).decode


class Progress(NamedTuple):
    """How far a partition is, and how far it knows the ledger to be."""

    sequence: int
    persisted: int


class Schedule(NamedTuple):
    """What the clock may do to a sale, and how far it has come."""

    status: str
    """Empty where Redis holds no such partition."""
    opens_at_ms: int
    closes_at_ms: int
    """0 where there is none; so in all of these times."""
    closed_at_ms: int
    sequence: int
    retired: bool


class Glance:
    """Reads small things of many partitions."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def now_ms(self) -> int:
        """Redis' clock, milliseconds since 1970."""
        seconds, microseconds = await self._connections.execute("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def progress(self, sale_ids: Sequence[str]) -> dict[str, Progress]:
        """How far each partition is."""
        found = await self._state_fields(sale_ids, "sequence", "persisted")
        return {sale_id: Progress(_number(row[0]), _number(row[1])) for sale_id, row in found.items()}

    async def moved(self, known: Mapping[str, int]) -> list[str]:
        """Those of these sales whose sequence number is no longer what is known: of thousands, at little cost."""
        found: list[str] = []
        for piece in _pieces(list(known), MOVED_PER_CALL):
            keys = [state_key(sale_id) for sale_id in piece]
            numbers = [known[sale_id] or "" for sale_id in piece]
            positions = await self._connections.execute("EVAL", MOVED, len(keys), *keys, *numbers)
            found += [piece[position - 1] for position in positions]
        return found

    async def schedules(self, sale_ids: Sequence[str]) -> dict[str, Schedule]:
        """Each sale's status and times."""
        fields = ("status", "opens_at", "closes_at", "closed_at", "sequence", "retired")
        found = await self._state_fields(sale_ids, *fields)
        return {sale_id: _schedule(row) for sale_id, row in found.items()}

    async def earliest_deadlines(self, sale_ids: Sequence[str]) -> dict[str, int]:
        """The deadline that passes first, milliseconds, without the sales that have none to come.

        It may be of holds that have been settled or cancelled: their deadlines pass as well.
        """
        found: dict[str, int] = {}
        for piece in _pieces(sale_ids):
            commands = [("ZRANGE", partition_keys(sale_id).due, 0, 0, "WITHSCORES") for sale_id in piece]
            for sale_id, answer in zip(piece, await self._connections.execute_all(commands), strict=True):
                if answer:
                    found[sale_id] = int(float(scored(answer)[0][1]))
        return found

    async def with_open_holds(self, sale_ids: Sequence[str]) -> set[str]:
        """Those of these sales that have units held. Reads every SKU of theirs."""
        found: set[str] = set()
        for sale_id in sale_ids:
            rows = await self._connections.execute("HVALS", partition_keys(sale_id).stock)
            if any(_decode_levels(packed).held for packed in rows):
                found.add(sale_id)
        return found

    async def stock(self, sale_id: str, skus_max: int) -> dict[str, StockLevels]:
        """The levels of at most about `skus_max` SKUs of a sale; of a larger sale always much the same ones."""
        _, found = await self._connections.execute("HSCAN", partition_keys(sale_id).stock, 0, "COUNT", skus_max)
        pairs = list(zip(found[::2], found[1::2], strict=True))[:skus_max]
        return {sku.decode(): _decode_levels(packed) for sku, packed in pairs}

    async def _state_fields(self, sale_ids: Sequence[str], *fields: str) -> dict[str, list[bytes | None]]:
        found: dict[str, list[bytes | None]] = {}
        for piece in _pieces(sale_ids):
            commands = [("HMGET", state_key(sale_id), *fields) for sale_id in piece]
            found.update(zip(piece, await self._connections.execute_all(commands), strict=True))
        return found


def _pieces(sale_ids: Sequence[str], size: int = PARTITIONS_PER_ROUND_TRIP) -> list[Sequence[str]]:
    return [sale_ids[at : at + size] for at in range(0, len(sale_ids), size)]


def _schedule(row: Sequence[bytes | None]) -> Schedule:
    status, opens_at, closes_at, closed_at, sequence, retired = row
    return Schedule(
        (status or b"").decode(),
        _number(opens_at),
        _number(closes_at),
        _number(closed_at),
        _number(sequence),
        retired == b"1",
    )


def _number(value: Any) -> int:
    return int(value) if value else 0
