"""The demo: the whole main job on scikit-learn's scanned digits (1,797 real 8x8 images).

A teacher is trained on one part, and that part is thrown away. A few real images are kept, without
their labels, as the pilot set. A third part is looked at once, at the end, for the accuracies.
"""

from __future__ import annotations

from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hydistill_edge.atomic import write_text
from hydistill_edge.build import Build, build
from hydistill_edge.recipe import Recipe
from hydistill_edge.run_directory import RunDirectory, digest_of
from hydistill_edge.stages.work import Report

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import nn

TEACHER_IMAGES = 1000
PILOT_IMAGES = 100
# What is left, 697 images, is the untouched split.

INPUTS = "inputs"
"""Folder of the run directory with what a customer would hand over: teacher, pilot set, recipe."""

TEACHER_STEPS, TEACHER_BATCH, TEACHER_RATE = 400, 100, 0.1
TEACHER = "resnet20"
MEAN, STD = 0.305, 0.376
"""Of the digits, in [0, 1] pixel units."""


def run_demo(
    out: Path, *, seed: int = 0, fresh: bool = False, report: Report | None = None
) -> Build:
    """Make a teacher, forget its images, and run the main job on it.

    Args:
        out: the run directory.
        seed: of the split, the teacher and the build.
        fresh: redo what is done.
        report: called as `report(stage, done, total, metrics)`.
    """
    with RunDirectory(out) as run:
        if fresh:
            run.forget("inputs")
        make = partial(_make_inputs, seed=seed, report=report)
        run.folder_stage("inputs", digest_of([seed, TEACHER, TEACHER_STEPS]), INPUTS, make)
    return build(Recipe.load(out / INPUTS / "recipe.yaml"), out=out, fresh=fresh, report=report)


def _make_inputs(folder: Path, *, seed: int, report: Report | None) -> None:
    from safetensors.torch import save_file

    images, labels = load_digits()
    order = np.random.default_rng(seed).permutation(len(images))
    private, rest = order[:TEACHER_IMAGES], order[TEACHER_IMAGES:]
    pilot, untouched = rest[:PILOT_IMAGES], rest[PILOT_IMAGES:]
    teacher = train_teacher(images[private], labels[private], seed=seed, report=report)
    save_file(teacher.state_dict(), folder / "teacher.safetensors")
    np.savez_compressed(folder / "pilot.npz", images=images[pilot])
    np.savez_compressed(
        folder / "untouched.npz", images=images[untouched], labels=labels[untouched]
    )
    text = resources.files("hydistill_edge.recipes").joinpath("demo.yaml").read_text("utf-8")
    write_text(folder / "recipe.yaml", text.replace("seed: 0", f"seed: {seed}"))


def load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the digits, shape (1797, 8, 8, 1) uint8, and their labels, shape (1797,)."""
    from sklearn.datasets import load_digits as read

    images, labels = read(return_X_y=True)
    grey = (images.reshape(-1, 8, 8, 1) * (255 / 16)).round().astype(np.uint8)
    return grey, labels.astype(np.int64)


def train_teacher(
    images: NDArray[np.uint8], labels: NDArray[np.int64], *, seed: int, report: Report | None
) -> nn.Module:
    """Train the demo's teacher on labelled digits: plain supervised steps, nothing of ours."""
    import torch
    import torch.nn.functional as F

    from hydistill_edge.models.zoo import create_network
    from hydistill_edge.seeding import seeded

    chance = torch.Generator().manual_seed(seed)
    with seeded(seed):
        network = create_network(TEACHER, classes=10, channels=1, size=(8, 8), width=1.0)
    network.train()
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD
    targets = torch.from_numpy(labels)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=TEACHER_RATE, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, TEACHER_RATE, total_steps=TEACHER_STEPS
    )
    for step in range(TEACHER_STEPS):
        rows = torch.randint(len(pixels), (TEACHER_BATCH,), generator=chance)
        loss = F.cross_entropy(network(_shift(pixels[rows], chance)), targets[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if report is not None and (step + 1) % 20 == 0:
            report("demo teacher", step + 1, TEACHER_STEPS, {"loss": loss.item()})
    return network.eval()


def _shift(pixels: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
    """Return the batch moved by up to one pixel; what comes in is background."""
    import torch
    import torch.nn.functional as F

    padded = F.pad(pixels, (1, 1, 1, 1), value=-MEAN / STD)
    row, column = torch.randint(3, (2,), generator=chance).tolist()
    return padded[:, :, row : row + 8, column : column + 8]
