"""The merchant's ERP: pulls the feed from where it stopped last time, and acknowledges what it has taken over."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from engine.demo.caller import Caller, Unexpected

PAGE_ROWS = 500
QUIET_SECONDS = 2.5
"""The feed may lag by about two seconds: only after this long without a row is it taken to be complete."""
PULL_SECONDS_MAX = 60.0
PAUSE_SECONDS = 0.25


@dataclass(slots=True)
class Erp:
    """What was pulled of one sale. Rows of other sales in the same ledger are taken over and not kept."""

    backoffice: Caller
    sale_id: str
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    gaps: int = 0
    """Places where `feed_sequence` did not rise by one, over all sales."""
    _last_sequence: int | None = None

    async def pull(self, rows_expected: int) -> None:
        """Read to the end of the feed: until all that is expected has come and then nothing more for a while.

        Raises: NoAnswer, Unexpected.
        """
        cursor = str((await self._ask("GET", "/erp/v1/orders/acknowledge"))["acknowledged"])
        started = last_row_at = time.monotonic()
        while True:
            page = await self._ask("GET", f"/erp/v1/orders?after={quote(cursor, safe='')}&limit={PAGE_ROWS}")
            now = time.monotonic()
            if page["orders"]:
                last_row_at = now
                self._take_over(page["orders"])
                cursor = str(page["next_cursor"])
                await self._ask("POST", "/erp/v1/orders/acknowledge", {"up_to": cursor})
            is_complete = len(self.rows) >= rows_expected and now - last_row_at >= QUIET_SECONDS
            if is_complete or now - started >= PULL_SECONDS_MAX:
                return
            if not page["has_more"]:
                await asyncio.sleep(PAUSE_SECONDS)

    def _take_over(self, rows: list[Mapping[str, Any]]) -> None:
        for row in rows:
            sequence = int(row["feed_sequence"])
            if self._last_sequence is not None and sequence != self._last_sequence + 1:
                self.gaps += 1
            self._last_sequence = sequence
            if row["sale_id"] == self.sale_id:
                self.rows.append(row)

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        answer = await self.backoffice.ask(method, path, body)
        if not answer.is_yes:
            raise Unexpected(f"{method} {path}", answer)
        return answer.body
