"""The lane's handler of settlements over a real partition: the general route's rules, and its documents to the byte."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from typing import Any, cast

import orjson
import pytest

from engine.domain.commands import Close
from engine.domain.identifiers import OrderId
from engine.gateway.application import gateway_interface
from engine.gateway.hot_settles import HotSettles
from engine.observability.aggregates import flush_buffers
from engine.observability.metrics import REFUSALS
from engine.partition.batcher import BatchBounds
from engine.partition.keyspace import partition_keys
from engine.partition.partitions import Partitions
from engine.web.fast_lane import HotRequest
from engine.web.key_store import Principal
from tests.conftest import CALL_SETTINGS
from tests.integration.running_gateway import RunningGateway, running_gateway, running_redis
from tests.integration.test_hot_holds import ANSWER_SECONDS_MAX, Asked, Given, shown
from tests.integration.test_hot_holds import Lane as LaneOfHolds
from tests.lua.shop import SALE, Shop, sku

HOLD: dict[str, Any] = {"buyer_id": "u-1", "channel": "douyin", "lines": [{"sku": "TEE", "quantity": 1}]}
SETTLE: dict[str, Any] = {"payment_id": "pay-1", "amount_minor": 1990, "currency": "CNY"}
UNKNOWN = "a" * 24 + f".{SALE}"


class Lane:
    """The handler, and the general route beside it."""

    def __init__(self, partitions: Partitions) -> None:
        self.partitions = partitions
        self._holds = LaneOfHolds(partitions)
        self._settles = HotSettles(partitions)
        self._interface = gateway_interface(partitions, lambda _: Principal("checkout", "test"), lambda: False)

    async def hold(self, key: str, **changes: Any) -> str:
        """The id of a new order."""
        order_id: str = (await self._holds.hold({**HOLD, **changes}, key)).json["order_id"]
        return order_id

    async def cancel(self, order_id: str) -> None:
        await self._holds.cancel(order_id)

    def send(self, order_id: str, body: Any) -> "asyncio.Future[Given | None]":
        asked = Asked(body if isinstance(body, bytes) else orjson.dumps(body), order_id, "")
        self._settles.take(cast(HotRequest, asked))
        return asked.answered

    async def settle(self, order_id: str, **changes: Any) -> Given:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            given = await self.send(order_id, {**SETTLE, **changes})
        assert given is not None, "it was left to the general route"
        assert type(given.code) is str
        return given

    async def settle_generally(self, order_id: str, **changes: Any) -> Given:
        headers = {"Authorization": ["Bearer x"]}
        admission = self._interface.admit("POST", f"/v1/orders/{order_id}/settle", lambda name: headers.get(name, []))
        answer = await self._interface.answer(admission, orjson.dumps({**SETTLE, **changes}))
        replayed = ("Idempotent-Replayed", "true") in answer.headers
        return Given(answer.status, answer.body, str(answer.code), replayed)

    async def assert_refused_alike(self, order_id: str, code: str, **changes: Any) -> None:
        """Both ways refuse with this code, in the same bytes."""
        general = await self.settle_generally(order_id, **changes)
        assert general.code == code, general
        assert await self.settle(order_id, **changes) == general


@pytest.fixture
def lane(partitions: Partitions) -> Lane:
    return Lane(partitions)


@pytest.fixture
async def shop(partitions: Partitions) -> Shop:
    shop = Shop(partitions)
    await shop.open(sku("TEE", 100), sku("PIN", 100, unit_price_minor=333))
    return shop


@pytest.mark.parametrize(
    ("changes", "amount_minor"),
    [
        ({}, 1990),
        ({"buyer_id": "小明 ✓", "reference": 'say "hi"', "freight_minor": 10}, 2000),
        ({"lines": [{"sku": "PIN", "quantity": 2}, {"sku": "TEE", "quantity": 1}], "discount_minor": 656}, 2000),
    ],
)
@pytest.mark.usefixtures("shop")
async def test_a_payment_is_answered_with_the_order_and_again_as_a_replay(
    lane: Lane, changes: dict[str, Any], amount_minor: int
) -> None:
    order_id = await lane.hold("k", **changes)
    given = await lane.settle(order_id, amount_minor=amount_minor)
    assert (given.status, given.code, given.replayed, given.json["status"]) == (200, "OK", False, "settled")
    again = await lane.settle_generally(order_id, amount_minor=amount_minor)
    assert again == Given(200, given.body, "OK", True)
    assert await lane.settle(order_id, amount_minor=amount_minor) == again


@pytest.mark.usefixtures("shop")
async def test_both_ways_settle_with_the_same_document(lane: Lane) -> None:
    hot, general = await lane.hold("hot"), await lane.hold("general")
    by_lane, by_route = await lane.settle(hot), await lane.settle_generally(general)
    differing = {name for name in by_lane.json if by_lane.json[name] != by_route.json[name]}
    assert list(by_lane.json) == list(by_route.json)
    assert differing <= {"order_id", "held_until", "sequence"}
    assert (by_lane.status, by_lane.code, by_lane.replayed) == (by_route.status, by_route.code, by_route.replayed)


@pytest.mark.usefixtures("shop")
async def test_a_second_payment_is_recorded_and_told_so_again(lane: Lane) -> None:
    hot, general = await lane.hold("hot"), await lane.hold("general")
    for order_id in (hot, general):
        await lane.settle(order_id)
    first = await lane.settle(hot, payment_id="pay-2")
    assert (first.status, first.code, first.replayed) == (409, "DUPLICATE_PAYMENT", False)
    assert await lane.settle_generally(general, payment_id="pay-2") == first
    assert await lane.settle(hot, payment_id="pay-2") == first._replace(replayed=True)
    await lane.assert_refused_alike(hot, "DUPLICATE_PAYMENT", payment_id="pay-2")


async def test_a_payment_that_came_too_late_is_recorded_and_told_so_again(lane: Lane, shop: Shop) -> None:
    hot, general = await lane.hold("hot"), await lane.hold("general")
    for order_id in (hot, general):
        await lane.cancel(order_id)
    await shop.ask(Close())
    first = await lane.settle(hot)
    assert (first.status, first.code, first.replayed) == (409, "PAYMENT_TOO_LATE", False)
    assert await lane.settle_generally(general) == first
    assert await lane.settle(hot) == first._replace(replayed=True)
    await lane.assert_refused_alike(hot, "PAYMENT_TOO_LATE")


@pytest.mark.usefixtures("shop")
async def test_a_cancelled_order_that_can_be_had_anew_is_settled(lane: Lane) -> None:
    order_id = await lane.hold("k")
    await lane.cancel(order_id)
    given = await lane.settle(order_id)
    assert (given.status, given.json["status"], given.replayed) == (200, "settled", False)


@pytest.mark.usefixtures("shop")
async def test_every_refusal_is_the_general_routes(lane: Lane) -> None:
    order_id = await lane.hold("k")
    await lane.assert_refused_alike(order_id, "AMOUNT_MISMATCH", amount_minor=1)
    await lane.assert_refused_alike(order_id, "AMOUNT_MISMATCH", currency="USD")
    await lane.assert_refused_alike(UNKNOWN, "ORDER_NOT_FOUND")
    await lane.assert_refused_alike("a" * 24 + ".no-such-sale", "ORDER_NOT_FOUND")
    await lane.settle(order_id)
    await lane.assert_refused_alike(order_id, "IDEMPOTENCY_KEY_REUSED", amount_minor=1)
    for number in range(2, 1000):
        if (await lane.settle(order_id, payment_id=f"pay-{number}")).code == "CONFLICT":
            break
    await lane.assert_refused_alike(order_id, "CONFLICT", payment_id="one-too-many")
    await lane.partitions.freeze(SALE, "for a test")
    await lane.assert_refused_alike(order_id, "FROZEN")


@pytest.mark.usefixtures("shop")
async def test_an_order_of_one_sale_is_not_found_under_anothers_name(lane: Lane, partitions: Partitions) -> None:
    await Shop(partitions, "other").open(sku("TEE", 1))
    digest, _, _ = (await lane.hold("k")).partition(".")
    await lane.assert_refused_alike(f"{digest}.other", "ORDER_NOT_FOUND")


async def test_a_redis_that_is_away_is_frozen_on_both_ways() -> None:
    calls = CALL_SETTINGS.__class__(0.2, 0.3, 1000, 1000)
    async with Partitions("redis://127.0.0.1:1/0", calls, BatchBounds()) as partitions:
        lane = Lane(partitions)
        assert await lane.settle(UNKNOWN) == await lane.settle_generally(UNKNOWN)


@pytest.mark.usefixtures("shop")
async def test_an_order_that_cannot_be_read_is_a_defect_on_both_ways(lane: Lane, partitions: Partitions) -> None:
    broken, sound = await lane.hold("broken"), await lane.hold("sound", buyer_id="u-2")
    order_id = OrderId.parse(broken)
    assert order_id is not None
    await partitions.connections.execute("HSET", partition_keys(SALE).buyers, order_id.buyer_part, b"\xc1")
    general = await lane.settle_generally(broken)
    assert (general.status, general.code) == (500, "INTERNAL")
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        assert await lane.send(broken, SETTLE) == general
    assert (await lane.settle(sound)).status == 200


@pytest.mark.parametrize("body", [b"", b"{", {}, {**SETTLE, "currency": "cny"}, {**SETTLE, "payment_id": "\n"}])
async def test_what_is_not_plainly_right_is_left_to_the_general_route(lane: Lane, body: Any) -> None:
    assert await lane.send(UNKNOWN, body) is None


@pytest.mark.usefixtures("shop")
async def test_metrics_count_every_refusal_once(lane: Lane) -> None:
    def counted() -> list[float]:
        flush_buffers()
        return [REFUSALS.labels(code)._value.get() for code in ("AMOUNT_MISMATCH", "DUPLICATE_PAYMENT")]

    order_id, before = await lane.hold("k"), counted()
    await lane.settle(order_id, amount_minor=1)
    await lane.settle(order_id)
    for _ in range(2):
        await lane.settle(order_id, payment_id="pay-2")
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 2]


# --- over sockets --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    path = tmp_path_factory.mktemp("hot-gateway")
    with running_redis(path / "redis") as (url, _), running_gateway(path / "gateway", url) as started:
        started.on_partitions(lambda partitions: Shop(partitions).open(sku("TEE", 1000)))
        yield started


def test_over_a_socket_settlements_between_holds_are_the_lanes_and_are_read_back_as_answered(
    gateway: RunningGateway,
) -> None:
    hot = 'miaocang_fast_lane_requests_total{by="hot"}'
    (before,) = shown(gateway, hot)
    with closing(gateway.connect()) as connection:
        for number in range(5):
            order_id = gateway.hold(HOLD, f"row-{number}", connection=connection).json["order_id"]
            given = [
                gateway.ask("POST", f"/v1/orders/{order_id}/settle", SETTLE, connection=connection) for _ in range(2)
            ]
            read = gateway.ask("GET", f"/v1/orders/{order_id}", connection=connection)
            assert [(answer.status, answer.body) for answer in given] == [(200, read.body)] * 2
            assert [answer.headers.get("Idempotent-Replayed") for answer in given] == [None, "true"]
    assert shown(gateway, hot) == [before + 15]
