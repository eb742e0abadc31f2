"""Can a gateway take orders?"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from engine.web.problems import Code, Problem


class Watched(Protocol):
    """Says how the partitions are: `Partitions` does."""

    async def ready(self) -> Mapping[str, str]:
        """The frozen sales, each with the reason. Raises PartitionUnavailable if Redis is away or not vouched for."""
        ...

    async def sale_ids(self) -> Sequence[str]:
        """The names of all sales."""
        ...


async def frozen_sales(partitions: Watched) -> Mapping[str, str] | Problem:
    """The frozen sales, each with the reason; FROZEN where there is no other sale. Raises PartitionUnavailable."""
    frozen = await partitions.ready()
    if frozen and set(await partitions.sale_ids()) <= set(frozen):
        return Problem(Code.FROZEN, "Every sale is being reconciled.", {"frozen": dict(frozen)})
    return frozen
