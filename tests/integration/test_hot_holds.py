"""The lane's handler of holds over a real partition: the general route's rules, and its documents byte for byte."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple, cast

import orjson
import pytest

from engine.domain.commands import Cancel, Close, GetOrder, Pause
from engine.domain.identifiers import OrderId
from engine.domain.orders import order_document
from engine.domain.outcomes import Outcome
from engine.gateway.application import gateway_interface
from engine.gateway.hot_holds import HotHolds
from engine.observability.aggregates import flush_buffers
from engine.observability.metrics import HOLD_SECONDS, REFUSALS
from engine.partition.batcher import BatchBounds
from engine.partition.keyspace import partition_keys
from engine.partition.partitions import Partitions
from engine.web.fast_lane import HotRequest
from engine.web.key_store import Principal
from tests.conftest import CALL_SETTINGS
from tests.integration.running_gateway import RunningGateway, running_gateway, running_redis
from tests.lua.shop import SALE, Shop, definition, sku

HOLD: dict[str, Any] = {"buyer_id": "u-1", "channel": "douyin", "lines": [{"sku": "TEE", "quantity": 1}]}
ANSWER_SECONDS_MAX = 20


class Given(NamedTuple):
    """What was answered."""

    status: int
    body: bytes
    code: str
    replayed: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Asked:
    """A `HotRequest` that keeps its answer; None where it is left to the general route."""

    def __init__(self, body: bytes, own: str, sale_id: str) -> None:
        self.body, self.own, self.sale_id = body, own, sale_id
        self.key = b""
        self.arrived = time.perf_counter()
        self.answered: asyncio.Future[Given | None] = asyncio.get_running_loop().create_future()

    def answer(self, status: int, body: bytes, code: str, replayed: bool = False) -> None:
        self.answered.set_result(Given(status, body, code, replayed))

    def answer_generally(self) -> None:
        self.answered.set_result(None)


class Lane:
    """The handler, and the general route beside it."""

    def __init__(self, partitions: Partitions) -> None:
        self.partitions = partitions
        self.checks = 0
        self._holds = HotHolds(partitions)
        self._interface = gateway_interface(partitions, lambda _: Principal("checkout", "test"), lambda: False)

    def send(self, body: Any, key: str, sale_id: str = SALE) -> "asyncio.Future[Given | None]":
        asked = Asked(body if isinstance(body, bytes) else json.dumps(body).encode(), key, sale_id)
        self._holds.take(cast(HotRequest, asked))
        return asked.answered

    async def hold(self, body: Any, key: str, sale_id: str = SALE) -> Given:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            given = await self.send(body, key, sale_id)
        assert given is not None, "it was left to the general route"
        assert type(given.code) is str
        return given

    async def hold_generally(self, body: Any, key: str, sale_id: str = SALE) -> Given:
        headers = {"Idempotency-Key": [key], "Authorization": ["Bearer x"]}
        admission = self._interface.admit("POST", f"/v1/sales/{sale_id}/orders", lambda name: headers.get(name, []))
        answer = await self._interface.answer(admission, json.dumps(body).encode())
        replayed = ("Idempotent-Replayed", "true") in answer.headers
        return Given(answer.status, answer.body, str(answer.code), replayed)

    async def assert_refused_alike(self, body: Any, key: str, code: str, sale_id: str = SALE) -> Given:
        """Both ways refuse with this code, in the same bytes; and so does the lane again, with what it has learned."""
        general = await self.hold_generally(body, key, sale_id)
        assert general.code == code, general
        assert await self.hold(body, key, sale_id) == general
        assert await self.hold(body, key, sale_id) == general
        return general

    async def read(self, order_id_text: str) -> bytes:
        """The order's document as it is read back."""
        order_id = OrderId.parse(order_id_text)
        assert order_id is not None
        (reply,) = await self.partitions.submit(order_id.sale_id, GetOrder(order_id.digest))
        assert reply.outcome is Outcome.DONE
        return orjson.dumps(order_document(order_id, reply.order()))

    async def cancel(self, order_id_text: str) -> None:
        order_id = OrderId.parse(order_id_text)
        assert order_id is not None
        (reply,) = await self.partitions.submit(order_id.sale_id, Cancel(order_id.digest))
        assert reply.outcome is Outcome.DONE


@pytest.fixture
def shop(partitions: Partitions) -> Shop:
    return Shop(partitions)


@pytest.fixture
def lane(partitions: Partitions, monkeypatch: pytest.MonkeyPatch) -> Lane:
    ask_in_short = partitions.post_if_short

    def counting(*arguments: Any) -> None:
        made.checks += 1
        ask_in_short(*arguments)

    monkeypatch.setattr(partitions, "post_if_short", counting)
    made = Lane(partitions)
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lines": [{"sku": "TEE", "quantity": 3, "line_id": "a"}], "expected_amount_minor": 5970},
        {"reference": "6921000123", "freight_minor": 600},
        {"reference": 'say "hi"\\ ', "buyer_id": "小明 ✓ 👕", "channel": "xiaohongshu"},
        {"lines": [{"sku": "T恤-黑", "quantity": 2, "line_id": "第一"}]},
        {"discount_minor": 1990, "freight_minor": 1},
        {"discount_minor": 990},
        {
            "lines": [{"sku": "TEE", "quantity": 1}, {"sku": "PIN", "quantity": 7}, {"sku": "TEE", "quantity": 2}],
            "discount_minor": 1000,
        },
        {
            "lines": [{"sku": "PIN", "quantity": 1}, {"sku": "PIN", "quantity": 1}, {"sku": "PIN", "quantity": 1}],
            "discount_minor": 1,
        },
        {"lines": [{"sku": "TEE", "quantity": 1, "line_id": "2"}, {"sku": "PIN", "quantity": 1, "line_id": "1"}]},
        {"lines": [{"sku": "TEE", "quantity": 1}, {"sku": "PIN", "quantity": 2}] * 100, "discount_minor": 12_345},
        {"lines": [{"sku": "FREE", "quantity": 1}]},
        {"lines": [{"sku": "FREE", "quantity": 1}, {"sku": "FREE", "quantity": 2}], "freight_minor": 5},
    ],
)
async def test_an_accepted_hold_is_answered_as_it_is_read_back(lane: Lane, shop: Shop, changes: dict[str, Any]) -> None:
    free = sku("FREE", 10, unit_price_minor=0)
    await shop.open(sku("TEE", 1000), sku("PIN", 1000, unit_price_minor=333), sku("T恤-黑", 10), free)
    body = {**HOLD, **changes}
    given = await lane.hold(body, "first")
    assert (given.status, given.code, given.replayed) == (201, "OK", False)
    assert given.body == await lane.read(given.json["order_id"])
    again = await lane.hold_generally(body, "first")
    assert again == Given(200, given.body, "OK", True)
    assert await lane.hold(body, "first") == again


async def test_both_ways_accept_with_the_same_document(lane: Lane, shop: Shop) -> None:
    await shop.open(sku("TEE", 10))
    general = (await lane.hold_generally(HOLD, "one")).json
    hot = (await lane.hold(HOLD, "two")).json
    differing = {name for name in general if general[name] != hot[name]}
    assert list(general) == list(hot)
    assert differing <= {"order_id", "held_until", "sequence"}
    assert (general["sequence"] + 1, general["status"]) == (hot["sequence"], "held")


async def test_a_repeat_has_the_current_status_and_an_ended_holds_key_stays_used(lane: Lane, shop: Shop) -> None:
    await shop.open(sku("TEE", 10))
    first = await lane.hold(HOLD, "k")
    await lane.cancel(first.json["order_id"])
    again = await lane.hold(HOLD, "k")
    assert (again.status, again.replayed) == (200, True)
    assert again.json == {**first.json, "status": "cancelled"}


async def test_a_key_used_for_another_cart_is_refused(lane: Lane, shop: Shop) -> None:
    await shop.open(sku("TEE", 10))
    await lane.hold(HOLD, "k")
    for changes in ({"freight_minor": 1}, {"reference": "r"}, {"lines": [{"sku": "TEE", "quantity": 2}]}):
        await lane.assert_refused_alike({**HOLD, **changes}, "k", "IDEMPOTENCY_KEY_REUSED")


async def test_every_refusal_is_the_general_routes(lane: Lane, shop: Shop) -> None:
    await shop.open(sku("TEE", 10, buyer_limit=2), sku("CAP", 0), sku('"', 1), buyer_limit=5)
    for changes, code in [
        ({"lines": [{"sku": "HAT", "quantity": 1}]}, "SKU_NOT_FOUND"),
        ({"expected_amount_minor": 1}, "PRICE_CHANGED"),
        ({"lines": [{"sku": "CAP", "quantity": 1}]}, "SOLD_OUT"),
        ({"lines": [{"sku": '"', "quantity": 2}]}, "SOLD_OUT"),
        ({"lines": [{"sku": "TEE", "quantity": 1}, {"sku": "CAP", "quantity": 1}]}, "SOLD_OUT"),
        ({"lines": [{"sku": "CAP", "quantity": 1}], "discount_minor": 1}, "SOLD_OUT"),
        ({"lines": [{"sku": "CAP", "quantity": 1}], "reference": "r"}, "SOLD_OUT"),
        ({"lines": [{"sku": "TEE", "quantity": 3}]}, "BUYER_LIMIT_REACHED"),
        ({"discount_minor": 1991}, "INVALID"),
        ({"lines": [{"sku": "CAP", "quantity": 1}], "discount_minor": 1991}, "INVALID"),
    ]:
        await lane.assert_refused_alike({**HOLD, **changes}, "k", code)
    await lane.assert_refused_alike(HOLD, "k", "SALE_NOT_FOUND", "no-such-sale")
    await lane.partitions.submit(SALE, Pause())
    await lane.assert_refused_alike(HOLD, "k", "SALE_NOT_OPEN")
    await lane.partitions.submit(SALE, Close())
    await lane.assert_refused_alike(HOLD, "k", "SALE_CLOSED")
    await lane.partitions.freeze(SALE, "for a test")
    await lane.assert_refused_alike(HOLD, "k", "FROZEN")


async def test_a_redis_that_is_away_is_frozen_on_both_ways() -> None:
    calls = CALL_SETTINGS.__class__(0.2, 0.3, 1000, 1000)
    async with Partitions("redis://127.0.0.1:1/0", calls, BatchBounds()) as partitions:
        lane = Lane(partitions)
        assert await lane.hold(HOLD, "k") == await lane.hold_generally(HOLD, "k")


async def test_a_partition_that_cannot_be_read_is_a_defect_on_both_ways_and_of_this_sale_alone(
    lane: Lane, shop: Shop, partitions: Partitions
) -> None:
    await shop.open(sku("TEE", 10))
    await Shop(partitions, "sound").open(sku("TEE", 10))
    await partitions.connections.execute("HSET", partition_keys(SALE).stock, "TEE", "garbage")
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        given = await asyncio.gather(lane.send(HOLD, "k"), lane.send(HOLD, "k", "sound"))
    assert given[0] == await lane.hold_generally(HOLD, "k")
    assert [answer.code for answer in given if answer is not None] == ["INTERNAL", "OK"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", {}, {**HOLD, "channel": "shared"}, {**HOLD, "lines": [{"sku": "TEE", "quantity": 1, "line_id": "\n"}]}],
)
async def test_what_is_not_plainly_right_is_left_to_the_general_route(lane: Lane, body: Any) -> None:
    assert await lane.send(body, "k") is None


async def sell_out(lane: Lane, buyer: str = "u-last") -> Given:
    """Sell the only CAP, and have the lane learn that there are no more."""
    taken = await lane.hold({**HOLD, "buyer_id": buyer, "lines": [{"sku": "CAP", "quantity": 1}]}, "k")
    assert taken.status == 201
    assert await refused_in_short(lane, {}) == "SOLD_OUT"
    return taken


async def refused_in_short(lane: Lane, changes: dict[str, Any]) -> str:
    """The code that a CAP is refused with while it is known to be short."""
    body = {**HOLD, "lines": [{"sku": "CAP", "quantity": 1}], **changes}
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        while True:
            checks_before = lane.checks
            given = await lane.hold(body, "too-late")
            if lane.checks > checks_before:
                assert given == await lane.hold_generally(body, "too-late")
                return given.code
            assert given.status == 409


async def test_the_buyer_of_the_last_unit_is_told_so_again_while_it_is_sold_out(lane: Lane, shop: Shop) -> None:
    await shop.open(sku("CAP", 1))
    taken = await sell_out(lane)
    cap = [{"sku": "CAP", "quantity": 1}]
    checks_before = lane.checks
    again = await lane.hold({**HOLD, "buyer_id": "u-last", "lines": cap}, "k")
    assert lane.checks == checks_before + 1
    assert again == Given(200, taken.body, "OK", True)
    reused = await lane.hold({**HOLD, "buyer_id": "u-last", "lines": cap, "reference": "r"}, "k")
    assert reused.code == "IDEMPOTENCY_KEY_REUSED"
    assert (await lane.hold({**HOLD, "buyer_id": "u-last", "lines": cap}, "other")).code == "SOLD_OUT"


async def test_the_very_next_hold_after_stock_returned_is_accepted(lane: Lane, shop: Shop) -> None:
    await shop.open(sku("CAP", 1))
    body = {**HOLD, "lines": [{"sku": "CAP", "quantity": 1}]}
    taken = await sell_out(lane)
    for turn in range(20):
        await lane.cancel(taken.json["order_id"])
        checks_before = lane.checks
        taken = await lane.hold({**body, "buyer_id": f"u-{turn}"}, "k")
        assert taken.status == 201
        assert lane.checks == checks_before + 1, "it was not known to be short, so nothing was tried"
        assert (await lane.hold({**body, "buyer_id": "next"}, "k")).code == "SOLD_OUT"


async def test_a_thousand_buyers_of_a_sold_out_unit_are_refused_and_one_of_them_gets_it_back(
    lane: Lane, shop: Shop
) -> None:
    await shop.open(sku("CAP", 1))
    taken = await sell_out(lane)
    body = {**HOLD, "lines": [{"sku": "CAP", "quantity": 1}]}
    sent = [lane.send({**body, "buyer_id": f"u-{number}"}, "k") for number in range(1000)]
    sent.append(lane.send({**body, "buyer_id": "u-last"}, "k"))
    async with asyncio.timeout(ANSWER_SECONDS_MAX):
        given = await asyncio.gather(*sent)
    assert [answer.code for answer in given[:-1] if answer is not None] == ["SOLD_OUT"] * 1000
    assert given[-1] == Given(200, taken.body, "OK", True)


async def test_while_it_is_short_whatever_goes_before_sold_out_still_does(lane: Lane, shop: Shop) -> None:
    await shop.open(sku("CAP", 1))
    await sell_out(lane)
    assert await refused_in_short(lane, {"expected_amount_minor": 1990}) == "SOLD_OUT"
    assert await refused_in_short(lane, {"expected_amount_minor": 1}) == "PRICE_CHANGED"
    assert await refused_in_short(lane, {"expected_amount_minor": 1989}) == "PRICE_CHANGED"
    await lane.partitions.submit(SALE, definition(sku("CAP", 1, unit_price_minor=1000), command_id="cheaper"))
    assert await refused_in_short(lane, {"expected_amount_minor": 1990}) == "PRICE_CHANGED"
    await lane.hold({**HOLD, "lines": [{"sku": "CAP", "quantity": 1}]}, "too-late")
    await lane.partitions.submit(SALE, Pause())
    assert await refused_in_short(lane, {}) == "SALE_NOT_OPEN"
    await lane.partitions.submit(SALE, Close())
    assert (await lane.hold({**HOLD, "lines": [{"sku": "CAP", "quantity": 1}]}, "too-late")).code == "SALE_CLOSED"


async def test_metrics_count_every_hold_and_every_refusal_once(lane: Lane, shop: Shop) -> None:
    def counted() -> tuple[float, float, float]:
        flush_buffers()
        samples = {sample.name: sample.value for sample in next(iter(HOLD_SECONDS.collect())).samples}
        refused = REFUSALS.labels("SOLD_OUT")._value.get()
        return samples["miaocang_hold_seconds_count"], samples["miaocang_hold_seconds_sum"], refused

    await shop.open(sku("TEE", 2))
    before = counted()
    for number in range(10):
        await lane.hold({**HOLD, "buyer_id": f"u-{number}"}, "k")
    after = counted()
    assert (after[0] - before[0], after[2] - before[2]) == (10, 8)
    assert 0 < after[1] - before[1] < ANSWER_SECONDS_MAX


# --- over sockets --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    path = tmp_path_factory.mktemp("hot-gateway")
    with running_redis(path / "redis") as (url, _), running_gateway(path / "gateway", url) as started:
        started.on_partitions(lambda partitions: Shop(partitions).open(sku("TEE", 100_000), sku("CAP", 0)))
        yield started


def shown(gateway: RunningGateway, *names: str) -> list[float]:
    """The values of metrics as the gateway shows them; 0 for one that it does not show."""
    lines = gateway.ask("GET", "/metrics", role=None).body.decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return [float(values.get(name, 0)) for name in names]


def test_over_a_socket_an_accepted_hold_is_read_back_as_it_was_answered(gateway: RunningGateway) -> None:
    with closing(gateway.connect()) as connection:
        for number, changes in enumerate(
            (
                {},
                {"buyer_id": "小明 ✓", "reference": '"\\', "freight_minor": 5},
                {"lines": [{"sku": "TEE", "quantity": 2}] * 3, "discount_minor": 1000, "expected_amount_minor": 10_940},
            )
        ):
            made = gateway.hold({**HOLD, **changes}, f"read-{number}", connection=connection)
            read = gateway.ask("GET", f"/v1/orders/{made.json['order_id']}", connection=connection)
            assert (made.status, read.status) == (201, 200)
            assert made.body == read.body
            again = gateway.hold({**HOLD, **changes}, f"read-{number}", connection=connection)
            assert (again.status, again.headers["Idempotent-Replayed"], again.body) == (200, "true", made.body)


def test_over_a_socket_the_metrics_count_every_hold_of_the_lane_once(gateway: RunningGateway) -> None:
    names = (
        'miaocang_fast_lane_requests_total{by="hot"}',
        "miaocang_hold_seconds_count",
        'miaocang_refusals_total{code="SOLD_OUT"}',
    )
    before = shown(gateway, *names)
    with closing(gateway.connect()) as connection:
        for number in range(20):
            name = "CAP" if number % 4 else "TEE"
            body = {**HOLD, "lines": [{"sku": name, "quantity": 1}]}
            answer = gateway.hold(body, f"count-{number}", connection=connection)
            assert answer.status == (409 if name == "CAP" else 201)
    after = shown(gateway, *names)
    assert [now - then for now, then in zip(after, before, strict=True)] == [20, 20, 15]
