"""The file of bearer tokens: made, found, revoked; shared by processes, damaged, full."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sagebroker.errors import StorageError
from sagebroker.store.tokens import TokenFile

NOW = 1_800_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "tokens.json"


def create(tokens: TokenFile, user: str = "alice", expires_at: float | None = None) -> str:
    text, _ = tokens.create(user, ("sage:run",), now=NOW, expires_at=expires_at, note="")
    return text


def test_a_token_is_found_until_it_expires_or_is_revoked(path: Path) -> None:
    tokens = TokenFile(path)
    assert not tokens.exists()
    lasting, short = create(tokens), create(tokens, expires_at=NOW + 10)
    found = tokens.find(lasting, now=NOW)
    assert found is not None
    assert (found.user, found.scopes) == ("alice", ("sage:run",))
    assert tokens.find(short, now=NOW + 9) is not None
    assert tokens.find(short, now=NOW + 10) is None
    assert [token.id for token in tokens.revoke(lambda t: t.id == found.id)] == [found.id]
    assert tokens.find(lasting, now=NOW) is None
    assert tokens.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:-1],
        lambda t: t + "x",
        str.upper,
        lambda _: "",
        lambda _: "sbt_",
        lambda _: "\ud800_a_b",
    ],
)
def test_what_is_nearly_a_token_is_none(path: Path, change: object) -> None:
    tokens = TokenFile(path)
    text = create(tokens)
    assert callable(change)
    assert tokens.find(change(text), now=NOW) is None


def test_neither_secrets_nor_tokens_are_in_the_file_and_only_its_owner_reads_it(path: Path) -> None:
    text = create(TokenFile(path))
    kept = path.read_text()
    assert text not in kept
    assert text.split("_", 2)[2] not in kept
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_process_sees_what_was_made_and_revoked(path: Path) -> None:
    ours, theirs = TokenFile(path), TokenFile(path)
    first, second = create(ours), create(ours, "bob")
    assert theirs.find(first, now=NOW) is not None
    theirs.revoke(lambda t: t.user == "alice")
    assert ours.find(first, now=NOW) is None
    assert ours.find(second, now=NOW) is not None


def test_tokens_that_are_made_at_once_are_all_there(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: create(TokenFile(path)), range(40)))
    assert len(TokenFile(path).all()) == 40
    assert all(TokenFile(path).find(text, now=NOW) for text in texts)
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["", "{", "[1]", '[{"id": "a"}]', "null", "\x00"])
def test_a_damaged_file_lets_nobody_in_and_is_not_overwritten(path: Path, damage: str) -> None:
    tokens = TokenFile(path)
    text = create(tokens)
    path.write_text(damage)
    with pytest.raises(StorageError, match="cannot be used"):
        tokens.find(text, now=NOW)
    with pytest.raises(StorageError):
        create(tokens)
    assert path.read_text() == damage


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError):
        create(TokenFile(tmp_path / "tokens.json"))


def test_the_file_is_json_that_a_person_can_read(path: Path) -> None:
    create(TokenFile(path))
    [row] = json.loads(path.read_text())
    assert set(row) == {"id", "user", "scopes", "created_at", "expires_at", "note", "sha256"}
