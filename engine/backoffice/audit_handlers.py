"""What the route of the audit does: recompute one sale's promises, a bounded number of sales at a time."""

import asyncio

import structlog

from engine.audit.collect import audit_sale
from engine.audit.report import CannotTell, SaleUnknown
from engine.domain.errors import Overloaded
from engine.ledger.connect import LedgerPool
from engine.partition.partitions import Partitions
from engine.web.answers import Answer, json_answer
from engine.web.problems import Code, Problem
from engine.web.routes import Call

AUDITS_MAX = 2
"""Audits at once: each reads all of a sale's journal, and there are other callers."""
AUDIT_SECONDS_MAX = 120.0

_log = structlog.get_logger(__name__)


class AuditHandlers:
    """The route of the audit."""

    def __init__(self, partitions: Partitions, ledger: LedgerPool) -> None:
        self._partitions = partitions
        self._ledger = ledger
        self._running = asyncio.Semaphore(AUDITS_MAX)

    async def audit(self, call: Call) -> Answer | Problem:
        """Whether every promise holds that can be recomputed for this sale; a problem where that cannot be told."""
        try:
            async with asyncio.timeout(AUDIT_SECONDS_MAX), self._running:
                report = await audit_sale(self._partitions, self._ledger, call.path["sale_id"])
        except TimeoutError as error:
            raise Overloaded(f"an audit may take {AUDIT_SECONDS_MAX:g} seconds") from error
        except SaleUnknown:
            return Problem(Code.SALE_NOT_FOUND, "Neither Redis nor the ledger has heard of a sale of this id.")
        except CannotTell as error:
            _log.warning("audit_cannot_tell", sale_id=call.path["sale_id"], reason=str(error))
            return Problem(Code.LEDGER_BEHIND, f"The audit could not tell: {error}.")
        return json_answer(200, report.document())
