"""People in a live: they click "buy" once to three times, look what is left, and pay, cancel or leave.

Buyers are the closed-loop users of Locust: this shows how people fare, not the engine's ceiling (see README.md).
"""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path
from typing import Any

import requests  # Locust brings it
from gevent.pool import Group
from locust import FastHttpUser, between, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import StopUser

CHANNELS = ("douyin", "wechat_channels", "kuaishou", "community")
CLICKS_WEIGHTS = {1: 50, 2: 35, 3: 15}
INTENT_WEIGHTS = {"pay": 70, "pay_twice": 5, "cancel": 5, "leave": 20}
LINES_MAX = 3
LINE_QUANTITY_MAX = 2
ASKINGS_MAX = 10
"""How often one request is asked again after an answer that says so."""
SETUP_SECONDS_MAX = 10

SALE_SKUS = 50
SALE_UNITS_OF_A_SKU = 2_000
SALE_HOLD_SECONDS = 15

ASK_AGAIN_CODES = frozenset({"OUTCOME_UNKNOWN", "FROZEN", "OVERLOADED", "LEDGER_BEHIND", "RATE_LIMITED"})
RIGHT_REFUSALS = frozenset(
    {"SOLD_OUT", "SALE_NOT_OPEN", "BUYER_LIMIT_REACHED", "ORDER_NOT_HELD", "PAYMENT_TOO_LATE", "DUPLICATE_PAYMENT"}
)
"""A "no" that is a right answer."""


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Options of this file; those with a name in the environment can be given there."""
    parser.add_argument("--endpoints", env_var="MIAOCANG_LOAD_ENDPOINTS", default="", help="An engine's endpoints.json")
    parser.add_argument("--sale", env_var="MIAOCANG_LOAD_SALE", default="load-1", help="The sale to buy from")
    parser.add_argument("--currency", env_var="MIAOCANG_LOAD_CURRENCY", default="CNY", help="The currency of that sale")
    parser.add_argument(
        "--checkout-key",
        env_var="MIAOCANG_LOAD_CHECKOUT_KEY",
        default="",
        is_secret=True,
        help="A key of the role checkout, where there is no endpoints.json",
    )
    parser.add_argument("--make-sale", action="store_true", help="Make the sale first, and open it")


@events.test_start.add_listener
def prepare(environment: Environment, **_: object) -> None:
    """Learn where the engine is, and make the sale if asked to."""
    options = environment.parsed_options
    if options.endpoints:
        endpoints = json.loads(Path(options.endpoints).read_text())
        environment.host = environment.host or endpoints["gateway_url"]
        options.checkout_key = options.checkout_key or endpoints["keys"]["checkout"]
        if options.make_sale:
            make_sale(endpoints["backoffice_url"], endpoints["keys"]["ops"], options.sale, options.currency)
    elif options.make_sale:
        raise SystemExit("--make-sale needs --endpoints: it takes the back office's address and the ops key from there")
    if not (environment.host and options.checkout_key):
        raise SystemExit("give --endpoints, or --host and --checkout-key")


def make_sale(backoffice_url: str, ops_key: str, sale_id: str, currency: str) -> None:
    """Create a sale, or put it back to its definition, and open it."""
    skus = [
        {
            "sku": f"TEE-{number:02}",
            "style": f"TEE-{number // 5}",
            "unit_price_minor": 990 + 100 * number,
            "quantity": SALE_UNITS_OF_A_SKU,
            "channels": {"douyin": SALE_UNITS_OF_A_SKU // 4},
        }
        for number in range(SALE_SKUS)
    ]
    body = {"title": "Load", "currency": currency, "hold_seconds": SALE_HOLD_SECONDS, "skus": skus}
    sale_url = f"{backoffice_url}/ops/v1/sales/{sale_id}"
    for method, url, document in (("PUT", sale_url, body), ("POST", f"{sale_url}/open", None)):
        headers = {"Authorization": f"Bearer {ops_key}"}
        answer = requests.request(method, url, json=document, headers=headers, timeout=SETUP_SECONDS_MAX)
        if not answer.ok:
            raise SystemExit(f"{method} {url}: {answer.status_code} {answer.text}")


class Buyer(FastHttpUser):
    """One person who buys again and again, each time as somebody new."""

    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        """Learn what is on sale."""
        options = self.environment.parsed_options
        self.sale_path = f"/v1/sales/{options.sale}"
        self.currency = options.currency
        self.headers = {"Authorization": f"Bearer {options.checkout_key}"}
        self.skus = [entry["sku"] for entry in self.look()]
        if not self.skus:
            raise StopUser

    @task(8)
    def buy(self) -> None:
        """Click, and do with the hold whatever this buyer does."""
        order = self.click()
        if order is None:
            return
        self.wait()
        intent = pick(INTENT_WEIGHTS)
        if intent == "cancel":
            self.ask("cancel", f"/v1/orders/{order['order_id']}/cancel", None)
        if intent in {"pay", "pay_twice"}:
            self.pay(order, "1")
        if intent == "pay_twice":
            self.pay(order, "2")

    @task(2)
    def look(self) -> list[dict[str, Any]]:
        """Look what is left."""
        with self.client.get(
            f"{self.sale_path}/availability", headers=self.headers, name="availability", catch_response=True
        ) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}")
                return []
            response.success()
            skus: list[dict[str, Any]] = response.json()["skus"]
            return skus

    def click(self) -> dict[str, Any] | None:
        """Click once to three times at once with one key; the order, if there is one."""
        body = {
            "buyer_id": f"load-{uuid.uuid4().hex}",
            "channel": random.choice(CHANNELS),
            "lines": [
                {"sku": random.choice(self.skus), "quantity": random.randint(1, LINE_QUANTITY_MAX)}
                for _ in range(random.randint(1, LINES_MAX))
            ],
        }
        key = uuid.uuid4().hex
        answers: list[dict[str, Any] | None] = []
        clicks = Group()
        for _ in range(pick(CLICKS_WEIGHTS)):
            clicks.spawn(lambda: answers.append(self.ask("hold", f"{self.sale_path}/orders", body, key)))
        clicks.join()
        orders = [answer for answer in answers if answer is not None and "order_id" in answer]
        if len({order["order_id"] for order in orders}) > 1:
            self.defect("hold", f"one key made several orders: {key}")
        order = orders[0] if orders else None
        if order and sum(line["paid_minor"] for line in order["lines"]) != order["amount_minor"]:
            self.defect("hold", f"the lines of order {order['order_id']} do not add up")
        return order

    def pay(self, order: dict[str, Any], payment: str) -> None:
        """Report a payment of the order's whole amount."""
        body = {
            "payment_id": f"{order['order_id']}-{payment}",
            "amount_minor": order["amount_minor"],
            "currency": self.currency,
        }
        self.ask("settle", f"/v1/orders/{order['order_id']}/settle", body)

    def ask(self, name: str, path: str, body: dict[str, Any] | None, key: str = "") -> dict[str, Any] | None:
        """Post until it is answered for good; the answer's body, or None where it never was."""
        headers = {**self.headers, "Idempotency-Key": key} if key else self.headers
        for _ in range(ASKINGS_MAX):
            with self.client.post(path, json=body, headers=headers, name=name, catch_response=True) as response:
                answer = read_body(response)
                code = str(answer.get("code", "")) or f"HTTP {response.status_code}"
                if 200 <= response.status_code < 300:
                    response.success()
                    return answer
                if code in RIGHT_REFUSALS:
                    response.request_meta["name"] = f"{name}: {code}"
                    response.success()
                    return answer
                response.failure(code)
                if response.status_code != 0 and code not in ASK_AGAIN_CODES:
                    return None
            self.wait()
        return None

    def defect(self, name: str, what: str) -> None:
        """Report something that no answer may ever say."""
        self.environment.events.request.fire(
            request_type="CHECK",
            name=name,
            response_time=0,
            response_length=0,
            exception=AssertionError(what),
            context={},
        )


def read_body(response: Any) -> dict[str, Any]:
    """The answer's JSON object; empty where there is none, as after a broken connection."""
    try:
        body = response.json()
    except (ValueError, TypeError):
        return {}
    return body if isinstance(body, dict) else {}


def pick(weights: dict[Any, int]) -> Any:
    """One of the choices, each as likely as its weight says."""
    return random.choices(list(weights), list(weights.values()))[0]
