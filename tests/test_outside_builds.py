"""A small build from each of the two teachers from outside, through the documented ways."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydistill_edge import Recipe, build


@dataclass(frozen=True)
class Outside:
    """A teacher as a customer would hand it over, and its images."""

    name: str
    architecture: str
    classes: tuple[str, ...]
    input: dict[str, Any]
    channels: int


CASES = [
    Outside(
        "cifar10_resnet9",
        "{teachers}/cifar10_resnet9/resnet9.py:build",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        {
            "height": 32,
            "width": 32,
            "channels": 3,
            "mean": [0.4914, 0.4822, 0.4465],
            "std": [0.2470, 0.2435, 0.2616],
        },
        channels=3,
    ),
    Outside(
        "neu_steel_regnet",
        "torchvision:regnet_y_400mf",
        ("crazing", "inclusion", "patches", "pitted_surface", "rolled-in_scale", "scratches"),
        {
            "height": 64,
            "width": 64,
            "channels": 3,
            "mean": [0.50125] * 3,
            "std": [0.20692] * 3,
        },
        channels=1,  # the camera is grey; the teacher sees it repeated
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_teacher_from_outside_becomes_a_bundle(
    case: Outside, shared_dir: Path, tmp_path: Path
) -> None:
    data = shared_dir / "data" / {"cifar10_resnet9": "cifar10"}.get(case.name, "neu_steel")
    test = {"kind": "npz", "path": str(data / "test.npz"), "limit": 120, "use_labels": True}
    recipe = {
        "name": "outside",
        "teacher": {
            "weights": str(shared_dir / "teachers" / case.name / "teacher.safetensors"),
            "architecture": case.architecture.format(teachers=shared_dir / "teachers"),
            "classes": list(case.classes),
            "input": case.input,
        },
        "images": {
            "channels": case.channels,
            "synthetic": {"count": 48, "inversion": {"iterations": 2}},
        },
        "student": {"architecture": "resnet8", "width": 0.5},
        "training": {"steps": 4, "batch": 16},
        "targets": [{"target": "onnxruntime", "device": "x86-avx2", "precisions": ["int8"]}],
        "latency": {"mode": "demo"},
        "evaluation": test,
    }

    result = build(Recipe.parse(yaml.safe_dump(recipe)), out=tmp_path / "run")

    assert result.summary["teacher"]["accuracy"] > 0.85  # normalized as its README says
    assert list((tmp_path / "run" / "bundle").glob("*.hydistill"))
