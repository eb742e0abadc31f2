"""The ERP's feed, what it has acknowledged, and the help desk's search, over real sockets."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.integration.running_backoffice import RunningBackOffice, eventually, sale_body, sku, whole_back_office

SETTLED = 7


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, postgres_server: str) -> Iterator[RunningBackOffice]:
    """Two sales with seven settled orders, one cancelled and paid too late, one paid twice, one still held."""
    with whole_back_office(tmp_path_factory.mktemp("orders"), postgres_server) as started:
        for sale_id in ("s1", "s2"):
            started.put(sale_id, sale_body(sku("A", outer_code="OC-A"), sku("B", 1), labels={"host": "李"}))
            started.transition(sale_id, "open")
        for number in range(SETTLED):
            order = started.hold("s1" if number % 2 else "s2", f"k{number}", reference=f"ref-{number}")
            assert started.settle(order, f"pay-{number}").status == 200
        assert started.settle(order, "pay-again").code == "DUPLICATE_PAYMENT"
        late = started.hold("s1", "late", channel="jd", buyer_id="jd-buyer", lines=[{"sku": "B", "quantity": 1}])
        cancel = f"/v1/orders/{late['order_id']}/cancel"
        started.ask("POST", cancel, role="checkout", port=started.gateway_port)
        started.stock("s1", "d", {"sku": "B", "kind": "allocate", "quantity": -1})
        assert started.settle(late, "pay-late").code == "PAYMENT_TOO_LATE"
        started.hold("s1", "held", channel="store")
        eventually(lambda: len(search(started, "limit=1000")["orders"]) == SETTLED + 2)
        yield started


def feed(office: RunningBackOffice, query: str = "", role: str = "erp") -> Any:
    answer = office.ask("GET", f"/erp/v1/orders?{query}", role=role)
    assert answer.status == 200, answer
    return answer.json


def search(office: RunningBackOffice, query: str) -> Any:
    answer = office.ask("GET", f"/ops/v1/orders?{query}")
    assert answer.status == 200, answer
    return answer.json


def walk(office: RunningBackOffice, limit: int, more: str = "") -> list[Any]:
    """Every row of the feed, by its Link headers."""
    rows: list[Any] = []
    target = f"/erp/v1/orders?limit={limit}{more}"
    while True:
        answer = office.ask("GET", target, role="erp")
        page = answer.json
        rows += page["orders"]
        assert len(page["orders"]) == limit or not page["has_more"]
        link = answer.headers["Link"]
        assert (link is not None) is page["has_more"]
        if link is None:
            return rows
        found = re.fullmatch(r'<(/erp/v1/orders\?[^>]*)>; rel="next"', link)
        assert found
        target = found[1]
        assert page["next_cursor"] in target


def test_the_feed_gives_each_row_once_in_a_dense_order(office: RunningBackOffice) -> None:
    whole = feed(office)
    rows = whole["orders"]
    assert [row["feed_sequence"] for row in rows] == list(range(1, len(rows) + 1))
    assert not whole["has_more"]
    changes = [row["change"] for row in rows]
    assert (changes.count("settled"), changes.count("refund_due"), len(changes)) == (SETTLED, 2, SETTLED + 2)
    for limit in (1, 2, 4, 1000):
        assert walk(office, limit) == rows
    assert feed(office, role="ops") == whole
    assert {row["labels"]["host"] for row in rows} == {"李"}
    settled = [row for row in rows if row["change"] == "settled"]
    assert {row["lines"][0]["outer_code"] for row in settled} == {"OC-A"}
    assert {row["payment_id"] for row in settled} == {f"pay-{number}" for number in range(SETTLED)}


def test_an_empty_page_keeps_the_cursor(office: RunningBackOffice) -> None:
    last = feed(office)["next_cursor"]
    page = feed(office, f"after={quote(last)}")
    assert (page["orders"], page["next_cursor"], page["has_more"]) == ([], last, False)
    assert feed(office, "after=")["orders"]


def test_one_kind_of_change_can_be_asked_for(office: RunningBackOffice) -> None:
    settled = walk(office, 3, "&change=settled")
    assert len(settled) == SETTLED
    assert {row["change"] for row in settled} == {"settled"}
    due = feed(office, "change=refund_due")["orders"]
    assert {row["payments_due_for_refund"][-1]["payment_id"] for row in due} == {"pay-again", "pay-late"}
    for change in ("refunded", "returned", "part_shipped", "shipped"):
        assert feed(office, f"change={change}") == {"orders": [], "next_cursor": "", "has_more": False}


def acknowledge(office: RunningBackOffice, cursor: str, role: str = "erp") -> Any:
    answer = office.ask("POST", "/erp/v1/orders/acknowledge", {"up_to": cursor}, role=role)
    assert answer.status == 200, answer
    return answer.json


def acknowledged(office: RunningBackOffice, role: str) -> Any:
    return office.ask("GET", "/erp/v1/orders/acknowledge", role=role).json


def test_an_owner_acknowledges_and_never_goes_back(office: RunningBackOffice) -> None:
    first = feed(office, "limit=2")["next_cursor"]
    second = feed(office, "limit=5")["next_cursor"]
    assert acknowledged(office, "erp") == {"acknowledged": ""}
    assert acknowledge(office, "") == {"acknowledged": ""}
    assert acknowledge(office, second) == {"acknowledged": second}
    assert acknowledge(office, first) == {"acknowledged": second}
    assert acknowledge(office, "") == {"acknowledged": second}
    assert acknowledged(office, "erp") == {"acknowledged": second}
    assert acknowledged(office, "erp2") == {"acknowledged": ""}
    assert acknowledged(office, "ops") == {"acknowledged": ""}
    assert acknowledge(office, first, "erp2") == {"acknowledged": first}


def test_the_search_finds_by_each_criterion(office: RunningBackOffice) -> None:
    everything = search(office, "")["orders"]
    assert len(everything) == SETTLED + 2
    late = next(order for order in everything if order["status"] == "refund_due")
    expected = {
        "sale_id=s1": SETTLED // 2 + 2,
        "status=settled": SETTLED,
        "status=held": 1,
        "status=refund_due": 1,
        "status=cancelled": 0,
        "channel=douyin": SETTLED,
        "channel=jd&buyer_id=jd-buyer": 1,
        "reference=ref-3": 1,
        "payment_id=pay-late": 1,
        "payment_id=pay-again": 1,
        "sku=B": 1,
        "sku=A&status=settled": SETTLED,
        "sku=none": 0,
        f"order_id={late['order_id']}": 1,
        f"order_id={late['order_id']}&sale_id=s2": 0,
        "order_id=nonsense": 0,
        "sale_id=none": 0,
        "order_id=&channel=&buyer_id=&reference=&payment_id=&sale_id=&sku=&status=&after=&limit=100": SETTLED + 2,
        "unknown=1": SETTLED + 2,
    }
    for query, count in expected.items():
        assert len(search(office, query)["orders"]) == count, query


def test_the_search_goes_on_from_its_cursor(office: RunningBackOffice) -> None:
    whole = search(office, "")["orders"]
    found: list[Any] = []
    after = ""
    while True:
        page = search(office, f"limit=2&after={quote(after)}")
        found += page["orders"]
        after = page["next_cursor"]
        if not page["has_more"]:
            break
    assert found == whole
    empty = search(office, f"after={quote(after)}")
    assert (empty["orders"], empty["next_cursor"], empty["has_more"]) == ([], after, False)
    assert office.ask("GET", f"/erp/v1/orders?after={quote(after)}", role="erp").code == "INVALID"
