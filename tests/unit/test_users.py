"""Users of a server: their folders, and how often they may call."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from sagebroker.config import UsersConfig
from sagebroker.users import LOCAL_USER, CallRate, user_folder, users_with_sessions

STATE = Path("/state")


@given(st.text(min_size=1, max_size=200))
def test_every_users_folder_lies_directly_among_the_users(user: str) -> None:
    folder = user_folder(STATE, user)
    assert folder.parent == STATE / "users"
    assert folder.name not in (".", "..", "")
    assert "/" not in folder.name
    assert len(folder.name.encode()) <= 64


@given(st.lists(st.text(min_size=1, max_size=70), min_size=2, max_size=2, unique=True))
def test_two_users_never_share_a_folder(users: list[str]) -> None:
    first, second = (user_folder(STATE, user) for user in users)
    assert first != second


def test_a_name_of_ours_is_no_name_of_an_issuers_user() -> None:
    assert user_folder(STATE, "carol").name == "carol"
    assert user_folder(STATE, "https://login.example.org carol").name.startswith("+")


def test_users_with_sessions_are_found_by_their_folders(tmp_path: Path) -> None:
    assert users_with_sessions(tmp_path) == []
    for name, user in (("alice", "alice"), ("+12", "https://a b"), ("empty", "empty")):
        folder = tmp_path / "users" / name
        (folder / "sessions").mkdir(parents=True)
        (folder / "user").write_text(user)
        if name != "empty":
            (folder / "sessions" / "x").mkdir()
    (tmp_path / "users" / "broken" / "sessions" / "x").mkdir(parents=True)
    assert users_with_sessions(tmp_path) == ["https://a b", "alice"]
    (tmp_path / "sessions" / "y").mkdir(parents=True)
    assert users_with_sessions(tmp_path)[0] == LOCAL_USER


@given(
    st.integers(1, 20),
    st.floats(1, 6000),
    st.lists(st.floats(0, 30), min_size=1, max_size=100),
)
def test_calls_are_bounded_in_the_long_run_and_told_a_time_that_suffices(
    burst: int, per_minute: float, pauses: list[float]
) -> None:
    limits = UsersConfig(burst_calls=burst, calls_per_minute=per_minute)
    rate, now, taken = CallRate(limits, 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        wait_s = rate.count(now)
        taken += wait_s == 0
        if wait_s:
            assert 0 < wait_s <= 60 / per_minute + 1e-6
            now += wait_s + 1e-6
            assert rate.count(now) == 0
            taken += 1
    assert taken <= burst + now * per_minute / 60 + 1e-3
