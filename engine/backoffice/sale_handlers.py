"""What the routes of sales do: make commands of the request, submit them, render the sale."""

import msgspec
from msgspec import UNSET

from engine.backoffice.cursors import LedgerCursors
from engine.backoffice.definition import define_command, new_command_id, shortage_errors
from engine.backoffice.documents import SaleBody, SaleDocument, SalesDocument, SalesQuery
from engine.backoffice.preconditions import Condition, condition_of, entity_tag
from engine.backoffice.sale_reader import SaleReader
from engine.backoffice.sale_view import sale_from_partition
from engine.backoffice.stock import change_stock_command
from engine.domain.commands import Close, Command, Delete, GetSale, Open, Pause, Resume
from engine.domain.outcomes import Outcome
from engine.domain.sales import SaleStatus, StockDocument
from engine.ledger.cursors import InvalidCursor
from engine.partition.codec import Reply
from engine.partition.partitions import Partitions
from engine.web.answers import JSON, REPLAYED, Answer, Header
from engine.web.problems import FieldError, Problem, invalid, refusal
from engine.web.routes import Call

VERSION_NEVER_GIVEN = 2**52
"""What a sale cannot have come to: asked for where an If-Match can match no version."""

_APPLIED = (Outcome.DONE, Outcome.REPEATED)
_SALE_CLOSED = refusal(Outcome.SALE_CLOSED, ())
_NOTHING_TO_MATCH = refusal(Outcome.CONFLICT, ("If-Match", "there is no such sale yet"))
_NO_DRAFT = refusal(Outcome.CONFLICT, ("status", f"the sale is {SaleStatus.CLOSED}"))


class SaleHandlers:
    """The routes of sales and their stock."""

    def __init__(self, partitions: Partitions, reader: SaleReader, cursors: LedgerCursors) -> None:
        self._partitions = partitions
        self._reader = reader
        self._cursors = cursors

    async def put_sale(self, call: Call) -> Answer | Problem:
        """Create a sale (201) or change it (200)."""
        sale_id, body = call.path["sale_id"], call.body
        condition = condition_of(call.headers)
        if not await self._reader.has_partition(sale_id):
            refused = await self._refuse_new(sale_id, body, condition)
            if refused is not None:
                return refused
        await self._partitions.register(sale_id)
        command = define_command(body, await self._version_asked_for(sale_id, condition))
        define, now = await self._partitions.submit(sale_id, command, GetSale())
        if define.outcome not in _APPLIED:
            return _refused_definition(body, define, now)
        if define.detail[0]:
            return _sale_answer(201, _document(now, sale_id), (("Location", f"/ops/v1/sales/{sale_id}"),))
        return _sale_answer(200, _document(now, sale_id))

    async def _refuse_new(self, sale_id: str, body: SaleBody, condition: Condition) -> Problem | None:
        """Why a sale that Redis does not know cannot be made. Nothing is sent to Redis then: the attempt alone would
        make a partition of it."""
        if errors := shortage_errors(body, known_skus=()):
            return invalid(errors)
        known = await self._reader.ledger_only(sale_id)
        if known is not None:
            return _SALE_CLOSED if known.retired else refusal(Outcome.FROZEN, ())
        return _NOTHING_TO_MATCH if condition.asked else None

    async def _version_asked_for(self, sale_id: str, condition: Condition) -> int:
        """The command's `if_match`; of several versions that would do, the one that the sale has."""
        if not condition.asked:
            return 0
        if condition.any_version:
            return -1
        if len(condition.versions) == 1:
            return next(iter(condition.versions))
        if condition.versions:
            (reply,) = await self._partitions.submit(sale_id, GetSale())
            if reply.outcome is Outcome.DONE and reply.sale().state.version in condition.versions:
                return reply.sale().state.version
        return VERSION_NEVER_GIVEN

    async def read_sale(self, call: Call) -> Answer | Problem:
        """The sale as it stands."""
        found = await self._reader.find(call.path["sale_id"])
        return found if isinstance(found, Problem) else _answer(200, found)

    async def list_sales(self, call: Call) -> Answer | Problem:
        """A page of sales."""
        query: SalesQuery = call.query
        seal = await self._cursors.seal(b"sales")
        try:
            after = seal.unseal(query.after).decode() if query.after else ""
        except InvalidCursor as error:
            return invalid([FieldError("after", f"must be a cursor that was given here: {error}")])
        page = await self._reader.page(after, query.limit)
        next_cursor = seal.seal(page.sales[-1].sale_id.encode()) if page.sales else query.after
        document = SalesDocument(page.sales, next_cursor, page.has_more, page.complete)
        return Answer(200, msgspec.json.encode(document), (("Content-Type", JSON),))

    async def delete_sale(self, call: Call) -> Answer | Problem:
        """Delete a draft."""
        sale_id = call.path["sale_id"]
        (reply,) = await self._partitions.submit(sale_id, Delete(new_command_id()))
        if reply.outcome is Outcome.DONE:
            return Answer(204, b"", ())
        if reply.outcome is Outcome.SALE_NOT_FOUND:
            absent = await self._reader.find_absent(sale_id)
            return absent if isinstance(absent, Problem) else _NO_DRAFT
        return refusal(reply.outcome, reply.detail)

    async def open_sale(self, call: Call) -> Answer | Problem:
        """draft → open."""
        return await self._transition(call, Open(new_command_id()), SaleStatus.OPEN)

    async def pause_sale(self, call: Call) -> Answer | Problem:
        """open → paused."""
        return await self._transition(call, Pause(new_command_id()), SaleStatus.PAUSED)

    async def resume_sale(self, call: Call) -> Answer | Problem:
        """paused → open."""
        return await self._transition(call, Resume(new_command_id()), SaleStatus.OPEN)

    async def close_sale(self, call: Call) -> Answer | Problem:
        """any → closed."""
        return await self._transition(call, Close(new_command_id()), SaleStatus.CLOSED)

    async def _transition(self, call: Call, command: Command, target: SaleStatus) -> Answer | Problem:
        sale_id = call.path["sale_id"]
        reply, now = await self._partitions.submit(sale_id, command, GetSale())
        if reply.outcome in _APPLIED:
            found = await self._reader.document_of(sale_id, now)  # what is closed may have left Redis
            return found if isinstance(found, Problem) else _sale_answer(200, found)
        if reply.outcome is not Outcome.SALE_NOT_FOUND:
            return refusal(reply.outcome, reply.detail)
        absent = await self._reader.find_absent(sale_id)
        if isinstance(absent, Problem):
            return absent
        return _sale_answer(200, absent) if target is SaleStatus.CLOSED else _NO_DRAFT

    async def change_stock(self, call: Call) -> Answer | Problem:
        """Apply a stock document, once."""
        sale_id = call.path["sale_id"]
        document: StockDocument = call.body
        reply, now = await self._partitions.submit(sale_id, change_stock_command(document), GetSale())
        if reply.outcome is Outcome.DONE:
            return _sale_answer(200, _document(now, sale_id))
        if reply.outcome is Outcome.REPEATED:
            return _sale_answer(200, _document(now, sale_id), (REPLAYED,))
        if reply.outcome is Outcome.SALE_NOT_FOUND:
            absent = await self._reader.find_absent(sale_id)
            return absent if isinstance(absent, Problem) else _SALE_CLOSED
        return refusal(reply.outcome, reply.detail)


def _refused_definition(body: SaleBody, define: Reply, now: Reply) -> Problem:
    """The problem of a definition that was refused: what the body alone is wrong with goes first, and all of it."""
    known = {sku for sku, _ in now.sale().levels} if now.outcome is Outcome.DONE else ()
    errors = shortage_errors(body, known)
    return invalid(errors) if errors else refusal(define.outcome, define.detail)


def _document(now: Reply, sale_id: str) -> SaleDocument:
    """The sale of the same atom as the change that it answers."""
    return sale_from_partition(sale_id, now.sale())


def _sale_answer(status: int, document: SaleDocument, headers: tuple[Header, ...] = ()) -> Answer:
    """The answer to a change: the sale without the time, which would be another for each repeat."""
    return _answer(status, msgspec.structs.replace(document, as_of=UNSET), headers)


def _answer(status: int, document: SaleDocument, headers: tuple[Header, ...] = ()) -> Answer:
    own: tuple[Header, ...] = (("Content-Type", JSON), ("ETag", entity_tag(document.version)))
    return Answer(status, msgspec.json.encode(document), (*own, *headers))
