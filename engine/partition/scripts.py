"""The Lua scripts: found, assembled from their includes, and named by their digest."""

import re
from functools import cache
from hashlib import sha1
from pathlib import Path
from typing import NamedTuple

_INCLUDE = re.compile(r'^--- @include "([a-z_/]+)"$', re.MULTILINE)


class Script(NamedTuple):
    """A script's text and the SHA-1 that Redis calls it by."""

    text: str
    digest: str


@cache
def load_script(name: str) -> Script:
    """Assemble `scripts/lua/NAME.lua` with its includes. Raises FileNotFoundError where the package is incomplete."""
    root = script_directory()

    def include(match: re.Match[str]) -> str:
        return (root / f"{match[1]}.lua").read_text(encoding="utf-8")

    text = _INCLUDE.sub(include, (root / f"{name}.lua").read_text(encoding="utf-8"))
    return Script(text, sha1(text.encode(), usedforsecurity=False).hexdigest())


@cache
def script_directory() -> Path:
    """Where the scripts are: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for directory in (package / "_lua", package.parent / "scripts" / "lua"):
        if (directory / "partition.lua").is_file():
            return directory
    raise FileNotFoundError(f"the Lua scripts are neither in {package / '_lua'} nor beside the package")
