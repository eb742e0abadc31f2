"""Sales over real sockets: their definition, their states, their versions, their list."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.integration.running_backoffice import RunningBackOffice, eventually, sale_body, sku, whole_back_office


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, postgres_server: str) -> Iterator[RunningBackOffice]:
    with whole_back_office(tmp_path_factory.mktemp("sales"), postgres_server) as started:
        yield started


def test_a_sale_is_created_with_its_units_where_they_belong(office: RunningBackOffice) -> None:
    body = sale_body(
        sku(
            "A",
            50,
            withheld=5,
            channels={"douyin": 10, "jd": 0},
            colour="黑",
            size="M",
            link_no=3,
            image_url="https://example.com/a.jpg",
            outer_code="OC-1",
            unit_cost_minor=700,
            buyer_limit=2,
        ),
        buyer_limit=3,
        style_limits={"TEE": 2},
        labels={"host": "李", "room_id": "88"},
        opens_at="2036-11-11T20:00:00+08:00",
        closes_at="2036-11-11T22:00:00.5+08:00",
    )
    answer = office.put("created", body)
    assert answer.status == 201
    assert answer.headers["Location"] == "/ops/v1/sales/created"
    assert answer.headers["ETag"] == '"v1"'
    document = answer.json
    assert "as_of" not in document  # a repeat is answered alike
    assert document.pop("sequence") == 1
    levels = {"allocated": 50, "withheld": 5, "available": 45, "held": 0, "settled": 0}
    expected = {**body["skus"][0], **levels, "pools": {"shared": 35, "douyin": 10}}
    assert document == {
        **body,
        "sale_id": "created",
        "status": "draft",
        "version": 1,
        "skus": [expected],
        "opens_at": "2036-11-11T12:00:00.000Z",
        "closes_at": "2036-11-11T14:00:00.500Z",
    }
    read = office.ask("GET", "/ops/v1/sales/created")
    assert read.headers["ETag"] == '"v1"'
    assert {name: value for name, value in read.json.items() if name not in ("as_of", "sequence")} == document


def test_what_was_read_can_be_put_back(office: RunningBackOffice) -> None:
    office.put("back", sale_body(sku("A", 10, withheld=2, channels={"douyin": 8}), sku("B", 3), labels={"host": "x"}))
    assert office.stock("back", "d", {"sku": "A", "kind": "allocate", "quantity": -6, "pool": "douyin"}).status == 200
    before = office.sale("back")
    answer = office.put("back", before)
    assert answer.status == 200, answer.json
    after = answer.json
    assert before.pop("as_of").endswith("Z")
    for changing in ("version", "sequence"):
        before.pop(changing), after.pop(changing)
    assert after == before


def test_a_quantity_sets_what_is_allocated_out_of_the_shared_pool(office: RunningBackOffice) -> None:
    office.put("quantity", sale_body(sku("A", 10, withheld=3, channels={"douyin": 2})))
    more = office.put("quantity", sale_body(sku("A", 25, withheld=0, channels={"jd": 1})))
    assert more.status == 200
    levels = office.levels("quantity", "A")
    assert (levels["allocated"], levels["withheld"], levels["pools"]) == (25, 3, {"shared": 20, "douyin": 2})
    assert office.put("quantity", sale_body(sku("A", 5))).status == 200
    assert office.levels("quantity", "A")["pools"] == {"shared": 0, "douyin": 2}
    short = office.put("quantity", sale_body(sku("A", 4)))
    assert (short.status, short.code) == (409, "CONFLICT")
    assert short.json["errors"][0]["field"] == "A"


def test_a_sku_left_out_goes_unless_units_of_it_are_held_or_settled(office: RunningBackOffice) -> None:
    office.put("left-out", sale_body(sku("A"), sku("B"), sku("C")))
    office.transition("left-out", "open")
    order = office.hold("left-out", "k1")
    assert office.put("left-out", sale_body(sku("B"))).code == "CONFLICT"
    assert office.put("left-out", sale_body(sku("A"), sku("B"))).status == 200
    office.settle(order)
    assert office.put("left-out", sale_body(sku("B"))).code == "CONFLICT"
    assert [entry["sku"] for entry in office.sale("left-out")["skus"]] == ["A", "B"]


def test_skus_come_in_the_operators_order(office: RunningBackOffice) -> None:
    office.put("ordered", sale_body(sku("Z"), sku("A"), sku("M")))
    assert [entry["sku"] for entry in office.sale("ordered")["skus"]] == ["Z", "A", "M"]


def test_price_and_limits_apply_to_later_holds(office: RunningBackOffice) -> None:
    office.put("price", sale_body(sku("A")))
    office.transition("price", "open")
    assert office.hold("price", "k1")["amount_minor"] == 1990
    office.put("price", sale_body(sku("A", unit_price_minor=990), hold_seconds=600, buyer_limit=1))
    later = office.hold("price", "k2")
    assert later["amount_minor"] == 990
    assert office.sale("price")["hold_seconds"] == 600


def test_the_currency_changes_only_before_the_first_hold(office: RunningBackOffice) -> None:
    office.put("currency", sale_body())
    assert office.put("currency", sale_body(currency="USD")).status == 200
    office.transition("currency", "open")
    order = office.hold("currency", "k1")
    office.ask("POST", f"/v1/orders/{order['order_id']}/cancel", role="checkout", port=office.gateway_port)
    assert office.put("currency", sale_body(currency="EUR")).code == "CONFLICT"
    assert office.put("currency", sale_body(currency="USD")).status == 200


def test_more_set_apart_than_there_is_is_invalid_for_new_skus_alone(office: RunningBackOffice) -> None:
    too_much = sku("B", 5, withheld=3, channels={"douyin": 2, "jd": 1})
    fresh = office.put("apart", sale_body(sku("A"), too_much, sku("C", 0, withheld=1)))
    assert (fresh.status, fresh.code) == (422, "INVALID")
    assert [error["field"] for error in fresh.json["errors"]] == ["skus[1].quantity", "skus[2].quantity"]
    assert office.ask("GET", "/ops/v1/sales/apart").code == "SALE_NOT_FOUND"
    office.put("apart", sale_body(sku("A", 5, withheld=5)))
    assert office.put("apart", sale_body(sku("A", 5, withheld=9))).status == 200
    # of a definition that is refused for several reasons, what the body alone is wrong with goes first
    assert office.put("apart", sale_body(sku("A", 1), too_much)).code == "INVALID"
    office.transition("apart", "close")
    assert office.put("apart", sale_body(sku("A", 5), too_much)).code == "INVALID"
    assert office.put("apart", sale_body(sku("A", 5))).code == "SALE_CLOSED"


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        ('"v1"', 409),
        ('"v2"', 200),
        ("*", 200),
        ('W/"v3"', 409),
        ('"other", W/"v1" , "v3"', 409),
        ('"v3","v4", "v1"', 200),
        ('"v05"', 409),
        ('""', 409),
        ('"v5",', 200),
        ("v6", 400),
        ('"v6', 400),
        ("", 400),
        ('*, "v6"', 400),
        ('"v6" "v7"', 400),
    ],
)
def test_if_match_is_honoured(office: RunningBackOffice, condition: str, status: int) -> None:
    if condition == '"v1"':
        office.put("matched", sale_body())
        office.put("matched", sale_body(title="changed"))
    version = office.sale("matched")["version"]
    answer = office.put("matched", sale_body(title=f"by {condition}"), **{"If-Match": condition})
    assert answer.status == status, (version, answer.json)
    if status != 200:
        assert answer.code == ("CONFLICT" if status == 409 else "MALFORMED")
        assert office.sale("matched")["version"] == version
    if status == 400:  # what cannot be read goes before what is not acceptable
        assert office.put("matched", {}, **{"If-Match": condition}).code == "MALFORMED"


def test_a_definition_that_is_in_force_already_changes_no_version(office: RunningBackOffice) -> None:
    office.put("same", sale_body(labels={"host": "x"}))
    before = office.sale("same")
    for _ in range(2):
        again = office.put("same", sale_body(labels={"host": "x"}))
        assert (again.status, again.headers["ETag"]) == (200, '"v1"')
    assert office.sale("same")["sequence"] == before["sequence"]


def test_if_match_makes_no_sale(office: RunningBackOffice) -> None:
    for condition in ("*", '"v1"', 'W/"v1"', '"v1", "v2"'):
        assert office.put("never-made", sale_body(), **{"If-Match": condition}).code == "CONFLICT"
    assert office.ask("GET", "/ops/v1/sales/never-made").code == "SALE_NOT_FOUND"


def test_of_concurrent_changes_of_one_version_one_is_made(office: RunningBackOffice) -> None:
    office.put("raced", sale_body(title="first"))
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda n: office.put("raced", sale_body(title=f"t{n}"), **{"If-Match": '"v1"'}).status, range(8))
        )
    assert sorted(answers) == [200] + [409] * 7


def test_of_concurrent_first_definitions_one_creates(office: RunningBackOffice) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: office.put("raced-first", sale_body(title=f"t{n}")).status, range(8)))
    assert sorted(answers) == [200] * 7 + [201]


STATES = ("draft", "open", "paused", "closed")
ALLOWED = {
    ("draft", "open"): "open",
    ("open", "open"): "open",
    ("open", "pause"): "paused",
    ("paused", "pause"): "paused",
    ("paused", "resume"): "open",
    ("open", "resume"): "open",
    ("draft", "close"): "closed",
    ("open", "close"): "closed",
    ("paused", "close"): "closed",
    ("closed", "close"): "closed",
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("word", ["open", "pause", "resume", "close"])
def test_every_transition_from_every_state(office: RunningBackOffice, state: str, word: str) -> None:
    sale_id = f"from-{state}-{word}"
    office.put(sale_id, sale_body())
    for step in {"draft": [], "open": ["open"], "paused": ["open", "pause"], "closed": ["close"]}[state]:
        assert office.transition(sale_id, step).status == 200
    before = office.sale(sale_id)
    answer = office.transition(sale_id, word)
    target = ALLOWED.get((state, word))
    if target is None:
        assert (answer.status, answer.code) == (409, "CONFLICT")
        assert office.sale(sale_id)["version"] == before["version"]
    else:
        assert answer.status == 200
        assert answer.json["status"] == target
        assert answer.headers["ETag"] == f'"v{answer.json["version"]}"'
        assert (answer.json["version"] == before["version"]) is (target == state)


def test_closing_leaves_what_is_held_or_settled(office: RunningBackOffice) -> None:
    office.put("closing", sale_body(sku("A", 10, withheld=2, channels={"douyin": 3}), sku("B", 5)))
    office.transition("closing", "open")
    settled, held, cancelled = (office.hold("closing", key) for key in ("k1", "k2", "k3"))
    assert office.settle(settled).status == 200
    closed = office.transition("closing", "close").json
    assert closed["status"] == "closed"
    assert {entry["sku"]: (entry["allocated"], entry["held"], entry["settled"]) for entry in closed["skus"]} == {
        "A": (3, 2, 1),
        "B": (0, 0, 0),
    }
    office.ask("POST", f"/v1/orders/{cancelled['order_id']}/cancel", role="checkout", port=office.gateway_port)
    assert office.levels("closing", "A")["allocated"] == 2
    assert office.settle(held).status == 200
    assert office.levels("closing", "A")["settled"] == 2
    assert office.put("closing", sale_body()).code == "SALE_CLOSED"
    assert office.ask("DELETE", "/ops/v1/sales/closing").code == "CONFLICT"


def test_opens_at_opens_a_draft_and_closes_at_closes_it(office: RunningBackOffice) -> None:
    now = datetime.now(UTC)
    body = sale_body(
        opens_at=(now + timedelta(seconds=0.6)).isoformat(), closes_at=(now + timedelta(seconds=2)).isoformat()
    )
    assert office.put("timed", body).json["status"] == "draft"
    eventually(lambda: bool(office.sale("timed")["status"] == "open"), 3)
    eventually(lambda: bool(office.sale("timed")["status"] == "closed"), 4)


def test_a_draft_can_be_deleted_and_made_again(office: RunningBackOffice) -> None:
    office.put("deleted", sale_body(sku("A", 10, withheld=1)))
    answer = office.ask("DELETE", "/ops/v1/sales/deleted")
    assert (answer.status, answer.body) == (204, b"")
    assert office.ask("GET", "/ops/v1/sales/deleted").code == "SALE_NOT_FOUND"
    assert office.ask("DELETE", "/ops/v1/sales/deleted").code == "SALE_NOT_FOUND"
    assert office.transition("deleted", "open").code == "SALE_NOT_FOUND"
    assert office.stock("deleted", "d", {"sku": "A", "kind": "allocate", "quantity": 1}).code == "SALE_NOT_FOUND"
    assert "deleted" not in [sale["sale_id"] for sale in listed(office)]
    assert office.put("deleted", sale_body(), **{"If-Match": "*"}).code == "CONFLICT"
    again = office.put("deleted", sale_body(sku("B", 2)))
    assert again.status == 201
    assert [entry["sku"] for entry in again.json["skus"]] == ["B"]


@pytest.mark.parametrize("state", ["open", "paused", "closed"])
def test_only_a_draft_can_be_deleted(office: RunningBackOffice, state: str) -> None:
    sale_id = f"undeletable-{state}"
    office.put(sale_id, sale_body())
    for step in {"open": ["open"], "paused": ["open", "pause"], "closed": ["close"]}[state]:
        office.transition(sale_id, step)
    assert office.ask("DELETE", f"/ops/v1/sales/{sale_id}").code == "CONFLICT"


def listed(office: RunningBackOffice, limit: int = 3) -> list[dict[str, Any]]:
    sales: list[dict[str, Any]] = []
    after = ""
    while True:
        page = office.ask("GET", f"/ops/v1/sales?after={after}&limit={limit}").json
        assert page["complete"] is True
        assert len(page["sales"]) <= limit
        sales += page["sales"]
        after = page["next_cursor"]
        if not page["has_more"]:
            break
        assert len(page["sales"]) == limit
    empty = office.ask("GET", f"/ops/v1/sales?after={after}").json
    assert (empty["sales"], empty["next_cursor"], empty["has_more"]) == ([], after, False)
    return sales


def test_the_list_shows_every_sale_once_in_order(office: RunningBackOffice) -> None:
    for name in ("list-b", "list-a", "list-C", "list-d"):
        office.put(name, sale_body())
    names = [sale["sale_id"] for sale in listed(office)]
    assert names == sorted(set(names))
    assert {"list-a", "list-b", "list-C", "list-d"} <= set(names)
    whole = office.ask("GET", "/ops/v1/sales?limit=1000").json
    assert [sale["sale_id"] for sale in whole["sales"]] == names
    assert whole["sales"][0]["skus"][0].keys() >= {"allocated", "withheld", "available", "held", "settled", "pools"}


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=", "limit=x", "limit=1.0", "limit=-1", "after=AAAA"])
def test_a_wrong_list_query_is_invalid(office: RunningBackOffice, query: str) -> None:
    answer = office.ask("GET", f"/ops/v1/sales?{query}")
    assert answer.code == "INVALID"
    assert answer.json["errors"][0]["field"] == query.partition("=")[0]


def test_the_audit_holds_for_a_sale_with_orders(office: RunningBackOffice) -> None:
    office.put("audited", sale_body())
    office.transition("audited", "open")
    office.settle(office.hold("audited", "k1"))
    report = office.ask("GET", "/ops/v1/sales/audited/audit")
    assert report.status == 200
    assert report.json["holds"] is True
    assert all(set(check) == {"name", "holds", "detail"} and check["holds"] for check in report.json["checks"])
    assert office.ask("GET", "/ops/v1/sales/not-there/audit").code == "SALE_NOT_FOUND"


def test_a_sale_of_20_000_skus_works(office: RunningBackOffice) -> None:
    skus = [sku(f"SKU-{n:05}", 10, style=f"S{n // 20}", colour=f"c{n % 4}", size=f"s{n % 5}") for n in range(20_000)]
    took: dict[str, float] = {}

    def timed(what: str, answer: Any) -> Any:
        took[what] = time.monotonic() - started
        assert answer.status in (200, 201), answer.json
        return answer.json

    started = time.monotonic()
    assert len(timed("put", office.put("large", sale_body(*skus)))["skus"]) == 20_000
    started = time.monotonic()
    timed("put again", office.put("large", sale_body(*[{**entry, "quantity": 12} for entry in skus])))
    started = time.monotonic()
    timed("get", office.ask("GET", "/ops/v1/sales/large"))
    changes = [{"sku": entry["sku"], "kind": "allocate", "quantity": 1} for entry in skus]
    started = time.monotonic()
    changed = timed("stock", office.stock("large", "d", *changes))
    assert sum(entry["allocated"] for entry in changed["skus"]) == 13 * 20_000
    started = time.monotonic()
    timed("open", office.transition("large", "open"))
    started = time.monotonic()
    closed = timed("close", office.transition("large", "close"))
    assert sum(entry["allocated"] for entry in closed["skus"]) == 0
    print(took)
    page = office.ask("GET", "/ops/v1/sales?limit=1000")
    assert page.status == 200
