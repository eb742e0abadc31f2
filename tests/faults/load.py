"""Buyers and an operator who do not give up, what they were told, and the check that all of it is true."""

import asyncio
import random
import time
from collections import Counter
from itertools import pairwise
from typing import Any, Self

from tests.faults.running_engine import (
    CANCELLED,
    HELD,
    SETTLED,
    Caller,
    RunningEngine,
    hold_body,
    payment_body,
    units_of,
)

CLIENTS = 50
PAUSE_SECONDS_MAX = 0.04
SKUS = ("TEE-BLK-M", "TEE-BLK-L", "TEE-WHT-M")
UNITS = 100_000
DOCUMENT_PAUSE_SECONDS = 0.1
STOP_SECONDS_MAX = 90.0


class Load:
    """Fifty buyers who hold, settle and cancel, and an operator who adds a unit now and then, for as long as it lasts.

    What they are told is kept: `orders` by id with the status that they know of.
    """

    def __init__(self, engine: RunningEngine, sale_id: str, clients: int = CLIENTS) -> None:
        self.engine = engine
        self.sale_id = sale_id
        self.orders: dict[str, dict[str, Any]] = {}
        self.statuses: dict[str, int] = {}
        self.documents = 0
        self.waits: list[tuple[float, float]] = []
        """When each request of a buyer was begun, and when it was answered in the end."""
        self.buyers = Caller(engine)
        self.operator = Caller(engine)
        self._clients = clients
        self._opened = asyncio.Event()
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._buy(number)) for number in range(self._clients)]
        self._tasks.append(asyncio.create_task(self._add_units()))
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.buyers.close()
        await self.operator.close()

    async def stop(self) -> None:
        """Everybody ends what they have begun. Raises what went wrong with any of them."""
        self._stopping.set()
        async with asyncio.timeout(STOP_SECONDS_MAX):
            await asyncio.gather(*self._tasks)

    async def wait_for_answers(self, number: int) -> None:
        """Wait until so many requests that are begun from now on have been answered."""
        began_at = time.monotonic()
        async with asyncio.timeout(STOP_SECONDS_MAX):
            while sum(begun >= began_at for begun, _ in self.waits) < number:
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.05)

    def longest_wait_seconds(self) -> float:
        """The longest that a buyer had to ask for one answer."""
        return max(ended - begun for begun, ended in self.waits)

    def longest_silence_seconds(self) -> float:
        """The longest time without an answer to anybody."""
        ended = sorted(end for _, end in self.waits)
        return max((later - earlier for earlier, later in pairwise(ended)), default=0.0)

    async def _ask(self, path: str, body: Any = None, key: str = "") -> dict[str, Any]:
        """A request that must be granted, in the end."""
        begun = time.monotonic()
        answer = await self.buyers.persist("POST", path, body, key=key)
        assert answer.status in {200, 201}, (path, answer)
        self.waits.append((begun, time.monotonic()))
        document: dict[str, Any] = answer.document
        return document

    async def _buy(self, client: int) -> None:
        await self._opened.wait()
        chance = random.Random(client)
        orders = 0
        while not self._stopping.is_set():
            orders += 1
            cart = {sku: chance.randint(1, 2) for sku in chance.sample(SKUS, chance.randint(1, len(SKUS)))}
            body = hold_body(f"u-{client}", cart)
            order = await self._ask(f"/v1/sales/{self.sale_id}/orders", body, f"order-{orders}")
            order_id = order["order_id"]
            assert order_id not in self.orders
            assert (order["status"], units_of(order["lines"])) == ("held", Counter(cart))
            self.orders[order_id], self.statuses[order_id] = order, HELD
            await asyncio.sleep(chance.uniform(0, PAUSE_SECONDS_MAX))
            what_next = chance.random()
            if what_next < 0.5:
                payment = payment_body(order, f"pay-{client}-{orders}")
                settled = await self._ask(f"/v1/orders/{order_id}/settle", payment)
                assert settled == {**order, "status": "settled"}
                self.statuses[order_id] = SETTLED
            elif what_next < 0.75:
                cancelled = await self._ask(f"/v1/orders/{order_id}/cancel")
                assert cancelled == {**order, "status": "cancelled"}
                self.statuses[order_id] = CANCELLED

    async def _add_units(self) -> None:
        await self.operator.open_sale(self.sale_id, dict.fromkeys(SKUS, UNITS))
        self._opened.set()
        while not self._stopping.is_set():
            changes = [{"sku": SKUS[0], "kind": "allocate", "quantity": 1}]
            body = {"document_id": f"more-{self.documents}", "changes": changes}
            answer = await self.operator.persist("POST", f"/ops/v1/sales/{self.sale_id}/stock", body)
            assert answer.status == 200, answer
            self.documents += 1
            await asyncio.sleep(DOCUMENT_PAUSE_SECONDS)


async def require_all_true(load: Load) -> None:
    """Everything that anybody was told is in the ledger and on the feed, once; units add up; the audit holds."""
    engine, sale_id = load.engine, load.sale_id
    sequence = await engine.wait_until_persisted(sale_id)
    status, said = await engine.audit(sale_id)
    assert status == 0, said
    await _require_dense_journal(engine, sale_id, sequence)
    await _require_orders(load)
    async with Caller(engine) as caller:
        await _require_levels(caller, load)
        rows = await caller.feed()
    assert [row["feed_sequence"] for row in rows] == list(range(1, len(rows) + 1))
    on_feed = Counter(row["order_id"] for row in rows if row["sale_id"] == sale_id)
    assert on_feed == Counter({order: 1 for order, status in load.statuses.items() if status == SETTLED})


async def _require_dense_journal(engine: RunningEngine, sale_id: str, sequence: int) -> None:
    [(count, distinct, last)] = await engine.sql(
        "SELECT count(*), count(DISTINCT sequence), max(sequence) FROM journal JOIN partitions USING (partition_id)"
        " WHERE sale_id = $1",
        sale_id,
    )
    assert count == distinct == last == sequence


async def _require_orders(load: Load) -> None:
    rows = await load.engine.sql(
        "SELECT digest || '.' || sale_id, status FROM order_states JOIN partitions USING (partition_id)"
        " WHERE sale_id = $1",
        load.sale_id,
    )
    assert len(rows) == len(load.orders)
    assert {row[0]: row[1] for row in rows} == load.statuses


async def _require_levels(caller: Caller, load: Load) -> None:
    expected: dict[int, Counter[str]] = {HELD: Counter(), SETTLED: Counter(), CANCELLED: Counter()}
    for order_id, order in load.orders.items():
        expected[load.statuses[order_id]] += units_of(order["lines"])
    for sku, row in (await caller.stock(load.sale_id)).items():
        allocated = UNITS + (load.documents if sku == SKUS[0] else 0)
        assert (row["allocated"], row["held"], row["settled"]) == (
            allocated,
            expected[HELD][sku],
            expected[SETTLED][sku],
        )
        assert row["allocated"] == row["withheld"] + row["available"] + row["held"] + row["settled"]
