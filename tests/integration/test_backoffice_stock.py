"""Stock documents over real sockets: what moves, what is refused, and that each happens once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.integration.running_backoffice import RunningBackOffice, sale_body, sku, whole_back_office


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, postgres_server: str) -> Iterator[RunningBackOffice]:
    with whole_back_office(tmp_path_factory.mktemp("stock"), postgres_server) as started:
        yield started


def allocate(quantity: int, pool: str | None = None, name: str = "A") -> dict[str, Any]:
    change: dict[str, Any] = {"sku": name, "kind": "allocate", "quantity": quantity}
    return change if pool is None else {**change, "pool": pool}


def move(quantity: int, source: str, target: str, name: str = "A") -> dict[str, Any]:
    return {"sku": name, "kind": "move", "quantity": quantity, "from": source, "to": target}


def levels(office: RunningBackOffice, sale_id: str, name: str = "A") -> tuple[int, int, dict[str, int]]:
    found = office.levels(sale_id, name)
    return found["allocated"], found["withheld"], found["pools"]


def test_units_are_allocated_taken_out_and_moved_between_pools(office: RunningBackOffice) -> None:
    office.put("moved", sale_body(sku("A", 10, withheld=4, channels={"douyin": 2})))
    changes = [
        allocate(5),
        allocate(-1, "shared"),
        allocate(3, "withheld"),
        allocate(2, "jd"),
        move(6, "withheld", "douyin"),
        move(1, "jd", "store"),
        move(2, "shared", "withheld"),
    ]
    answer = office.stock("moved", "d1", *changes)
    assert answer.status == 200
    assert answer.headers["ETag"] == '"v2"'
    assert "Idempotent-Replayed" not in answer.headers
    entry = answer.json["skus"][0]
    assert (entry["allocated"], entry["withheld"]) == (19, 3)
    assert entry["pools"] == {"shared": 6, "douyin": 8, "jd": 1, "store": 1}
    assert levels(office, "moved") == (19, 3, entry["pools"])


def test_all_changes_are_made_or_none(office: RunningBackOffice) -> None:
    office.put("whole", sale_body(sku("A", 10), sku("B", 1)))
    refused = office.stock("whole", "d1", allocate(5), allocate(-2, name="B"))
    assert (refused.status, refused.code) == (409, "CONFLICT")
    assert office.stock("whole", "d1", allocate(5), move(1, "jd", "shared")).code == "CONFLICT"
    unknown = office.stock("whole", "d1", allocate(5), allocate(1, name="C"))
    assert (unknown.status, unknown.code, unknown.json["sku"]) == (404, "SKU_NOT_FOUND", "C")
    assert levels(office, "whole") == (10, 0, {"shared": 10})
    # a refusal is not remembered, and changes see those before them
    accepted = office.stock("whole", "d1", move(10, "shared", "jd"), move(10, "jd", "shared"), allocate(-10))
    assert accepted.status == 200
    assert levels(office, "whole") == (0, 0, {"shared": 0, "jd": 0})


def test_a_document_happens_once_and_its_repeat_says_so(office: RunningBackOffice) -> None:
    office.put("once", sale_body())
    assert office.stock("once", "d1", allocate(5)).status == 200
    office.stock("once", "d2", allocate(1))
    repeat = office.stock("once", "d1", allocate(5, "shared"))  # the default filled in
    assert (repeat.status, repeat.headers["Idempotent-Replayed"]) == (200, "true")
    assert repeat.json["skus"][0]["allocated"] == 16
    reused = office.stock("once", "d1", allocate(6))
    assert (reused.status, reused.code) == (422, "IDEMPOTENCY_KEY_REUSED")
    assert office.stock("once", "d1", allocate(5), allocate(5)).code == "IDEMPOTENCY_KEY_REUSED"
    office.transition("once", "close")
    assert office.stock("once", "d1", allocate(5)).headers["Idempotent-Replayed"] == "true"
    assert office.stock("once", "d1", allocate(6)).code == "IDEMPOTENCY_KEY_REUSED"
    assert office.stock("once", "d3", allocate(5)).code == "SALE_CLOSED"
    assert office.stock("once", "d3", allocate(5, name="none")).code == "SALE_CLOSED"


def test_of_a_document_sent_fifty_times_at_once_one_is_applied(office: RunningBackOffice) -> None:
    office.put("raced", sale_body())
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: office.stock("raced", "d1", allocate(1)), range(50)))
    assert {answer.status for answer in answers} == {200}
    assert sum("Idempotent-Replayed" in answer.headers for answer in answers) == 49
    assert levels(office, "raced")[0] == 11


def test_documents_of_two_sales_do_not_know_each_other(office: RunningBackOffice) -> None:
    for sale_id in ("first", "second"):
        office.put(sale_id, sale_body())
        assert "Idempotent-Replayed" not in office.stock(sale_id, "d1", allocate(1)).headers


def test_no_more_than_a_milliard_is_allocated(office: RunningBackOffice) -> None:
    office.put("most", sale_body(sku("A", 10**9)))
    assert office.stock("most", "d1", allocate(1)).code == "CONFLICT"
    assert office.stock("most", "d1", allocate(-1)).status == 200
    assert office.stock("most", "d2", allocate(1)).status == 200


def test_held_units_cannot_be_taken_out(office: RunningBackOffice) -> None:
    office.put("held", sale_body(sku("A", 2)))
    office.transition("held", "open")
    office.hold("held", "k1")
    assert office.stock("held", "d1", allocate(-2)).code == "CONFLICT"
    assert office.stock("held", "d2", allocate(-1)).status == 200
    assert levels(office, "held") == (1, 0, {"shared": 0})


def test_a_stock_document_for_no_sale_finds_none(office: RunningBackOffice) -> None:
    assert office.stock("none", "d1", allocate(1)).code == "SALE_NOT_FOUND"
