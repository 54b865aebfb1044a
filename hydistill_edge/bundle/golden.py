"""Golden images: a few pictures with known logits, so that a device can check itself.

They travel in the bundle as PNG files beside raw float32 tables, and only pictures that may: made
by the build itself, or real ones whose owner allowed it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.bundle.manifest import Golden, GoldenImage, Manifest
from hydistill_edge.errors import BundleError, ShapeError

STUDENT_LOGITS = "golden/student.f32"
ARTIFACT_LOGITS = "golden/artifact.f32"

Logits = NDArray[np.float32]


@dataclass(frozen=True)
class GoldenSet:
    """Golden images as read back from a bundle.

    Attributes:
        ids: one per image.
        files: one PNG file's bytes per image.
        student_logits: the float student's, shape (N, classes).
        artifact_logits: the artifact's own on the build machine, or None.
    """

    ids: tuple[str, ...]
    files: tuple[bytes, ...]
    student_logits: Logits
    artifact_logits: Logits | None


def golden_files(
    images: NDArray[np.uint8],
    *,
    ids: Sequence[str],
    origins: Sequence[str],
    may_ship: Sequence[bool],
    student_logits: Logits,
    artifact_logits: Logits | None = None,
    note: str = "",
) -> tuple[dict[str, bytes], Golden]:
    """Return the files of golden images, and what the manifest says about them.

    Args:
        images: shape (N, H, W, C) uint8, C = 1 or 3; N = 0 gives no files, `note` should say why.
        ids: source id of each image.
        origins: one of `manifest.ORIGINS` for each.
        may_ship: whether each may leave the build; synthetic ones always may.
        student_logits: of the float student, shape (N, classes).
        artifact_logits: of the artifact on this machine; None where it cannot run here.
        note: for the reader of the manifest.

    Raises:
        BundleError: an image that may not ship, or logits that are not finite.
        ShapeError: columns of different lengths.
    """
    tables = {STUDENT_LOGITS: student_logits}
    if artifact_logits is not None:
        tables[ARTIFACT_LOGITS] = artifact_logits
    lengths = {len(images), len(ids), len(origins), len(may_ship), *map(len, tables.values())}
    if len(lengths) != 1:
        raise ShapeError(f"golden columns have lengths {sorted(lengths)}; expected one each")
    if not len(images):
        return {}, Golden(images=(), student_logits=None, note=note)
    for name, origin, allowed in zip(ids, origins, may_ship, strict=True):
        if origin != "synthetic" and not allowed:
            raise BundleError(
                f"golden image {name!r} is {origin} and may not ship; choose synthetic images, or "
                "declare may_ship for its source"
            )
    rows = [
        GoldenImage(f"golden/{index:04d}.png", name, origin)
        for index, (name, origin) in enumerate(zip(ids, origins, strict=True))
    ]
    files = {row.path: encode_png(image) for row, image in zip(rows, images, strict=True)}
    files |= {path: _encode_logits(path, table) for path, table in tables.items()}
    own = ARTIFACT_LOGITS if artifact_logits is not None else None
    return files, Golden(tuple(rows), STUDENT_LOGITS, own, note)


def read_golden(manifest: Manifest, read: Callable[[str], bytes]) -> GoldenSet | None:
    """Read the golden images back.

    Args:
        manifest: of the bundle.
        read: gives the checked bytes of a file in the bundle.

    Returns:
        The set, or None where the bundle has no golden images.
    """
    golden, classes = manifest.golden, len(manifest.classes)
    if golden.student_logits is None:
        return None
    own = golden.artifact_logits
    return GoldenSet(
        ids=tuple(image.id for image in golden.images),
        files=tuple(read(image.path) for image in golden.images),
        student_logits=_decode_logits(read(golden.student_logits), classes),
        artifact_logits=None if own is None else _decode_logits(read(own), classes),
    )


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """Return one image, shape (H, W, 1 or 3) uint8, as a PNG file without metadata."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(stream, "PNG")
    return stream.getvalue()


def _encode_logits(path: str, logits: Logits) -> bytes:
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise BundleError(
            f"{path}: logits of shape {logits.shape}, or not finite; expected finite numbers of "
            "shape (images, classes). The artifact or the student is broken"
        )
    return np.ascontiguousarray(logits, dtype="<f4").tobytes()


def _decode_logits(data: bytes, classes: int) -> Logits:
    return np.frombuffer(data, dtype="<f4").reshape(-1, classes).astype(np.float32)
