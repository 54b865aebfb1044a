"""A network trained on labelled images: the teacher of a script, or a student alone.

The published schedule of these papers' CIFAR teachers is the default: SGD at 0.05, momentum 0.9,
weight decay 5e-4, batches of 64, 240 epochs, a tenth of the rate from 150, 180 and 210 on, crops of
images padded by 4 black pixels, and flips. The weights are chosen on labelled images held out.

The teachers of `tools/bench` are trained here too, with settings of their own.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Phase, Split, Work, hold_out, tell, time_training
from safetensors.torch import save_file
from torch import Tensor, nn

from hydistill_edge.images.augment import Augment, AugmentSettings
from hydistill_edge.methods.pool import standard_error
from hydistill_edge.models.pixels import InputSpec, PixelInput
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.models.zoo import create_network
from hydistill_edge.training.loop import Judgement, Plan, Progress, Trained, train
from hydistill_edge.training.sampling import Passes

WEIGHTS = "teacher.safetensors"

AUGMENT = AugmentSettings(crop_pad=4, pad_mode="zero", flip=0.5)


@dataclass(frozen=True)
class ClassifierSettings:
    """How a classifier is trained; the defaults are the published ones.

    Attributes:
        architecture: of the zoo.
        width: multiplier of its channels.
        epochs: passes over the images.
        batch: images per step.
        learning_rate: peak of the schedule.
        schedule: a name of `hydistill_edge.training.schedules.SCHEDULES`.
        weight_decay: of weights.
        ema_share: share of all steps that the averaged weights reach back over; 0 for none.
        smoothing: of the labels.
        holdout: images held out, which choose the weights.
        evaluations: how often.
        steps: optimizer steps; None for those of the epochs.
        checkpoint_seconds: wall time between checkpoints.
    """

    architecture: str
    width: float = 1.0
    epochs: int = 240
    batch: int = 64
    learning_rate: float = 0.05
    schedule: str = "three_step"
    weight_decay: float = 5e-4
    ema_share: float = 0.0
    smoothing: float = 0.0
    holdout: int = 1000
    evaluations: int = 20
    steps: int | None = None
    checkpoint_seconds: float = 20.0

    def planned_steps(self, images: int) -> int:
        """Return the optimizer steps for so many images, those held out among them."""
        if self.steps is not None:
            return self.steps
        return self.epochs * max(1, (images - self.holdout) // self.batch)


def train_classifier(
    split: Split,
    spec: InputSpec,
    settings: ClassifierSettings,
    *,
    workdir: Path | None,
    seed: int = 0,
    device: torch.device,
    progress: Progress | None = None,
    augment: AugmentSettings = AUGMENT,
) -> dict[str, Any]:
    """Train a network of the zoo on labels; go on from the checkpoint where there is one.

    Args:
        split: labelled images; some of them are held out.
        spec: mean and standard deviation that the network is given.
        settings: how to train.
        workdir: where checkpoint and weights lie; None for neither.
        seed: of everything that is drawn.
        device: where to train.
        progress: called about a hundred times.
        augment: strengths of the views that are trained on.

    Returns:
        What can be said: `holdout_accuracy`, `steps`, `best_step`, `seconds`. The weights lie in
        `workdir`; `read_classifier` reads them.
    """
    keep, held = hold_out(split.labels, settings.holdout, seed=seed)
    network = _create(split, spec, settings, seed).to(device)
    everything = torch.from_numpy(split.images).to(device).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(split.labels).to(device)
    passes = Passes(len(keep), batch=settings.batch, seed=seed)
    change = Augment(augment)
    generator = torch.Generator(device).manual_seed(seed)

    def batch_loss(fast: nn.Module, step: int) -> Tensor:
        rows = torch.from_numpy(keep[passes.at(step)]).to(device)
        images = change(everything[rows], generator=generator)
        logits = fast(images.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), labels[rows], label_smoothing=settings.smoothing)

    @torch.no_grad()
    def judge(averaged: nn.Module) -> Judgement:
        rows = torch.from_numpy(held).to(device)
        right = [
            averaged(everything[part]).argmax(1) == labels[part] for part in torch.split(rows, 500)
        ]
        share = torch.cat(right).float().mean().item()
        return Judgement(share, {"holdout_accuracy": share}, standard_error(share, len(held)))

    trained: Trained = train(
        network,
        batch_loss,
        judge,
        Plan(
            steps=settings.planned_steps(len(split)),
            learning_rate=settings.learning_rate,
            schedule=settings.schedule,
            weight_decay=settings.weight_decay,
            ema_share=settings.ema_share,
            evaluations=settings.evaluations,
            checkpoint_seconds=settings.checkpoint_seconds,
        ),
        generators={"batch": generator},
        folder=workdir,
        fingerprint=_fingerprint(split, settings, augment, seed),
        seed=seed,
        device=device,
        progress=progress,
    )
    if workdir is not None:
        _save(network, workdir)
    return {
        "architecture": settings.architecture,
        "holdout_accuracy": trained.best.score,
        "holdout": len(held),
        "steps": trained.steps,
        "best_step": trained.best_step,
        "seconds": trained.seconds,
    }


def teacher_of(
    work: Work,
    split: Split,
    spec: InputSpec,
    settings: ClassifierSettings,
    *,
    seed: int,
    device: torch.device,
    name: str = "teacher",
) -> tuple[Teacher, dict[str, Any]]:
    """Return a run's trained classifier, and how its training went; a part of the work."""

    def make(folder: Path) -> dict[str, Any]:
        return train_classifier(
            split,
            spec,
            settings,
            workdir=folder,
            seed=seed,
            device=device,
            progress=tell(name),
        )

    told = work.part(name, make)
    folder = work.folder / name
    return read_classifier(split, spec, settings, workdir=folder, device=device), told


def read_classifier(
    split: Split,
    spec: InputSpec,
    settings: ClassifierSettings,
    *,
    workdir: Path,
    device: torch.device,
) -> Teacher:
    """Return a trained classifier as a teacher on the device, in eval mode for good."""
    teacher = Teacher.load(
        workdir / WEIGHTS,
        architecture=f"zoo:{settings.architecture}",
        classes=split.class_names,
        spec=spec,
        options={"width": settings.width},
    )
    return teacher.to(device)


def probe_teacher(
    split: Split,
    spec: InputSpec,
    settings: ClassifierSettings,
    *,
    workdir: Path,
    device: torch.device,
) -> Teacher:
    """Return an untrained classifier as a teacher, for timing what follows."""
    workdir.mkdir(parents=True, exist_ok=True)
    _save(_create(split, spec, settings, seed=0), workdir)
    teacher = read_classifier(split, spec, settings, workdir=workdir, device=device)
    return teacher.to(memory_format=torch.channels_last)


def probe_classifier(
    split: Split,
    spec: InputSpec,
    settings: ClassifierSettings,
    *,
    steps: int,
    device: torch.device,
    planned: int | None = None,
) -> Phase:
    """Return what its training costs, by a few steps of it.

    Args:
        split: labelled images.
        spec: as in `train_classifier`.
        settings: as in `train_classifier`.
        steps: to time.
        device: where.
        planned: images that the cost is projected for; None for those given.
    """

    def start(progress: Progress, total: int) -> None:
        quick = replace(settings, steps=total, evaluations=1, checkpoint_seconds=1e9)
        train_classifier(split, spec, quick, workdir=None, device=device, progress=progress)

    return time_training(
        "teacher",
        start,
        steps=steps,
        batch=settings.batch,
        planned_steps=settings.planned_steps(planned or len(split)),
    )


def _save(network: nn.Sequential, workdir: Path) -> None:
    """Write the weights without what stands in front of them."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in network[1].state_dict().items()}
    save_file(tensors, workdir / WEIGHTS)


def _create(
    split: Split, spec: InputSpec, settings: ClassifierSettings, seed: int
) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = create_network(
            settings.architecture,
            classes=len(split.class_names),
            channels=spec.channels,
            size=spec.size,
            width=settings.width,
        )
    return nn.Sequential(PixelInput(spec), network)


def _fingerprint(
    split: Split, settings: ClassifierSettings, augment: AugmentSettings, seed: int
) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(split.images).data)
    digest.update(np.ascontiguousarray(split.labels).data)
    values = {
        **{"settings": asdict(settings), "augment": asdict(augment)},
        **{"seed": seed, "torch": torch.__version__},
    }
    digest.update(json.dumps(values, sort_keys=True).encode())
    return digest.hexdigest()
