"""Settings are read from the environment once, bounded and frozen."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from engine.settings import Settings, SettingsRefused, child_environment, read_settings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in child_environment((), {}):
        if name.startswith("MIAOCANG_"):
            monkeypatch.delenv(name)


def test_every_setting_has_a_default_and_a_description() -> None:
    settings = read_settings()
    assert settings.redis_url is None
    assert settings.database_url is None
    assert settings.data_dir == Path("./var")
    assert all(field.description for field in Settings.model_fields.values())


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIAOCANG_ORDER_RETENTION_HOURS", "0.5")
    monkeypatch.setenv("MIAOCANG_LOG_JSON", "false")
    settings = read_settings()
    assert settings.order_retention_hours == 0.5
    assert settings.log_json is False


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIAOCANG_REDIS_URL", "")
    assert read_settings().redis_url is None


def test_the_data_directory_of_the_command_line_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIAOCANG_DATA_DIR", "/from/the/environment")
    assert read_settings(Path("/from/the/command")).data_dir == Path("/from/the/command")
    assert read_settings().data_dir == Path("/from/the/environment")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        read_settings().log_level = "debug"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MIAOCANG_ORDER_RETENTION_HOURS", "-1"),
        ("MIAOCANG_DRAIN_SECONDS", "11"),
        ("MIAOCANG_BATCH_ORDERS_MAX", "0"),
        ("MIAOCANG_BATCH_LINES_MAX", "many"),
        ("MIAOCANG_LOG_LEVEL", "loud"),
        ("MIAOCANG_DATABASE_URL", "mysql://somebody:password-in-it@there/db"),
    ],
)
def test_a_value_out_of_bounds_is_refused_in_one_line_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsRefused) as refusal:
        read_settings()
    assert str(refusal.value).startswith(variable)
    assert "\n" not in str(refusal.value)
    assert "password-in-it" not in str(refusal.value)


def test_passwords_stay_out_of_the_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIAOCANG_REDIS_URL", "redis://:password-in-it@there:6379/0")
    assert "password-in-it" not in repr(read_settings())


def test_a_child_does_not_inherit_what_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIAOCANG_DATABASE_URL", "postgresql://there/db")
    monkeypatch.setenv("PGOPTIONS", "-c fsync=off")
    environment = child_environment(("MIAOCANG_", "PG"), {"MIAOCANG_DATA_DIR": "/data"})
    assert "MIAOCANG_DATABASE_URL" not in environment
    assert "PGOPTIONS" not in environment
    assert environment["MIAOCANG_DATA_DIR"] == "/data"
