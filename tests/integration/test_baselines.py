"""The systems that the benchmark compares with: each does the same work under the same contract, or would not count."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.bench.baseline_under_test import BASELINES, Baseline, BaselineUnderTest, baseline_stores
from loadtest.bench.engine_under_test import ask
from loadtest.load.requests import order_body

UNITS = 5
EACH = pytest.mark.parametrize("baseline", BASELINES, ids=lambda one: one.name)


@pytest.fixture
def running(baseline: Baseline, tmp_path: Path, postgres_server: str) -> Iterator[BaselineUnderTest]:
    with baseline_stores(baseline, tmp_path, postgres_server) as found:
        found.start(UNITS)
        yield found


def cart(buyer_id: str, **fields: object) -> bytes:
    return json.dumps({**json.loads(order_body(buyer_id)), **fields}).encode()


@EACH
def test_a_baseline_sells_what_there_is_and_repeats_what_it_sold(running: BaselineUnderTest) -> None:
    answers = [running.order(f"buyer-{number}") for number in range(UNITS + 3)]
    assert [answer.status for answer in answers] == [201] * UNITS + [409] * 3
    assert {answer.body["code"] for answer in answers[UNITS:]} == {"SOLD_OUT"}
    assert answers[0].body["amount_minor"] == 1990
    assert answers[0].body["lines"][0]["paid_minor"] == 1990
    repeat = running.order("buyer-0")
    assert (repeat.status, repeat.body) == (200, answers[0].body)
    assert repeat.headers["idempotent-replayed"] == "true"
    assert running.count_orders() == UNITS


@EACH
def test_a_baseline_refuses_what_it_must(running: BaselineUnderTest) -> None:
    wrong_price = running.order("buyer-1", cart("buyer-1", expected_amount_minor=1))
    assert (wrong_price.status, wrong_price.body["code"]) == (409, "PRICE_CHANGED")
    unknown = running.order("buyer-1", cart("buyer-1", lines=[{"sku": "NONE", "quantity": 1}]))
    assert (unknown.status, unknown.body["code"]) == (404, "SKU_NOT_FOUND")
    assert running.order("buyer-1", cart("buyer-1", lines=[])).status == 422
    assert running.order("buyer-1", b"{").status == 400
    assert ask(running.url, "POST", "/v1/sales/sale-1/orders", "another-key", order_body("b")).status == 401
    assert [running.order("buyer-2", key=f"click-{click}").status for click in range(3)] == [201, 201, 409]
    third = running.order("buyer-2", key="click-3")
    assert (third.body["code"], third.body["limit"], third.body["bought"]) == ("BUYER_LIMIT_REACHED", 2, 2)
    other_body = running.order("buyer-2", cart("buyer-2", reference="R-1"), key="click-0")
    assert (other_body.status, other_body.body["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    two_lines = [{"sku": "TEE-BLK-M", "quantity": 1}, {"sku": "TEE-BLK-M", "quantity": 1}]
    both = running.order("buyer-3", cart("buyer-3", lines=two_lines, expected_amount_minor=3980))
    assert (both.status, both.body["amount_minor"]) == (201, 3980)
    assert running.order("buyer-4", cart("buyer-4", lines=two_lines, expected_amount_minor=3980)).status == 409
    assert running.order("buyer-5").status == 201, "what was refused must not have taken the last unit"
    assert running.count_orders() == 4
