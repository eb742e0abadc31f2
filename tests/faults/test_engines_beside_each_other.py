"""Two engines on one machine, and starts that cannot succeed."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.runtime.ports import pick_free_port
from tests.faults.conftest import Report
from tests.faults.running_engine import Caller, RunningEngine, eventually

REFUSED_SECONDS_MAX = 60.0


async def test_two_engines_with_the_same_sale_do_not_disturb_each_other(
    start_engine: Callable[..., RunningEngine], report: Report
) -> None:
    one, other = start_engine("one", gateways=1), start_engine("other", gateways=1)
    for name in ("gateway_url", "backoffice_url", "redis_url", "database_url"):
        assert one.endpoints[name] != other.endpoints[name]
    async with Caller(one) as at_one, Caller(other) as at_other:
        await at_one.open_sale("live", {"TEE": 5})
        await at_other.open_sale("live", {"TEE": 7})
        codes = {}
        for caller, units in ((at_one, 5), (at_other, 7)):
            answers = await asyncio.gather(*(caller.hold("live", f"u-{n}", "key", {"TEE": 1}) for n in range(20)))
            codes[units] = sum(answer.status == 201 for answer in answers)
        assert codes == {5: 5, 7: 7}
        stranger = await at_one.ask("GET", "/v1/sales/live/availability", role="ops")
        assert stranger.status == 403
        keys, one.endpoints["keys"] = one.endpoints["keys"], other.endpoints["keys"]
        assert (await at_one.ask("GET", "/v1/sales/live/availability")).status == 401, "each has keys of its own"
        one.endpoints["keys"] = keys

        before = other.read_endpoints()
        for kind in ("gateway", "worker", "redis", "postgres"):
            pid = one.send(kind, signal.SIGKILL)

            async def is_replaced(kind: str = kind, pid: int = pid) -> bool:
                return one.pids(kind) != [pid]

            await eventually(is_replaced, 30)
            assert (await at_other.persist("GET", "/v1/sales/live/availability")).status == 200
        assert (await at_one.persist("GET", "/v1/sales/live/availability")).document["skus"][0]["available"] == 0
        await one.wait_until_persisted("live")
        assert (await one.audit())[0] == 0
        assert one.end() == 0
        assert other.read_endpoints() == before
        assert not at_other.troubles
        status, said = await other.audit()
        assert status == 0, said
        assert (await at_other.stock("live"))["TEE"]["held"] == 7
        report("two engines", "the other's processes and answers were the same throughout")


async def refused_start(data_dir: Path, gateway_port: str = "0", /, **settings: str) -> str:
    """Run `up`, which must end by itself with status 1 and one line; the line."""
    arguments = ("--data-dir", str(data_dir), "--gateway-port", gateway_port, "--backoffice-port", "0")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MIAOCANG_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "engine", "up", *arguments),
        env={**environment, **{f"MIAOCANG_{name.upper()}": value for name, value in settings.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(REFUSED_SECONDS_MAX):
            printed, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, printed) == (1, b""), said.decode()
    assert said.decode().count("\n") == 1, said.decode()
    return said.decode()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("database_url", "mysql://root:secret@127.0.0.1/x", "MIAOCANG_DATABASE_URL"),
        ("redis_url", "http://:secret@127.0.0.1/", "MIAOCANG_REDIS_URL"),
        ("order_retention_hours", "-1", "MIAOCANG_ORDER_RETENTION_HOURS"),
    ],
)
async def test_a_setting_that_cannot_be_is_one_line_that_names_it_and_no_password(
    data_dir: Path, variable: str, value: str, words: str
) -> None:
    said = await refused_start(data_dir, **{variable: value})
    assert words in said
    assert "secret" not in said


@pytest.mark.parametrize("variable", ["database_url", "redis_url"])
async def test_a_store_that_does_not_listen_is_one_line_without_its_password(data_dir: Path, variable: str) -> None:
    scheme = {"database_url": "postgresql", "redis_url": "redis"}[variable]
    url = f"{scheme}://someone:secret@127.0.0.1:{pick_free_port()}/0"
    said = await refused_start(data_dir, **{variable: url})
    assert "secret" not in said


async def test_a_port_in_use_is_one_line_that_names_the_option(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = await refused_start(data_dir, port)
    assert port in said
    assert "--gateway-port" in said


async def test_a_data_directory_that_cannot_be_made_is_one_line_that_names_it(tmp_path: Path) -> None:
    in_the_way = tmp_path / "a-file"
    in_the_way.touch()
    said = await refused_start(in_the_way / "var")
    assert str(in_the_way) in said


async def test_a_data_directory_without_rights_is_one_line_that_names_it(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    place = closed / "var" if os.geteuid() else Path("/proc/var")  # root may write anywhere else
    said = await refused_start(place)
    assert str(place) in said
