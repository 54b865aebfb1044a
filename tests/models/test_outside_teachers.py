"""The two teachers as a customer would hand them over, by the two documented ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.teacher import Teacher

CIFAR_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
STEEL_CLASSES = (
    "crazing",
    "inclusion",
    "patches",
    "pitted_surface",
    "rolled-in_scale",
    "scratches",
)


def read_test_split(folder: Path, count: int) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Return the first images (N, C, H, W) uint8 and labels; stored as differences."""
    file = folder / "test.npz"
    if not file.is_file():
        pytest.skip(f"no test images at {file}")
    with np.load(file) as data:
        delta, labels = data["images_delta"][:, :count], data["labels"][:count]
    planes = np.cumsum(np.cumsum(delta, 2, dtype=np.uint8), 3, dtype=np.uint8)
    if len(planes) == 3:
        planes[0] += planes[1]
        planes[2] += planes[1]
    return torch.from_numpy(np.ascontiguousarray(planes.transpose(1, 0, 2, 3))), labels


def accuracy(teacher: Teacher, images: torch.Tensor, labels: NDArray[np.int64]) -> float:
    with torch.no_grad():
        logits = torch.cat([teacher(part) for part in images.split(80)])
    return float((logits.argmax(1).numpy() == labels).mean())


def test_steel_teacher_loads_as_a_torchvision_architecture(shared_dir: Path) -> None:
    teacher = Teacher.load(
        shared_dir / "teachers/neu_steel_regnet/teacher.safetensors",
        architecture="torchvision:regnet_y_400mf",
        classes=STEEL_CLASSES,
        spec=InputSpec(64, 64, 3, (0.50125,) * 3, (0.20692,) * 3),
        options={"num_classes": 6},
    )
    images, labels = read_test_split(shared_dir / "data/neu_steel", 480)
    assert accuracy(teacher, images, labels) == pytest.approx(0.9875, abs=0.003)
    assert teacher.shares_classifier


def test_cifar_teacher_loads_through_the_customers_own_file(shared_dir: Path) -> None:
    teacher = Teacher.load(
        shared_dir / "teachers/cifar10_resnet9/teacher.safetensors",
        architecture="resnet9.py:build",
        classes=CIFAR_CLASSES,
        spec=InputSpec(32, 32, 3, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        base=shared_dir / "teachers/cifar10_resnet9",
    )
    images, labels = read_test_split(shared_dir / "data/cifar10", 400)
    assert accuracy(teacher, images, labels) > 0.90  # 92.44 % of 8,000
    assert teacher.shares_classifier
