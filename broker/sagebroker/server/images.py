"""Images as a model's client takes them: whole, of a size it does not choke on.

An image a client cannot use can spoil a whole conversation, and a kernel may send anything: every
image is decoded, in a worker thread, before it is passed on.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
from PIL import Image, UnidentifiedImageError

from sagebroker.server.drawing import DrawingError, draw

MAX_EDGE_PX: Final = 1568
"""Longest edge; vision models scale larger images down to this themselves."""
MAX_IMAGE_BYTES: Final = 500_000
"""Size of one image before base64: two of them, as base64 1.3 MB, stay under every known limit
of a single image (5 MB) and are quick to send."""
MAX_PIXELS: Final = 64_000_000
"""Pixels that are decoded, 256 MB as RGBA; a larger image is refused unread."""
JPEG_QUALITIES: Final = (88, 75, 60)
"""Tried in turn for an image whose PNG is too large."""
_SHRINK: Final = 0.7
"""Factor on the edges when no quality is small enough: about half the pixels."""
_SMALLEST_EDGE_PX: Final = 64
"""Where shrinking gives up; any image of this size is below the limit."""
_FORMATS: Final = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/gif": "GIF",
    "image/webp": "WEBP",
}

SVG: Final = "image/svg+xml"

IMAGE_TYPES: Final = (*_FORMATS, SVG)
"""MIME types that become images, the preferred first."""

_workers = anyio.CapacityLimiter(2)
"""Decoding is bound by the processor; two at once leave some for the event loop."""


class BadImageError(ValueError):
    """The data is not an image that can be shown; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image fit for a client."""

    data: bytes
    mime_type: str
    """``image/png`` or ``image/jpeg``."""
    width: int
    height: int
    original: str
    """Width, height of what the kernel sent, as ``3000x2000``; the MIME type of SVG, which has none."""

    @property
    def base64(self) -> str:
        """The data as base64 text."""
        return base64.b64encode(self.data).decode("ascii")


async def prepare(text: str, mime_type: str, *, as_png: bool = False) -> Picture:
    """Decode and fit an image of a MIME bundle, in a worker thread; draw an SVG before that.

    Args:
        text: Base64, as Jupyter sends it; of an SVG its text.
        mime_type: One of `IMAGE_TYPES`.
        as_png: Whether it must not become a JPEG.

    Raises:
        BadImageError: It is not an image, or has too many pixels.
    """
    if mime_type == SVG:
        try:
            drawn = await draw(text)
        except DrawingError as error:
            raise BadImageError(str(error)) from error
        decoded = partial(fit, drawn, "image/png", as_png=as_png)
        picture = await anyio.to_thread.run_sync(decoded, limiter=_workers)
        return replace(picture, original=SVG)
    decoded = partial(_decode_and_fit, text, mime_type, as_png=as_png)
    return await anyio.to_thread.run_sync(decoded, limiter=_workers)


def decode(text: str) -> bytes:
    """The bytes of base64 text.

    Raises:
        BadImageError: It is something else.
    """
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImageError("not base64") from error


def _decode_and_fit(text: str, mime_type: str, *, as_png: bool) -> Picture:
    return fit(decode(text), mime_type, as_png=as_png)


def fit(data: bytes, mime_type: str, *, as_png: bool = False) -> Picture:
    """The image itself where it fits, else a smaller one; blocking.

    Raises:
        BadImageError: It is not an image, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of large images; MAX_PIXELS decides here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(io.BytesIO(data), formats=[_FORMATS[mime_type]])
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise BadImageError(f"{width}x{height} pixels are too many")
            opened.load()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if isinstance(error, BadImageError):
            raise
        raise BadImageError("damaged") from error
    original = f"{width}x{height}"
    fits = max(width, height) <= MAX_EDGE_PX and len(data) <= MAX_IMAGE_BYTES
    passing = ("image/png",) if as_png else ("image/png", "image/jpeg")
    if fits and mime_type in passing:
        return Picture(
            data=data, mime_type=mime_type, width=width, height=height, original=original
        )
    return _shrunk(opened, original, as_png=as_png)


def _shrunk(image: Image.Image, original: str, *, as_png: bool) -> Picture:
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    edge = min(MAX_EDGE_PX, max(image.size))
    while True:
        smaller = _scaled(image, edge)
        for data, mime_type in _encodings(smaller, as_png=as_png):
            if len(data) <= MAX_IMAGE_BYTES or edge <= _SMALLEST_EDGE_PX:
                return Picture(
                    data=data,
                    mime_type=mime_type,
                    width=smaller.width,
                    height=smaller.height,
                    original=original,
                )
        edge = max(_SMALLEST_EDGE_PX, int(edge * _SHRINK))


def _scaled(image: Image.Image, edge: int) -> Image.Image:
    longest = max(image.size)
    if longest <= edge:
        return image
    size = (max(1, image.width * edge // longest), max(1, image.height * edge // longest))
    return image.resize(size, Image.Resampling.LANCZOS)


def _encodings(image: Image.Image, *, as_png: bool) -> Iterator[tuple[bytes, str]]:
    """PNG, then JPEGs on white of falling quality."""
    yield _encode(image, "PNG", optimize=True), "image/png"
    if as_png:
        return
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    for quality in JPEG_QUALITIES:
        yield _encode(flat, "JPEG", quality=quality), "image/jpeg"


def _encode(image: Image.Image, kind: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
