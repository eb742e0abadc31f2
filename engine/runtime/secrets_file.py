"""`DIR/secrets.json` (mode 0600): passwords of the embedded stores and the text of the three bootstrap keys.

Made once for a data directory. The bootstrap keys' text is kept because endpoints.json has to show it at each start;
every other key is shown once and kept as a hash.
"""

from __future__ import annotations

import fcntl
import secrets

import msgspec

from engine.runtime.data_directory import DataDirectory
from engine.runtime.refusals import StartRefused
from engine.web.key_store import ROLES, KeysUnreadable, new_key_text, register_key
from engine.web.private_file import replace_private_file

PASSWORD_RANDOM_BYTES = 24


class Secrets(msgspec.Struct, frozen=True):
    """What must survive a restart and be seen by nobody else. `keys` maps each bootstrap key's role to its text."""

    redis_password: str
    postgres_password: str
    keys: dict[str, str]


def read_or_make_secrets(directory: DataDirectory) -> Secrets:
    """The directory's secrets, made at the first call; its bootstrap keys are in the keys file afterwards.

    Raises: StartRefused (a file cannot be understood), OSError.
    """
    with (directory.run / "secrets.lock").open("a") as lock_file:  # two commands may be the first at once
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        found = _read(directory)
        if found is None:
            found = Secrets(
                redis_password=secrets.token_urlsafe(PASSWORD_RANDOM_BYTES),
                postgres_password=secrets.token_urlsafe(PASSWORD_RANDOM_BYTES),
                keys={role: new_key_text(role) for role in ROLES},
            )
            replace_private_file(directory.secrets, msgspec.json.encode(found))
    try:
        for role, key_text in found.keys.items():
            register_key(directory.keys, role, name=role, key_text=key_text)
    except KeysUnreadable as error:
        raise StartRefused(f"{error}; repair it, or move it away and make new keys") from error
    return found


def _read(directory: DataDirectory) -> Secrets | None:
    try:
        return msgspec.json.decode(directory.secrets.read_bytes(), type=Secrets)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StartRefused(f"{directory.secrets} is damaged ({error}); restore it from a copy") from error
