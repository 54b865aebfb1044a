"""`keys.json`: which teacher layers a student learned from, why, and what that saves.

It holds numbers about layers and no image, so that several sites which distill the same teacher on
their own images can compare their choices, or pool them with `pool_keys`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hydistill_edge.errors import MissingFileError, UsageError
from hydistill_edge.methods.key_choice import KeyChoice
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.keys import representative

SCHEMA_VERSION = 1
KEYS_FILE = "keys.json"
FLOAT_BYTES = 4
CANDIDATE_FACTORS = (0.5, 1.0, 1.5)
MAP_SIDE = 8
"""Rows and columns of a spatial map at most; larger ones are averaged down."""

MAPS_NOTE = (
    "where each kept layer is active: the mean square over its channels, averaged over the "
    "held-out images of a class, over the largest value of the layer"
)

BYTES_NOTE = (
    "of one image's teacher features in float32: whole maps of all layers, against what the loss "
    "reads of the kept ones and the mean over space of every other channel"
)


@dataclass(frozen=True)
class Layer:
    """A layer that is read: its name, and the shape (C, H, W) of its output."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """Influences on held-out images.

    Attributes:
        influences: shape (N, T), one row per image.
        classes: the teacher's first class of each image, shape (N,) int64.
        real: which images are real, shape (N,).
        maps: per kept layer, in their order, the mean activity of each class, shape (classes, h,
            w), at most `MAP_SIDE` each way.
    """

    influences: NDArray[np.float32]
    classes: NDArray[np.int64]
    real: NDArray[np.bool_]
    maps: Sequence[NDArray[np.float64]] = ()


def key_report(
    teacher: Teacher,
    student: Student,
    *,
    variant: str,
    student_layers: Sequence[Layer],
    teacher_layers: Sequence[Layer],
    choice: KeyChoice,
    top_k: int,
    images: int,
    measured: Measured | None,
) -> dict[str, Any]:
    """Return what `keys.json` holds, as plain values.

    Args:
        teacher: learned from.
        student: trained.
        variant: of the method.
        student_layers: what was read of the student, in order.
        teacher_layers: what was read of the teacher, in order.
        choice: after the training.
        top_k: how many of a column's largest weights make an influence.
        images: trained on.
        measured: influences on held-out images; None where they are not defined (variant `afd`).
    """
    scores = None if choice.scores is None else choice.scores.tolist()
    used = bytes_used(teacher_layers, choice.kept, choice.channels)
    layers = [
        {
            "layer": layer.name,
            "shape": list(layer.shape),
            "influence": None if scores is None else scores[place],
            "chosen": place in choice.kept,
            "channels": _chosen_channels(choice, place),
            "bytes": FLOAT_BYTES * math.prod(layer.shape),
        }
        for place, layer in enumerate(teacher_layers)
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "method": "rtk",
        "variant": variant,
        "teacher": {"architecture": teacher.architecture, "digest": teacher.digest},
        "student": {"architecture": student.architecture},
        "images": images,
        "top_k": top_k,
        "threshold_factor": choice.factor,
        "threshold": choice.threshold,
        "layers": layers,
        "student_layers": [
            {"layer": layer.name, "shape": list(layer.shape)} for layer in student_layers
        ],
        "attention": {
            "rows": "teacher layers" if variant == "afd" else "student layers",
            "columns": "student layers" if variant == "afd" else "teacher layers",
            "mean": [] if choice.weights is None else choice.weights.tolist(),
        },
        "candidates": [] if scores is None else candidates(choice.names, scores),
        "held_out": None if measured is None else _held_out(teacher, choice, measured),
        "maps": None if measured is None or not measured.maps else _maps(teacher, choice, measured),
        "bytes_per_image": {"all": sum(row["bytes"] for row in layers), "used": used},
        "bytes_note": BYTES_NOTE,
        "history": choice.history,
    }


def candidates(names: Sequence[str], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Return thresholds worth a short run each: at the largest gap, and at multiples of the mean.

    Args:
        names: of the teacher's layers.
        scores: their influences.
    """
    mean = math.fsum(scores) / len(scores)
    rules = [(f"{factor:g} times the mean influence", factor) for factor in CANDIDATE_FACTORS]
    ranked = sorted(scores, reverse=True)
    if len(ranked) > 1:
        gaps = [high - low for high, low in pairwise(ranked)]
        widest = max(range(len(gaps)), key=lambda place: gaps[place])
        middle = (ranked[widest] + ranked[widest + 1]) / 2
        rules.insert(0, ("in the widest gap", middle / mean))
    found = []
    for rule, factor in rules:
        kept, threshold = representative(scores, factor=factor)
        chosen = [names[place] for place in kept]
        found.append({"rule": rule, "factor": factor, "threshold": threshold, "layers": chosen})
    return found


def bytes_used(
    layers: Sequence[Layer], kept: Sequence[int], channels: Sequence[Tensor | None]
) -> int:
    """Return the bytes of teacher features that one image's loss reads, in float32.

    Args:
        layers: all that are tapped.
        kept: places of the kept ones.
        channels: per layer, places of the channels that count; None for all.
    """
    floats = 0
    for place, layer in enumerate(layers):
        count, area = layer.shape[0], math.prod(layer.shape[1:])
        chosen = channels[place]
        whole = (count if chosen is None else len(chosen)) if place in kept else 0
        floats += whole * area + (count - whole)  # the attention sees the mean of the others
    return FLOAT_BYTES * floats


def read_keys(path: Path) -> dict[str, Any]:
    """Read a `keys.json`, of this machine or of another site.

    Raises:
        MissingFileError: there is no such file.
        UsageError: it is not one that `key_report` made.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected the keys.json of a student")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not JSON ({error}); copy the file again") from error
    check_keys(found, str(path))
    return dict(found)


def pool_keys(documents: Sequence[Mapping[str, Any]], *, factor: float = 1.0) -> dict[str, Any]:
    """Return the influences of several sites as one, each weighted by its images, and the choice.

    Args:
        documents: what `key_report` made at each site, of one teacher with the same taps.
        factor: of the threshold over the mean influence.

    Returns:
        `sites`, `images`, `threshold`, `keys` (names, for the setting of that name) and `layers`:
        per layer its pooled influence, the lowest and highest of a site, and at how many sites it
        was chosen.

    Raises:
        UsageError: no document, one without influences, or sites that cannot be compared.
    """
    if not documents:
        raise UsageError("no site's keys to pool; expected at least one keys.json")
    for number, document in enumerate(documents):
        check_keys(document, f"site {number + 1}")
        _check_alike(document, documents[0], number + 1)
    names = [row["layer"] for row in documents[0]["layers"]]
    table = np.array([[row["influence"] for row in site["layers"]] for site in documents], float)
    images = np.array([site["images"] for site in documents], float)
    pooled = [float(score) for score in images @ table / images.sum()]
    kept, threshold = representative(pooled, factor=factor)
    return {
        "schema_version": SCHEMA_VERSION,
        "sites": len(documents),
        "images": int(images.sum()),
        "threshold": threshold,
        "keys": [names[place] for place in kept],
        "layers": [
            {
                "layer": name,
                "influence": pooled[place],
                "lowest": float(table[:, place].min()),
                "highest": float(table[:, place].max()),
                "chosen_at": sum(bool(site["layers"][place]["chosen"]) for site in documents),
            }
            for place, name in enumerate(names)
        ],
    }


def _chosen_channels(choice: KeyChoice, place: int) -> list[int] | None:
    chosen = choice.channels[place]
    return None if chosen is None or place not in choice.kept else chosen.tolist()


def _held_out(teacher: Teacher, choice: KeyChoice, measured: Measured) -> dict[str, Any]:
    """Return the influences on images held out: all, real ones, and class by class."""
    groups = {name: measured.classes == number for number, name in enumerate(teacher.classes)}
    classes = [
        {"class": name, **_group(measured, mask, choice.factor)}
        for name, mask in groups.items()
        if mask.any()
    ]
    chosen_by: dict[int, list[str]] = {}
    for row in classes:
        for place in row["chosen"]:
            chosen_by.setdefault(place, []).append(row["class"])
    everyone = np.ones(len(measured.real), bool)
    return {
        **_group(measured, everyone, choice.factor),
        "real": _group(measured, measured.real, choice.factor) if measured.real.any() else None,
        "classes": classes,
        "of_one_class_only": [
            {"layer": choice.names[place], "class": names[0]}
            for place, names in sorted(chosen_by.items())
            if len(names) == 1 and len(classes) > 1
        ],
    }


def _maps(teacher: Teacher, choice: KeyChoice, measured: Measured) -> dict[str, Any]:
    """Return the spatial maps of the kept layers, class by class: of averages, not of images."""
    counts = np.bincount(measured.classes, minlength=len(teacher.classes))
    scaled = [maps / max(float(maps.max()), 1e-12) for maps in measured.maps]
    return {
        "note": MAPS_NOTE,
        "layers": [choice.names[place] for place in choice.kept],
        "classes": [
            {
                "class": name,
                "images": int(counts[place]),
                "maps": [maps[place].round(3).tolist() for maps in scaled],
            }
            for place, name in enumerate(teacher.classes)
            if counts[place]
        ],
    }


def _group(measured: Measured, mask: NDArray[np.bool_], factor: float) -> dict[str, Any]:
    scores = [float(score) for score in measured.influences[mask].mean(axis=0, dtype=float)]
    kept, _ = representative(scores, factor=factor)
    return {"images": int(mask.sum()), "influences": scores, "chosen": list(kept)}


def check_keys(document: Any, where: str) -> None:
    """Refuse what holds no influences that can be compared.

    Args:
        document: what was read as `keys.json`.
        where: what errors call it.

    Raises:
        UsageError: another schema, or no influence for each layer.
    """
    version = document.get("schema_version") if isinstance(document, Mapping) else None
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"{where}: schema version {version!r} of keys, and this release reads "
            f"{SCHEMA_VERSION}; distill again with this release"
        )
    rows = document.get("layers")
    scores = [row.get("influence") for row in rows] if isinstance(rows, list) else []
    images = document.get("images")
    if not scores or not all(_is_number(score) for score in scores):
        raise UsageError(
            f"{where}: no influence for each layer (variant {document.get('variant')!r}); "
            "expected the keys.json of variant rtk, all_keys or random_keys"
        )
    if not isinstance(images, int) or images < 1:
        raise UsageError(f"{where}: images is {images!r}; expected a whole number above 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _check_alike(document: Mapping[str, Any], first: Mapping[str, Any], number: int) -> None:
    for what, value, expected in (
        ("teacher", *(site["teacher"]["digest"][:12] for site in (document, first))),
        ("top_k", document["top_k"], first["top_k"]),
        ("layers", *([row["layer"] for row in site["layers"]] for site in (document, first))),
        ("number of student layers", *(len(s["student_layers"]) for s in (document, first))),
    ):
        if value != expected:
            raise UsageError(
                f"site {number} has {what} {value}, site 1 {expected}; influences can only be "
                "pooled of one teacher, read and counted alike"
            )
