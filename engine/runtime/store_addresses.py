"""Where a command that looks at the stores finds them: the environment, else the engine that runs on the directory."""

from __future__ import annotations

import msgspec

from engine.runtime.data_directory import DataDirectory
from engine.runtime.endpoints import read_endpoints
from engine.runtime.refusals import StartRefused
from engine.settings import Settings


def with_store_addresses(settings: Settings) -> Settings:
    """The settings with both URLs filled in; what the environment says comes first.

    Raises: StartRefused, if neither knows.
    """
    if settings.redis_url is not None and settings.database_url is not None:
        return settings
    directory = DataDirectory(settings.data_dir.expanduser().absolute())
    try:
        endpoints = read_endpoints(directory.endpoints)
    except (OSError, msgspec.DecodeError) as error:
        raise StartRefused(f"cannot read {directory.endpoints} ({error}); correct --data-dir") from error
    if endpoints is None:
        raise StartRefused(
            f"no engine runs on {directory.path}; start one with `miaocang up`, correct --data-dir, "
            "or set MIAOCANG_REDIS_URL and MIAOCANG_DATABASE_URL"
        )
    return settings.model_copy(
        update={
            "redis_url": settings.redis_url or endpoints.redis_url,
            "database_url": settings.database_url or endpoints.database_url,
        }
    )
