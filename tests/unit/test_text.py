from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagebroker.protocol.text import BoundedText, clean, strip_ansi

any_text = st.text(alphabet=st.characters())


@given(any_text)
def test_clean_text_can_always_be_encoded(text: str) -> None:
    assert clean(text).encode("utf-8").decode("utf-8") == clean(text)


@given(st.text())
def test_text_without_surrogates_is_not_changed(text: str) -> None:
    assert clean(text) == text


def test_a_lone_surrogate_becomes_its_spelling() -> None:
    assert clean("a\udc80b") == "a\\udc80b"


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;5;241mx\x1b[39;49m", "x"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://a\x1b\\link", "link"),
        ("\x1b[2K\rline", "\rline"),
        ("no escapes", "no escapes"),
    ],
)
def test_terminal_escapes_are_taken_away(raw: str, plain: str) -> None:
    assert strip_ansi(raw) == plain


def test_unfinished_escapes_take_linear_time() -> None:
    assert strip_ansi("\x1b]" * 100_000).count("\x1b") <= 100_000


@given(st.lists(any_text), st.integers(min_value=2, max_value=60))
def test_head_and_tail_are_the_ends_of_what_was_appended(pieces: list[str], limit: int) -> None:
    bounded = BoundedText(limit)
    for piece in pieces:
        bounded.append(piece)
    whole = clean("".join(pieces)) if all(clean(p) == p for p in pieces) else None
    whole = whole if whole is not None else "".join(clean(piece) for piece in pieces)
    assert whole.startswith(bounded.head)
    assert whole.endswith(bounded.tail)
    assert bounded.total == len(whole)
    assert bounded.omitted == len(whole) - len(bounded.head) - len(bounded.tail)
    assert len(bounded.kept.encode()) <= limit
    if bounded.omitted == 0:
        assert bounded.text() == whole
    else:
        assert f"[{bounded.omitted} characters omitted]" in bounded.text()


@given(st.text(min_size=1, max_size=60), st.integers(min_value=1, max_value=60))
def test_a_text_within_its_limit_is_whole(text: str, size: int) -> None:
    bounded = BoundedText(2 * len(text.encode()) + 2)
    for start in range(0, len(text), size):
        bounded.append(text[start : start + size])
    assert bounded.text() == text
    assert bounded.omitted == 0


@given(st.text(max_size=200), st.integers(min_value=0, max_value=100), st.sampled_from([40, 1000]))
def test_a_shortened_text_shows_at_most_what_was_asked(text: str, most: int, limit: int) -> None:
    bounded = BoundedText(limit)
    bounded.append(text)
    shown = bounded.text(most)
    if "characters omitted" not in shown:
        assert shown == text
        return
    head, rest = shown.split("\n… [", 1)
    tail = rest.split("] …\n", 1)[1]
    assert len(head) + len(tail) <= most
    assert text.startswith(head)
    assert text.endswith(tail)


def test_clearing_forgets_everything() -> None:
    bounded = BoundedText(10)
    bounded.append("x" * 100)
    bounded.clear()
    bounded.append("new")
    assert (bounded.text(), bounded.total, bounded.omitted) == ("new", 3, 0)


def test_two_hundred_megabytes_take_no_more_memory_than_the_limit() -> None:
    bounded = BoundedText(2**20)
    piece = "x" * 2**16
    tracemalloc.start()
    try:
        for _ in range(3200):
            bounded.append(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * 2**20
    assert bounded.total == 3200 * 2**16


def test_a_limit_without_two_halves_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        BoundedText(1)
