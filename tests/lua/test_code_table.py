"""One code table, two languages."""

import re

from engine.domain.commands import Command
from engine.domain.journal import Entry
from engine.domain.orders import OrderStatus, PaymentFate
from engine.domain.outcomes import Outcome
from engine.partition.scripts import load_script, script_directory


def lua_table(name: str, text: str) -> dict[str, int]:
    body = re.search(rf"local {name} = \{{(.*?)\}}", text, re.DOTALL)
    assert body, name
    return {key: int(value) for key, value in re.findall(r"([A-Z_]+) = (\d+)", body[1])}


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()


def test_outcomes_are_the_same_in_lua_and_python() -> None:
    text = load_script("partition").text
    assert lua_table("code", text) == {outcome.name: outcome.value for outcome in Outcome}


def test_order_states_and_payment_fates_are_the_same_in_lua_and_python() -> None:
    text = load_script("partition").text
    assert lua_table("order_status", text) == {status.name: status.value for status in OrderStatus}
    assert lua_table("payment_fate", text) == {fate.name: fate.value for fate in PaymentFate}


def test_journal_entries_are_the_same_in_lua_and_python() -> None:
    text = load_script("partition").text
    kinds = {snake(kind.__name__): kind.__struct_config__.tag for kind in Entry.__args__}
    assert lua_table("entry", text) == kinds


def test_every_command_of_python_is_one_of_the_script_and_the_other_way_round() -> None:
    text = load_script("partition").text
    assert {kind.__struct_config__.tag for kind in Command.__args__} == set(
        re.findall(r"^commands\.(\w+) =", text, re.M)
    )


def test_every_script_file_has_a_head_that_says_what_it_is() -> None:
    files = list(script_directory().rglob("*.lua"))
    assert len(files) > 20
    for file in files:
        assert file.read_text().startswith("-- "), file


def test_every_include_is_included() -> None:
    root = script_directory()
    named = {line for file in root.glob("*.lua") for line in re.findall(r'@include "(.+?)"', file.read_text())}
    there = {str(file.relative_to(root).with_suffix("")) for file in root.rglob("*/*.lua")}
    assert named == there
