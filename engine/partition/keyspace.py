"""Every key in Redis, in one place.

A partition's keys share the hash tag `{SALE}`, so that one script may touch them all, in a managed or clustered Redis
too. A sale has one partition; a second would take the tag `{SALE/1}`, which no sale id can spell.
"""

from typing import NamedTuple

INSTANCE = "mc:instance"
"""The run of Redis that the guard has looked at; missing or another: nothing here may be trusted yet."""

SALES = "mc:sales"
"""A sorted set of all sale ids with a partition here, all of score 0, so in the order of their names."""

GUARD = "mc:guard"
"""A hash of what the guard last found: `checked_at_ms`, and `frozen:SALE` with the reason for each frozen sale."""


class PartitionKeys(NamedTuple):
    """The keys of one partition, in the order in which the script takes them."""

    state: str
    """hash: status, epoch, sequence, clock, limits: see `includes/state.lua`"""
    stock: str
    """hash: sku → packed levels"""
    orders: str
    """hash: order digest → packed order, of those that have moved out of their buyers' rows"""
    due: str
    """sorted set: bunches of the digests of open holds by their deadline, milliseconds: see `includes/due.lua`"""
    buyers: str
    """hash: buyer's part of the order digests → their newest orders, packed: see `includes/buyer.lua`"""
    documents: str
    """hash: document_id → digest of the document's body"""
    definition: str
    """string: the sale's definition as JSON"""
    journal: str
    """stream: one record a batch, its id the last sequence number in it"""


def state_key(sale_id: str) -> str:
    """The first of `partition_keys`, for those who ask thousands of partitions for it again and again."""
    return f"mc:{{{sale_id}}}:state"


def partition_keys(sale_id: str) -> PartitionKeys:
    """The keys of a sale's partition."""
    return PartitionKeys(*(f"mc:{{{sale_id}}}:{name}" for name in PartitionKeys._fields))
