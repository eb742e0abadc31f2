"""The gateway put together: its routes, and the interface made of them."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Protocol

import orjson

from engine.domain.orders import HoldRequest, SettleRequest
from engine.gateway.documents import (
    AvailabilityDocument,
    AvailabilityQuery,
    BuyerOrdersQuery,
    OrderDocument,
    OrdersDocument,
)
from engine.gateway.handlers import OrderHandlers, Submitter, unique_line_ids
from engine.gateway.hot_holds import HotHolds
from engine.gateway.hot_settles import HotSettles
from engine.gateway.readiness import Watched, frozen_sales
from engine.partition.partitions import Partitions
from engine.web.fast_lane import HotHandler
from engine.web.interface import Interface
from engine.web.key_store import Principal
from engine.web.openapi import openapi_document
from engine.web.probes import Probes
from engine.web.problems import Code
from engine.web.routes import Route, RouteTable, Success

NAME = "gateway"
BODY_BYTES_MAX = 64 * 1024
ROLE = "checkout"
HOLD_ROUTE = "/v1/sales/{sale_id}/orders"
SETTLE_ROUTE = "/v1/orders/{order_id}/settle"

_UNAVAILABLE = (Code.OVERLOADED, Code.FROZEN, Code.OUTCOME_UNKNOWN)
_DESCRIPTION = (
    "What a checkout calls: hold units of a sale for a buyer, confirm or cancel the order, see what is available. "
    "Every refusal is a problem document by RFC 9457 whose `code` says why. An id in a path that breaks its shape is "
    "not found. Repeating a request with the same Idempotency-Key or payment_id is safe."
)


class GatewayPartitions(Submitter, Watched, Protocol):
    """What the gateway needs of `Partitions`."""


def gateway_interface(
    partitions: GatewayPartitions, principal: Callable[[str], Principal | None], is_draining: Callable[[], bool]
) -> Interface:
    """The gateway's interface over these partitions; `principal` tells whose a key is."""
    probes = Probes(lambda: frozen_sales(partitions), is_draining)
    table = RouteTable([*_order_routes(OrderHandlers(partitions)), *probes.routes()])
    probes.openapi = orjson.dumps(openapi_document("Miaocang gateway", version("miaocang"), _DESCRIPTION, table))
    return Interface(NAME, table, principal, BODY_BYTES_MAX)


def hot_handlers(partitions: Partitions) -> dict[str, HotHandler]:
    """The handlers for the fast lane of the routes on which a sale's load comes, by their templates."""
    return {HOLD_ROUTE: HotHolds(partitions).take, SETTLE_ROUTE: HotSettles(partitions).take}


def _order_routes(handlers: OrderHandlers) -> list[Route]:
    order = Success("The order.", OrderDocument)
    repeated = Success("The order; or the same again.", OrderDocument, headers=("Idempotent-Replayed",))

    def route(
        method: str, template: str, handler: Any, summary: str, successes: dict[int, Success], **more: Any
    ) -> Route:
        refusals = (*more.pop("refusals", ()), *_UNAVAILABLE)
        return Route(method, template, ROLE, handler, summary, successes, refusals, **more)

    return [
        route(
            "POST",
            HOLD_ROUTE,
            handlers.hold,
            "Hold units for a buyer until a deadline",
            {
                201: Success("The units are held.", OrderDocument),
                200: Success("This key has made this order before.", OrderDocument, headers=("Idempotent-Replayed",)),
            },
            refusals=(
                Code.IDEMPOTENCY_KEY_REUSED,
                Code.SALE_CLOSED,
                Code.SALE_NOT_OPEN,
                Code.LEDGER_BEHIND,
                Code.SKU_NOT_FOUND,
                Code.PRICE_CHANGED,
                Code.SOLD_OUT,
                Code.BUYER_LIMIT_REACHED,
            ),
            request=HoldRequest,
            rule=unique_line_ids,
            takes_idempotency_key=True,
        ),
        route(
            "GET",
            "/v1/sales/{sale_id}/orders",
            handlers.list_buyer_orders,
            "A buyer's orders in a sale, newest first, or the one that a key has made",
            {200: Success("The orders; none is an answer too.", OrdersDocument)},
            query=BuyerOrdersQuery,
        ),
        route(
            "GET",
            "/v1/sales/{sale_id}/availability",
            handlers.read_availability,
            "What can be bought now",
            {200: Success("Each SKU of the sale.", AvailabilityDocument)},
            query=AvailabilityQuery,
        ),
        route("GET", "/v1/orders/{order_id}", handlers.read_order, "An order with its current status", {200: order}),
        route(
            "POST",
            SETTLE_ROUTE,
            handlers.settle,
            "Confirm an order's payment",
            {200: repeated},
            refusals=(
                Code.IDEMPOTENCY_KEY_REUSED,
                Code.DUPLICATE_PAYMENT,
                Code.PAYMENT_TOO_LATE,
                Code.AMOUNT_MISMATCH,
                Code.CONFLICT,
            ),
            request=SettleRequest,
        ),
        route(
            "POST",
            "/v1/orders/{order_id}/cancel",
            handlers.cancel,
            "Give a hold back; no body is needed",
            {200: repeated},
            refusals=(Code.ORDER_NOT_HELD,),
        ),
    ]
