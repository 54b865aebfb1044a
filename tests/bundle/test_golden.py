"""Golden images: only those that may travel, and back from the bundle unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydistill_edge.bundle.golden import golden_files, read_golden
from hydistill_edge.bundle.manifest import Golden, Manifest
from hydistill_edge.bundle.pack import Bundle, inspect, pack
from hydistill_edge.errors import BundleError, ShapeError
from hydistill_edge.images.resize import decode

IMAGES = np.arange(3 * 4 * 4 * 3, dtype=np.uint8).reshape(3, 4, 4, 3)
LOGITS = np.arange(6, dtype=np.float32).reshape(3, 2)


def golden(**changes: Any) -> tuple[dict[str, bytes], Golden]:
    fields: dict[str, Any] = {
        "images": IMAGES,
        "ids": ["x", "y", "z"],
        "origins": ["synthetic", "real", "synthetic"],
        "may_ship": [False, True, False],
        "student_logits": LOGITS,
        "artifact_logits": LOGITS + 1,
    }
    return golden_files(**{**fields, **changes})


def packed(tmp_path: Path, manifest: Manifest, files: dict[str, bytes], facts: Golden) -> Path:
    contents = {"model/model.onnx": b"weights", **files}
    return pack(contents, replace(manifest, golden=facts), tmp_path / "a.hydistill")


@pytest.mark.parametrize("channels", [1, 3])
def test_golden_images_are_unchanged_when_read_from_the_bundle(
    tmp_path: Path, manifest: Manifest, channels: int
) -> None:
    path = packed(tmp_path, manifest, *golden(images=IMAGES[..., :channels]))

    with Bundle(path) as bundle:
        back = read_golden(bundle.manifest, bundle.read)

    assert back is not None
    assert back.ids == ("x", "y", "z")
    assert np.array_equal([decode(data) for data in back.files], IMAGES[..., :channels])
    assert np.array_equal(back.student_logits, LOGITS)
    assert back.artifact_logits is not None
    assert np.array_equal(back.artifact_logits, LOGITS + 1)


def test_bundle_has_no_golden_set_when_no_image_may_travel(
    tmp_path: Path, manifest: Manifest
) -> None:
    files, facts = golden(
        images=IMAGES[:0], ids=[], origins=[], may_ship=[], student_logits=LOGITS[:0],
        artifact_logits=None, note="no image may ship",
    )  # fmt: skip

    path = packed(tmp_path, manifest, files, facts)

    assert files == {}
    assert inspect(path).golden.note == "no image may ship"
    assert read_golden(inspect(path), lambda name: b"") is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"may_ship": [False] * 3}, "'y' is real and may not ship"),
        ({"student_logits": LOGITS * np.nan}, "not finite"),
    ],
    ids=["not free", "NaN"],
)
def test_golden_images_are_refused_when_they_must_not_travel(
    changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(BundleError, match=expected):
        golden(**changes)


def test_golden_images_are_refused_when_columns_differ() -> None:
    with pytest.raises(ShapeError, match=r"lengths \[2, 3\]"):
        golden(ids=["x", "y"])


def test_golden_files_have_the_same_bytes_when_made_twice() -> None:
    assert golden() == golden()
