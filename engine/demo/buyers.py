"""How one buyer behaves: fills a cart, clicks more than once, puts back what is gone, and pays, or not, or too late."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any
from urllib.parse import quote

from engine.demo.caller import Answer, Caller, NoAnswer, Unexpected
from engine.demo.catalogue import Catalogue, channel_of
from engine.demo.draw import draw, draw_one
from engine.demo.orders_data import CURRENCY, Cart, CartLine
from engine.demo.tally import Tally, ToldOrder

TRIES_MAX = 12
"""How often one buyer changes the cart and clicks again on one visit."""
CLICKS_WEIGHTS: Mapping[int, int] = {1: 50, 2: 35, 3: 15}
PATIENCE_PERCENT = 90
"""Of the buyers: those who put back what is sold out and buy the rest; the others leave."""
OLD_PRICE_PERCENT = 20
"""Of the buyers: those who expect the price of the real invoice and must be told that it has changed."""
VOUCHER_PERCENT = 5
VOUCHER_HOLDERS_PERCENT = 15
FREIGHT_MINOR = 495
FREE_FREIGHT_FROM_MINOR = 10_000
THINKING_SECONDS_MAX = 1.5
WAIT_FOR_RESUME_SECONDS_MAX = 20.0
SHOP_WINDOW_SECONDS = 0.25
"""How old the availability may be that a buyer looks at; one reading serves all who look."""

RECORDED_REFUSALS = frozenset({"PAYMENT_TOO_LATE", "DUPLICATE_PAYMENT"})
HOLD_REFUSALS = frozenset({"SOLD_OUT", "PRICE_CHANGED", "SALE_NOT_OPEN", "SALE_CLOSED"})


class Intent(Enum):
    """What a buyer will do with a hold."""

    PAY = auto()
    PAY_TWICE = auto()
    """With a second payment of its own id: the money of one comes back."""
    LEAVE = auto()
    PAY_LATE = auto()
    """After the hold's end, before anybody else comes for the units."""
    PAY_TOO_LATE = auto()
    """After the second wave has come for the units."""
    CANCEL = auto()


INTENT_WEIGHTS: Mapping[Intent, int] = {
    Intent.PAY: 64,
    Intent.PAY_TWICE: 5,
    Intent.LEAVE: 12,
    Intent.PAY_LATE: 5,
    Intent.PAY_TOO_LATE: 8,
    Intent.CANCEL: 6,
}


@dataclass(frozen=True, slots=True)
class _Try:
    """A cart as it is being ordered."""

    cart: Cart
    lines: Sequence[CartLine]
    channel: str
    key: str
    expects_invoice_price: bool


@dataclass(slots=True)
class Buyers:
    """All buyers of one sale. `on_air` is set while the host is selling."""

    checkout: Caller
    sale_id: str
    catalogue: Catalogue
    tally: Tally
    on_air: asyncio.Event = field(default_factory=asyncio.Event)
    late: list[ToldOrder] = field(default_factory=list)
    too_late: list[ToldOrder] = field(default_factory=list)
    unlearnt: list[_Try] = field(default_factory=list)
    """Holds that were never answered."""
    unpaid_answers: list[tuple[ToldOrder, str]] = field(default_factory=list)
    """Payments that were never answered."""
    went_without: list[Cart] = field(default_factory=list)
    """Carts, or the rests of carts, that were not to be had."""
    _windows: dict[str, tuple[float, Mapping[str, int]]] = field(default_factory=dict)
    _looking: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def visit(self, cart: Cart, visit: str) -> None:
        """One buyer's visit, from the cart to the payment; on a second visit everybody who gets something pays."""
        order = await self._order(cart, visit)
        if order is None:
            return
        intent = Intent.PAY
        if visit == "first":
            intent = Intent.CANCEL if cart.is_cancelled else draw_one(INTENT_WEIGHTS, "intent", cart.reference)
        await asyncio.sleep(THINKING_SECONDS_MAX * draw("thinking", cart.reference, visit))
        match intent:
            case Intent.PAY:
                await self._pay_as_a_provider_does(order)
            case Intent.PAY_TWICE:
                await self.pay(order, "1")
                await self.pay(order, "2")
            case Intent.CANCEL:
                await self._cancel(order)
            case Intent.PAY_LATE:
                self.late.append(order)
            case Intent.PAY_TOO_LATE:
                self.too_late.append(order)
            case Intent.LEAVE:
                return

    async def pay(self, order: ToldOrder, payment: str) -> None:
        """Report a payment, and remember what became of it."""
        payment_id = f"pay-{order.cart.reference}-{payment}"
        body = {"payment_id": payment_id, "amount_minor": order.amount_minor, "currency": order.currency}
        was = order.status
        self.tally.payments_sent += 1
        try:
            answer = await self.checkout.ask("POST", f"/v1/orders/{quote(order.order_id)}/settle", body)
        except NoAnswer:
            self.unpaid_answers.append((order, payment))
            return
        self.tally.payments_repeated += answer.is_replay
        if answer.is_yes:
            order.status = "settled"
            order.was_reinstated |= was in {"expired", "cancelled"}
        elif answer.code in RECORDED_REFUSALS:
            order.payments_due.add(payment_id)
            order.status = "refund_due" if answer.code == "PAYMENT_TOO_LATE" else "settled"
        else:
            self.tally.surprise(str(Unexpected("payment", answer)))

    async def learn_what_was_not_answered(self) -> None:
        """Ask about every hold and every payment whose outcome is unknown. Raises: NoAnswer."""
        payments, self.unpaid_answers = self.unpaid_answers, []
        for order, payment in payments:
            await self.pay(order, payment)
        if self.unpaid_answers:
            raise NoAnswer(f"{len(self.unpaid_answers)} payments are without an answer")
        while self.unlearnt:
            await self._learn(self.unlearnt[-1])
            self.unlearnt.pop()

    async def read_statuses(self, orders: Sequence[ToldOrder]) -> None:
        """Ask what each of these orders is now. Raises: NoAnswer."""
        async with asyncio.TaskGroup() as group:
            for order in orders:
                group.create_task(self._read_status(order))

    # --- ordering ------------------------------------------------------------------------------------------------

    async def _order(self, cart: Cart, visit: str) -> ToldOrder | None:
        """Click until the cart, or what is left to be had of it, is held; None where nothing is."""
        attempt = _Try(cart, cart.lines, channel_of(cart.buyer_id), f"{cart.reference}.{visit}.1", visit == "first")
        attempt = self._with_price_expected(attempt)
        for number in range(2, TRIES_MAX + 2):
            answer = await self._click(attempt)
            if answer is None:
                return None
            if answer.is_yes:
                self._note_what_is_missing(cart, attempt.lines)
                return self._accept(attempt, answer)
            changed = await self._changed_after(attempt, answer, f"{cart.reference}.{visit}.{number}")
            if changed is None:
                break
            attempt = changed
        self.went_without.append(cart)
        return None

    async def _click(self, attempt: _Try) -> Answer | None:
        """Click once to three times at once with one key: at most one order. None where no click was answered."""
        body = self._body(attempt)
        clicks = draw_one(CLICKS_WEIGHTS, "clicks", attempt.key)
        path = f"/v1/sales/{quote(self.sale_id)}/orders"
        answers = await asyncio.gather(
            *(self.checkout.ask("POST", path, body, key=attempt.key) for _ in range(clicks)), return_exceptions=True
        )
        known = [answer for answer in answers if isinstance(answer, Answer)]
        for failure in answers:
            if isinstance(failure, BaseException) and not isinstance(failure, NoAnswer):
                raise failure
        for answer in known:
            self.tally.answered_click(answer)
        return self._outcome(attempt, known, has_unknown=len(known) < len(answers))

    def _outcome(self, attempt: _Try, known: Sequence[Answer], *, has_unknown: bool) -> Answer | None:
        """What the clicks came to: a yes if one of them was one. A no to one click says nothing of a lost one."""
        self.tally.tries += 1
        orders = {answer.body["order_id"] for answer in known if answer.is_yes}
        if len(orders) > 1:
            self.tally.surprise(f"one key made {len(orders)} orders")
        if sum(answer.status == 201 for answer in known) > 1:
            self.tally.surprise(f"key {attempt.key} was answered 201 more than once")
        yes = next((answer for answer in known if answer.is_yes), None)
        if yes is None and has_unknown:
            self.unlearnt.append(attempt)
            return None
        outcome = yes or known[-1]
        if not outcome.is_yes:
            self.tally.refused_try(outcome)
        return outcome

    async def _changed_after(self, attempt: _Try, answer: Answer, next_key: str) -> _Try | None:
        """What the buyer tries after a no; None for one who leaves."""
        match answer.code:
            case "PRICE_CHANGED":
                self._check_price_told(attempt, answer)
                return replace(attempt, key=next_key, expects_invoice_price=False)
            case "SALE_NOT_OPEN":
                return attempt if await self._wait_until_resumed() else None
            case "SOLD_OUT" if draw("patience", attempt.cart.buyer_id) * 100 < PATIENCE_PERCENT:
                lines = await self._what_is_left(attempt, answer)
                if not lines:
                    return None
                return replace(attempt, lines=lines, key=next_key, expects_invoice_price=False)
            case code if code not in HOLD_REFUSALS:
                self.tally.surprise(str(Unexpected("hold", answer)))
        return None

    def _check_price_told(self, attempt: _Try, refusal: Answer) -> None:
        fair = replace(attempt, expects_invoice_price=False)
        if refusal.body["amount_minor"] != self._body(fair)["expected_amount_minor"]:
            self.tally.surprise(f"{attempt.cart.reference} was told another amount than the catalogue's")

    async def _wait_until_resumed(self) -> bool:
        try:
            async with asyncio.timeout(WAIT_FOR_RESUME_SECONDS_MAX):
                await self.on_air.wait()
        except TimeoutError:
            return False
        return True

    async def _what_is_left(self, attempt: _Try, refusal: Answer) -> list[CartLine]:
        """The cart with no more of each SKU than the shop window shows, and no more than the refusal said."""
        seen = await self._look_at_window(attempt.channel)
        known = {**seen, refusal.body["sku"]: refusal.body["available"]}
        return trim(attempt.lines, known)

    async def _look_at_window(self, channel: str) -> Mapping[str, int]:
        """What this channel can buy, read at most every `SHOP_WINDOW_SECONDS`."""
        clock = asyncio.get_running_loop().time
        async with self._looking.setdefault(channel, asyncio.Lock()):
            read_at, levels = self._windows.get(channel, (0.0, {}))
            if clock() - read_at < SHOP_WINDOW_SECONDS:
                return levels
            path = f"/v1/sales/{quote(self.sale_id)}/availability?channel={quote(channel)}"
            try:
                answer = await self.checkout.ask("GET", path)
            except NoAnswer:
                return levels
            if not answer.is_yes:
                self.tally.surprise(str(Unexpected("availability", answer)))
                return levels
            levels = {entry["sku"]: entry["available"] for entry in answer.body["skus"]}
            self._windows[channel] = (clock(), levels)
            return levels

    def _note_what_is_missing(self, cart: Cart, lines: Sequence[CartLine]) -> None:
        missing = rest_of(cart.lines, lines)
        if missing:
            self.went_without.append(Cart(cart.reference, cart.buyer_id, cart.day, tuple(missing)))

    # --- money ---------------------------------------------------------------------------------------------------

    def _with_price_expected(self, attempt: _Try) -> _Try:
        expects = attempt.expects_invoice_price and draw("price", attempt.cart.reference) * 100 < OLD_PRICE_PERCENT
        return replace(attempt, expects_invoice_price=expects)

    def _body(self, attempt: _Try) -> dict[str, Any]:
        """The request. Voucher and freight follow from the shop's prices, whatever price the buyer expects."""
        value_minor = expected_minor = 0
        for line in attempt.lines:
            price_minor = self.catalogue[line.sku].unit_price_minor
            value_minor += line.quantity * price_minor
            expected_minor += line.quantity * (
                line.invoice_price_minor if attempt.expects_invoice_price else price_minor
            )
        has_voucher = draw("voucher", attempt.cart.reference) * 100 < VOUCHER_HOLDERS_PERCENT
        discount_minor = value_minor * VOUCHER_PERCENT // 100 if has_voucher else 0
        freight_minor = 0 if value_minor >= FREE_FREIGHT_FROM_MINOR else FREIGHT_MINOR
        return {
            "buyer_id": attempt.cart.buyer_id,
            "channel": attempt.channel,
            "reference": attempt.cart.reference,
            "lines": [{"sku": line.sku, "quantity": line.quantity} for line in attempt.lines],
            "discount_minor": discount_minor,
            "freight_minor": freight_minor,
            "expected_amount_minor": max(0, expected_minor - discount_minor) + freight_minor,
        }

    def _accept(self, attempt: _Try, answer: Answer) -> ToldOrder:
        """Keep an order that was given, after checking its sums."""
        body = answer.body
        order = ToldOrder(
            order_id=body["order_id"],
            cart=attempt.cart,
            lines=body["lines"],
            amount_minor=body["amount_minor"],
            currency=body["currency"],
            status=body["status"],
        )
        sent = self._body(attempt)
        asked = [(line["sku"], line["quantity"]) for line in sent["lines"]]
        if [(line["sku"], line["quantity"]) for line in order.lines] != asked:
            self.tally.surprise(f"order {order.order_id} has other lines than were asked for")
        if order.amount_minor != sent["expected_amount_minor"] or order.currency != CURRENCY:
            self.tally.surprise(f"order {order.order_id} has another amount than was agreed")
        if sum(line["paid_minor"] for line in order.lines) + sent["freight_minor"] != order.amount_minor:
            self.tally.surprise(f"the lines of order {order.order_id} do not add up")
        self.tally.accepted(order)
        return order

    # --- after the hold ------------------------------------------------------------------------------------------

    async def _pay_as_a_provider_does(self, order: ToldOrder) -> None:
        """Payment providers report until they are heard, so a third of the payments are reported twice at once."""
        reports = 2 if draw("reports", order.order_id) < 1 / 3 else 1
        await asyncio.gather(*(self.pay(order, "1") for _ in range(reports)))

    async def _cancel(self, order: ToldOrder) -> None:
        try:
            answer = await self.checkout.ask("POST", f"/v1/orders/{quote(order.order_id)}/cancel")
        except NoAnswer:
            return  # the order's status is read at the end, as that of every order
        if answer.is_yes:
            order.status = answer.body["status"]
        elif answer.code != "ORDER_NOT_HELD":  # it had expired before the buyer made up their mind
            self.tally.surprise(str(Unexpected("cancellation", answer)))

    async def _learn(self, attempt: _Try) -> None:
        """Ask for the order that a key has made, if it made one."""
        path = (
            f"/v1/sales/{quote(self.sale_id)}/orders?channel={quote(attempt.channel)}"
            f"&buyer_id={quote(attempt.cart.buyer_id)}&idempotency_key={quote(attempt.key)}"
        )
        answer = await self.checkout.ask("GET", path)
        if not answer.is_yes:
            self.tally.surprise(str(Unexpected("orders of a buyer", answer)))
            return
        for body in answer.body["orders"]:
            self._accept(attempt, Answer(200, body, is_replay=True, seconds=0.0, sent=1))

    async def _read_status(self, order: ToldOrder) -> None:
        answer = await self.checkout.ask("GET", f"/v1/orders/{quote(order.order_id)}")
        if not answer.is_yes:
            self.tally.surprise(str(Unexpected("order", answer)))
            return
        now = str(answer.body["status"])
        if order.status not in {now, "held"}:
            self.tally.surprise(f"order {order.order_id} was told to be {order.status} and is {now}")
        order.status = now


def trim(lines: Sequence[CartLine], available: Mapping[str, int]) -> list[CartLine]:
    """The lines cut down to what is available of each SKU, the earlier line first; a SKU not named is not limited."""
    left = dict(available)
    kept: list[CartLine] = []
    for line in lines:
        quantity = min(line.quantity, left.get(line.sku, line.quantity))
        if line.sku in left:
            left[line.sku] -= quantity
        if quantity > 0:
            kept.append(CartLine(line.sku, quantity, line.invoice_price_minor))
    return kept


def rest_of(wanted: Sequence[CartLine], got: Sequence[CartLine]) -> list[CartLine]:
    """What is missing of the wanted lines."""
    have: Counter[str] = Counter()
    for line in got:
        have[line.sku] += line.quantity
    missing: list[CartLine] = []
    for line in wanted:
        taken = min(line.quantity, have[line.sku])
        have[line.sku] -= taken
        if line.quantity > taken:
            missing.append(CartLine(line.sku, line.quantity - taken, line.invoice_price_minor))
    return missing
