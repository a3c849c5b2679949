"""What of a session's file is text, where its pages end, and how lists show it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagebroker.server.file_pages import entry_line, image_type, text_in
from sagebroker.server.file_tools import content_bytes
from sagebroker.store.confined import Entry


def entry(**fields: object) -> Entry:
    values = {"parts": ("a", "b"), "kind": "file", "bytes": 3, "changed_at": 0.0}
    return Entry(**(values | fields))  # type: ignore[arg-type]


@given(
    text=st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1),
    size=st.integers(4, 9),
)
def test_pages_of_text_joined_are_the_text(text: str, size: int) -> None:
    data, shown, offset = text.encode(), "", 0
    while offset < len(data):
        piece = data[offset : offset + size]
        found = text_in(piece, is_start=offset == 0, is_end=offset + len(piece) >= len(data))
        assert found is not None
        begin, page = found
        assert begin == 0
        shown += page
        offset += len(page.encode())
    assert shown == text


def test_a_page_that_begins_in_a_character_begins_with_the_next() -> None:
    data = "a€b".encode()
    assert text_in(data[2:], is_start=False, is_end=True) == (2, "b")
    assert text_in(data[2:], is_start=True, is_end=True) is None


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a\0b", bytes(100), b"\xed\xa0\x80", b"caf\xe9"])
def test_what_is_not_utf8_or_has_a_nul_is_no_text(data: bytes) -> None:
    assert text_in(data, is_start=True, is_end=True) is None


def test_images_are_known_by_their_first_bytes() -> None:
    assert image_type(b"\x89PNG\r\n\x1a\n....") == "image/png"
    assert image_type(b"\xff\xd8\xff\xe0") == "image/jpeg"
    assert image_type(b"RIFF....WEBPVP8 ") == "image/webp"
    assert image_type(b"RIFF....WAVE") == ""
    assert image_type(b"%PDF-1.7") == ""


def test_an_entry_is_one_line_whatever_its_name_and_time() -> None:
    assert entry_line(entry()) == "a/b  3 bytes, 1970-01-01 00:00:00 UTC"
    assert entry_line(entry(kind="folder")).startswith("a/b/  folder, 1970")
    assert "folder, not looked into" in entry_line(entry(kind="folder", is_open=False))
    assert "link, not followed" in entry_line(entry(kind="link"))
    assert "time unknown" in entry_line(entry(changed_at=1e18))
    assert entry_line(entry(parts=("x\n3 bytes",))).startswith('"x\\n3 bytes"  3 bytes')
    odd = entry_line(entry(parts=(os.fsdecode(b"\xff"),)))
    assert odd.startswith('"\\udcff"')
    assert "rename it in a cell" in odd


def test_content_is_text_or_base64_with_or_without_line_ends() -> None:
    assert content_bytes("é\r\n", "text") == "é\r\n".encode()
    assert content_bytes("AAEC\n/w==\n", "base64") == b"\x00\x01\x02\xff"
    for wrong in ("AAE", "????", "é"):
        with pytest.raises(Exception, match="not base64"):
            content_bytes(wrong, "base64")
    with pytest.raises(Exception, match="not text"):
        content_bytes("\ud800", "text")
