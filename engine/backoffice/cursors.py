"""Cursors over sales. Their secret is the ledger's, asked for once, so that they outlive PostgreSQL's absence."""

from engine.ledger.connect import LedgerPool
from engine.ledger.cursors import CursorSeal
from engine.ledger.feed import cursor_secret


class LedgerCursors:
    """Makes seals with the ledger's secret."""

    def __init__(self, ledger: LedgerPool) -> None:
        self._ledger = ledger
        self._secret: bytes | None = None

    async def learn(self) -> bytes:
        """The secret, asked for at the first call. Raises LedgerUnavailable."""
        if self._secret is None:
            self._secret = await cursor_secret(self._ledger)
        return self._secret

    async def seal(self, kind: bytes) -> CursorSeal:
        """What makes cursors of one kind. Raises LedgerUnavailable where the secret is not known yet."""
        return CursorSeal(await self.learn(), kind)
