"""What real Sage shows, as a model gets it: plots, pages, tables, formulas, controls."""

from __future__ import annotations

import base64
import io

import pytest
from mcp import Client
from mcp_types import CallToolResult, ImageContent, ResourceLink, TextResourceContents
from PIL import Image
from tests.interaction.calling import call, run
from tests.interaction.reading import is_error, parts, result_text, text_of

pytestmark = pytest.mark.sage

THREE_D = {
    "sphere()": (113_000, 60),
    "var('y'); plot3d(sin(x*y), (x, -2, 2), (y, -2, 2))": (230_000, 60),
    "show(sphere(), frame=False)": (113_000, 60),
    "graphs.PetersenGraph().plot3d()": (80_000, 60),
    "animate([sphere(size=k) for k in [1, 2]]).interactive()": (220_000, 60),
}
"""Code, characters of its page at least, colours of its picture at least."""


def images(result: CallToolResult) -> list[Image.Image]:
    found = [block for block in result.content if isinstance(block, ImageContent)]
    decoded: list[Image.Image] = [
        Image.open(io.BytesIO(base64.b64decode(block.data))) for block in found
    ]
    for image, block in zip(decoded, found, strict=True):
        assert block.mime_type == f"image/{(image.format or '').lower()}"
    return decoded


def colours(image: Image.Image) -> int:
    found = image.convert("RGB").getcolors(image.width * image.height)
    assert found is not None
    return len(found)


def links(result: CallToolResult) -> list[ResourceLink]:
    return [block for block in result.content if isinstance(block, ResourceLink)]


async def read(client: Client, uri: str) -> str:
    [content] = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    return content.text


@pytest.mark.parametrize("code", THREE_D)
async def test_a_3d_plot_is_a_picture_beside_a_link_to_its_page(client: Client, code: str) -> None:
    least_chars, least_colours = THREE_D[code]
    result = await run(client, code)
    assert not is_error(result)
    assert not parts(result, "stderr")
    [picture] = images(result)
    assert picture.size == (500, 500)
    assert colours(picture) >= least_colours
    [link] = links(result)
    assert link.mime_type == "text/html"
    page = await read(client, link.uri)
    assert len(page) == link.size
    assert len(page) >= least_chars
    assert "three" in page


async def test_drawing_3d_plots_leaves_no_file_and_no_process(client: Client) -> None:
    look = (
        "import os\n"
        "def left():\n"
        "    names = [open(f'/proc/{p}/comm').read() for p in os.listdir('/proc') if p.isdigit()]\n"
        "    files = [name for _, _, names in os.walk('/tmp') for name in names]\n"
        "    drawn = [name for name in files if name.endswith(('.dat', '.png'))]\n"
        "    return os.listdir('/tmp'), drawn, [name for name in names if 'tachyon' in name]\n"
        "left()"
    )
    before = result_text(await run(client, look))
    await run(client, "for k in range(3): show(sphere(size=k + 1))")
    assert result_text(await run(client, "left()")) == before


async def test_a_3d_plot_that_takes_too_long_to_draw_is_shown_without_a_picture(
    client: Client,
) -> None:
    code = (
        "from sage.plot.plot3d.shapes import Sphere\n"
        "class Slow(Sphere):\n"
        "    def tachyon_repr(self, render_params):\n"
        "        import time\n"
        "        time.sleep(60)\n"
        "Slow(1)"
    )
    result = await run(client, code)
    assert not is_error(result)
    assert images(result) == []
    assert "show(plot, viewer='tachyon')" in result_text(result)
    assert [link.mime_type for link in links(result)] == ["text/html"]
    assert result_text(await run(client, "1 + 1")) == "2"


async def test_a_3d_plot_whose_drawing_fails_is_shown_without_a_picture(client: Client) -> None:
    code = (
        "from sage.plot.plot3d.shapes import Sphere\n"
        "class Broken(Sphere):\n"
        "    def tachyon_repr(self, render_params):\n"
        "        raise RuntimeError('no')\n"
        "Broken(1)"
    )
    result = await run(client, code)
    assert not is_error(result)
    assert images(result) == []
    assert not parts(result, "stderr")
    assert [link.mime_type for link in links(result)] == ["text/html"]


async def test_the_page_of_a_plot_too_large_to_keep_is_told_and_the_picture_stays(
    client: Client,
) -> None:
    code = (
        "var('y z')\n"
        "implicit_plot3d(x^2 + y^2 + z^2 == 4, (x,-3,3), (y,-3,3), (z,-3,3), plot_points=150)"
    )
    result = await run(client, code)
    assert len(images(result)) == 1
    assert "Too large to be kept: text/html" in result_text(result)


async def test_an_svg_of_a_plot_is_drawn_and_linked(client: Client) -> None:
    code = "plot(sin(x), (x, 0, 1)).save('x.svg')\nfrom IPython.display import SVG\nSVG('x.svg')"
    result = await run(client, code)
    [picture] = images(result)
    assert max(picture.size) == 1024
    assert colours(picture) > 20
    [link] = links(result)
    assert (await read(client, link.uri)).startswith("<svg")
    assert 'stream="html"' in text_of(result)


async def test_a_tableau_is_its_text_and_a_drawing(client: Client) -> None:
    result = await run(client, "Tableau([[1, 2], [3]])")
    assert result_text(result) == "[[1, 2], [3]]"
    assert len(images(result)) == 1
    assert [link.mime_type for link in links(result)] == ["image/svg+xml"]


@pytest.mark.parametrize(
    "code",
    [
        "plot(sin(x), (x, 0, 1))",
        "show(plot(sin(x), (x, 0, 1)))",
        "graphs.PetersenGraph()",
        "import matplotlib.pyplot as plt\nplt.plot([int(1), int(2)])\nplt.show()",
    ],
)
async def test_a_2d_plot_is_one_picture_without_links(client: Client, code: str) -> None:
    result = await run(client, code)
    [picture] = images(result)
    assert colours(picture) > 20
    assert links(result) == []


async def test_of_an_animation_the_first_picture_is_shown(client: Client) -> None:
    code = (
        "import PIL.Image\n"
        "from IPython.display import Image as Shown\n"
        "frames = [PIL.Image.new('RGB', (50, 50), c) for c in ('red', 'blue')]\n"
        "frames[0].save('a.gif', save_all=True, append_images=frames[1:])\n"
        "Shown('a.gif')"
    )
    result = await run(client, code)
    [picture] = images(result)
    assert picture.convert("RGB").getpixel((9, 9)) == (255, 0, 0)
    assert [link.mime_type for link in links(result)] == ["image/gif"]


MOVING = """
import io, PIL.Image
from sage.repl.rich_output.output_catalog import OutputImageGif
frames = [PIL.Image.new('RGB', (50, 50), c) for c in ('red', 'blue')]
buffer = io.BytesIO()
frames[0].save(buffer, 'GIF', save_all=True, append_images=frames[1:])
class Moving(SageObject):
    def _rich_repr_(self, manager):
        if OutputImageGif in manager.supported_output():
            return OutputImageGif(buffer.getvalue())
Moving()
"""


async def test_an_animation_of_sages_own_is_a_gif_beside_its_page(client: Client) -> None:
    result = await run(client, MOVING)
    assert len(images(result)) == 1
    assert [link.mime_type for link in links(result)] == ["image/gif"]


TEXTS = {
    "table([[1, 2], [3, 4]], header_row=['a', 'b'])": "  a   b\n├───┼───┤\n  1   2\n  3   4",
    "import pandas\npandas.DataFrame({'a': [1, 2]})": "   a\n0  1\n1  2",
    "import pandas\npandas.DataFrame({'a': [1, 2]}).style": "| a\n0 | 1\n1 | 2",
    "from IPython.display import HTML\nHTML('<table><tr><td>1<td>2</table>')": "1 | 2",
    "html('<b>bold</b>')": "<b>bold</b>",
    "from IPython.display import Markdown\nMarkdown('# head')": "# head",
    "from IPython.display import JSON\nJSON({'a': [int(1)]})": '{"a": [1]}',
    "from IPython.display import Math\nMath('x^2')": "LaTeX: $\\displaystyle x^2$",
    "latex(x^2/3)": "\\frac{1}{3} \\, x^{2}",
}


@pytest.mark.parametrize("code", TEXTS)
async def test_a_table_a_page_or_a_formula_is_a_text(client: Client, code: str) -> None:
    assert result_text(await run(client, code)) == TEXTS[code]


async def test_display_latex_adds_the_formula_until_it_is_switched_off(client: Client) -> None:
    await run(client, "%display latex")
    try:
        shown = result_text(await run(client, "integrate(x^2, x)"))
    finally:
        await run(client, "%display plain")
    assert shown.startswith("1/3*x^3\nLaTeX: $")
    assert result_text(await run(client, "integrate(x^2, x)")) == "1/3*x^3"


async def test_controls_are_listed_with_their_values(client: Client) -> None:
    code = "@interact\ndef f(n=slider(1, 10, 1, 3), c=['red', 'blue']):\n    print(n, c)"
    result = await run(client, code)
    assert parts(result, "stdout") == ["stdout:\n3 red\n"]
    [shown] = parts(result, "display")
    assert "n: TransformIntSlider(value=3, description='n', max=10, min=1)" in shown
    assert "options=('red', 'blue'), value='red'" in shown
    assert "Controls can be moved in Jupyter only" in shown


async def test_displays_are_updated_and_cleared(client: Client) -> None:
    updated = "display('one', display_id='k'); update_display('two', display_id='k')"
    result = await run(client, f"from IPython.display import update_display\n{updated}")
    assert parts(result, "display") == ["'two'"]
    cleared = "print('gone'); show(sphere()); clear_output(); print('stays')"
    result = await run(client, f"from IPython.display import clear_output\n{cleared}")
    assert parts(result, "stdout") == ["stdout:\nstays\n"]
    assert images(result) == links(result) == []


async def test_help_and_source_come_whole_by_pages(client: Client) -> None:
    for code, said in {"factor?": "Return the factorization", "factor??": "def factor("}.items():
        result = await run(client, code, max_chars=50_000)
        [shown] = parts(result, "help")
        assert said in shown
    found = await call(client, "sage_run", code="factor??", max_chars=400)
    assert "sage_output(" in text_of(found)
