"""One trainer on labelled images serves the benches and the scripts that reproduce papers."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hydistill_edge.images.augment import AugmentSettings

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def arms(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(TOOLS / "bench"), *sys.path])  # arms adds to it
    return importlib.import_module("arms")


def test_teacher_of_a_bench_is_trained_once_and_learns(arms: ModuleType, tmp_path: Path) -> None:
    labels = np.arange(80) % 2
    noise = np.random.default_rng(0).integers(0, 60, (80, 8, 8, 1))
    data = arms.Split((noise + 140 * labels[:, None, None, None]).astype(np.uint8), labels)

    def make() -> float:
        teacher = arms.supervised_teacher(
            data,
            ("dark", "light"),
            architecture="resnet8",
            width=0.125,
            steps=12,
            batch=16,
            augment=AugmentSettings(),
            folder=tmp_path,
        )
        assert teacher.architecture == "zoo:resnet8"
        assert teacher.classes == ("dark", "light")
        return float(arms.accuracy(teacher, data))

    first = make()
    written = (tmp_path / "teacher.safetensors").stat().st_mtime_ns
    assert first == 100.0
    assert make() == first
    assert (tmp_path / "teacher.safetensors").stat().st_mtime_ns == written


def test_trainer_imports_when_pydantic_and_runtimes_are_missing() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('pydantic', 'openvino', 'onnxruntime')))\n"
        f"sys.path.insert(0, {str(TOOLS / 'reproduce')!r})\n"
        "import classifier, common"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
