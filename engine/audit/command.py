"""`miaocang audit [SALE_ID]`: every check of every sale in a line, and an exit status that a script can trust."""

import asyncio

from engine.audit.collect import audit_sale
from engine.audit.report import CannotTell, SaleUnknown
from engine.domain.errors import LedgerUnavailable, PartitionUnavailable
from engine.ledger.connect import LedgerPool, open_pool
from engine.ledger.sales import known_partitions
from engine.partition.partitions import Partitions
from engine.settings import Settings

HOLDS, FAILS, CANNOT_TELL = 0, 1, 2
CONNECTIONS_MAX = 4
"""To each store: sales are audited one after another."""


def main(settings: Settings, sale_id: str | None) -> int:
    """Audit one sale, or all of them; prints a line for each check and one in the end.

    Answers 0 if every check holds, 1 if one does not, 2 if none failed and something could not be told. Both URLs must
    be set.
    """
    return asyncio.run(_run(settings, sale_id))


async def _run(settings: Settings, sale_id: str | None) -> int:
    if settings.redis_url is None or settings.database_url is None:
        return _summarize(0, 0, ["both MIAOCANG_REDIS_URL and MIAOCANG_DATABASE_URL are needed"])
    try:
        async with Partitions.from_settings(settings, CONNECTIONS_MAX) as partitions:
            pool = await open_pool(settings.database_url, CONNECTIONS_MAX)
            try:
                return await _audit(partitions, pool, sale_id)
            finally:
                await pool.close()
    except LedgerUnavailable as error:
        return _summarize(0, 0, [str(error)])
    except PartitionUnavailable as error:
        return _summarize(0, 0, [f"Redis cannot be asked: {error}"])


async def _audit(partitions: Partitions, pool: LedgerPool, sale_id: str | None) -> int:
    sale_ids = [sale_id] if sale_id is not None else await _all_sales(partitions, pool)
    held, failed, untold = 0, 0, list[str]()
    for name in sale_ids:
        try:
            report = await audit_sale(partitions, pool, name)
        except SaleUnknown as unknown:
            if sale_id is not None:
                untold.append(str(unknown))
            continue  # a name is put on the list before its sale is made, and may never be
        except (CannotTell, LedgerUnavailable, PartitionUnavailable) as error:
            print(f"?    {name}  {error}")
            untold.append(f"{name}: {error}")
            continue
        for check in report.checks:
            print(f"{'ok  ' if check.holds else 'FAIL'} {name}  {check.name}  {check.detail}")
            held += check.holds
            failed += not check.holds
    if not held and not failed and not untold:
        untold.append("there has never been a sale, so there is nothing to audit")
    return _summarize(held, failed, untold)


async def _all_sales(partitions: Partitions, pool: LedgerPool) -> list[str]:
    in_redis = await partitions.sale_ids()
    in_ledger = [partition.sale_id for partition in await known_partitions(pool)]
    return sorted({*in_redis, *in_ledger})


def _summarize(held: int, failed: int, untold: list[str]) -> int:
    """Print the last line; the exit status."""
    if failed:
        print(f"audit: FAILED, {failed} of {held + failed} checks do not hold")
        return FAILS
    if untold:
        print(f"audit: could not tell: {untold[0]}")
        return CANNOT_TELL
    print(f"audit: holds, {held} checks")
    return HOLDS
