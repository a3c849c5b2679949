"""Sessions and events in the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.store_rows import cell_row, fill, open_store, session_row

from sagebroker.errors import NameTakenError, SessionGoneError, StaleError, StorageError
from sagebroker.store import database as database_module
from sagebroker.store.database import Database
from sagebroker.store.session_table import NAME_LIMIT_CHARS, first_free


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    store = open_store(tmp_path)
    yield store
    store.close()


def test_a_session_comes_back_as_it_was_added(store: Database) -> None:
    row = session_row(notices=("One.", "Two \udc80 \0."), note="a\ud800\0b", active_at=1.5)
    store.add_session(row)
    assert store.session(row.id) == row
    assert store.session_named(row.name) == row
    assert store.sessions() == [row]


def test_what_is_not_stored_is_none(store: Database) -> None:
    assert store.session("aaaaaaaaaa") is None
    assert store.session_named("work") is None
    assert store.sessions() == []


def test_sessions_come_back_the_oldest_first(store: Database) -> None:
    store.add_session(session_row("aaaaaaaaaa", created="2026-01-02T00:00:00+00:00"))
    store.add_session(session_row("bbbbbbbbbb", created="2026-01-01T00:00:00+00:00"))
    assert [row.id for row in store.sessions()] == ["bbbbbbbbbb", "aaaaaaaaaa"]


def test_a_name_is_given_to_one_session_only(store: Database) -> None:
    store.add_session(session_row("aaaaaaaaaa", name="work"))
    with pytest.raises(NameTakenError, match="'work' already"):
        store.add_session(session_row("bbbbbbbbbb", name="work"))
    store.add_session(session_row("bbbbbbbbbb", name="other"))
    with pytest.raises(NameTakenError, match="Choose another"):
        store.change_session("bbbbbbbbbb", 0, name="work")
    assert store.change_session("bbbbbbbbbb", 0, name="other").revision == 1


def test_a_session_is_not_added_twice(store: Database) -> None:
    store.add_session(session_row(name="work"))
    with pytest.raises(StorageError, match="refused"):
        store.add_session(session_row(name="other"))
    assert store.session_named("other") is None


def test_a_change_counts_and_touches_nothing_else(store: Database) -> None:
    row = session_row(notices=("One.",))
    store.add_session(row)
    changed = store.change_session(row.id, 0, state="busy", notices=("Two.",), note="why")
    assert changed == replace(row, state="busy", notices=("Two.",), note="why", revision=1)
    assert store.session(row.id) == changed
    assert store.change_session(row.id, 1).revision == 2


def test_of_two_who_change_what_they_read_the_second_is_told(
    store: Database, tmp_path: Path
) -> None:
    other = open_store(tmp_path)
    store.add_session(session_row())
    store.change_session("aaaaaaaaaa", 0, state="busy")
    with pytest.raises(StaleError, match="changed meanwhile"):
        other.change_session("aaaaaaaaaa", 0, state="hibernated")
    found = other.session("aaaaaaaaaa")
    assert found is not None
    assert (found.state, found.revision) == ("busy", 1)
    other.close()


def test_a_session_that_is_gone_is_not_changed(store: Database) -> None:
    with pytest.raises(SessionGoneError, match="Open it anew"):
        store.change_session("aaaaaaaaaa", 0, state="busy")


@pytest.mark.parametrize("field", ["id", "created", "revision", "colour"])
def test_only_fields_that_change_are_changed(store: Database, field: str) -> None:
    store.add_session(session_row())
    fields: dict[str, Any] = {field: "x"}
    with pytest.raises(TypeError, match=field):
        store.change_session("aaaaaaaaaa", 0, **fields)


def test_a_value_that_fits_no_column_is_told_and_nothing_is_stored(store: Database) -> None:
    for row in (session_row(name="half \ud800"), session_row(memory_bytes=2**63)):
        with pytest.raises(StorageError, match="refused"):
            store.add_session(row)
    assert store.sessions() == []


def test_a_free_name_is_the_one_asked_for_or_the_next_number(store: Database) -> None:
    assert store.free_name("work") == "work"
    for session_id, name in (("a", "work"), ("b", "work-2"), ("c", "work-4")):
        store.add_session(session_row(session_id, name=name))
    assert store.free_name("work") == "work-3"
    assert store.free_name("other") == "other"


@given(st.text("ab-1", min_size=1, max_size=60), st.integers(0, 120))
def test_a_free_name_is_free_and_short_enough(base: str, others: int) -> None:
    taken: set[str] = set()
    for _ in range(others):
        taken.add(first_free(base, taken))
    assert len(taken) == others
    assert first_free(base, taken) not in taken
    assert all(len(name) <= NAME_LIMIT_CHARS for name in taken)


def test_a_removed_session_takes_its_cells_outputs_and_events_along(
    store: Database, tmp_path: Path
) -> None:
    fill(store, tmp_path)
    store.add_session(session_row("bbbbbbbbbb"))
    store.save(cells=[cell_row(1, "bbbbbbbbbb")])
    store.add_event("session.opened", "aaaaaaaaaa", {})
    store.add_event("session.opened", "bbbbbbbbbb", {})
    store.remove_session("aaaaaaaaaa")
    store.remove_session("aaaaaaaaaa")
    assert [row.id for row in store.sessions()] == ["bbbbbbbbbb"]
    assert store.cells("aaaaaaaaaa") == []
    assert store.outputs("aaaaaaaaaa", 1) == []
    assert [event.session for event in store.events()] == ["bbbbbbbbbb"]
    assert len(store.cells("bbbbbbbbbb")) == 1


def test_events_come_back_the_newest_last(store: Database) -> None:
    store.add_event("broker.started", "", {"pid": 2**70})
    store.add_event("session.opened", "aaaaaaaaaa", {})
    store.add_event("session.closed", "aaaaaaaaaa", {"why": "\ud800"})
    assert [event.word for event in store.events(most=2)] == ["session.opened", "session.closed"]
    assert [event.detail for event in store.events("aaaaaaaaaa")] == [{}, {"why": "\ud800"}]
    (started,) = store.events("")
    assert started.detail == {"pid": 2**70}
    assert started.at > 1.7e9


def test_only_so_many_events_are_kept(store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "EVENTS_KEPT", 3)
    for n in range(6):
        store.add_event("session.opened", "aaaaaaaaaa", {"n": n})
    assert [event.detail["n"] for event in store.events()] == [3, 4, 5]
