"""Images: whole, small enough, decoded before they are passed on."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib

import pytest
from PIL import Image

from sagebroker.server.images import (
    MAX_EDGE_PX,
    MAX_IMAGE_BYTES,
    MAX_PIXELS,
    BadImageError,
    fit,
    prepare,
)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    size = width * height * len(mode)
    return Image.frombytes(mode, (width, height), random.Random(7).randbytes(size))


def test_an_image_that_fits_passes_byte_for_byte() -> None:
    data = encoded(Image.new("RGBA", (626, 468), (1, 2, 3, 100)))
    picture = fit(data, "image/png")
    assert picture.data == data
    assert (picture.mime_type, picture.width, picture.height) == ("image/png", 626, 468)


def test_a_wide_image_is_scaled_to_the_longest_edge() -> None:
    picture = fit(encoded(Image.new("RGB", (4000, 1000), "blue")), "image/png")
    assert (picture.width, picture.height) == (MAX_EDGE_PX, 392)
    assert picture.mime_type == "image/png"
    assert picture.original == "4000x1000"


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_image_too_heavy_as_png_becomes_a_jpeg_or_smaller(mode: str) -> None:
    picture = fit(encoded(noise(1500, 1500, mode)), "image/png")
    assert len(picture.data) <= MAX_IMAGE_BYTES
    reread = Image.open(io.BytesIO(picture.data))
    reread.load()
    assert f"image/{(reread.format or '').lower()}" == picture.mime_type
    assert max(reread.size) <= MAX_EDGE_PX


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("edge", [20, 1500])
def test_an_image_that_must_be_png_is_one_and_fits(kind: str, edge: int) -> None:
    picture = fit(encoded(noise(edge, edge), kind), f"image/{kind.lower()}", as_png=True)
    assert Image.open(io.BytesIO(picture.data)).format == "PNG"
    assert picture.mime_type == "image/png"
    assert len(picture.data) <= MAX_IMAGE_BYTES


def test_transparency_becomes_white_in_a_jpeg() -> None:
    image = noise(1500, 1500, "RGBA")
    image.putalpha(0)
    image.paste(noise(1500, 700), (0, 800))
    picture = fit(encoded(image), "image/png")
    assert picture.mime_type == "image/jpeg"
    corner = Image.open(io.BytesIO(picture.data)).convert("RGB").getpixel((5, 5))
    assert isinstance(corner, tuple)
    assert min(corner) > 240


@pytest.mark.parametrize(("kind", "mime_type"), [("GIF", "image/gif"), ("WEBP", "image/webp")])
def test_other_formats_become_png(kind: str, mime_type: str) -> None:
    picture = fit(encoded(Image.new("RGB", (20, 10), "green"), kind), mime_type)
    assert picture.mime_type == "image/png"
    assert picture.data.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", b"\x89PNG\r\n\x1a\n", encoded(noise(50, 50))[:2000]],
    ids=["empty", "text", "signature only", "cut off"],
)
def test_damaged_data_is_refused(data: bytes) -> None:
    with pytest.raises(BadImageError):
        fit(data, "image/png")


def test_data_of_another_format_than_declared_is_refused() -> None:
    with pytest.raises(BadImageError):
        fit(encoded(Image.new("RGB", (5, 5)), "GIF"), "image/png")


def test_an_image_bomb_is_refused_by_its_header() -> None:
    side = int(MAX_PIXELS**0.5) + 10

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    bomb = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )
    with pytest.raises(BadImageError, match="pixels"):
        fit(bomb, "image/png")


async def test_base64_with_line_breaks_is_read_and_other_text_refused() -> None:
    data = encoded(Image.new("RGB", (5, 5)))
    wrapped = base64.encodebytes(data).decode()
    assert (await prepare(wrapped, "image/png")).data == data
    with pytest.raises(BadImageError, match="base64"):
        await prepare("&&&", "image/png")
