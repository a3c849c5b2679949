"""SVG from kernels: drawn where it is one, harmless where it is made to do harm."""

from __future__ import annotations

import base64
import io
import json
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import anyio
import psutil
import pytest
from PIL import Image

from sagebroker.server import drawing
from sagebroker.server.images import SVG, BadImageError, Picture, prepare
from sagebroker.server.svg_worker import EDGE_PX, MEMORY_BYTES

HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    'width="100" height="50">'
)
SQUARE = '<rect width="50" height="50" fill="#f00"/>'
RED, WHITE = (255, 0, 0), (255, 255, 255)


def pixel(picture: Picture, x: int, y: int) -> tuple[int, ...]:
    found = Image.open(io.BytesIO(picture.data)).convert("RGB").getpixel((x, y))
    assert isinstance(found, tuple)
    return found


def bomb(unit: str, use: str, wrap: str, levels: int = 12) -> str:
    """Ten times what is below it, at each level."""
    return "".join(
        wrap.format(n=n, body="".join(use.format(n=n - 1) for _ in range(10)) if n else unit)
        for n in range(levels)
    )


ENTITIES = bomb("lol", "&a{n};", '<!ENTITY a{n} "{body}">')
USES = bomb('<rect width="1" height="1"/>', '<use xlink:href="#u{n}"/>', '<g id="u{n}">{body}</g>')


def png_of_zeros(edge_px: int) -> bytes:
    """A PNG of a few bytes that has very many pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + edge_px // 8)
    packed = b"".join([*(packer.compress(row) for _ in range(edge_px)), packer.flush()])
    head = struct.pack(">IIBBBBB", edge_px, edge_px, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", packed), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


PIXELS = base64.b64encode(png_of_zeros(20_000)).decode()

DAMAGED = {
    "nothing": "",
    "text": "hello",
    "another document": "<html><body/></html>",
    "cut off": f"{HEAD}<g>",
    "NUL": f"{HEAD}\0</svg>",
    "no size": '<svg xmlns="http://www.w3.org/2000/svg" width="0" height="0"/>',
}
HARMFUL = {
    "entities within entities": f"<!DOCTYPE svg [{ENTITIES}]>{HEAD}<text>&a11;</text></svg>",
    "uses within uses": f'{HEAD}<defs>{USES}</defs><use xlink:href="#u11"/></svg>',
    "endless nesting": HEAD + "<g>" * 200_000 + "</g>" * 200_000 + "</svg>",
    "endless layers": HEAD.replace("50", "100")
    + '<g opacity="0.9">' * 800
    + f'<rect width="100" height="100"/>{"</g>" * 800}</svg>',
    "endless pixels": f'{HEAD}<image width="9" height="9" href="data:image/png;base64,{PIXELS}"/></svg>',
    "endless noise": f'{HEAD}<filter id="f"><feTurbulence numOctaves="99999999" baseFrequency="0.1"/>'
    '</filter><rect filter="url(#f)" width="100" height="50"/></svg>',
}


@pytest.mark.parametrize("unit", ["", "pt", "px", "cm"])
async def test_a_drawing_fills_its_edge_on_white(unit: str) -> None:
    svg = HEAD.replace(
        'width="100" height="50"', f'width="100{unit}" height="50{unit}" viewBox="0 0 100 50"'
    )
    picture = await prepare(f"{svg}{SQUARE}</svg>", SVG)
    assert (picture.mime_type, picture.width) == ("image/png", EDGE_PX)
    assert picture.height == pytest.approx(EDGE_PX / 2, abs=5)  # it rounds before it scales
    assert picture.original == SVG
    assert pixel(picture, 10, 10) == RED
    assert pixel(picture, EDGE_PX - 10, 10) == WHITE


@pytest.mark.parametrize(
    "size",
    [
        'width="1000000000" height="1000000000"',
        'width="1" height="1000000000"',
        'width="1e9" height="0.001"',
    ],
)
async def test_no_size_is_too_large(size: str) -> None:
    picture = await prepare(f'<svg xmlns="http://www.w3.org/2000/svg" {size}/>', SVG)
    assert max(picture.width, picture.height) == EDGE_PX


@pytest.mark.parametrize("svg", [pytest.param(svg, id=name) for name, svg in DAMAGED.items()])
async def test_what_is_no_svg_is_refused(svg: str) -> None:
    with pytest.raises(BadImageError, match="damaged"):
        await prepare(svg, SVG)


@pytest.mark.parametrize("svg", [pytest.param(svg, id=name) for name, svg in HARMFUL.items()])
async def test_what_asks_for_too_much_ends_with_its_process(svg: str) -> None:
    with pytest.raises(BadImageError, match="time or memory"):
        await prepare(svg, SVG)
    assert not psutil.Process().children()
    most_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert most_kib * 1024 <= MEMORY_BYTES


async def test_an_svg_that_is_too_large_is_not_begun() -> None:
    with pytest.raises(BadImageError, match="too large"):
        await prepare(HEAD + " " * drawing.MAX_SVG_BYTES + "</svg>", SVG)


@pytest.mark.parametrize("element", ["image", "feImage"])
@pytest.mark.parametrize("name", ["href", "xlink:href"])
@pytest.mark.parametrize(
    "place",
    ["{path}", " {path}", "file://{path}", "..{path}", "data:image/svg+xml;base64,{nested}"],
)
async def test_files_of_this_machine_are_not_drawn(
    tmp_path: Path, element: str, name: str, place: str
) -> None:
    path = tmp_path / "secret.png"
    Image.new("RGB", (100, 50), "red").save(path)
    inner = f'{HEAD}<image width="100" height="50" href="{path}"/></svg>'
    href = place.format(path=path, nested=base64.b64encode(inner.encode()).decode())
    shown = f'<{element} width="100" height="50" {name}="{href}"/>'
    if element == "feImage":
        shown = f'<filter id="f">{shown}</filter><rect filter="url(#f)" width="100" height="50" fill="#fff"/>'
    picture = await prepare(f"{HEAD}{shown}</svg>", SVG)
    drawn = Image.open(io.BytesIO(picture.data)).convert("RGB").getcolors(EDGE_PX * EDGE_PX)
    assert drawn is not None
    assert [colour for _, colour in drawn] == [WHITE]


async def test_an_external_entity_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "square.txt"
    path.write_text(SQUARE)
    entity = f'<!DOCTYPE svg [<!ENTITY square SYSTEM "file://{path}">]>'
    with pytest.raises(BadImageError, match="damaged"):
        await prepare(f"{entity}{HEAD}&square;</svg>", SVG)


async def test_an_image_inside_the_drawing_is_drawn() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "PNG")
    href = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    picture = await prepare(f'{HEAD}<image width="50" height="50" href="{href}"/></svg>', SVG)
    assert pixel(picture, 100, 100) == RED


async def test_a_process_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "DRAW_LIMIT_S", 0.5)
    with pytest.raises(BadImageError, match=r"not drawn within 0\.5 s"):
        await prepare(HARMFUL["endless noise"], SVG)
    assert not psutil.Process().children()


async def test_a_call_that_is_cancelled_leaves_no_process() -> None:
    with anyio.move_on_after(0.3) as scope:
        await prepare(HARMFUL["endless noise"], SVG)
    assert scope.cancelled_caught
    assert not psutil.Process().children()


def test_the_process_loads_little_of_the_package() -> None:
    code = "import sys, json; import sagebroker.server.svg_worker; print(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, check=True, text=True
    )
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"mcp", "mcp_types", "pydantic", "anyio", "docker", "zmq"}
