"""What only the guard does to partitions: freeze them, look at them whole, and open them under the next epoch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.exceptions import NoScriptError

from engine.domain.sales import StockLevels
from engine.partition import keyspace
from engine.partition.connections import Connections, pairs
from engine.partition.scripts import load_script

FREEZES_PER_ROUND_TRIP = 1000
GRACE_MS = 30_000
"""What deadlines get that passed while a partition was frozen (contract §6.6)."""


@dataclass(frozen=True, slots=True)
class PartitionSight:
    """A partition as it stands in Redis, whether it is open or not, read in one atom."""

    exists: bool
    status: str
    epoch: int
    run: str
    frozen: str
    """Why it is frozen; empty where it is not."""
    sequence: int
    journal_tail: int
    """The last sequence number in the journal's stream; 0 where it is empty."""
    levels: dict[str, StockLevels]
    retired: bool


class Guarding:
    """Reads and writes that pass by the checks of run, epoch and freeze. Raises PartitionUnavailable."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._script = load_script("guard")

    async def server_run(self) -> str:
        """The run of the Redis that answers now."""
        info: bytes = await self._connections.execute("INFO", "server")
        for line in info.decode().splitlines():
            if line.startswith("run_id:"):
                return line.removeprefix("run_id:")
        raise LookupError("Redis does not tell its run_id")

    async def server_time_ms(self) -> int:
        """Redis' clock, milliseconds since 1970."""
        seconds, microseconds = await self._connections.execute("TIME")
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def vouched_run(self) -> str:
        """The run that the guard has vouched for; empty where it has for none."""
        marker: bytes | None = await self._connections.execute("GET", keyspace.INSTANCE)
        return marker.decode() if marker else ""

    async def vouch_for(self, run: str) -> None:
        """Let new partitions be made on this run of Redis."""
        await self._connections.execute("SET", keyspace.INSTANCE, run)

    async def report(self, checked_at_ms: int, frozen: Mapping[str, str]) -> None:
        """Put what the guard has found where gateways can tell it."""
        fields: list[str | int] = ["checked_at_ms", checked_at_ms]
        for sale_id, reason in frozen.items():
            fields += [f"frozen:{sale_id}", reason]
        commands = [("MULTI",), ("DEL", keyspace.GUARD), ("HSET", keyspace.GUARD, *fields), ("EXEC",)]
        await self._connections.execute_all(commands)

    async def look(self, sale_id: str) -> PartitionSight:
        """A partition as it stands."""
        return (await self.look_at([sale_id]))[sale_id]

    async def look_at(self, sale_ids: Sequence[str]) -> dict[str, PartitionSight]:
        """Several partitions, each as it stands at one moment, in one round trip."""
        commands: list[Sequence[str | int]] = []
        for sale_id in sale_ids:
            keys = keyspace.partition_keys(sale_id)
            commands += [
                ("MULTI",),
                ("HGETALL", keys.state),
                ("HGETALL", keys.stock),
                ("XREVRANGE", keys.journal, "+", "-", "COUNT", 1),
                ("EXEC",),
            ]
        answers = await self._connections.execute_all(commands)
        return {sale_id: self._sight(answer) for sale_id, answer in zip(sale_ids, answers[4::5], strict=True)}

    @staticmethod
    def _sight(answer: Sequence[Any]) -> PartitionSight:
        state_answer, stock, newest = answer
        state = {name.decode(): value for name, value in pairs(state_answer).items()}
        return PartitionSight(
            exists=bool(state),
            status=state.get("status", b"").decode(),
            epoch=int(state.get("epoch", 0)),
            run=state.get("run", b"").decode(),
            frozen=state.get("frozen", b"").decode(),
            sequence=int(state.get("sequence", 0)),
            journal_tail=int(newest[0][0].partition(b"-")[0]) if newest else 0,
            levels={
                sku.decode(): msgspec.msgpack.decode(packed, type=StockLevels) for sku, packed in pairs(stock).items()
            },
            retired=state.get("retired", b"0") == b"1",
        )

    async def freezes(self, sale_ids: Sequence[str], run: str = "") -> dict[str, str]:
        """Why each frozen one of these partitions is frozen; with `run`, also those not looked at since that began."""
        found: dict[str, str] = {}
        for first in range(0, len(sale_ids), FREEZES_PER_ROUND_TRIP):
            some = sale_ids[first : first + FREEZES_PER_ROUND_TRIP]
            fields = ("frozen", "run", "retired")
            commands = [("HMGET", keyspace.state_key(sale_id), *fields) for sale_id in some]
            for sale_id, row in zip(some, await self._connections.execute_all(commands), strict=True):
                frozen, own_run, retired = row
                if frozen:
                    found[sale_id] = frozen.decode()
                elif run and own_run is not None and own_run.decode() != run and retired != b"1":
                    found[sale_id] = "Redis has started anew"
        return found

    async def freeze(self, sale_id: str, reason: str) -> None:
        """Freeze a partition, if there is one."""
        await self._evaluate(sale_id, "freeze", reason, 0)

    async def freeze_lost(self, sale_id: str, reason: str) -> None:
        """Freeze a partition, or leave word of a lost one, so that it is not taken for a sale that never was."""
        await self._connections.execute("ZADD", keyspace.SALES, 0, sale_id)
        await self._evaluate(sale_id, "freeze", reason, 1)

    async def open(self, sale_id: str, sight: PartitionSight, next_epoch: int, run: str, reason: str) -> bool:
        """Open a partition under `next_epoch`, if it is still what was looked at. Whether it was."""
        looked_at = (sight.epoch, sight.sequence)
        return await self._evaluate(sale_id, "open", *looked_at, next_epoch, run, reason, GRACE_MS) == 1

    async def open_all(
        self, sights: Mapping[str, PartitionSight], next_epochs: Mapping[str, int], run: str, reason: str
    ) -> dict[str, bool]:
        """`open` for several partitions in one round trip, each by itself. Whether each was what was looked at."""
        commands: list[Sequence[str | bytes | int]] = [("SCRIPT", "LOAD", self._script.text)]
        for sale_id, sight in sights.items():
            keys = keyspace.partition_keys(sale_id)
            arguments = (sight.epoch, sight.sequence, next_epochs[sale_id], run, reason, GRACE_MS)
            commands.append(("EVALSHA", self._script.digest, len(keys), *keys, "open", *arguments))
        _, *answers = await self._connections.execute_all(commands)
        return {sale_id: answer == 1 for sale_id, answer in zip(sights, answers, strict=True)}

    async def retire(self, sale_id: str, sequence: int) -> bool:
        """Take a closed sale without open holds out of Redis, but for its state, if it ends at `sequence`.

        The ledger must hold everything up to there, and have been told before. Whether it was done.
        """
        return await self._evaluate(sale_id, "retire", sequence) == 1

    async def _evaluate(self, sale_id: str, *arguments: str | int) -> int:
        keys = keyspace.partition_keys(sale_id)
        words = (len(keys), *keys, *arguments)
        try:
            answer: int = await self._connections.execute("EVALSHA", self._script.digest, *words)
        except NoScriptError:
            answer = await self._connections.execute("EVAL", self._script.text, *words)
        return answer
