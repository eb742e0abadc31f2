"""What the routes of orders do: the help desk's search, the ERP's feed, and how far the ERP has come."""

from urllib.parse import urlencode

import orjson

from engine.backoffice.documents import AcknowledgeBody, FeedQuery, SearchQuery
from engine.domain.orders import OrderStatus
from engine.ledger.connect import LedgerPool
from engine.ledger.cursors import InvalidCursor
from engine.ledger.feed import Feed, FeedPage
from engine.ledger.search import OrderQuery, search
from engine.web.answers import Answer, Header, json_answer
from engine.web.problems import FieldError, Problem, invalid
from engine.web.routes import Call

FEED_PATH = "/erp/v1/orders"


class OrderHandlers:
    """The routes that read the ledger's orders. Each raises LedgerUnavailable where it cannot be asked."""

    def __init__(self, ledger: LedgerPool) -> None:
        self._ledger = ledger
        self._feed = Feed(ledger)

    async def search_orders(self, call: Call) -> Answer | Problem:
        """Orders of every sale and channel that have all of what was asked for, newest first."""
        query: SearchQuery = call.query
        wanted = OrderQuery(
            order_id=query.order_id or None,
            channel=query.channel or None,
            buyer_id=query.buyer_id or None,
            reference=query.reference or None,
            payment_id=query.payment_id or None,
            sale_id=query.sale_id or None,
            sku=query.sku or None,
            status=OrderStatus[query.status.upper()] if query.status else None,
        )
        try:
            page = await search(self._ledger, wanted, query.after, query.limit)
        except InvalidCursor as error:
            return _never_given("after", error)
        return json_answer(200, {"orders": page.orders, "next_cursor": page.next_cursor, "has_more": page.has_more})

    async def read_feed(self, call: Call) -> Answer | Problem:
        """Rows of the feed behind a cursor."""
        query: FeedQuery = call.query
        change = query.change or None
        try:
            page = await self._feed.page(query.after, query.limit, change)
        except InvalidCursor as error:
            return _never_given("after", error)
        document = {
            "orders": [orjson.Fragment(row) for row in page.rows],
            "next_cursor": page.next_cursor,
            "has_more": page.has_more,
        }
        return json_answer(200, document, _next_page(query, page))

    async def acknowledge(self, call: Call) -> Answer | Problem:
        """Remember how far this key's owner has taken rows over."""
        assert call.principal is not None
        body: AcknowledgeBody = call.body
        try:
            acknowledged = await self._feed.acknowledge(call.principal.role, call.principal.name, body.up_to)
        except InvalidCursor as error:
            return _never_given("up_to", error)
        return json_answer(200, {"acknowledged": acknowledged})

    async def read_acknowledged(self, call: Call) -> Answer | Problem:
        """How far this key's owner has taken rows over."""
        assert call.principal is not None
        acknowledged = await self._feed.acknowledged(call.principal.role, call.principal.name)
        return json_answer(200, {"acknowledged": acknowledged})


def _next_page(query: FeedQuery, page: FeedPage) -> tuple[Header, ...]:
    """The address of the next page by RFC 8288, while there is one."""
    if not page.has_more:
        return ()
    parameters = {"after": page.next_cursor, "limit": query.limit}
    if query.change:
        parameters["change"] = query.change
    return (("Link", f'<{FEED_PATH}?{urlencode(parameters)}>; rel="next"'),)


def _never_given(field: str, error: InvalidCursor) -> Problem:
    return invalid([FieldError(field, f"must be a cursor that was given here: {error}")])
