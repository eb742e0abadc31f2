"""Whether the back office can do all that it is there for: it needs both stores."""

import asyncio
from collections.abc import Mapping

from engine.domain.errors import LedgerUnavailable
from engine.ledger.connect import LedgerPool
from engine.partition.partitions import Partitions
from engine.web.problems import Code, Problem

LEDGER_LOOK_SECONDS_MAX = 0.7
"""Within what a probe may take in all, so that the answer can say which store it is."""


async def stores_ready(partitions: Partitions, ledger: LedgerPool) -> Mapping[str, str] | Problem:
    """The frozen sales, each with the reason, or that PostgreSQL is away.

    Raises PartitionUnavailable if Redis is away or being reconciled as a whole.
    """
    frozen = await partitions.ready()
    try:
        async with asyncio.timeout(LEDGER_LOOK_SECONDS_MAX):
            await ledger.fetch_value("SELECT 1")
    except (LedgerUnavailable, TimeoutError) as error:
        reason = str(error) or "it does not answer in time"
        return Problem(Code.LEDGER_BEHIND, f"PostgreSQL cannot be asked: {reason}.", {"frozen": frozen})
    return frozen
