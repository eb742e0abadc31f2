"""The back office put together: its routes, and the interface made of them."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import orjson

from engine.backoffice.audit_handlers import AuditHandlers
from engine.backoffice.console import Console, ConsoleInterface
from engine.backoffice.cursors import LedgerCursors
from engine.backoffice.definition import definition_errors
from engine.backoffice.documents import (
    AcknowledgeBody,
    AcknowledgedDocument,
    AuditDocument,
    FeedDocument,
    FeedQuery,
    FoundOrdersDocument,
    SaleBody,
    SaleDocument,
    SalesDocument,
    SalesQuery,
    SearchQuery,
)
from engine.backoffice.order_handlers import FEED_PATH, OrderHandlers
from engine.backoffice.preconditions import malformed_condition
from engine.backoffice.readiness import stores_ready
from engine.backoffice.sale_handlers import SaleHandlers
from engine.backoffice.sale_reader import SaleReader
from engine.backoffice.sessions import Sessions
from engine.backoffice.stock import stock_errors
from engine.domain.sales import StockDocument
from engine.ledger.connect import LedgerPool
from engine.partition.partitions import Partitions
from engine.web.interface import Interface
from engine.web.key_store import Principal
from engine.web.openapi import openapi_document
from engine.web.probes import Probes
from engine.web.problems import Code
from engine.web.routes import Route, RouteTable, Success

NAME = "backoffice"
BODY_BYTES_MAX = 16 * 1024 * 1024

_PARTITION_AWAY = (Code.OVERLOADED, Code.FROZEN, Code.OUTCOME_UNKNOWN)
_LEDGER_AWAY = (Code.LEDGER_BEHIND,)
_DESCRIPTION = (
    "What operators (role `ops`) and the ERP (role `erp`) call: sales and their stock, the help desk's search, the "
    "audit, and the feed of settled orders. `ops` may read whatever the ERP may. Every refusal is a problem document "
    "by RFC 9457 whose `code` says why. An id in a path that breaks its shape is not found; in the path of a PUT it is "
    "INVALID. Not built yet: `location` in a SKU's entry (INVALID), refunds, inventory, shipments, costs, reports, "
    "members and webhooks (NOT_FOUND)."
)


def backoffice_interface(
    partitions: Partitions,
    ledger: LedgerPool,
    cursors: LedgerCursors,
    principal: Callable[[str], Principal | None],
    is_draining: Callable[[], bool],
) -> Interface:
    """The back office's interface over both stores; `principal` tells whose a key is."""
    sessions = Sessions()
    probes = Probes(lambda: stores_ready(partitions, ledger), is_draining)
    table = RouteTable(
        [
            *_sale_routes(SaleHandlers(partitions, SaleReader(partitions, ledger), cursors)),
            *_order_routes(OrderHandlers(ledger)),
            *_audit_routes(AuditHandlers(partitions, ledger)),
            *_console_routes(Console(sessions)),
            *probes.routes(Code.LEDGER_BEHIND),
        ]
    )
    probes.openapi = orjson.dumps(openapi_document("Miaocang back office", version("miaocang"), _DESCRIPTION, table))
    return ConsoleInterface(NAME, table, principal, BODY_BYTES_MAX, sessions)


def _sale_routes(handlers: SaleHandlers) -> list[Route]:
    sale = Success("The sale as it stands now.", SaleDocument, headers=("ETag",))
    path = "/ops/v1/sales/{sale_id}"

    def route(
        method: str, template: str, handler: Any, summary: str, successes: dict[int, Success], *codes: Code, **more: Any
    ) -> Route:
        refusals = (*codes, *_PARTITION_AWAY, *_LEDGER_AWAY)
        return Route(method, template, "ops", handler, summary, successes, refusals, **more)

    def transition(word: str, handler: Any, summary: str) -> Route:
        return route("POST", f"{path}/{word}", handler, summary, {200: sale}, Code.CONFLICT)

    created = Success("The sale, which was created.", SaleDocument, headers=("ETag", "Location"))
    changed = Success("The sale.", SaleDocument, headers=("ETag", "Idempotent-Replayed"))
    return [
        route(
            "PUT",
            path,
            handlers.put_sale,
            "Create a sale, or change it; `If-Match` with its ETag is honoured",
            {201: created, 200: sale},
            Code.CONFLICT,
            Code.SALE_CLOSED,
            request=SaleBody,
            rule=definition_errors,
            check_headers=malformed_condition,
            optional_headers={"If-Match": "ETags of the versions that may be changed, or `*`: that there is a sale."},
        ),
        route("GET", path, handlers.read_sale, "A sale with its units", {200: sale}),
        route(
            "GET",
            "/ops/v1/sales",
            handlers.list_sales,
            "Sales in the order of their ids; a page of very large sales may be shorter than `limit`",
            {200: Success("A page of sales.", SalesDocument)},
            query=SalesQuery,
        ),
        route(
            "DELETE",
            path,
            handlers.delete_sale,
            "Delete a draft",
            {204: Success("It is deleted.", content_type="")},
            Code.CONFLICT,
        ),
        transition("open", handlers.open_sale, "Open a draft; no body is needed"),
        transition("pause", handlers.pause_sale, "Pause an open sale; no body is needed"),
        transition("resume", handlers.resume_sale, "Resume a paused sale; no body is needed"),
        transition("close", handlers.close_sale, "Close a sale for good; no body is needed"),
        route(
            "POST",
            f"{path}/stock",
            handlers.change_stock,
            "Apply a stock document, all of it or nothing, once for its `document_id`",
            {200: changed},
            Code.IDEMPOTENCY_KEY_REUSED,
            Code.SALE_CLOSED,
            Code.SKU_NOT_FOUND,
            Code.CONFLICT,
            request=StockDocument,
            rule=stock_errors,
        ),
    ]


def _order_routes(handlers: OrderHandlers) -> list[Route]:
    acknowledged = Success("How far this key's owner has taken rows over.", AcknowledgedDocument)
    return [
        Route(
            "GET",
            "/ops/v1/orders",
            "ops",
            handlers.search_orders,
            "Search orders over every sale and channel; may lag by about two seconds",
            {200: Success("Orders, newest first.", FoundOrdersDocument)},
            _LEDGER_AWAY,
            query=SearchQuery,
        ),
        Route(
            "GET",
            FEED_PATH,
            "erp",
            handlers.read_feed,
            "The feed: every settled order and every payment due for refund, once, in order",
            {200: Success("Rows of the feed.", FeedDocument, headers=("Link",))},
            _LEDGER_AWAY,
            query=FeedQuery,
        ),
        Route(
            "POST",
            f"{FEED_PATH}/acknowledge",
            "erp",
            handlers.acknowledge,
            "Remember how far the feed's rows have been taken over; never goes back",
            {200: acknowledged},
            _LEDGER_AWAY,
            request=AcknowledgeBody,
        ),
        Route(
            "GET",
            f"{FEED_PATH}/acknowledge",
            "erp",
            handlers.read_acknowledged,
            "How far the feed's rows have been taken over",
            {200: acknowledged},
            _LEDGER_AWAY,
        ),
    ]


def _audit_routes(handlers: AuditHandlers) -> list[Route]:
    return [
        Route(
            "GET",
            "/ops/v1/sales/{sale_id}/audit",
            "ops",
            handlers.audit,
            "Check every promise that can be recomputed; exact under load",
            {200: Success("Every check.", AuditDocument)},
            (*_PARTITION_AWAY, *_LEDGER_AWAY),
        )
    ]


def _console_routes(console: Console) -> list[Route]:
    page = Success("The page; with 401 where it asks for a key.", content_type="text/html")

    def route(method: str, template: str, handler: Any, summary: str, successes: dict[int, Success]) -> Route:
        return Route(method, template, "ops", handler, summary, successes)

    signed_out = Success("Signed out.", content_type="", headers=("Set-Cookie",))
    there = Success("It is there.", content_type="", headers=("Location",))
    return [
        route("GET", "/console/", console.read_console, "The control room, for people", {200: page}),
        route(
            "GET",
            "/console",
            console.redirect_to_console,
            "Leads to the control room",
            {308: there},
        ),
        route(
            "GET",
            "/console/console.js",
            console.read_console_script,
            "What the control room does",
            {200: Success("A script.", content_type="text/javascript")},
        ),
        route(
            "GET",
            "/console/console.css",
            console.read_console_style,
            "What the control room looks like",
            {200: Success("A style.", content_type="text/css")},
        ),
        route(
            "POST",
            "/console/session",
            console.begin_session,
            "Get a cookie that stands for this request's key in reads",
            {204: Success("Signed in.", content_type="", headers=("Set-Cookie",))},
        ),
        route("DELETE", "/console/session", console.end_session, "Sign out", {204: signed_out}),
    ]
