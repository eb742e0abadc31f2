"""Many buyers, few units, answers that get lost, requests that are repeated: the totals are exact."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from tests.faults.conftest import Report
from tests.faults.running_engine import Answer, Caller, RunningEngine, hold_body, payment_body, units_of

CONNECTIONS = 200
BUYERS = 10_000
CUT_EACH = 3
CARTS = 5_000
UNITS = {"TEE-BLK-M": 250, "TEE-BLK-L": 150, "TEE-WHT-M": 100}
ORDERS_REPEATED = 60
DOCUMENTS_REPEATED = 5
TIMES_MAX = 5


async def ask_and_hang_up(engine: RunningEngine, path: str, body: Any, key: str) -> None:
    """Send a request on a connection of its own, and close that without reading."""
    where = urlsplit(engine.endpoints["gateway_url"])
    encoded = json.dumps(body).encode()
    bearer = engine.endpoints["keys"]["checkout"]
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {bearer}\r\n"
        f"Idempotency-Key: {key}\r\nContent-Type: application/json\r\nContent-Length: {len(encoded)}\r\n\r\n"
    )
    _, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(head.encode() + encoded)
    writer.close()
    await writer.wait_closed()


async def each_of(number: int, at_once: int, act: Callable[[int], Awaitable[None]]) -> None:
    """Act for 0, 1, … with so many at once, in their order."""
    numbers = iter(range(number))

    async def work() -> None:
        for one in numbers:
            await act(one)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())


async def test_one_unit_and_ten_thousand_buyers_make_one_order_and_its_buyer_learns_of_it(
    engine: RunningEngine, report: Report
) -> None:
    sale_id = "one-unit"
    path = f"/v1/sales/{sale_id}/orders"
    answers: dict[int, Answer] = {}
    async with Caller(engine, CONNECTIONS) as caller:
        await caller.open_sale(sale_id, {"TEE": 1})

        async def buy(buyer: int) -> None:
            body = hold_body(f"u-{buyer}", {"TEE": 1})
            if buyer % CUT_EACH == 0:
                await ask_and_hang_up(engine, path, body, "key")
            answers[buyer] = await caller.persist("POST", path, body, key="key")

        started_at = time.monotonic()
        await each_of(BUYERS, CONNECTIONS, buy)
        seconds = time.monotonic() - started_at
        winners = [buyer for buyer, answer in answers.items() if answer.status in {200, 201}]
        assert Counter(answer.code for answer in answers.values()) == {"": 1, "SOLD_OUT": BUYERS - 1}
        [winner] = winners
        answer = answers[winner]
        assert answer.is_replayed == (answer.status == 200)
        again = await caller.hold(sale_id, f"u-{winner}", "key", {"TEE": 1})
        assert (again.status, again.is_replayed, again.document) == (200, True, answer.document)
        stock = (await caller.stock(sale_id))["TEE"]
        assert (stock["available"], stock["held"]) == (0, 1)
        assert not caller.troubles
    await engine.wait_until_persisted(sale_id)
    rows = await engine.sql(
        "SELECT buyer_id FROM orders JOIN partitions USING (partition_id) WHERE sale_id = $1", sale_id
    )
    assert [row[0] for row in rows] == [f"u-{winner}"]
    status, said = await engine.audit(sale_id)
    assert status == 0, said
    report("buyers, seconds, answers cut off", f"{BUYERS}, {seconds:.1f}, {-(-BUYERS // CUT_EACH)}")
    report("the winner's answer was cut off, was replayed", f"{winner % CUT_EACH == 0}, {answer.is_replayed}")


async def test_carts_over_several_skus_take_exactly_what_is_there_and_leave_nothing_that_was_refused(
    engine: RunningEngine, report: Report
) -> None:
    sale_id = "carts"
    chance = random.Random(7)
    carts = [
        {sku: chance.randint(1, 2) for sku in chance.sample(sorted(UNITS), chance.randint(1, len(UNITS)))}
        for _ in range(CARTS)
    ]
    taken: Counter[str] = Counter()
    refused: list[tuple[int, Any]] = []
    async with Caller(engine, CONNECTIONS) as caller:
        await caller.open_sale(sale_id, UNITS)

        async def buy(buyer: int) -> None:
            path = f"/v1/sales/{sale_id}/orders"
            answer = await caller.persist("POST", path, hold_body(f"u-{buyer}", carts[buyer]), key="key")
            if answer.code == "SOLD_OUT":
                refused.append((buyer, answer.document))
            else:
                assert answer.status == 201, answer
                taken.update(units_of(answer.document["lines"]))

        started_at = time.monotonic()
        await each_of(CARTS, CONNECTIONS, buy)
        seconds = time.monotonic() - started_at
        stock = await caller.stock(sale_id)
    assert {sku: row["held"] for sku, row in stock.items()} == dict(taken)
    left = {sku: row["available"] for sku, row in stock.items()}
    assert {sku: taken[sku] + left[sku] for sku in UNITS} == UNITS
    for buyer, document in refused:  # nobody gives back, so what was short then is short now
        short = document["sku"]
        assert left[short] <= document["available"] < carts[buyer][short], (buyer, carts[buyer], document, left)
    status, said = await engine.audit(sale_id)
    assert status == 0, said
    report("carts, seconds, refused", f"{CARTS}, {seconds:.1f}, {len(refused)}")
    report("units taken, left", f"{dict(taken)}, {left}")


class Repeater:
    """Sends a request one to five times at once, and holds the answers against each other."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.requests = 0
        self.repeats = 0
        self._chance = random.Random(11)

    async def ask(self, method: str, path: str, body: Any = None, *, key: str = "", first: int = 200) -> Any:
        """The document that all answers share; one of them has the status `first`, the others are 200."""
        times = self._chance.randint(1, TIMES_MAX)
        answers = await asyncio.gather(*(self.caller.ask(method, path, body, key=key) for _ in range(times)))
        self.requests += 1
        self.repeats += times - 1
        assert sorted(answer.status for answer in answers) == sorted([first] + [200] * (times - 1)), answers
        documents = [answer.document for answer in answers]
        assert all(document == documents[0] for document in documents), documents
        if key or "/settle" in path or "/stock" in path:
            assert sum(not answer.is_replayed for answer in answers) == 1, answers
        return answers[0].document


async def order_and_end(repeater: Repeater, sale_id: str, number: int) -> None:
    """One buyer's order, paid where the number is odd and cancelled where it is even; each request repeated."""
    wanted = hold_body(f"u-{number}", {"TEE": 1 + number % 3})
    order = await repeater.ask("POST", f"/v1/sales/{sale_id}/orders", wanted, key="key", first=201)
    if number % 2:
        payment = payment_body(order, f"pay-{number}")
        settled = await repeater.ask("POST", f"/v1/orders/{order['order_id']}/settle", payment)
        assert settled == {**order, "status": "settled"}
    else:
        cancelled = await repeater.ask("POST", f"/v1/orders/{order['order_id']}/cancel")
        assert cancelled == {**order, "status": "cancelled"}


async def test_every_change_sent_up_to_five_times_at_once_happens_once(engine: RunningEngine, report: Report) -> None:
    sale_id = "repeated"
    sale = f"/ops/v1/sales/{sale_id}"
    units = 10 * ORDERS_REPEATED
    entry = {"sku": "TEE", "style": "TEE", "unit_price_minor": 1990, "quantity": units, "withheld": 100}
    body = {"title": "A live", "currency": "CNY", "hold_seconds": 3600, "skus": [entry]}
    async with Caller(engine) as caller:
        repeater = Repeater(caller)
        await repeater.ask("PUT", sale, body, first=201)
        for word, reached in [("open", "open"), ("pause", "paused"), ("resume", "open")]:
            assert (await repeater.ask("POST", f"{sale}/{word}"))["status"] == reached
        await each_of(ORDERS_REPEATED, 10, lambda number: order_and_end(repeater, sale_id, number))
        for number in range(DOCUMENTS_REPEATED):
            changes = [
                {"sku": "TEE", "kind": "allocate", "quantity": 10, "pool": "douyin"},
                {"sku": "TEE", "kind": "move", "quantity": 3, "from": "withheld", "to": "shared"},
            ]
            await repeater.ask("POST", f"{sale}/stock", {"document_id": f"more-{number}", "changes": changes})
        row = (await caller.stock(sale_id))["TEE"]
        settled_units = sum(1 + number % 3 for number in range(ORDERS_REPEATED) if number % 2)
        assert (row["allocated"], row["withheld"]) == (units + 50, 85)
        assert (row["held"], row["settled"]) == (0, settled_units)
        larger = {**body, "skus": [{**entry, "quantity": units + 70}]}
        assert (await repeater.ask("PUT", sale, larger))["skus"][0]["available"] == units + 70 - 85 - settled_units
        assert (await repeater.ask("POST", f"{sale}/close"))["status"] == "closed"
    await engine.wait_until_persisted(sale_id)
    status, said = await engine.audit(sale_id)
    assert status == 0, said
    report("requests, repeats at once", f"{repeater.requests}, {repeater.repeats}")
