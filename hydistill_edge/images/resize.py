"""Resize: the one way an encoded image becomes the pixels that a network sees.

The host (sources, transfer set) and the device (bundle runner) call the same three functions, in
this order: `decode`, `to_channels`, `resize`. Only numpy and Pillow are needed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hydistill_edge.errors import ImageSourceError, MissingFileError, ShapeError

Pixels = NDArray[np.uint8]
"""One image, shape (H, W, C) uint8, C = 1 (grey) or 3 (RGB)."""

RESIZE_RULE = "pillow-bilinear-antialias"
"""The rule's name, as it stands in graph metadata and bundle manifests."""

MAX_PIXELS = 64_000_000
"""Largest image decoded unless asked otherwise; below the 89 million where Pillow warns."""

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF")
"""Formats that are decoded. A short list: other decoders of Pillow start programs (EPS) or are rare
on a line, and each one is a door for a hostile file."""

_CHANNELS = (1, 3)


def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Return the image at another size, by Pillow's antialiased bilinear filter.

    Args:
        image: shape (H, W, C) uint8, C = 1 or 3.
        size: (height, width) wanted, in pixels.

    Returns:
        Shape (height, width, C) uint8; the same array where the size is equal already.

    Raises:
        ShapeError: the image is not (H, W, 1 or 3) uint8, or the size is not positive.
    """
    _check_pixels(image)
    height, width = size
    if height < 1 or width < 1:
        raise ShapeError(f"cannot resize to {height}x{width} pixels: both must be at least 1")
    if image.shape[:2] == (height, width):
        return image
    resized = _to_pillow(image).resize((width, height), Image.Resampling.BILINEAR)
    return _from_pillow(resized)


RULES: dict[str, Callable[[Pixels, tuple[int, int]], Pixels]] = {RESIZE_RULE: resize}
"""Every resize rule that a manifest may name, by name."""


def to_channels(image: Pixels, channels: int) -> Pixels:
    """Return the image with 1 (grey) or 3 (RGB) channels.

    Grey becomes RGB by repetition, RGB becomes grey by ITU-R 601 luminance (Pillow's "L").

    Args:
        image: shape (H, W, C) uint8, C = 1 or 3.
        channels: 1 or 3.

    Returns:
        Shape (H, W, channels) uint8; the same array where the count is equal already.

    Raises:
        ShapeError: the image is not (H, W, 1 or 3) uint8, or channels is neither 1 nor 3.
    """
    _check_pixels(image)
    if channels not in _CHANNELS:
        raise ShapeError(f"cannot convert to {channels} channels: expected 1 (grey) or 3 (RGB)")
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return _from_pillow(_to_pillow(image).convert("L"))


def decode(
    source: bytes | Path | Image.Image, *, name: str = "", max_pixels: int = MAX_PIXELS
) -> Pixels:
    """Decode one image file to pixels.

    Grey stays grey, 16-bit grey is scaled to 8 bits, palettes become RGB, transparency is dropped.
    The first frame counts. The orientation note of cameras (EXIF) is not applied: training
    pipelines commonly leave it, and the teacher saw its images that way.

    Args:
        source: an encoded file's bytes, its path, or an image that Pillow has opened.
        name: what errors call the image; default the path.
        max_pixels: refuse anything larger, before it is decoded.

    Returns:
        Shape (H, W, 1) uint8 for grey images, (H, W, 3) for all others.

    Raises:
        MissingFileError: the path does not exist.
        ImageSourceError: the file is truncated, corrupt, too large, or of no known format.
    """
    name = name or (str(source) if isinstance(source, Path) else "image")
    if isinstance(source, Path):
        source = _read(source, name)
    try:
        if isinstance(source, Image.Image):
            return _decode_opened(source, name, max_pixels)
        with Image.open(io.BytesIO(source), formats=FORMATS) as opened:
            return _decode_opened(opened, name, max_pixels)
    except ImageSourceError:
        raise
    except UnidentifiedImageError as error:
        raise ImageSourceError(
            f"{name}: not an image, or of an unknown format; expected {', '.join(FORMATS)}"
        ) from error
    except Exception as error:  # decoders raise nearly every builtin on broken bytes
        raise ImageSourceError(
            f"{name}: truncated or corrupt image ({error}); replace the file or leave it out"
        ) from error


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise MissingFileError(f"{name}: no such image file") from error
    except OSError as error:
        raise ImageSourceError(f"{name}: cannot be read ({error.strerror})") from error


def _decode_opened(image: Image.Image, name: str, max_pixels: int) -> Pixels:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageSourceError(
            f"{name}: {width}x{height} is {width * height:,} pixels; at most {max_pixels:,} are "
            "decoded; scale the image down, or raise the limit"
        )
    if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
        return _from_16_bit(np.asarray(image), name)
    if image.mode == "F":
        raise ImageSourceError(
            f"{name}: floating-point pixels have no agreed range; expected 8- or 16-bit pixels"
        )
    if image.mode in ("1", "L", "LA", "La"):
        return _from_pillow(image.convert("L"))
    if image.mode in ("P", "PA"):  # by way of RGBA: Pillow warns about transparent palettes
        image = image.convert("RGBA")
    return _from_pillow(image.convert("RGB"))


def _from_16_bit(values: NDArray[np.integer], name: str) -> Pixels:
    wide = values.astype(np.int64)[:, :, None]
    if wide.min() < 0 or wide.max() > 65535:
        raise ImageSourceError(
            f"{name}: pixel values reach {int(wide.max())}; expected 8- or 16-bit pixels"
        )
    return ((wide * 255 + 32767) // 65535).astype(np.uint8)


def _to_pillow(image: Pixels) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _from_pillow(image: Image.Image) -> Pixels:
    pixels = np.array(image, dtype=np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _check_pixels(image: Pixels) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in _CHANNELS:
        raise ShapeError(
            f"image has shape {image.shape} and dtype {image.dtype}; "
            "expected (height, width, 1 or 3) uint8"
        )
    if image.size == 0:
        raise ShapeError(f"image of shape {image.shape} has no pixels")
