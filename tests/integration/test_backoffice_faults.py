"""A back office whose stores are away, frozen or restarted, and one that is told to end."""

import asyncio
import http.client
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.ledger.connect import open_pool
from engine.ledger.migrate import upgrade
from engine.ledger.sales import retire
from engine.partition.batcher import BatchBounds
from engine.partition.partitions import Partitions
from engine.runtime.data_directory import open_data_directory
from engine.runtime.embedded_postgres import database_url, plan_postgres
from engine.runtime.ports import pick_free_port
from engine.web.key_store import KEYS_FILE_NAME, create_key, revoke_keys
from tests.conftest import CALL_SETTINGS, STORE_PASSWORD, OwnRedis, own_redis, running_store
from tests.integration.running_backoffice import (
    eventually,
    fresh_database,
    running_back_office,
    sale_body,
    sku,
)
from tests.integration.running_gateway import wait_until_refused


@contextmanager
def own_postgres(path: Path) -> Iterator[tuple[str, Callable[[int], None]]]:
    """A PostgreSQL that may be stopped: its URL, and how to send it a signal, its backends included."""
    port = pick_free_port("127.0.0.1")
    plan = asyncio.run(plan_postgres(open_data_directory(path), port, STORE_PASSWORD))
    with running_store(plan) as process:
        url = database_url(port, STORE_PASSWORD)
        asyncio.run(upgrade(url))
        yield url, process.send_signal


def on_partitions(redis_url: str, work: Callable[[Partitions], Awaitable[object]]) -> None:
    async def run() -> None:
        async with Partitions(redis_url, CALL_SETTINGS, BatchBounds()) as partitions:
            await work(partitions)

    asyncio.run(run())


def test_with_postgres_away_only_what_needs_it_is_refused(tmp_path: Path) -> None:
    with (
        own_redis(tmp_path / "redis") as redis,
        own_postgres(tmp_path / "postgres") as (url, send_postgres),
        running_back_office(tmp_path / "office", redis.url, url) as office,
    ):
        for sale_id in ("s1", "s2", "s3"):
            office.put(sale_id, sale_body())
        office.transition("s1", "open")
        cursor = office.ask("GET", "/ops/v1/sales?limit=1").json["next_cursor"]
        send_postgres(signal.SIGINT)  # "fast": connections end at once
        eventually(lambda: office.ask("GET", "/readyz", role=None).status == 503)
        not_ready = office.ask("GET", "/readyz", role=None)
        assert not_ready.code == "LEDGER_BEHIND"
        assert "PostgreSQL" in not_ready.json["detail"]

        assert office.put("s1", sale_body(sku("A", 20))).status == 200
        assert office.sale("s1")["skus"][0]["allocated"] == 20
        assert office.stock("s1", "d", {"sku": "A", "kind": "allocate", "quantity": 1}).status == 200
        assert office.settle(office.hold("s1", "k1")).status == 200
        page = office.ask("GET", f"/ops/v1/sales?after={cursor}&limit=1").json
        assert [sale["sale_id"] for sale in page["sales"]] == ["s2"]
        assert (page["has_more"], page["complete"]) == (True, False)
        assert office.ask("DELETE", "/ops/v1/sales/s2").status == 204
        assert office.ask("GET", "/ops/v1/sales/s2").code == "SALE_NOT_FOUND"
        assert office.put("s2", sale_body()).status == 201
        assert office.transition("s1", "close").status == 200
        assert office.ask("GET", "/healthz", role=None).status == 200

        for method, path, role in (
            ("GET", "/ops/v1/orders", "ops"),
            ("GET", "/erp/v1/orders", "erp"),
            ("GET", "/erp/v1/orders/acknowledge", "erp"),
            ("GET", "/ops/v1/sales/s1/audit", "ops"),
            ("GET", "/ops/v1/sales/never-heard-of", "ops"),
        ):
            refused = office.ask(method, path, role=role)
            assert (refused.status, refused.code) == (503, "LEDGER_BEHIND"), path
            assert int(refused.headers["Retry-After"]) >= 1
        assert office.put("never-heard-of", sale_body()).code == "LEDGER_BEHIND"
        assert office.put("never-heard-of", {}).code == "INVALID"


def test_with_redis_away_everything_about_sales_is_frozen(tmp_path: Path, postgres_server: str) -> None:
    quick = {"REQUEST_DEADLINE_SECONDS": "1", "CALL_TIMEOUT_SECONDS": "0.5"}
    with (
        own_redis(tmp_path / "redis") as redis,
        fresh_database(postgres_server) as url,
        running_back_office(tmp_path / "office", redis.url, url, with_gateway=False, **quick) as office,
    ):
        office.put("s1", sale_body())
        redis.process.kill()
        redis.process.wait()
        eventually(lambda: office.ask("GET", "/readyz", role=None).status == 503)
        assert office.ask("GET", "/readyz", role=None).code == "FROZEN"
        for answer in (
            office.ask("GET", "/ops/v1/sales/s1"),
            office.ask("GET", "/ops/v1/sales"),
            office.put("s1", sale_body()),
            office.transition("s1", "open"),
            office.stock("s1", "d", {"sku": "A", "kind": "allocate", "quantity": 1}),
            office.ask("DELETE", "/ops/v1/sales/s1"),
        ):
            assert (answer.status, answer.code) == (503, "FROZEN")
            assert int(answer.headers["Retry-After"]) >= 1
        assert office.ask("GET", "/erp/v1/orders", role="erp").status == 200
        assert office.ask("GET", "/ops/v1/orders").status == 200


def test_a_sale_that_redis_has_lost_is_frozen_and_listed_by_the_ledger(tmp_path: Path, postgres_server: str) -> None:
    with (
        own_redis(tmp_path / "redis") as redis,
        fresh_database(postgres_server) as url,
        running_back_office(tmp_path / "office", redis.url, url, with_gateway=False) as office,
    ):
        for sale_id in ("lost", "kept"):
            office.put(sale_id, sale_body())
        eventually(lambda: office.ask("GET", "/ops/v1/sales/lost/audit").status == 200)
        on_partitions(redis.url, lambda partitions: lose(partitions, "lost"))
        for answer in (office.ask("GET", "/ops/v1/sales/lost"), office.put("lost", sale_body())):
            assert (answer.status, answer.code) == (503, "FROZEN")
        on_partitions(redis.url, lambda partitions: partitions.freeze("kept", "a test asked for it"))
        eventually(lambda: office.ask("GET", "/ops/v1/sales/kept").status == 200)  # the guard has looked at it


async def lose(partitions: Partitions, sale_id: str) -> None:
    await partitions.connections.execute("DEL", *[f"mc:{{{sale_id}}}:{name}" for name in ("state", "stock", "journal")])


def test_a_frozen_sale_does_not_hide_the_others_from_the_list(tmp_path: Path, postgres_server: str) -> None:
    with (
        own_redis(tmp_path / "redis") as redis,
        fresh_database(postgres_server) as url,
        running_back_office(tmp_path / "office", redis.url, url, with_gateway=False) as office,
    ):
        for sale_id in ("s1", "s2"):
            office.put(sale_id, sale_body(sku("A", 7)))
        eventually(lambda: office.ask("GET", "/ops/v1/sales/s1/audit").status == 200)
        on_partitions(redis.url, lambda partitions: lose(partitions, "s1"))
        on_partitions(redis.url, lambda partitions: partitions.guarding.freeze_lost("s1", "lost"))
        eventually(lambda: "s1" in office.ask("GET", "/readyz", role=None).json["frozen"])
        assert office.ask("GET", "/ops/v1/sales/s1").code == "FROZEN"
        assert office.transition("s1", "open").code == "FROZEN"
        frozen, open_sale = office.ask("GET", "/ops/v1/sales").json["sales"]
        assert frozen["frozen"]
        assert (frozen["status"], frozen["skus"][0]["allocated"]) == ("draft", 7)
        assert "frozen" not in open_sale


@pytest.mark.parametrize("redis_knows", [True, False])
def test_a_sale_that_was_retired_is_read_from_the_ledger(
    tmp_path: Path, postgres_server: str, redis_knows: bool
) -> None:
    with (
        own_redis(tmp_path / "redis") as redis,
        fresh_database(postgres_server) as url,
        running_back_office(tmp_path / "office", redis.url, url) as office,
    ):
        office.put("old", sale_body(sku("A", 5), labels={"host": "x"}))
        office.transition("old", "open")
        office.settle(office.hold("old", "k1"))
        before = office.transition("old", "close").json
        retire_now(redis, url, before["sequence"])
        if not redis_knows:
            on_partitions(redis.url, lambda partitions: lose(partitions, "old"))
        document = office.sale("old")
        document.pop("as_of")
        assert document == before
        assert [sale["sale_id"] for sale in office.ask("GET", "/ops/v1/sales").json["sales"]] == ["old"]
        assert office.transition("old", "close").json["skus"] == before["skus"]
        assert office.transition("old", "open").code == "CONFLICT"
        assert office.put("old", sale_body()).code == "SALE_CLOSED"
        assert office.stock("old", "d", {"sku": "A", "kind": "allocate", "quantity": 1}).code == "SALE_CLOSED"
        assert office.ask("DELETE", "/ops/v1/sales/old").code == "CONFLICT"
        assert len(office.ask("GET", "/ops/v1/orders?sale_id=old").json["orders"]) == 1


def retire_now(redis: OwnRedis, url: str, sequence: int) -> None:
    """Do what the worker does three days after a sale has closed."""

    async def run(partitions: Partitions) -> None:
        pool = await open_pool(url, 1)
        try:
            for _ in range(100):
                if await retire(pool, "old", sequence):
                    break
                await asyncio.sleep(0.05)
            else:
                pytest.fail("the ledger did not get there")
        finally:
            await pool.close()
        assert await partitions.guarding.retire("old", sequence)

    on_partitions(redis.url, run)


@pytest.mark.alone
def test_draining_answers_what_is_in_flight_and_ends_with_0(tmp_path: Path, postgres_server: str) -> None:
    with (
        own_redis(tmp_path / "redis") as redis,
        fresh_database(postgres_server) as url,
        running_back_office(tmp_path / "office", redis.url, url, with_gateway=False) as office,
    ):
        office.put("s1", sale_body())
        kept = http.client.HTTPConnection("127.0.0.1", office.port, timeout=10)
        kept.request("GET", "/readyz")
        assert kept.getresponse().read()
        started = time.monotonic()
        office.process.send_signal(signal.SIGTERM)
        wait_until_refused(office.port)
        kept.request("GET", "/readyz")
        answer = kept.getresponse()
        assert answer.status == 503
        answer.read()
        kept.close()
        assert office.process.wait(10) == 0
        assert time.monotonic() - started < 5
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", office.port), timeout=2)


@pytest.mark.alone
def test_a_key_is_known_and_revoked_within_a_second(tmp_path: Path, postgres_server: str) -> None:
    with (
        own_redis(tmp_path / "redis") as redis,
        fresh_database(postgres_server) as url,
        running_back_office(tmp_path / "office", redis.url, url, with_gateway=False) as office,
    ):
        path = office.data_dir / KEYS_FILE_NAME
        late = {"Authorization": f"Bearer {create_key(path, 'ops', 'late')}"}
        eventually(lambda: office.ask("GET", "/ops/v1/sales", headers=late).status == 200, 3)
        revoke_keys(path, name="late")
        eventually(lambda: office.ask("GET", "/ops/v1/sales", headers=late).status == 401, 3)
