"""The keys file: made, looked up, revoked, and noticed when it changes."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.web.key_store import (
    KeyRefused,
    KeyStore,
    KeysUnreadable,
    Principal,
    create_key,
    read_keys,
    register_key,
    revoke_keys,
)


class HandClock:
    """A clock that a test moves by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_created_key_is_known_by_its_role_and_name(keys_file: Path) -> None:
    key = create_key(keys_file, "checkout", "shop")
    assert key.startswith("mc_checkout_")
    assert len(key) == len("mc_checkout_") + 32
    assert KeyStore(keys_file).principal(key) == Principal("checkout", "shop")


def test_an_unknown_key_has_no_holder(keys_file: Path) -> None:
    key = create_key(keys_file, "ops", "desk")
    store = KeyStore(keys_file)
    for wrong in ("", key[:-1], key + "x", "mc_ops_", "\udcff", key.upper()):
        assert store.principal(wrong) is None


def test_the_file_holds_no_key_and_is_private(keys_file: Path) -> None:
    key = create_key(keys_file, "erp", "erp")
    assert key not in keys_file.read_text()
    assert stat.S_IMODE(keys_file.stat().st_mode) == 0o600


def test_two_live_keys_may_share_a_name_while_one_replaces_the_other(keys_file: Path) -> None:
    old, new = create_key(keys_file, "erp", "k3"), create_key(keys_file, "erp", "k3")
    store = KeyStore(keys_file)
    assert store.principal(old) == store.principal(new) == Principal("erp", "k3")
    assert revoke_keys(keys_file, key_id=read_keys(keys_file)[0].id) == 1
    store = KeyStore(keys_file)
    assert store.principal(old) is None
    assert store.principal(new) == Principal("erp", "k3")


def test_revoking_by_name_and_role_leaves_other_roles_alone(keys_file: Path) -> None:
    checkout, ops = create_key(keys_file, "checkout", "a"), create_key(keys_file, "ops", "a")
    assert revoke_keys(keys_file, name="a", role="ops") == 1
    assert revoke_keys(keys_file, name="a", role="ops") == 0
    store = KeyStore(keys_file)
    assert store.principal(checkout) is not None
    assert store.principal(ops) is None


def test_a_running_process_sees_a_new_and_a_revoked_key_within_a_second(keys_file: Path) -> None:
    clock = HandClock()
    store = KeyStore(keys_file, clock)
    key = create_key(keys_file, "ops", "late")
    clock.now += 1.0
    assert store.principal(key) == Principal("ops", "late")
    revoke_keys(keys_file, name="late")
    clock.now += 0.5
    assert store.principal(key) is not None, "the file is looked at once a second at most"
    clock.now += 0.5
    assert store.principal(key) is None


def test_a_broken_file_stops_a_start_but_not_a_running_process(keys_file: Path) -> None:
    clock = HandClock()
    key = create_key(keys_file, "ops", "desk")
    store = KeyStore(keys_file, clock)
    keys_file.write_text("[{")
    clock.now += 1.0
    assert store.principal(key) == Principal("ops", "desk")
    with pytest.raises(KeysUnreadable):
        KeyStore(keys_file)


def test_no_key_is_lost_when_twenty_are_made_at_once(keys_file: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda number: create_key(keys_file, "checkout", f"shop-{number}"), range(20)))
    store = KeyStore(keys_file)
    assert all(store.principal(key) for key in keys)


def test_registering_a_revoked_key_again_does_not_bring_it_back(keys_file: Path) -> None:
    key = create_key(keys_file, "erp", "erp")
    revoke_keys(keys_file, name="erp")
    register_key(keys_file, "erp", "erp", key)
    assert KeyStore(keys_file).principal(key) is None


@pytest.mark.parametrize(("role", "name"), [("admin", "a"), ("ops", ""), ("ops", "a b"), ("ops", "a:b"), ("ops", "-a")])
def test_an_unknown_role_or_a_bad_name_is_refused(keys_file: Path, role: str, name: str) -> None:
    with pytest.raises(KeyRefused):
        create_key(keys_file, role, name)
    assert not keys_file.exists()
