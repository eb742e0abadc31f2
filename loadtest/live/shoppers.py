"""Those who watch and those who buy."""

import random
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import gevent
import orjson
from gevent.pool import Group
from locust import between, task

from engine.demo.orders_data import CURRENCY
from loadtest.live.answers import Answer, Sent, complaint_about_no, complaint_about_order, seconds_since_epoch
from loadtest.live.catalogue import BUYER_LIMIT_UNITS, Item
from loadtest.live.person import ANSWER_SECONDS_MAX, Person
from loadtest.live.promises import Promise

CHANNEL_WEIGHTS = {"douyin": 40, "wechat_channels": 25, "kuaishou": 20, "community": 15}
LINES_WEIGHTS = {1: 70, 2: 22, 3: 8}
QUANTITY_WEIGHTS = {1: 88, 2: 12}
CLICKS_WEIGHTS = {1: 50, 2: 35, 3: 15}
"""How often a thumb hits "buy" for one order, all at once and with one key."""
INTENT_WEIGHTS = {
    "pay": 52,
    "pay_reported_twice": 8,
    "pay_twice": 4,
    "pay_wrong_amount_first": 3,
    "pay_then_cancel": 3,
    "cancel": 5,
    "cancel_then_pay": 3,
    "pay_late": 8,
    "leave": 14,
}
TRIES_MAX = 3
"""How many carts one buyer fills on one visit, where the one before was sold out."""
SAME_PERSON_SHARE = 0.15
"""Of the carts: those of somebody who has bought before, and may be at the limit."""
EAGER_SHARE = 0.15
"""Of a look in the waiting room: that somebody clicks though the link is not up."""
BROWSING_SHARE = 0.3
"""Of a look after the rush: that somebody buys then."""
OLD_PRICE_SHARE = 0.03
CUT_OFF_SHARE = 0.05
"""Of the clicks: those whose connection goes away before the answer comes."""
CUT_OFF_SECONDS_MAX = 0.03
CLICK_AGAIN_SHARE = 0.1
LOOK_AT_ORDER_SHARE = 0.3
VOUCHER_SHARE = 0.15
VOUCHER_PERCENT = 5
FREIGHT_MINOR = 495
REACTION_MU, REACTION_SIGMA = -0.7, 0.5
"""Of the logarithm of the seconds in which people click once the link is up: half of them within 0.5 s."""
THINKING_SECONDS_MAX = 2.5
LATE_SECONDS_MAX = 4.0


@dataclass(slots=True)
class Identity:
    """Somebody under a pseudonym of a channel, and what the engine may count against their limit."""

    buyer_id: str
    channel: str
    asked_units: int = 0
    """At most what they have: all that was ever asked for."""
    settled_units: int = 0
    """At least what they have: what they have paid for."""


class Viewer(Person):
    """Watches, looks what is left, and buys nothing."""

    weight = 4
    wait_time = between(1.0, 3.0)

    @task
    def look(self) -> None:
        """Look what is left, of all pools or of one's channel's."""
        look(self, pick(CHANNEL_WEIGHTS) if random.random() < 0.5 else "")


class Buyer(Person):
    """Waits for each link and clicks when it is up; afterwards comes back now and then, mostly as somebody new."""

    weight = 6
    wait_time = between(0.3, 2.0)

    def on_start(self) -> None:
        """Join, having seen none of the links that are up."""
        super().on_start()
        self.links_seen = 0
        self.identity = new_identity()

    @task
    def follow(self) -> None:
        """React to a new link, or spend the time until the next."""
        if self.show.links_up > self.links_seen:
            self.links_seen = self.show.links_up
            gevent.sleep(random.lognormvariate(REACTION_MU, REACTION_SIGMA))
            self.shop()
            return
        look(self, self.identity.channel)
        if random.random() < (BROWSING_SHARE if self.links_seen else EAGER_SHARE):
            self.shop()
        else:
            self.show.wait_for_link(self.links_seen, random.uniform(1.0, 3.0))

    def shop(self) -> None:
        """Fill carts until one is held or the patience is gone, and then pay, or not."""
        for _ in range(TRIES_MAX):
            if random.random() >= SAME_PERSON_SHARE:
                self.identity = new_identity()
            sent = self.fill_cart()
            answer = self.click(sent)
            if answer is None or answer.code == "SALE_NOT_OPEN":
                return
            if answer.is_yes:
                self.after_hold(sent, answer)
                return
            gevent.sleep(random.uniform(0.2, 1.0))

    def fill_cart(self) -> Sent:
        """One to three lines of the newest link, sometimes of an older one."""
        newest = max(self.links_seen - 1, 0)
        items: list[Item] = []
        for _ in range(pick(LINES_WEIGHTS)):
            link = newest if random.random() < 0.8 else random.randint(0, newest)
            items.append(self.show.catalogue.pick(link))
        lines = [{"sku": item.sku, "quantity": pick(QUANTITY_WEIGHTS)} for item in items]
        prices = {item.sku: item.unit_price_minor for item in items}
        value_minor = sum(line["quantity"] * prices[line["sku"]] for line in lines)
        discount_minor = value_minor * VOUCHER_PERCENT // 100 if random.random() < VOUCHER_SHARE else 0
        freight_minor = FREIGHT_MINOR if random.random() < 0.5 else 0
        amount_minor = value_minor - discount_minor + freight_minor
        body = {
            "buyer_id": self.identity.buyer_id,
            "channel": self.identity.channel,
            "reference": f"R-{uuid.uuid4().hex[:12]}",
            "lines": lines,
            "discount_minor": discount_minor,
            "freight_minor": freight_minor,
            "expected_amount_minor": amount_minor + (100 if random.random() < OLD_PRICE_SHARE else 0),
        }
        return Sent(uuid.uuid4().hex, body, amount_minor, prices, CURRENCY)

    # --- clicking ----------------------------------------------------------------------------------------------------

    def click(self, sent: Sent) -> Answer | None:
        """Click, perhaps more than once, perhaps without hearing the answer; what it came to, None for nothing."""
        had_units = self.identity.asked_units
        self.identity.asked_units += sent.units
        if random.random() < CUT_OFF_SHARE:
            self.cut_off(sent)
            known = self.ask_by_key(sent)
            if known is not None:
                return known
        return self.click_and_hear(sent, had_units)

    def click_and_hear(self, sent: Sent, had_units: int) -> Answer | None:
        """Once to three times at once with one key: at most one order, and at most one 201."""
        was_open = self.show.links[0].up.is_set()
        answers: list[Answer | None] = []
        clicks = Group()
        for _ in range(pick(CLICKS_WEIGHTS)):
            clicks.spawn(lambda: answers.append(self.post(sent)))
        clicks.join()
        if random.random() < CLICK_AGAIN_SHARE and any(answer is not None and answer.is_yes for answer in answers):
            answers.append(self.post(sent, is_repeat=True))
        known = [answer for answer in answers if answer is not None]
        for answer in known:
            self.check_answer(sent, answer, had_units, was_open=was_open)
        yes = [answer for answer in known if answer.is_yes]
        if len({answer.body["order_id"] for answer in yes}) > 1:
            self.defect("buy", f"key {sent.key} made several orders")
        if sum(answer.status == 201 for answer in yes) > 1:
            self.defect("buy", f"key {sent.key} was answered 201 more than once")
        return yes[0] if yes else next(iter(known), None)

    def post(self, sent: Sent, *, is_repeat: bool = False) -> Answer | None:
        """One click; a repeat of what was answered with an order may not be refused."""
        codes = {"PRICE_CHANGED"} if sent.expects_old_price else {"SOLD_OUT", "BUYER_LIMIT_REACHED"}
        expected = set() if is_repeat else codes | {"SALE_NOT_OPEN"}
        answer = self.ask("buy", "POST", self.orders_path, sent.body, key=sent.key, expected_codes=expected)
        if answer is not None:
            self.book.answers[answer.code or ("repeated" if answer.is_replay else "accepted")] += 1
            if is_repeat and not answer.is_replay:
                self.defect("buy", f"key {sent.key} was answered anew, after it had been answered with an order")
        return answer

    @property
    def orders_path(self) -> str:
        return f"/v1/sales/{self.show.sale_id}/orders"

    def check_answer(self, sent: Sent, answer: Answer, had_units: int, *, was_open: bool) -> None:
        """Hold one answer to a click against what was sent, and against what this buyer and the host have done."""
        complaint = complaint_about_order(answer.body, sent) if answer.is_yes else complaint_about_no(answer, sent)
        if complaint:
            self.defect("buy", complaint)
        if answer.is_yes:
            self.check_yes(sent, answer)
        elif answer.code == "SALE_NOT_OPEN" and was_open:
            self.defect("buy", "SALE_NOT_OPEN, though the host was told that the sale is open")
        elif answer.code == "BUYER_LIMIT_REACHED" and had_units + sent.units <= BUYER_LIMIT_UNITS:
            self.defect("buy", f"BUYER_LIMIT_REACHED with {sent.units} units after at most {had_units}")

    def check_yes(self, sent: Sent, answer: Answer) -> None:
        """An order may be made only of what is on sale, at the price expected, within the limit, and marked rightly."""
        if answer.is_replay != (answer.status == 200):
            self.defect("buy", f"{answer.status} with Idempotent-Replayed {answer.is_replay}")
        if answer.status == 201 and answer.body["status"] != "held":
            self.defect("buy", f"a new order is {answer.body['status']}")
        if sent.expects_old_price:
            self.defect("buy", "an order at another price than was expected")
        if self.identity.settled_units + sent.units > BUYER_LIMIT_UNITS:
            self.defect("buy", f"{sent.units} units more for somebody who has paid for {self.identity.settled_units}")
        links = {self.show.catalogue.items[line["sku"]].link for line in sent.body["lines"]}
        if any(not self.show.links[link].asked for link in links | {0}):
            self.defect("buy", f"an order of links {links} before the host put them up")

    def cut_off(self, sent: Sent) -> None:
        """Send the request on a connection of its own, and go away before the answer can be read."""
        address = urlsplit(self.show.url("checkout"))
        body = orjson.dumps(sent.body)
        headers = {**self.headers("checkout", sent.key), "Content-Type": "application/json"}
        lines = [f"POST {self.orders_path} HTTP/1.1", f"Host: {address.netloc}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        started = time.perf_counter()
        failure: OSError | None = None
        try:
            with socket.create_connection((address.hostname, address.port), ANSWER_SECONDS_MAX) as connection:
                connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
                gevent.sleep(random.uniform(0.0, CUT_OFF_SECONDS_MAX))
        except OSError as error:
            failure = error
        self.environment.events.request.fire(
            request_type="POST",
            name="buy, and go away before the answer",
            response_time=(time.perf_counter() - started) * 1000,
            response_length=0,
            exception=failure,
            context={},
        )

    def ask_by_key(self, sent: Sent) -> Answer | None:
        """Learn an unknown outcome: the order that the key made, as an answer; None where it has made none yet."""
        query = "&".join(
            f"{name}={quote(value, safe='')}"
            for name, value in (
                ("channel", self.identity.channel),
                ("buyer_id", self.identity.buyer_id),
                ("idempotency_key", sent.key),
            )
        )
        answer = self.ask("order by key", "GET", f"{self.orders_path}?{query}")
        if answer is None:
            return None
        orders = answer.body["orders"]
        if len(orders) > 1:
            self.defect("order by key", f"key {sent.key} made {len(orders)} orders")
        if not orders:
            return None
        if complaint := complaint_about_order(orders[0], sent):
            self.defect("order by key", complaint)
        self.book.answers["learnt by key"] += 1
        return Answer(200, {"idempotent-replayed": "true"}, orders[0])

    # --- after the hold ----------------------------------------------------------------------------------------------

    def after_hold(self, sent: Sent, answer: Answer) -> None:
        """Remember the order, and do with it whatever this buyer does."""
        promise = self.remember(sent, answer.body)
        intent = pick(INTENT_WEIGHTS)
        gevent.sleep(random.uniform(0.1, min(THINKING_SECONDS_MAX, 0.4 * self.book.hold_seconds)))
        match intent:
            case "pay" | "pay_reported_twice" | "pay_wrong_amount_first":
                self.pay_in_time(promise, intent)
            case "pay_twice":
                self.pay(promise, "1")
                self.pay_again(promise)
            case "pay_then_cancel":
                self.pay(promise, "1")
                self.cancel_what_is_paid(promise)
            case "cancel" | "cancel_then_pay":
                self.cancel(promise)
                if intent == "cancel_then_pay":
                    self.pay(promise, "1")
            case "pay_late":
                gevent.sleep(max(0.0, promise.held_until - time.time()) + random.uniform(0.0, LATE_SECONDS_MAX))
                self.pay(promise, "1")
        if promise.status == "settled":
            self.identity.settled_units += sum(promise.units.values())
        if intent != "leave" and random.random() < LOOK_AT_ORDER_SHARE:
            self.look_at_order(promise)

    def remember(self, sent: Sent, order: Mapping[str, Any]) -> Promise:
        """Put an order into the book."""
        units: dict[str, int] = {}
        for line in order["lines"]:
            units[line["sku"]] = units.get(line["sku"], 0) + line["quantity"]
        promise = Promise(
            order_id=order["order_id"],
            buyer_id=order["buyer_id"],
            channel=order["channel"],
            reference=order["reference"],
            key=sent.key,
            amount_minor=order["amount_minor"],
            units=units,
            held_until=seconds_since_epoch(order["held_until"]),
            status=order["status"],
            told_at=time.time(),
        )
        if promise.order_id in self.book.promises:
            self.defect("buy", f"order {promise.order_id} was given to two carts")
        self.book.promises[promise.order_id] = promise
        return promise

    def pay_in_time(self, promise: Promise, intent: str) -> None:
        """Pay once: reported by the provider once or twice at once, or with a wrong amount first."""
        if intent == "pay_wrong_amount_first":
            body = {**self.payment(promise, "1"), "amount_minor": promise.amount_minor + 1}
            path = f"/v1/orders/{promise.order_id}/settle"
            answer = self.ask("settle", "POST", path, body, expected_codes={"AMOUNT_MISMATCH"})
            if answer is not None and answer.is_yes:
                self.defect("settle", f"order {promise.order_id} was settled with a wrong amount")
        reports = Group()
        replays: list[bool] = []
        for _ in range(2 if intent == "pay_reported_twice" else 1):
            reports.spawn(lambda: replays.append(self.pay(promise, "1")))
        reports.join()
        if promise.status == "settled" and len(replays) == 2 and sum(replays) != 1:
            self.defect("settle", f"of two reports of one payment {sum(replays)} were repeats")

    def pay(self, promise: Promise, payment: str) -> bool:
        """Report a payment of the whole amount; whether it was answered as a repeat."""
        body = self.payment(promise, payment)
        was_cancelled = promise.status == "cancelled"
        promise.asking = "settle"
        path = f"/v1/orders/{promise.order_id}/settle"
        answer = self.ask("settle", "POST", path, body, expected_codes={"PAYMENT_TOO_LATE"})
        if answer is None:
            return False
        promise.asking, promise.told_at = "", time.time()
        if not answer.is_yes:
            promise.status = "refund_due"
            promise.payments_due.append(body["payment_id"])
            if not was_cancelled and promise.told_at < promise.held_until:
                self.defect("settle", f"PAYMENT_TOO_LATE for order {promise.order_id}, before its deadline")
            return False
        promise.status, promise.payment_id = "settled", body["payment_id"]
        self.check_order("settle", promise, answer.body)
        return answer.is_replay

    def pay_again(self, promise: Promise) -> None:
        """Report a second payment of a settled order: its money comes back."""
        if promise.status != "settled":
            return
        body = self.payment(promise, "2")
        path = f"/v1/orders/{promise.order_id}/settle"
        answer = self.ask("settle", "POST", path, body, expected_codes={"DUPLICATE_PAYMENT"})
        if answer is not None and answer.is_yes:
            self.defect("settle", f"order {promise.order_id} was settled twice")
        elif answer is not None:
            promise.payments_due.append(body["payment_id"])

    def payment(self, promise: Promise, payment: str) -> dict[str, Any]:
        """What a checkout sends when an order was paid."""
        return {
            "payment_id": f"pay-{promise.order_id}-{payment}",
            "amount_minor": promise.amount_minor,
            "currency": CURRENCY,
        }

    def cancel(self, promise: Promise) -> None:
        """Give it back in time."""
        promise.asking = "cancel"
        path = f"/v1/orders/{promise.order_id}/cancel"
        answer = self.ask("cancel", "POST", path, expected_codes={"ORDER_NOT_HELD"})
        if answer is None:
            return
        promise.asking, promise.told_at = "", time.time()
        if answer.is_yes:
            promise.status = "cancelled"
            self.check_order("cancel", promise, answer.body)
            if random.random() < CLICK_AGAIN_SHARE and (again := self.ask("cancel", "POST", path)) is not None:
                self.check_order("cancel", promise, again.body)
        elif promise.told_at < promise.held_until:
            self.defect("cancel", f"ORDER_NOT_HELD for order {promise.order_id}, before its deadline")

    def cancel_what_is_paid(self, promise: Promise) -> None:
        """Ask for what can no longer be."""
        if promise.status != "settled":
            return
        path = f"/v1/orders/{promise.order_id}/cancel"
        answer = self.ask("cancel", "POST", path, expected_codes={"ORDER_NOT_HELD"})
        if answer is not None and answer.is_yes:
            self.defect("cancel", f"order {promise.order_id} was cancelled after it was paid")

    def look_at_order(self, promise: Promise) -> None:
        """Ask what it is now."""
        asked_at = time.time()
        answer = self.ask("order", "GET", f"/v1/orders/{promise.order_id}")
        if answer is None:
            return
        self.check_order("order", promise, answer.body, asked_at)

    def check_order(self, name: str, promise: Promise, order: Mapping[str, Any], asked_at: float | None = None) -> None:
        """An order is what its buyer was told; how late a hold may end is left to the audit and to the end."""
        states = promise.may_be(asked_at or time.time(), time.time(), slack_seconds=float("inf"))
        if order["status"] not in states or order["amount_minor"] != promise.amount_minor:
            self.defect(name, f"order {promise.order_id} is {order['status']}, and was told to be {promise.status}")


def look(person: Person, channel: str) -> None:
    """Look what is left, and check that it can be true."""
    show = person.show
    was_up, may_be_up = show.links_up, sum(link.asked for link in show.links)
    answer = person.ask(
        "availability",
        "GET",
        f"/v1/sales/{show.sale_id}/availability" + (f"?channel={channel}" if channel else ""),
    )
    if answer is None:
        return
    may_be_up = max(may_be_up, sum(link.asked for link in show.links))
    left = {entry["sku"]: entry["available"] for entry in answer.body["skus"]}
    if left.keys() != show.catalogue.items.keys() or min(left.values()) < 0:
        person.defect("availability", "not of this sale's SKUs, or below zero")
    if (was_up and answer.body["status"] != "open") or (not may_be_up and answer.body["status"] != "draft"):
        person.defect("availability", f"the sale is {answer.body['status']}")
    early = [sku for sku, units in left.items() if units and show.catalogue.items[sku].link > max(0, may_be_up - 1)]
    if early:
        person.defect("availability", f"{early[0]} can be bought, and its link is not up")


def new_identity() -> Identity:
    """Somebody new on one of the channels."""
    return Identity(f"buyer-{uuid.uuid4().hex[:12]}", pick(CHANNEL_WEIGHTS))


def pick(weights: Mapping[Any, int]) -> Any:
    """One of the choices, each as likely as its weight says."""
    return random.choices(list(weights), list(weights.values()))[0]
