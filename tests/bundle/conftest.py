"""A tiny bundle: no runtime can open its model, but everything else is real."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hydistill_edge.bundle.manifest import (
    Digests,
    Golden,
    GoldenImage,
    InputFormat,
    Manifest,
    Reject,
)
from hydistill_edge.bundle.pack import pack

CONTENTS: dict[str, bytes] = {
    "model/model.onnx": b"weights" * 20,
    "golden/0000.png": b"a picture",
    "golden/student.f32": bytes(8),
    "evidence/parity.json": b"{}\n",
    "device.yaml": b"name: x86-vnni\n",
    "model_card.md": b"# widgets\n",
}


def make_manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": "widgets",
        "version": "1.0.0",
        "target": "onnxruntime",
        "device": "x86-vnni",
        "precision": "int8",
        "entry": "model/model.onnx",
        "input": InputFormat(8, 8, 1, "pillow-bilinear-antialias"),
        "batch": 1,
        "threads": 1,
        "classes": ("good", "bad"),
        "golden": Golden(
            (GoldenImage("golden/0000.png", "synthetic-7", "synthetic"),), "golden/student.f32"
        ),
        "digests": Digests(student="1" * 64, teacher="2" * 64, calibration="3" * 64),
        "tools": {"hydistill-edge": "0.1.0"},
        "scheme": "u8s8-per-channel",
        "reject": Reject(1.5, (0.5, 0.75), 0.01, "labels", 100, 0.9, 0.0, 0.03),
    }
    return Manifest(**{**fields, **changes})


@pytest.fixture
def manifest() -> Manifest:
    return make_manifest()


@pytest.fixture
def contents() -> dict[str, bytes]:
    return dict(CONTENTS)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return pack(CONTENTS, make_manifest(), tmp_path / "widgets.hydistill")


@pytest.fixture
def make() -> Callable[..., Manifest]:
    return make_manifest


@pytest.fixture(scope="session")
def bundle_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("bundle") / "widgets.hydistill"
    return pack(CONTENTS, make_manifest(), out).read_bytes()
