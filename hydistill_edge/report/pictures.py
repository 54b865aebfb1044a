"""The synthetic images of a run as PNG contact sheets, one strip per class.

They come from `preview.npz` in the run directory (`images` uint8 (N, H, W, C), `labels` (N,) class
indices, optionally `ids` (N,)), or ready-made from `report/images/*.png`.
"""

from __future__ import annotations

import base64
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PREVIEW = "preview.npz"
PICTURES = "report/images"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAX_CLASSES = 24  # strips on the page
MAX_PER_CLASS = 12  # images in a strip
MAX_PICTURE_BYTES = 2_000_000
MAX_PREVIEW_BYTES = 256_000_000
GAP = 1  # transparent pixels between two images of a strip


@dataclass(frozen=True)
class Strip:
    """Images of one class in a row, as a PNG."""

    name: str
    count: int
    width: int
    height: int
    uri: str


@dataclass(frozen=True)
class Pictures:
    """Every picture that the report shows.

    Attributes:
        strips: one per class, in class order.
        classes: how many classes there were before `MAX_CLASSES` cut them.
        by_id: data URI of an image by its id, for the worst samples of parity.
        problems: why a picture is missing.
    """

    strips: tuple[Strip, ...] = ()
    classes: int = 0
    by_id: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()


def read_pictures(run: Path, class_names: tuple[str, ...]) -> Pictures:
    """Read the pictures of a run directory; what cannot be read becomes a problem, not an error."""
    preview, folder = run / PREVIEW, run / PICTURES
    if preview.is_file():
        try:
            return _from_preview(preview, class_names)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            return Pictures(problems=(f"{PREVIEW} could not be read: {error}",))
    found = sorted(folder.glob("*.png")) if folder.is_dir() else []
    strips, problems = [], []
    for path in found[:MAX_CLASSES]:
        data = path.read_bytes()
        if not data.startswith(PNG_SIGNATURE) or len(data) > MAX_PICTURE_BYTES:
            problems.append(f"{PICTURES}/{path.name} is no PNG of at most 2 MB; left out")
            continue
        width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
        strips.append(Strip(path.stem, 0, width, height, data_uri(data)))
    return Pictures(tuple(strips), len(found), (), tuple(problems))


def _from_preview(path: Path, class_names: tuple[str, ...]) -> Pictures:
    if path.stat().st_size > MAX_PREVIEW_BYTES:
        raise ValueError(f"{path.stat().st_size:,} bytes, at most {MAX_PREVIEW_BYTES:,}")
    with np.load(path, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
        ids = file["ids"] if "ids" in file.files else None
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} {images.shape}; expected uint8 (N, H, W, 1 or 3)"
        )
    if labels.shape != (len(images),) or (ids is not None and ids.shape != labels.shape):
        raise ValueError(f"{labels.shape} labels for {len(images)} images; expected one each")
    known = sorted({int(label) for label in labels})
    strips = [
        _strip(_name(label, class_names), images[labels == label]) for label in known[:MAX_CLASSES]
    ]
    pairs = zip(ids, images, strict=True) if ids is not None else ()
    by_id = tuple((str(name), data_uri(png(image))) for name, image in pairs)
    return Pictures(tuple(strips), len(known), by_id)


def _name(label: int, class_names: tuple[str, ...]) -> str:
    return class_names[label] if 0 <= label < len(class_names) else f"class {label}"


def _strip(name: str, images: NDArray[np.uint8]) -> Strip:
    """Lay the first images of a class side by side, with transparent gaps."""
    shown = images[:MAX_PER_CLASS]
    count, height, width, channels = shown.shape
    row = np.zeros((height, count * (width + GAP) - GAP, 4), np.uint8)
    for place, image in enumerate(shown):
        left = place * (width + GAP)
        row[:, left : left + width, :3] = image if channels == 3 else image.repeat(3, axis=-1)
        row[:, left : left + width, 3] = 255
    return Strip(name, len(images), row.shape[1], height, data_uri(png(row)))


def png(image: NDArray[Any]) -> bytes:
    """Encode one image, shape (H, W, 1 | 3 | 4) uint8; equal pixels give equal bytes."""
    from PIL import Image

    out = io.BytesIO()
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", optimize=True)
    return out.getvalue()


def data_uri(data: bytes) -> str:
    """Return a PNG as an address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
