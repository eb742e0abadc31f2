"""The ERP's feed (contract §5): every settled order and every payment due for refund, once, in a dense order."""

from dataclasses import dataclass

from engine.domain.errors import LedgerUnavailable
from engine.ledger.connect import LedgerPool
from engine.ledger.cursors import CursorSeal, InvalidCursor
from engine.ledger.queries import load

FEED_LIMIT_MAX = 1000

_queries = load("feed")


@dataclass(frozen=True)
class FeedPage:
    """Rows of the feed, each a finished JSON document, oldest first."""

    rows: list[str]
    next_cursor: str
    """Where the next page starts; the given `after` where this page is empty."""
    has_more: bool


class Feed:
    """Reads the feed and remembers how far each owner has come. It numbers nothing: the persister does.

    Every method raises LedgerUnavailable where PostgreSQL cannot be asked.
    """

    def __init__(self, pool: LedgerPool) -> None:
        self._pool = pool
        self._seal: CursorSeal | None = None

    async def page(self, after: str, limit: int, change: str | None = None) -> FeedPage:
        """At most `limit` rows behind the cursor `after`, empty for the start; of one kind of change where given.

        Raises: InvalidCursor.
        """
        start = await self._number(after)
        name, arguments = ("page_after", ()) if change is None else ("page_after_of_change", (change,))
        found = await self._pool.fetch(_queries[name], start, limit + 1, *arguments)
        rows = found[:limit]
        return FeedPage(
            rows=[row["row"] for row in rows],
            next_cursor=await self._cursor(rows[-1]["feed_sequence"]) if rows else after,
            has_more=len(found) > limit,
        )

    async def acknowledge(self, role: str, owner: str, cursor: str) -> str:
        """Remember that this owner has taken over all rows up to `cursor`; never goes back.

        Returns the cursor that is remembered now. Raises: InvalidCursor.
        """
        number = await self._number(cursor)
        return await self._cursor(await self._pool.fetch_value(_queries["acknowledge"], role, owner, number) or 0)

    async def acknowledged(self, role: str, owner: str) -> str:
        """The cursor up to which this owner has taken rows over; empty where nothing was acknowledged yet."""
        return await self._cursor(await self._pool.fetch_value(_queries["acknowledged"], role, owner) or 0)

    async def _number(self, cursor: str) -> int:
        """The feed number that a cursor stands for.

        A cursor beyond the newest row is of another ledger, or of a time that this one was restored from before.
        """
        if not cursor:
            return 0
        number = int.from_bytes((await self._sealer()).unseal(cursor), "big")
        if number > (await self._pool.fetch_value(_queries["newest"]) or 0):
            raise InvalidCursor("this cursor is beyond the newest row")
        return number

    async def _cursor(self, number: int) -> str:
        return (await self._sealer()).seal(number.to_bytes(8, "big")) if number else ""

    async def _sealer(self) -> CursorSeal:
        if self._seal is None:
            self._seal = CursorSeal(await cursor_secret(self._pool), b"feed")
        return self._seal


async def cursor_secret(pool: LedgerPool) -> bytes:
    """The secret of this ledger's cursors: the same in every process, and never outside."""
    secret = await pool.fetch_value(_queries["setting"], "cursor_secret")
    if secret is None:
        raise LedgerUnavailable("the ledger holds no secret for cursors: was it migrated?")
    return bytes(secret)
