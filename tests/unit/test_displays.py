"""What becomes of rich outputs that are neither plain text nor an image."""

from __future__ import annotations

import base64
import io
from typing import Any

import pytest
from mcp_types import ImageContent, ResourceLink
from PIL import Image
from tests.unit.test_render import add, make_cell, part, parts_of, png, show

from sagebroker.model import RichOutput
from sagebroker.protocol.outputs import LEFT_OUT
from sagebroker.server.displays import MAX_CELL_HTML_CHARS, MAX_HTML_CHARS, display_texts
from sagebroker.server.html_text import text_of_html
from sagebroker.server.outline import stream_text
from sagebroker.server.pages import page
from sagebroker.server.render import MAX_LINKS, answer

SVG_TEXT = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
SCENE = '\n<iframe srcdoc="' + "x" * 50_000 + ' three.min.js"></iframe>'


def text_of(data: dict[str, Any], **metadata: Any) -> str:
    [text] = display_texts([RichOutput(data=data, metadata=metadata)])
    return text


def links(result: Any) -> list[ResourceLink]:
    return [block for block in result.content if isinstance(block, ResourceLink)]


@pytest.mark.parametrize("name", ["HTML object", "HTML object at 0x7f00", "Styler at 0x7fAB"])
@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"text/html": "<p>a<b>b</b></p>"}, "ab"),
        ({"text/markdown": "# A\n* b"}, "# A\n* b"),
        ({"application/json": {"a": [1, None]}}, '{"a": [1, null]}'),
        ({"text/latex": "$x^2$"}, "LaTeX: $x^2$"),
    ],
)
def test_a_type_that_says_more_stands_for_a_mere_name(
    data: dict[str, Any], shown: str, name: str
) -> None:
    assert text_of({"text/plain": f"<IPython.core.display.{name}>", **data}) == shown
    assert text_of(data) == shown


def test_a_plain_text_that_says_something_is_left_alone() -> None:
    for plain in ("<b>bold</b>", "<Figure size 640x480 with 1 Axes>", "   a\n0  1"):
        assert text_of({"text/plain": plain, "text/html": "<table><tr><td>other"}) == plain


def test_what_has_no_text_at_all_is_named() -> None:
    assert (
        text_of({"application/x-odd": "data"}) == "(Output of type application/x-odd, not shown.)"
    )
    audio = {
        "text/html": "<audio>No browser</audio>",
        "text/plain": "<IPython.lib.display.Audio object>",
    }
    assert text_of(audio) == "<IPython.lib.display.Audio object>"


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<table><tr><th><th>a</tr>\n<tr>\n<td>0</td>\n<td>1&lt;2</td></table>", "| a\n0 | 1<2"),
        ("<style>b {}</style><h1>A</h1>b<br>c<script>alert(1)</script>", "A\nb\nc"),
        ("a &amp; b &copy", "a & b ©"),
        ("cut <a href='", "cut"),
        ("<script>", ""),
    ],
)
def test_html_becomes_lines_and_rows(html: str, text: str) -> None:
    assert text_of_html(html) == text


def test_of_long_html_the_beginning_is_read_and_the_rest_is_told() -> None:
    html = "<tr><td>x" * 5_500_000
    shown = text_of({"text/html": html})
    assert len(shown) < MAX_HTML_CHARS
    assert shown.endswith(f"first {MAX_HTML_CHARS} of {len(html)} characters of HTML.)")


def test_a_cell_of_very_many_pages_is_read_up_to_a_limit() -> None:
    page_html = "<b>a</b>" + "<" * MAX_HTML_CHARS
    texts = display_texts([RichOutput(data={"text/html": page_html}) for _ in range(200)])
    read = [text for text in texts if text.startswith("a<")]
    assert len(read) == MAX_CELL_HTML_CHARS // MAX_HTML_CHARS
    assert texts[-1].startswith("(The text of the first 0 of ")


def test_controls_are_told_with_what_can_be_done() -> None:
    widget = {"text/plain": "IntSlider(value=7)", "application/vnd.jupyter.widget-view+json": {}}
    assert text_of(widget).startswith("IntSlider(value=7)\n(Controls can be moved in Jupyter only")


def test_what_was_too_large_to_be_kept_is_told() -> None:
    shown = text_of({"text/plain": "Graphics3d Object"}, **{LEFT_OUT: {"text/html": 30_000_000}})
    assert shown == "Graphics3d Object\n(Too large to be kept: text/html (30000000 bytes).)"


async def test_a_3d_plot_is_a_picture_and_a_link_to_its_page() -> None:
    cell = make_cell()
    show(cell, {"text/html": SCENE, "text/plain": "Graphics3d Object", "image/png": png()})
    result = await answer("my plots", cell, max_chars=8000)
    assert [kind for kind, _ in parts_of(result)] == ["status", "result", "image", "link", "next"]
    assert part(result, "result") == "Graphics3d Object"
    [link] = links(result)
    assert link.uri == "sage://sessions/my%20plots/cells/7/displays/0/html"
    assert (link.mime_type, link.size) == ("text/html", len(SCENE))
    assert 'sage_output(session="my plots", cell=7, stream="html")' in part(result, "next")


async def test_a_3d_plot_without_a_picture_says_how_to_get_one() -> None:
    cell = make_cell()
    show(cell, {"text/html": SCENE, "text/plain": "Graphics3d Object"})
    result = await answer("default", cell, max_chars=8000)
    assert "show(plot, viewer='tachyon')" in part(result, "result")
    assert len(links(result)) == 1


async def test_an_svg_is_drawn_and_its_source_is_read_by_pages() -> None:
    cell = make_cell()
    show(cell, {"text/plain": "plain"}, is_result=False)
    show(cell, {"text/plain": "[[1]]", "image/svg+xml": SVG_TEXT})
    result = await answer("default", cell, max_chars=8000)
    [image] = [block for block in result.content if isinstance(block, ImageContent)]
    assert Image.open(io.BytesIO(base64.b64decode(image.data))).format == "PNG"
    assert [link.uri for link in links(result)] == [
        "sage://sessions/default/cells/7/displays/1/svg"
    ]
    assert stream_text(cell, "html") == f"display 1, image/svg+xml:\n{SVG_TEXT}"
    found = await page("default", cell, "html", offset=0, limit=800, pattern="width")
    assert SVG_TEXT in part(found, "page")


async def test_an_svg_that_cannot_be_drawn_still_has_its_link() -> None:
    cell = make_cell()
    show(cell, {"image/svg+xml": "<svg", "text/plain": "odd"})
    result = await answer("default", cell, max_chars=8000)
    assert "cannot be shown" in part(result, "note")
    assert [link.mime_type for link in links(result)] == ["image/svg+xml"]


async def test_of_a_gif_the_first_picture_is_shown_and_the_whole_is_linked() -> None:
    buffer = io.BytesIO()
    first, *others = (Image.new("RGB", (9, 9), colour) for colour in ("red", "blue", "green"))
    first.save(buffer, "GIF", save_all=True, append_images=others)
    cell = make_cell()
    show(cell, {"image/gif": base64.b64encode(buffer.getvalue()).decode()})
    result = await answer("default", cell, max_chars=8000)
    [image] = [block for block in result.content if isinstance(block, ImageContent)]
    shown = Image.open(io.BytesIO(base64.b64decode(image.data))).convert("RGB")
    assert shown.getpixel((4, 4)) == (255, 0, 0)
    [link] = links(result)
    assert (link.mime_type, link.size) == ("image/gif", len(buffer.getvalue()))


async def test_images_that_are_not_shown_are_linked_up_to_a_limit() -> None:
    cell = make_cell()
    for _ in range(20):
        show(cell, {"image/png": png()}, is_result=False)
    found = [link.uri for link in links(await answer("default", cell, max_chars=8000))]
    assert found == [f"sage://sessions/default/cells/7/images/{n}" for n in range(2, 2 + MAX_LINKS)]


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "image/gif", "image/webp"])
@pytest.mark.parametrize("content", ["no base64!", "", "PHN2Zy8+", SVG_TEXT])
async def test_an_image_that_lies_about_its_type_becomes_a_sentence(
    kind: str, content: str
) -> None:
    cell = make_cell()
    add(cell, "display_data", data={kind: content, "text/plain": "thing"})
    result = await answer("default", cell, max_chars=8000)
    assert not [block for block in result.content if isinstance(block, ImageContent)]
    assert part(result, "display") == "thing"
    if content:
        assert "cannot be shown" in part(result, "note")
