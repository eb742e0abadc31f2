"""What a PostgreSQL server says of itself, as a connection of the persister's sees it."""

import time
from dataclasses import dataclass

from engine.ledger.connect import LedgerPool
from engine.ledger.migrate import head_version, version

SETTING_NAMES = (
    "server_version",
    "server_version_num",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "idle_in_transaction_session_timeout",
    "statement_timeout",
    "lock_timeout",
    "tcp_keepalives_idle",
)


@dataclass(frozen=True)
class PostgresFacts:
    """A server as it was when asked."""

    settings: dict[str, str]
    """As they are in force on the connection, not as the server's file has them."""
    in_recovery: bool
    """A standby, which takes no writes."""
    schema_version: str | None
    """None where there is no ledger yet."""
    schema_head: str
    clock_ahead_ms: float
    """Its clock less that of this machine, give or take half a round trip."""


async def read_postgres_facts(pool: LedgerPool) -> PostgresFacts:
    """Ask a server what it is; `pool` is to be opened with WRITER_SETTINGS. Raises LedgerUnavailable."""
    async with pool.connection() as connection:
        rows = await connection.fetch(
            "SELECT name, current_setting(name) AS value FROM unnest($1::text[]) AS name", list(SETTING_NAMES)
        )
        in_recovery = await connection.fetchval("SELECT pg_is_in_recovery()")
        schema_version = await version(connection)
        began_ms = time.time() * 1000
        there_ms = float(await connection.fetchval("SELECT extract(epoch FROM clock_timestamp()) * 1000"))
        here_ms = (began_ms + time.time() * 1000) / 2
    return PostgresFacts(
        settings={row["name"]: row["value"] for row in rows},
        in_recovery=in_recovery,
        schema_version=schema_version,
        schema_head=head_version(),
        clock_ahead_ms=there_ms - here_ms,
    )
