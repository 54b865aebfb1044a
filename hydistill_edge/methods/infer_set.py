"""INFER's set: squeeze networks, draw natural images, optimize compensators, label, store.

Source: as `infer.py`, which trains a student on it; this is the first half of the method.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hydistill_edge.errors import MethodError, ShapeError
from hydistill_edge.images.compensated_set import NETWORKS, CompensatedSet
from hydistill_edge.images.content_hash import content_hashes
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods.distilled import portion
from hydistill_edge.methods.infer_squeeze import Squeezed, squeeze
from hydistill_edge.models.ensemble import Classifier, Ensemble
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.synthesis.compensator import Compensators, check_networks, make_compensators
from hydistill_edge.synthesis.infer_budget import long_tailed, plan_budget
from hydistill_edge.synthesis.infer_draw import Natural, draw_natural, noisy_labels
from hydistill_edge.synthesis.infer_quality import describe_set
from hydistill_edge.synthesis.infer_settings import CompensatorSettings
from hydistill_edge.training.loop import Progress

BESIDE = "infer"
"""Folder of the compact set, inside that of the transfer set that was written from it."""

TEACHER = "teacher"

_BATCH = 256


@dataclass(frozen=True)
class MadeSet:
    """A set on the disk, and where its natural images come from.

    Attributes:
        distilled: the set.
        rows: places of its natural images among the real ones, shape (B,) int64.
    """

    distilled: CompensatedSet
    rows: NDArray[np.int64]


def make_set(
    teacher: Teacher,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None = None,
    *,
    settings: CompensatorSettings,
    folder: Path,
    workdir: Path,
    ids: Sequence[str] | None = None,
    others: Sequence[Squeezed] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> MadeSet:
    """Make a set of natural images, compensators and labels, and write its folder.

    Args:
        teacher: frozen.
        images: real ones, shape (N, H, W, C) uint8.
        labels: class of each, shape (N,); -1, or None for all, where unknown: the class is then
            what the teacher says.
        settings: how.
        folder: of the set; must not exist.
        workdir: where checkpoints lie. Called again after a kill, with the same arguments, it goes
            on.
        ids: source id of each image, for the manifest.
        others: networks that are there already, in the order of `settings.networks`; None trains
            them.
        seed: of everything that is drawn.
        device: where to compute.
        progress: called with (work done, work in all, the last metrics).

    Raises:
        MethodError: the budget is too small, a class has too few images, or a network has no
            BatchNorm.
        UsageError: an unknown architecture or layer.
    """
    count = len(teacher.classes)
    budget = plan_budget(
        settings.ipc, classes=count, networks=settings.network_count, natural=settings.natural
    )
    teacher.to(device)
    if settings.teacher:
        check_networks([teacher])
    classes = _classes(teacher, images, labels)
    if settings.label_noise:
        classes = noisy_labels(classes, share=settings.label_noise, classes=count, seed=seed)
    draw = partial(
        draw_natural,
        classes,
        long_tailed(budget.natural, classes=count, ratio=settings.long_tail),
        networks=settings.network_count,
        class_names=teacher.classes,
        seed=seed,
    )
    natural = draw()  # too few images are told before hours of training
    parts = 1 + bool(settings.networks)  # training the networks counts as much as their use
    squeezed = others
    if squeezed is None:
        squeezed = squeeze(
            teacher,
            images,
            settings,
            workdir=workdir,
            seed=seed,
            device=device,
            progress=portion(progress, 0, parts),
        )
    networks: list[Classifier] = [teacher] if settings.teacher else []
    ensemble = Ensemble(
        [*networks, *(one.network for one in squeezed)], average=settings.average
    ).to(device)
    if settings.choice == "confident":
        natural = draw(confidences=_confidences(ensemble, images, classes))
    compensators = make_compensators(
        ensemble,
        images[natural.rows],
        natural,
        settings,
        workdir=workdir,
        seed=seed,
        device=device,
        progress=portion(progress, parts - 1, parts),
    )
    distilled = _assemble(images, natural, compensators, teacher, settings)
    if settings.labels == "static":
        distilled = distilled.labelled(partial(ask, ensemble))
    saved = distilled.save(
        folder,
        details={
            "teacher": {"digest": teacher.digest, "architecture": teacher.architecture},
            "seeds": {"recipe": seed},
            "settings": asdict(settings),
            "budget": {
                **budget.to_dict(),
                "stated": budget.bytes(
                    values=images[0].size,
                    storage=settings.storage,
                    labels=settings.labels == "static",
                ),
            },
            "networks": _networks(teacher, squeezed, settings),
            "natural_ids": None if ids is None else [ids[row] for row in natural.rows.tolist()],
            "compensator_records": compensators.records,
            **describe_set(distilled, ensemble, teacher, images),
        },
        networks={one.name: one.network.save for one in squeezed},
    )
    return MadeSet(saved, natural.rows)


def open_ensemble(distilled: CompensatedSet, teacher: Teacher) -> Ensemble:
    """Return the networks that a set was made with, the teacher among them where it was.

    Args:
        distilled: a set with its folder.
        teacher: the one it was made with.

    Raises:
        MethodError: another teacher.
        MissingFileError: a network's files are gone.
    """
    told = distilled.manifest
    if distilled.folder is None or told["teacher"]["digest"] != teacher.digest:
        raise MethodError(
            f"{distilled.folder or 'a set in memory'}: was not made with this teacher (digest "
            f"{teacher.digest[:12]}); make the set again"
        )
    networks: list[Classifier] = []
    for network in told["networks"]:
        if network["name"] == TEACHER:
            networks.append(teacher)
        else:
            networks.append(Student.load(distilled.folder / NETWORKS / network["name"]))
    return Ensemble(networks, average=told["settings"]["average"])


def beside(transfer: TransferSet) -> CompensatedSet | None:
    """Return the compact set that a transfer set was written from; None where there is none.

    Raises:
        TransferSetError: it is torn or altered.
    """
    folder = transfer.folder / BESIDE
    return CompensatedSet.open(folder) if folder.is_dir() else None


def add_compensated(
    writer: TransferSetWriter, distilled: CompensatedSet, teacher: Teacher, *, may_ship: bool
) -> None:
    """Add a set's compensated images, with the teacher's own logits, to a transfer set.

    Args:
        writer: of the transfer set.
        distilled: the set; its natural images are left out.
        teacher: the transfer set's.
        may_ship: whether its natural images may leave the run directory, all of them.
    """
    alone = Ensemble([teacher])
    for places, images in distilled.chunks():
        new = np.flatnonzero(distilled.compensators[places] >= 0)
        if len(new):
            parts = zip(
                distilled.bases[places[new]].tolist(),
                distilled.compensators[places[new]].tolist(),
                strict=True,
            )
            writer.add(
                images[new],
                ask(alone, images[new]),
                origin="derived",
                ids=[f"infer:{base:06d}+{added:06d}" for base, added in parts],
                may_ship=may_ship,
            )


def write_transfer(folder: Path, distilled: CompensatedSet, teacher: Teacher) -> TransferSet:
    """Write a set as a transfer set that every method and the calibration can use.

    Args:
        folder: of the transfer set; must not exist. A copy of the compact set goes inside.
        distilled: the set; its natural images count as real.
        teacher: asked about every image.
    """
    with TransferSetWriter(
        folder,
        size=distilled.size,
        channels=distilled.channels,
        classes=distilled.class_names,
        teacher_digest=teacher.digest,
        method="infer",
    ) as writer:
        natural = distilled.images(np.arange(distilled.natural))
        ids = [f"natural:{place:06d}" for place in range(len(natural))]
        writer.add(natural, ask(Ensemble([teacher]), natural), origin="real", ids=ids)
        add_compensated(writer, distilled, teacher, may_ship=False)
    if distilled.folder is not None:
        shutil.copytree(distilled.folder, folder / BESIDE)
    return TransferSet.open(folder)


@torch.no_grad()
def ask(ensemble: Ensemble, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the common logits of images (N, H, W, C) uint8, shape (N, classes)."""
    device = next(ensemble.parameters()).device
    parts = [
        ensemble(torch.from_numpy(images[start : start + _BATCH]).permute(0, 3, 1, 2).to(device))
        for start in range(0, len(images), _BATCH)
    ]
    logits: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    return logits


def _classes(
    teacher: Teacher, images: NDArray[np.uint8], labels: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Return the class of every image; -1 for those whose pixels stand there already."""
    if labels is not None and len(labels) != len(images):
        raise ShapeError(f"{len(labels)} labels for {len(images)} images; expected one each")
    classes: NDArray[np.int64] = ask(Ensemble([teacher]), images).argmax(axis=1).astype(np.int64)
    if labels is not None:
        classes[labels >= 0] = labels[labels >= 0]
    _, first = np.unique(content_hashes(images), axis=0, return_index=True)
    again = np.ones(len(images), np.bool_)
    again[first] = False
    classes[again] = -1
    return classes


def _confidences(
    ensemble: Ensemble, images: NDArray[np.uint8], classes: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the networks' probability of each image's class, shape (N,)."""
    probabilities = torch.from_numpy(ask(ensemble, images)).softmax(dim=1).numpy()
    found: NDArray[np.float32] = probabilities[np.arange(len(classes)), np.maximum(classes, 0)]
    return found


def _assemble(
    images: NDArray[np.uint8],
    natural: Natural,
    compensators: Compensators,
    teacher: Teacher,
    settings: CompensatorSettings,
) -> CompensatedSet:
    return CompensatedSet.of(
        images[natural.rows],
        compensators.values,
        base_classes=natural.classes,
        base_slots=natural.slots,
        compensator_slots=compensators.slots,
        compensator_networks=compensators.networks,
        class_names=teacher.classes,
        storage=settings.storage,
        scale=settings.scale,
    )


def _networks(
    teacher: Teacher, squeezed: Sequence[Squeezed], settings: CompensatorSettings
) -> list[dict[str, Any]]:
    spec = teacher.spec
    first = {
        "name": TEACHER,
        "architecture": teacher.architecture,
        "digest": teacher.digest,
        "normalization": {"mean": list(spec.mean), "std": list(spec.std)},
        "agreement": 1.0,
    }
    others = [
        {
            "name": one.name,
            "architecture": one.network.architecture,
            "width": one.network.width,
            "digest": one.network.digest,
            "normalization": "(pixel - 128) / 64",
            "agreement": one.agreement,
            "steps": one.steps,
        }
        for one in squeezed
    ]
    return [first, *others] if settings.teacher else others
