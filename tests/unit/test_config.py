"""Configuration: sources, order, errors that name the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from sagebroker.config import BrokerConfig
from sagebroker.errors import ConfigError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No file of this user's, no variable of this shell's."""
    monkeypatch.delenv("SAGEBROKER_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))


def test_the_environment_overrides_the_file_and_the_file_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[session]\nmax_sessions = 3\nmax_queued_cells = 4\n")
    monkeypatch.setenv("SAGEBROKER_SESSION__MAX_SESSIONS", "5")
    loaded = BrokerConfig.load(path).session
    assert (loaded.max_sessions, loaded.max_queued_cells) == (5, 4)


def test_a_setting_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[session]\nmax_session = 3\n")
    with pytest.raises(ConfigError, match=r"session\.max_session"):
        BrokerConfig.load(path)


def test_a_value_out_of_range_is_refused_with_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGEBROKER_CONTAINER__MEMORY_BYTES", "1000")
    with pytest.raises(ConfigError, match=r"container\.memory_bytes.*SAGEBROKER_"):
        BrokerConfig.load()


@pytest.mark.parametrize("text", ["[", "= 3"])
def test_a_file_that_is_not_toml_is_told_with_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"config\.toml"):
        BrokerConfig.load(path)


def test_a_file_that_is_not_utf_8_is_told_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b'engine_url = "\xff"\n')
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read"):
        BrokerConfig.load(path)


def test_a_file_named_as_an_argument_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        BrokerConfig.load(tmp_path / "nothing.toml")


def test_a_file_named_in_the_environment_must_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGEBROKER_CONFIG", str(tmp_path / "nothing.toml"))
    with pytest.raises(ConfigError, match=r"nothing\.toml"):
        BrokerConfig.load()


def test_a_file_named_in_the_environment_is_read_and_one_that_is_an_argument_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (3, 4):
        (tmp_path / f"{number}.toml").write_text(f"[session]\nmax_sessions = {number}\n")
    monkeypatch.setenv("SAGEBROKER_CONFIG", str(tmp_path / "3.toml"))
    assert BrokerConfig.load().session.max_sessions == 3
    assert BrokerConfig.load(tmp_path / "4.toml").session.max_sessions == 4


def test_the_users_own_file_is_read_where_it_exists(tmp_path: Path) -> None:
    assert BrokerConfig.load().session.max_sessions == 8
    folder = tmp_path / "home" / "sagebroker"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("[session]\nmax_sessions = 3\n")
    assert BrokerConfig.load().session.max_sessions == 3


def test_a_variable_in_place_of_a_whole_branch_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAGEBROKER_KERNEL", "abc")
    with pytest.raises(ConfigError, match=r'"kernel".*SAGEBROKER_KERNEL__IMAGE'):
        BrokerConfig.load()


@pytest.mark.parametrize("level", ["debug", "WARNING", "Error"])
def test_log_levels_are_known_in_small_letters_and_capitals(level: str) -> None:
    assert BrokerConfig.load(log={"level": level}).log.level == level.lower()


@pytest.mark.parametrize("level", ["loud", "", 10])
def test_a_log_level_that_does_not_exist_is_refused_with_those_that_do(level: object) -> None:
    with pytest.raises(ConfigError, match=r"log\.level.*'debug', 'info', 'warning' or 'error'"):
        BrokerConfig.load(log={"level": level})


def test_the_configuration_cannot_be_changed() -> None:
    config = BrokerConfig.load()
    with pytest.raises(ValueError, match="frozen"):
        config.session.max_sessions = 1
