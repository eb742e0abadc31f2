"""The ledger's SQL: files of named queries, each with a line on what it does.

-- name: page_after
-- Feed rows behind a number, in order.
SELECT …
"""

import re
from pathlib import Path

_NAMED = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def load(file_name: str) -> dict[str, str]:
    """The queries of one file in this directory, by their names."""
    text = Path(__file__).with_name(f"{file_name}.sql").read_text(encoding="utf-8")
    parts = _NAMED.split(text)[1:]
    return {name: query.strip().removesuffix(";") for name, query in zip(parts[::2], parts[1::2], strict=True)}
