"""A bundle whose runtime is a plain function, so that these tests need no runtime."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hydistill_edge.bundle.golden import golden_files
from hydistill_edge.bundle.manifest import Digests, InputFormat, Manifest, Reject
from hydistill_edge.bundle.pack import pack

CLASSES = ("dark", "bright")


def logits_of(images: np.ndarray) -> np.ndarray:
    """The "model": how bright an image is, shape (N, H, W, C) to (N, 2)."""
    mean = images.reshape(len(images), -1).mean(axis=1, dtype=np.float64) / 128 - 1
    return np.stack([-4 * mean, 4 * mean], axis=1).astype(np.float32)


@dataclass
class FakeRunner:
    """Stands in for a runtime and remembers what it was asked."""

    file: Path
    threads: int
    precision: str
    answer: Callable[[np.ndarray], np.ndarray] = logits_of
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    closed: bool = False

    def __enter__(self) -> FakeRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def run(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        assert images.flags.c_contiguous
        self.shapes.append(images.shape)
        return self.answer(images)


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> list[FakeRunner]:
    """Every runner that was opened, in order."""
    opened: list[FakeRunner] = []

    def open_runner(target: str, file: Path, *, threads: int, precision: str) -> FakeRunner:
        assert target == "onnxruntime"
        opened.append(FakeRunner(file, threads, precision))
        return opened[-1]

    adapters = SimpleNamespace(open_runner=open_runner)
    monkeypatch.setitem(sys.modules, "hydistill_edge.targets.adapters", adapters)
    return opened


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test; nothing may be written to the user's."""
    monkeypatch.setenv("HYDISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make_bundle(out: Path, **changes: Any) -> Path:
    channels = changes.pop("channels", 3)
    images = np.linspace(0, 255, 6 * 8 * 8 * channels).astype(np.uint8)
    images = images.reshape(6, 8, 8, channels)
    files, golden = golden_files(
        images,
        ids=[f"made-{i}" for i in range(6)],
        origins=["synthetic"] * 6,
        may_ship=[True] * 6,
        student_logits=changes.pop("student_logits", logits_of(images)),
        artifact_logits=changes.pop("artifact_logits", None),
    )
    if changes.pop("without_golden", False):
        files, golden = golden_files(
            images[:0], ids=[], origins=[], may_ship=[], student_logits=np.zeros((0, 2), "f4")
        )
    fields: dict[str, Any] = {
        "name": "brightness",
        "version": "1.0.0",
        "target": "onnxruntime",
        "device": "x86-vnni",
        "precision": "fp32",
        "entry": "model/model.onnx",
        "input": InputFormat(8, 8, channels, "pillow-bilinear-antialias"),
        "batch": 1,
        "threads": 2,
        "classes": CLASSES,
        "golden": golden,
        "digests": Digests(student="1" * 64),
        "tools": {},
        "reject": Reject(1.0, (0.9, 0.9), 0.01, "labels", 100, 0.9, 0.0, 0.03),
    }
    model = changes.pop("model", b"weights")
    manifest = Manifest(**{**fields, **changes})
    return pack({"model/model.onnx": model, **files}, manifest, out / "brightness.hydistill")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    return lambda **changes: make_bundle(tmp_path, **changes)
