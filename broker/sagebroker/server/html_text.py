"""The text of a piece of HTML: tables by rows, the rest by lines."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Final

_SILENT: Final = frozenset(
    {"audio", "canvas", "head", "iframe", "object", "script", "style", "template", "video"}
)
"""Elements without text, or with one for browsers that cannot show them."""
_LINES: Final = frozenset(
    {"br", "div", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "p", "pre", "table", "tr"}
)
_CELLS: Final = frozenset({"td", "th"})


def text_of_html(html: str) -> str:
    """What a reader sees of an HTML fragment, which may end anywhere."""
    reader = _Reader()
    # The line break brings out the text before it, which the parser would keep for more to come.
    reader.feed(html + "<br>")
    lines = (" ".join(line.split()) for line in "".join(reader.found).split("\n"))
    return "\n".join(line for line in lines if line.strip("| "))


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._silent = 0
        self._begins_row = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag in _SILENT:
            self._silent += 1
        elif tag in _LINES:
            self.found.append("\n")
            self._begins_row = tag == "tr"
        elif tag in _CELLS:
            self.found.append(" " if self._begins_row else " | ")
            self._begins_row = False

    def handle_endtag(self, tag: str) -> None:
        if tag in _SILENT:
            self._silent = max(0, self._silent - 1)
        elif tag in _LINES:
            self.found.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.found.append(data.replace("\n", " "))
