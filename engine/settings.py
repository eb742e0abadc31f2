"""Everything that can be set from outside, read once from the environment and frozen.

This is the only place that reads environment variables. Each one is the field's name in capitals after `MIAOCANG_`,
so `order_retention_hours` is `MIAOCANG_ORDER_RETENTION_HOURS`. Every number carries its unit in its name and a bound.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

ENVIRONMENT_PREFIX = "MIAOCANG_"


class SettingsRefused(Exception):
    """The environment asks for something impossible; the message is one line that says which variable and why."""


class Settings(BaseSettings):
    """What a process needs to know; the same class for the supervisor, the gateways, the worker and the back office."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, frozen=True, extra="ignore", env_ignore_empty=True, validate_default=True
    )

    # Where the data is. The URLs hold passwords, so they stay out of the repr.
    redis_url: str | None = Field(
        default=None,
        repr=False,
        pattern=r"^(redis|rediss|unix)://",
        description="Redis to use (redis://, rediss:// or unix://). Unset: `miaocang up` starts its own.",
    )
    database_url: str | None = Field(
        default=None,
        repr=False,
        pattern=r"^postgres(ql)?://",
        description="PostgreSQL to use (postgresql://). Unset: `miaocang up` starts its own. Never given to gateways.",
    )
    data_dir: Path = Field(default=Path("./var"), description="Directory of keys, endpoints, logs and embedded stores.")

    # Orders and the journal.
    order_retention_hours: float = Field(
        default=72, ge=0, le=24 * 365, description="Hours that orders stay readable at the gateway after a sale closed."
    )
    ledger_backlog_max_entries: int = Field(
        default=1_000_000,
        ge=1,
        le=100_000_000,
        description="Journal entries not yet in the ledger past which a partition refuses new holds (LEDGER_BEHIND).",
    )
    journal_keep_entries: int = Field(
        default=10_000,
        ge=0,
        le=10_000_000,
        description="Journal entries kept in Redis behind the ledger, for a PostgreSQL fail-over that loses commits.",
    )

    # The batches from a gateway to a partition.
    batch_orders_max: int = Field(default=256, ge=1, le=4096, description="Orders in one batch at most.")
    batch_lines_max: int = Field(
        default=1024, ge=200, le=16_384, description="Order lines in one batch at most; one order may have 200."
    )
    batches_in_flight_max: int = Field(default=2, ge=1, le=16, description="Batches in flight for a partition at most.")

    # How long anything waits.
    call_timeout_seconds: float = Field(
        default=2.0, gt=0, le=60, description="Seconds that one call to Redis may take before its outcome is unknown."
    )
    request_deadline_seconds: float = Field(
        default=8.0, gt=0, le=120, description="Seconds after which a request is answered, come what may."
    )
    drain_seconds: float = Field(default=10, ge=0, le=10, description="Seconds that draining may take at most.")

    # The worker's loops.
    sweep_interval_seconds: float = Field(
        default=0.2, ge=0.01, le=1, description="Seconds between looks for holds that are due; §6.3 allows two in all."
    )
    guard_interval_seconds: float = Field(
        default=0.2, ge=0.01, le=5, description="Seconds between the guard's looks at a Redis that may have restarted."
    )
    persist_batch_entries: int = Field(
        default=10_000, ge=1, le=100_000, description="Journal entries of a sale in one transaction of the persister."
    )

    # For fault tests only: the worker kills itself at a named point (engine/worker/crash.py), `before_commit:3`.
    crash_at: str | None = Field(
        default=None,
        pattern=r"^[a-z_]+(:[1-9][0-9]{0,5})?$",
        description="For fault tests: the point at which the worker kills itself. Never set it otherwise.",
    )

    # Logs.
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Lowest level that is logged."
    )
    log_json: bool = Field(default=True, description="One JSON object a line; false for lines that people read.")


def read_settings(data_dir: Path | None = None) -> Settings:
    """Read the environment; `data_dir`, where given, is used in place of the environment's.

    Raises: SettingsRefused, with one line for whoever set the variable.
    """
    try:
        settings = Settings() if data_dir is None else Settings(data_dir=data_dir)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        variable = ENVIRONMENT_PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise SettingsRefused(f"{variable}: {first['msg']}") from None  # its cause would show the value: a password
    return settings


def child_environment(remove_prefixes: tuple[str, ...], add: Mapping[str, str]) -> dict[str, str]:
    """This process' environment without the variables that start with one of `remove_prefixes`, and with `add`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(remove_prefixes)}
    return {**kept, **add}
