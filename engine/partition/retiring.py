"""Taking a sale's orders out of Redis for good, once the ledger alone is to have them."""

from engine.partition.connections import Connections
from engine.partition.keyspace import partition_keys


async def purge(connections: Connections, sale_id: str) -> None:
    """Mark the partition as retired and delete everything of it but its state, in one atom; safe to repeat.

    Only for a sale whose orders cannot change any more (it closed longer ago than they can be read, and holds none),
    and only once the ledger has it down as retired. The state stays as a tombstone, so that the sale id is not used
    again. Raises PartitionUnavailable: it may have happened.
    """
    keys = partition_keys(sale_id)
    everything_else = [key for key in keys if key != keys.state]
    await connections.execute_all(
        [("MULTI",), ("HSET", keys.state, "retired", 1), ("UNLINK", *everything_else), ("EXEC",)]
    )
