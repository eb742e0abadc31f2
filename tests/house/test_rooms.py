"""The house: who may import whom, and who may speak to what. `docs/ARCHITECTURE.md` draws the same picture."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGINE = ROOT / "engine"

MAY_IMPORT: dict[str, set[str]] = {
    "domain": set(),
    "observability": {"settings"},
    "settings": set(),
    "partition": {"domain", "observability", "settings"},
    "ledger": {"domain", "observability", "settings"},
    "audit": {"partition", "ledger", "domain", "observability", "settings"},
    "web": {"domain", "observability", "settings"},
    "gateway": {"web", "partition", "domain", "observability", "settings"},
    "backoffice": {"web", "partition", "ledger", "audit", "domain", "observability", "settings"},
    "worker": {"partition", "ledger", "domain", "observability", "settings"},
    "runtime": {"web", "ledger", "settings", "observability", "domain"},
    "demo": {"runtime", "audit", "domain", "settings", "observability", "web"},
    "cli": {"*"},
    "__main__": {"cli"},
}
"""Room → the rooms it may import. The gateway never opens the ledger; the ledger never asks Redis."""

ONLY_IN: dict[str, set[str]] = {
    "redis": {"partition"},
    "asyncpg": {"ledger"},
    "alembic": {"ledger"},
    "sqlalchemy": {"ledger"},
    "aiohttp": {"web", "gateway", "backoffice", "demo"},
    "typer": {"cli"},
}
"""Library → the rooms that may import it."""

DOMAIN_LIBRARIES = {"msgspec"}


def room_of(path: Path) -> str:
    relative = path.relative_to(ENGINE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports() -> Iterator[tuple[str, Path, str]]:
    """(room, file, module) for every import in the package, those inside functions and for types alone included."""
    for path in sorted(ENGINE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield room_of(path), path, alias.name
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path}: imports are written out whole"
                if node.module == "engine":
                    for alias in node.names:
                        yield room_of(path), path, f"engine.{alias.name}"
                else:
                    yield room_of(path), path, node.module


def test_rooms_import_one_way() -> None:
    wrong = []
    for room, path, module in imports():
        parts = module.split(".")
        if parts[0] != "engine" or len(parts) < 2 or room == "__init__":
            continue
        target = parts[1]
        if target != room and target not in MAY_IMPORT[room] and "*" not in MAY_IMPORT[room]:
            wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_each_library_is_spoken_to_in_its_room_alone() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for room, path, module in imports()
        if room not in ONLY_IN.get(module.split(".")[0], {room})
    ]
    assert not wrong, "\n".join(wrong)


def test_the_domain_knows_no_library_but_its_codec_and_no_clock() -> None:
    foreign = set()
    for room, path, module in imports():
        if room == "domain":
            top = module.split(".")[0]
            if top in {"time", "os", "asyncio", "socket", "random"}:
                foreign.add(f"{path.name} imports {module}")
            if (ENGINE.parent / ".venv").exists() and top in {"aiohttp", "redis", "asyncpg", "structlog", "pydantic"}:
                foreign.add(f"{path.name} imports {module}")
    assert not foreign


def test_there_is_no_circle_among_the_rooms() -> None:
    drawn: dict[str, set[str]] = defaultdict(set)
    for room, _, module in imports():
        parts = module.split(".")
        if parts[0] == "engine" and len(parts) > 1 and parts[1] != room:
            drawn[room].add(parts[1])

    def reaches(start: str, goal: str, seen: set[str]) -> bool:
        return any(
            target == goal or (target not in seen and reaches(target, goal, seen | {target}))
            for target in drawn.get(start, set())
        )

    assert [room for room in drawn if reaches(room, room, {room})] == []


def test_the_environment_is_read_in_one_place() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in ENGINE.rglob("*.py")
        if path.name != "settings.py" and re.search(r"os\.(environ|getenv)", path.read_text(encoding="utf-8"))
    ]
    assert wrong == []


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "manager", "misc"])
def test_no_file_is_named_after_nothing(word: str) -> None:
    assert not [path for path in ENGINE.rglob("*.py") if word in path.stem]


def test_the_picture_in_the_architecture_page_is_the_one_that_is_kept() -> None:
    page = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for room in MAY_IMPORT:
        if room not in {"__main__", "cli"}:
            assert f"`{room}`" in page or f"`engine/{room}" in page, room
