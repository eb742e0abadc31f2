"""`miaocang doctor`: the Redis and the PostgreSQL in use, held against what the promises need of them."""

import asyncio
import re
from dataclasses import dataclass
from enum import Enum

from engine.domain.errors import LedgerUnavailable, PartitionUnavailable
from engine.ledger.connect import WRITER_SETTINGS, open_pool
from engine.ledger.migrate import OLDEST_VERSION
from engine.ledger.server_facts import PostgresFacts, read_postgres_facts
from engine.partition.connections import Connections
from engine.partition.server_facts import RedisFacts, read_redis_facts
from engine.settings import Settings

REDIS_VERSION_MIN = (6, 2)
POSTGRES_VERSION_MIN = 140_000
MEMORY_USED_MAX = 0.8
"""Of maxmemory, or of the machine's: beyond it a rewrite of the append-only file may find none left."""
CLOCK_DIFFERENCE_MAX_MS = 1000
"""A hold's deadline is by Redis' clock, what people read is by the others'."""

ALL_WELL, SOMETHING_TO_CHANGE = 0, 1


class Verdict(Enum):
    """How a line begins."""

    WELL = "ok  "
    CHANGE = "FIX "
    UNREAD = "?   "


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    verdict: Verdict
    subject: str
    words: str
    change: str = ""
    """What to do, as a command where there is one."""

    def line(self) -> str:
        """The finding as a person reads it."""
        return f"{self.verdict.value} {self.subject}: {self.words}" + (f". {self.change}" if self.change else "")


def main(settings: Settings) -> int:
    """Look at both servers; prints a line for each thing. Answers 0 only if all is well, and could be read."""
    findings = asyncio.run(examine(settings))
    for finding in findings:
        print(finding.line())
    wrong = sum(finding.verdict is not Verdict.WELL for finding in findings)
    if wrong:
        print(f"doctor: {wrong} of {len(findings)} lines need a look")
        return SOMETHING_TO_CHANGE
    print(f"doctor: all {len(findings)} are well")
    return ALL_WELL


async def examine(settings: Settings) -> list[Finding]:
    """Everything that was found, of Redis first."""
    return [*await _examine_redis(settings.redis_url), *await _examine_postgres(settings.database_url)]


# --- Redis -----------------------------------------------------------------------------------------------------------


async def _examine_redis(redis_url: str | None) -> list[Finding]:
    if redis_url is None:
        return [Finding(Verdict.UNREAD, "redis", "no address", "Set MIAOCANG_REDIS_URL, or start `miaocang up`")]
    connections = Connections(redis_url, 1)
    try:
        facts = await read_redis_facts(connections)
    except PartitionUnavailable as error:
        return [Finding(Verdict.CHANGE, "redis", str(error), "Start it, or correct MIAOCANG_REDIS_URL")]
    finally:
        await connections.close()
    return [
        Finding(Verdict.WELL, "redis", "answers"),
        _redis_version(facts),
        _redis_role(facts),
        _redis_cluster(facts),
        _redis_scripts(facts),
        _append_only(facts),
        _append_fsync(facts),
        _fsync_on_rewrite(facts),
        _last_write(facts),
        _memory_policy(facts),
        _memory_left(facts),
        _clock("redis clock", facts.clock_ahead_ms),
    ]


def _config_change(name: str, value: str) -> str:
    return f"redis-cli CONFIG SET {name} {value}, and `{name} {value}` in redis.conf"


def _unread(subject: str, facts: RedisFacts) -> Finding:
    why = facts.config_refusal or "the server does not show it"
    return Finding(Verdict.UNREAD, subject, f"could not read ({why})", "See to it where the server is configured")


def _redis_version(facts: RedisFacts) -> Finding:
    text = facts.info.get("redis_version", "")
    numbers = tuple(int(number) for number in re.findall(r"\d+", text)[:2])
    needed = ".".join(map(str, REDIS_VERSION_MIN))
    if numbers >= REDIS_VERSION_MIN:
        return Finding(Verdict.WELL, "redis version", text)
    return Finding(Verdict.CHANGE, "redis version", text or "not told", f"Install {needed} or later, or Valkey")


def _redis_role(facts: RedisFacts) -> Finding:
    role = facts.info.get("role", "not told")
    if role == "master":
        return Finding(Verdict.WELL, "redis role", "primary")
    return Finding(
        Verdict.CHANGE, "redis role", f"{role}: it takes no writes", "Point MIAOCANG_REDIS_URL at the primary"
    )


def _redis_cluster(facts: RedisFacts) -> Finding:
    if facts.info.get("cluster_enabled", "0") == "0":
        return Finding(Verdict.WELL, "redis cluster", "off")
    return Finding(
        Verdict.CHANGE, "redis cluster", "on, which is not supported yet", "Use a Redis with cluster-enabled no"
    )


def _redis_scripts(facts: RedisFacts) -> Finding:
    if not facts.script_refusal:
        return Finding(Verdict.WELL, "redis scripts", "run")
    change = "Allow EVAL, EVALSHA, TIME and INFO: redis-cli ACL SETUSER NAME +eval +evalsha +time +info"
    return Finding(Verdict.CHANGE, "redis scripts", f"do not run ({facts.script_refusal})", change)


def _append_only(facts: RedisFacts) -> Finding:
    told = facts.config.get("appendonly")
    if told is None and "aof_enabled" in facts.info:
        told = "yes" if facts.info["aof_enabled"] == "1" else "no"
    if told is None:
        return _unread("redis appendonly", facts)
    if told == "yes":
        return Finding(Verdict.WELL, "redis appendonly", "yes")
    words = f"{told}: a restart loses everything since the last snapshot, answered orders among it"
    return Finding(Verdict.CHANGE, "redis appendonly", words, _config_change("appendonly", "yes"))


def _append_fsync(facts: RedisFacts) -> Finding:
    told = facts.config.get("appendfsync")
    if told is None:
        return _unread("redis appendfsync", facts)
    if told == "always":
        return Finding(Verdict.WELL, "redis appendfsync", "always: every answered change is on disk")
    window = {
        "everysec": "a machine that fails may lose up to two seconds of answered orders",
        "no": "a machine that fails may lose what the kernel had not written, commonly thirty seconds",
    }.get(told, "not a value that is known here")
    return Finding(Verdict.CHANGE, "redis appendfsync", f"{told}: {window}", _config_change("appendfsync", "always"))


def _fsync_on_rewrite(facts: RedisFacts) -> Finding:
    told = facts.config.get("no-appendfsync-on-rewrite")
    if told is None:
        return _unread("redis no-appendfsync-on-rewrite", facts)
    if told == "no":
        return Finding(Verdict.WELL, "redis no-appendfsync-on-rewrite", "no")
    words = f"{told}: nothing is synced while the file is rewritten, which may take minutes"
    change = _config_change("no-appendfsync-on-rewrite", "no")
    return Finding(Verdict.CHANGE, "redis no-appendfsync-on-rewrite", words, change)


def _last_write(facts: RedisFacts) -> Finding:
    names = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
    told = {name: facts.info[name] for name in names if name in facts.info}
    if not told:
        return Finding(Verdict.UNREAD, "redis disk", "could not read: INFO persistence tells nothing")
    wrong = [f"{name} {status}" for name, status in told.items() if status != "ok"]
    if not wrong:
        return Finding(Verdict.WELL, "redis disk", "the last writes went well")
    return Finding(Verdict.CHANGE, "redis disk", ", ".join(wrong), "See Redis' log, and `df -h` on its directory")


def _memory_policy(facts: RedisFacts) -> Finding:
    told = facts.config.get("maxmemory-policy") or facts.info.get("maxmemory_policy")
    if told is None:
        return _unread("redis maxmemory-policy", facts)
    if told == "noeviction":
        return Finding(Verdict.WELL, "redis maxmemory-policy", "noeviction")
    words = f"{told}: full memory would drop stock and orders"
    return Finding(Verdict.CHANGE, "redis maxmemory-policy", words, _config_change("maxmemory-policy", "noeviction"))


def _memory_left(facts: RedisFacts) -> Finding:
    used = int(facts.info.get("used_memory", 0))
    limit = int(facts.info.get("maxmemory", 0))
    of = "maxmemory" if limit else "the machine's memory"
    whole = limit or int(facts.info.get("total_system_memory", 0))
    if not used or not whole:
        return Finding(Verdict.UNREAD, "redis memory", "could not read: INFO memory tells nothing")
    words = f"{used / 2**20:.0f} MiB of {whole / 2**20:.0f} MiB ({of})"
    if used <= MEMORY_USED_MAX * whole:
        return Finding(Verdict.WELL, "redis memory", words)
    return Finding(Verdict.CHANGE, "redis memory", words, "Raise maxmemory, or use a larger machine")


def _clock(subject: str, ahead_ms: float) -> Finding:
    words = f"{abs(ahead_ms):.0f} ms {'ahead of' if ahead_ms >= 0 else 'behind'} this machine's"
    if abs(ahead_ms) <= CLOCK_DIFFERENCE_MAX_MS:
        return Finding(Verdict.WELL, subject, words)
    return Finding(Verdict.CHANGE, subject, words, "Keep both machines' time: timedatectl set-ntp true")


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


async def _examine_postgres(database_url: str | None) -> list[Finding]:
    if database_url is None:
        change = "Set MIAOCANG_DATABASE_URL, or start `miaocang up`"
        return [Finding(Verdict.UNREAD, "postgres", "no address", change)]
    pool = await open_pool(database_url, 1, WRITER_SETTINGS)
    try:
        facts = await read_postgres_facts(pool)
    except LedgerUnavailable as error:
        return [Finding(Verdict.CHANGE, "postgres", str(error), "Start it, or correct MIAOCANG_DATABASE_URL")]
    finally:
        await pool.close()
    return [
        Finding(Verdict.WELL, "postgres", "answers"),
        _postgres_version(facts),
        _postgres_role(facts),
        _setting_on(facts, "fsync", "a machine that fails may leave the whole database unreadable"),
        _setting_on(facts, "full_page_writes", "a page torn by a failure may stay torn"),
        _synchronous_commit(facts),
        *(
            _timeout(facts, name)
            for name in ("idle_in_transaction_session_timeout", "statement_timeout", "lock_timeout")
        ),
        _schema(facts),
        _clock("postgres clock", facts.clock_ahead_ms),
    ]


def _postgres_version(facts: PostgresFacts) -> Finding:
    text = facts.settings["server_version"]
    if int(facts.settings["server_version_num"]) >= POSTGRES_VERSION_MIN:
        return Finding(Verdict.WELL, "postgres version", text)
    change = f"Install {POSTGRES_VERSION_MIN // 10_000} or later"
    return Finding(Verdict.CHANGE, "postgres version", text, change)


def _postgres_role(facts: PostgresFacts) -> Finding:
    if not facts.in_recovery:
        return Finding(Verdict.WELL, "postgres role", "primary")
    change = "Point MIAOCANG_DATABASE_URL at the primary"
    return Finding(Verdict.CHANGE, "postgres role", "a standby: it takes no writes", change)


def _setting_on(facts: PostgresFacts, name: str, otherwise: str) -> Finding:
    if facts.settings[name] == "on":
        return Finding(Verdict.WELL, f"postgres {name}", "on")
    change = f'psql -c "ALTER SYSTEM SET {name} = on" -c "SELECT pg_reload_conf()"'
    return Finding(Verdict.CHANGE, f"postgres {name}", f"{facts.settings[name]}: {otherwise}", change)


def _synchronous_commit(facts: PostgresFacts) -> Finding:
    """Each value but `off` waits for this server's own disk, which is what the journal is trimmed by."""
    told = facts.settings["synchronous_commit"]
    if told != "off":
        return Finding(Verdict.WELL, "postgres synchronous_commit", f"{told}, on the engine's connections")
    words = "off, although the engine's connections ask for on: something between drops their settings"
    change = 'psql -c "ALTER SYSTEM SET synchronous_commit = on" -c "SELECT pg_reload_conf()"'
    return Finding(Verdict.CHANGE, "postgres synchronous_commit", words, change)


def _timeout(facts: PostgresFacts, name: str) -> Finding:
    told = facts.settings[name]
    if told != "0":
        return Finding(Verdict.WELL, f"postgres {name}", f"{told}, on the engine's connections")
    words = "0, although the engine's connections set it: a dead persister's lock might never end"
    change = "Let the pooler in between pass settings on, or connect without it"
    return Finding(Verdict.CHANGE, f"postgres {name}", words, change)


def _schema(facts: PostgresFacts) -> Finding:
    if facts.schema_version == facts.schema_head:
        return Finding(Verdict.WELL, "postgres ledger", f"version {facts.schema_version}")
    words = f"version {facts.schema_version or 'none'}, and this engine is written for {facts.schema_head}"
    if facts.schema_version is not None and facts.schema_version > facts.schema_head:
        return Finding(Verdict.CHANGE, "postgres ledger", words, "Use the newer engine")
    if facts.schema_version is not None and facts.schema_version < OLDEST_VERSION:
        return Finding(Verdict.CHANGE, "postgres ledger", words, "It cannot be taken over: use an empty database")
    return Finding(Verdict.CHANGE, "postgres ledger", words, "Start `miaocang up`, which brings it up to date")
