"""`TokenFile`: the bearer tokens of users, hashed, in one file of the state folder.

A token is ``sbt_<id>_<secret>`` with 256 random bits in its secret, so that a plain SHA-256 of the
whole is enough to keep: there is nothing to guess (OWASP ASVS 5, 6.5 and 11.4). The file is read again
when it has changed: a token that was revoked is refused from then on, in every process. Every
function blocks.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sagebroker.errors import StorageError

PREFIX: Final = "sbt"
"""Lets secret scanners know a token of ours."""
_SECRET_BYTES: Final = 32
_ID_BYTES: Final = 4


@dataclass(frozen=True, kw_only=True)
class Token:
    """What is kept of a token."""

    id: str
    user: str
    scopes: tuple[str, ...]
    created_at: float
    """Seconds since the epoch."""
    expires_at: float | None
    note: str
    sha256: str
    """Of the token as it was given out, in hexadecimal."""


class TokenFile:
    """See the module.

    Args:
        path: The file; there is none before the first token is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read_from: tuple[int, int, int] | None = None
        self._tokens: dict[str, Token] = {}

    def exists(self) -> bool:
        """Whether a token was ever made: from then on nobody is served without one."""
        return self._path.exists()

    def create(
        self, user: str, scopes: tuple[str, ...], *, now: float, expires_at: float | None, note: str
    ) -> tuple[str, Token]:
        """A new token as text, which is not kept, and what is kept of it. Raises `StorageError`."""
        number = secrets.token_hex(_ID_BYTES)
        text = f"{PREFIX}_{number}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        token = Token(
            id=number,
            user=user,
            scopes=scopes,
            created_at=now,
            expires_at=expires_at,
            note=note,
            sha256=hashlib.sha256(text.encode()).hexdigest(),
        )
        self._change(lambda tokens: [*tokens, token])
        return text, token

    def revoke(self, is_meant: Callable[[Token], bool]) -> list[Token]:
        """Remove tokens; returns them. Raises `StorageError`."""
        gone: list[Token] = []

        def drop(tokens: list[Token]) -> list[Token]:
            gone.extend(token for token in tokens if is_meant(token))
            return [token for token in tokens if not is_meant(token)]

        self._change(drop)
        return gone

    def all(self) -> list[Token]:
        """Every token, the oldest first. Raises `StorageError`."""
        return list(self._current().values())

    def find(self, text: str, *, now: float) -> Token | None:
        """The token that ``text`` is; None where there is none, or it has expired. Raises `StorageError`."""
        parts = text.split("_", 2)
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        token = self._current().get(parts[1]) if len(parts) == 3 else None
        if token is None or not hmac.compare_digest(token.sha256, digest):
            return None
        if token.expires_at is not None and token.expires_at <= now:
            return None
        return token

    def _current(self) -> dict[str, Token]:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _unusable(self._path, error) from error
        version = (found.st_mtime_ns, found.st_ino, found.st_size)
        if version != self._read_from:
            self._tokens = {token.id: token for token in self._load()}
            self._read_from = version
        return self._tokens

    def _load(self) -> list[Token]:
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
            return [Token(**{**row, "scopes": tuple(row["scopes"])}) for row in rows]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, KeyError) as error:
            # Nobody gets in by damage to the file, and no list of tokens is overwritten for it.
            raise _unusable(self._path, error) from error

    def _change(self, change: Callable[[list[Token]], list[Token]]) -> None:
        draft = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        try:
            with _locked(self._path.with_suffix(".lock")):
                rows = [asdict(token) for token in change(self._load())]
                try:
                    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                    with os.fdopen(fd, "w", encoding="utf-8") as file:
                        json.dump(rows, file, indent=1)
                        file.flush()
                        os.fsync(fd)
                    draft.rename(self._path)
                finally:
                    draft.unlink(missing_ok=True)
        except OSError as error:
            raise _unusable(self._path, error) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _unusable(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"The file of tokens {path} cannot be used: {error}.",
        hint="Repair or remove it; without it every token has to be made anew.",
    )
