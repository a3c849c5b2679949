"""What one display shows: its text, its image, and what of it is shown as neither."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from sagebroker.protocol.outputs import LEFT_OUT
from sagebroker.protocol.text import clean, strip_ansi
from sagebroker.server.html_text import text_of_html
from sagebroker.server.images import IMAGE_TYPES, SVG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sagebroker.model import RichOutput

MAX_HTML_CHARS: Final = 20_000
"""Characters of one display's HTML of which the text is shown: more than an answer has room for."""
MAX_CELL_HTML_CHARS: Final = 200_000
"""And of all displays of a cell together: 1.3 us each at worst, during which nothing else is served."""

HTML: Final = "text/html"
GIF: Final = "image/gif"
WIDGET: Final = "application/vnd.jupyter.widget-view+json"
SOURCE_TYPES: Final = (HTML, SVG)
"""Types whose text is a source: shown as something else, and read as it is on request."""

_THREE_D_MARKS: Final = ("three.js", "three.min.js", "threejs", "jsmol", "x3d")
"""What the HTML of Sage's 3D viewers contains."""
_THREE_D_SCAN_CHARS: Final = 2_000_000
"""Characters of HTML searched for a mark; the scene's data can have many millions."""
_NAMELESS: Final = re.compile(r"<[\w.]+(?: object)?(?: at 0x[0-9a-fA-F]+)?>")
"""What Python writes of an object that does not say what it is."""


def display_texts(outputs: Sequence[RichOutput]) -> list[str]:
    """The text of each of a cell's displays; empty for one that is only an image."""
    texts = []
    left = MAX_CELL_HTML_CHARS
    for output in outputs:
        most = min(left, MAX_HTML_CHARS)
        texts.append(_display_text(output, most))
        if _reads_html(output.data):
            left -= min(most, len(output.data[HTML]))
    return texts


def _display_text(output: RichOutput, html_chars: int) -> str:
    """The plain text exactly, with LaTeX where that says more; what else there is where it says nothing."""
    data = output.data
    plain = text_in(data, "text/plain")
    latex = text_in(data, "text/latex").strip()
    lines = [f"LaTeX: {latex}"] if latex and latex.strip("$ ") != plain.strip() else []
    if _says_something(plain):
        lines.insert(0, plain)
    elif not lines:
        rich = _rich_text(data, html_chars) or plain
        lines = [rich] if rich else []
    image = image_type(output)
    if is_three_d(output) and image is None:
        lines.append("(A 3D plot without a picture; show(plot, viewer='tachyon') draws one.)")
    if WIDGET in data:
        lines.append(
            "(Controls can be moved in Jupyter only; here, call the function or set the values in code.)"
        )
    lines += _left_out(output)
    if not lines and image is None:
        kinds = ", ".join(sorted(data))
        lines.append(f"(Output of type {kinds}, not shown.)")
    return "\n".join(lines)


def text_in(data: dict[str, Any], mime_type: str) -> str:
    """The text of a type, without terminal codes; empty where there is none."""
    value = data.get(mime_type)
    return strip_ansi(clean(value)) if isinstance(value, str) else ""


def image_type(output: RichOutput) -> str | None:
    """The type of a display's image: the format that needs least work."""
    for mime_type in IMAGE_TYPES:
        data = output.data.get(mime_type)
        if isinstance(data, str) and data:
            return mime_type
    return None


def is_three_d(output: RichOutput) -> bool:
    """Whether a display is one of Sage's interactive 3D plots."""
    html = output.data.get(HTML)
    if not isinstance(html, str):
        return False
    start = html[:_THREE_D_SCAN_CHARS].lower()
    return any(mark in start for mark in _THREE_D_MARKS) and "<iframe" in start


def originals(output: RichOutput) -> list[str]:
    """The types of a display that are shown as something less, each with more to look at."""
    found = []
    if is_three_d(output):
        found.append(HTML)
    if image_type(output) in (SVG, GIF):
        found.append(str(image_type(output)))
    if (
        not found
        and HTML in output.data
        and not _says_something(text_in(output.data, "text/plain"))
    ):
        found.append(HTML)
    return found


def sources(output: RichOutput) -> list[tuple[str, str]]:
    """The types of a display whose text is a source, each with that text."""
    return [(mime, text) for mime in SOURCE_TYPES if (text := text_in(output.data, mime))]


def _says_something(plain: str) -> bool:
    return bool(plain) and not _NAMELESS.fullmatch(plain)


def _reads_html(data: dict[str, Any]) -> bool:
    """Whether a display's text is that of its HTML."""
    if _says_something(text_in(data, "text/plain")) or not isinstance(data.get(HTML), str):
        return False
    return not {"text/latex", "text/markdown", "application/json"} & data.keys()


def _rich_text(data: dict[str, Any], html_chars: int) -> str:
    """Markdown, JSON or the text of HTML."""
    if markdown := text_in(data, "text/markdown"):
        return markdown
    if "application/json" in data:
        return clean(json.dumps(data["application/json"], ensure_ascii=False))
    if not _reads_html(data):
        return ""
    html = data[HTML]
    text = strip_ansi(clean(text_of_html(html[:html_chars])))
    if len(html) > html_chars:
        text += f"\n(The text of the first {html_chars} of {len(html)} characters of HTML.)"
    return text.strip("\n")


def _left_out(output: RichOutput) -> list[str]:
    sizes = output.metadata.get(LEFT_OUT)
    if not isinstance(sizes, dict):
        return []
    said = ", ".join(f"{mime} ({size} bytes)" for mime, size in sizes.items())
    return [f"(Too large to be kept: {said}.)"]
