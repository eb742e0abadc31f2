"""After the live: what people were told, held against what the engine keeps."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp

from loadtest.live.promises import Book, FeedRow, Promise

READERS = 32
"""Requests on their way at once."""
FEED_PAGE_ROWS = 1000
ANSWER_SECONDS_MAX = 20.0
ASKINGS_MAX = 20
ASK_AGAIN_SECONDS = 0.5
LEVEL_SECONDS_MAX = 60.0
LEVEL_LOOK_SECONDS = 0.5
LEVEL_LOOKS = 4
"""How often in a row the ledger must be seen level: the figure is measured now and then, not at every look."""
HOLDS_WAIT_SECONDS_MAX = 60.0
"""How long unpaid holds are waited for; those of a later deadline must still be held."""
EXPIRY_SLACK_SECONDS = 3.0
"""On top of the contract's two seconds, for a machine that has just been under load."""
DIFFERENCES_SHOWN_MAX = 5
LAG_METRIC = "miaocang_persister_lag_entries"


class CannotTell(Exception):
    """The engine does not answer as it should; the message is one line for a person."""


class Check(NamedTuple):
    """One comparison, and how it came out in words."""

    name: str
    holds: bool
    detail: str


@dataclass(slots=True)
class Engine:
    """The engine's side of the comparison, asked over HTTP."""

    endpoints: Mapping[str, Any]
    session: aiohttp.ClientSession
    _readers: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READERS))

    async def ask(self, method: str, path: str) -> tuple[int, Mapping[str, Any]]:
        """Status and JSON of a request without a body, asked until it is no 503. Raises: CannotTell."""
        role = {"v1": "checkout", "ops": "ops", "erp": "erp"}[path.split("/")[1]]
        url = self.endpoints["gateway_url" if role == "checkout" else "backoffice_url"] + path
        headers = {"Authorization": f"Bearer {self.endpoints['keys'][role]}"}
        trouble = ""
        for _ in range(ASKINGS_MAX):
            try:
                async with self._readers, self.session.request(method, url, headers=headers) as response:
                    if response.status not in {429, 503}:
                        return response.status, await response.json(content_type=None)
                    trouble = await response.text()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                trouble = f"{type(error).__name__} {error}"
            await asyncio.sleep(ASK_AGAIN_SECONDS)
        raise CannotTell(f"{method} {path} was not answered: {trouble}")

    async def lag_entries(self) -> float:
        """How many journal entries the ledger is behind. Raises: CannotTell."""
        try:
            async with self.session.get(f"{self.endpoints['backoffice_url']}/metrics") as response:
                lines = (await response.text()).splitlines()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise CannotTell(f"the metrics cannot be read: {error}") from error
        for line in lines:
            if line.startswith(LAG_METRIC):
                return float(line.split()[-1])
        raise CannotTell(f"there is no metric {LAG_METRIC}")


async def compare(endpoints: Mapping[str, Any], book: Book) -> list[Check]:
    """Wait for the unpaid holds to end, close the sale, wait until the ledger is level, and compare it all.

    Raises: CannotTell, where the engine does not answer.
    """
    async with _open_session() as session:
        engine = Engine(endpoints, session)
        await _wait_for_unpaid_holds(book)
        status, _ = await engine.ask("POST", f"/ops/v1/sales/{book.sale_id}/close")
        checks = [Check("the sale closes", status == 200, f"{status}"), await _level_ledger(engine)]
    return checks + await compare_at_rest(endpoints, book)


async def compare_at_rest(endpoints: Mapping[str, Any], book: Book) -> list[Check]:
    """Compare what people were told with a closed sale whose ledger is level. Raises: CannotTell."""
    async with _open_session() as session:
        engine = Engine(endpoints, session)
        promises = await _promised_orders(engine, book)
        return [promises, *await _feed(engine, book), await _units(engine, book)]


def _open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX))


async def _wait_for_unpaid_holds(book: Book) -> None:
    deadlines = [promise.held_until for promise in book.promises.values() if promise.status == "held"]
    now = time.time()
    ends = [each for each in deadlines if each < now + HOLDS_WAIT_SECONDS_MAX]
    if ends:
        await asyncio.sleep(max(0.0, max(ends) + EXPIRY_SLACK_SECONDS - now))


async def _promised_orders(engine: Engine, book: Book) -> Check:
    """Every order that somebody was told of is there, as it was told."""
    results = await asyncio.gather(*(_broken_promise(engine, promise) for promise in book.promises.values()))
    broken = [words for words in results if words]
    told = Counter(promise.status for promise in book.promises.values())
    good = ", ".join(f"{count} {status}" for status, count in told.most_common())
    return _check("every order that people were told of is there, with that status", broken, good or "none")


async def _broken_promise(engine: Engine, promise: Promise) -> str:
    asked_at = time.time()
    status, order = await engine.ask("GET", f"/v1/orders/{quote(promise.order_id, safe='')}")
    if status != 200:
        return f"{promise.order_id} was told to be {promise.status}: {status} {order.get('code')}"
    states = promise.may_be(asked_at, time.time(), EXPIRY_SLACK_SECONDS)
    if order["status"] not in states:
        return f"{promise.order_id} is {order['status']}, told: {promise.status}"
    units: Counter[str] = Counter()
    for line in order["lines"]:
        units[line["sku"]] += line["quantity"]
    if units != promise.units or order["amount_minor"] != promise.amount_minor:
        return f"{promise.order_id} has other units or another amount than was told"
    promise.status, promise.asking = order["status"], ""  # from here on it is known, also where no answer had come
    return ""


async def _level_ledger(engine: Engine) -> Check:
    """The ledger holds every entry of the journal."""
    started = time.monotonic()
    looks = 0
    while looks < LEVEL_LOOKS:
        seconds = time.monotonic() - started
        lag = await engine.lag_entries()
        looks = looks + 1 if lag == 0 else 0
        if seconds > LEVEL_SECONDS_MAX:
            return Check("the ledger is level", False, f"{lag:g} entries behind after {seconds:.0f} s")
        await asyncio.sleep(LEVEL_LOOK_SECONDS)
    return Check("the ledger is level", True, f"after {time.monotonic() - started:.1f} s")


async def _feed(engine: Engine, book: Book) -> list[Check]:
    """The ERP reads on to the end; then each order is settled in the feed exactly once, for its amount."""
    complaints = []
    has_more = True
    while has_more:
        path = f"/erp/v1/orders?after={quote(book.feed.cursor, safe='')}&limit={FEED_PAGE_ROWS}"
        status, page = await engine.ask("GET", path)
        if status != 200:
            raise CannotTell(f"GET {path}: {status} {page.get('code')}")
        if complaint := book.feed.take_over(page, book.sale_id):
            complaints.append(complaint)
        has_more = page["has_more"]
    return [
        _check("the feed has no gaps", complaints, f"1 to {book.feed.last_sequence}"),
        _settled_once(book, [row for row in book.feed.rows if row.change == "settled"]),
        _refunds_due(book, [row for row in book.feed.rows if row.change == "refund_due"]),
    ]


def _settled_once(book: Book, rows: list[FeedRow]) -> Check:
    told = {each.order_id: each.amount_minor for each in book.promises.values() if each.status == "settled"}
    times = Counter(row.order_id for row in rows)
    wrong = [f"{order_id} came {count} times" for order_id, count in times.items() if count > 1]
    wrong += [f"{order_id} is missing" for order_id in told.keys() - times.keys()]
    wrong += [f"{order_id} was told to nobody" for order_id in times.keys() - told.keys()]
    wrong += [f"{row.order_id}: {row.amount_minor}" for row in rows if told.get(row.order_id) != row.amount_minor]
    return _check("orders settled: told = in the feed, each once, for the amount told", wrong, f"{len(told)} orders")


def _refunds_due(book: Book, rows: list[FeedRow]) -> Check:
    told = {(each.order_id, payment) for each in book.promises.values() for payment in each.payments_due}
    fed = {(row.order_id, payment) for row in rows for payment in row.payments_due}
    missing = [f"{payment} of {order_id} is missing" for order_id, payment in told - fed]
    return _check("payments due for refund: all that were told are in the feed", missing, f"{len(told)} payments")


async def _units(engine: Engine, book: Book) -> Check:
    """The closed sale has sold the units that people have paid for, SKU by SKU, and never more than there were."""
    status, sale = await engine.ask("GET", f"/ops/v1/sales/{book.sale_id}")
    if status != 200:
        raise CannotTell(f"the sale cannot be read: {status} {sale.get('code')}")
    paid: Counter[str] = Counter()
    for promise in book.promises.values():
        if promise.status == "settled":
            paid.update(promise.units)
    wrong = []
    for sku in sale["skus"]:
        if sku["settled"] != paid[sku["sku"]]:
            wrong.append(f"{sku['sku']}: {sku['settled']} settled, {paid[sku['sku']]} paid for")
        if sku["allocated"] != sku["held"] + sku["settled"]:
            wrong.append(f"{sku['sku']}: {sku['allocated']} allocated after closing")
    return _check("units paid for = the sale's, SKU by SKU", wrong, f"{paid.total()} units")


def _check(name: str, wrong: Iterable[str], good: str) -> Check:
    listed = list(wrong)
    if not listed:
        return Check(name, True, good)
    more = f" … {len(listed)} in all" if len(listed) > DIFFERENCES_SHOWN_MAX else ""
    return Check(name, False, "; ".join(listed[:DIFFERENCES_SHOWN_MAX]) + more)
