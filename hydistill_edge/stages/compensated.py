"""The part of stage images that makes INFER's set, beside the transfer set written from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.stages.images import CHECKPOINTS
from hydistill_edge.stages.work import Work

if TYPE_CHECKING:
    from hydistill_edge.images.compensated_set import CompensatedSet
    from hydistill_edge.images.real_images import RealImages
    from hydistill_edge.images.sources import LoadedImages
    from hydistill_edge.images.transfer_set import TransferSetWriter

_TOLD = (
    *("budget", "bytes", "networks", "realism", "coverage", "nearest_real", "logit_std"),
    *("logit_note", "labels", "storage", "scale", "natural", "compensators", "digest", "privacy"),
)


def compensate(work: Work, real: RealImages, out: Path) -> CompensatedSet | None:
    """Make the compact set in a folder of `out`.

    Args:
        work: gives teacher, settings and seed.
        real: all real images, of which the set's natural ones stay; true labels count where a
            source has them.
        out: the folder of the transfer set.

    Returns:
        The set; None where the recipe asks for no images to be made.
    """
    from hydistill_edge.methods.infer_set import BESIDE, make_set

    section = work.recipe.images.synthetic
    if section.count == 0:
        return None

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        work.report("images", done, total, metrics)

    pieces = list(real)
    made = make_set(
        work.teacher,
        np.concatenate([piece.images for piece in pieces]),
        np.concatenate([_labels(piece) for piece in pieces]),
        settings=section.infer,
        folder=out / BESIDE,
        workdir=out / CHECKPOINTS,
        ids=[name for piece in pieces for name in piece.ids],
        seed=work.recipe.seed,
        device=work.torch_device,
        progress=progress,
    )
    real.choose(made.rows)
    return made.distilled


def add_compensated(work: Work, writer: TransferSetWriter, distilled: CompensatedSet) -> None:
    """Add the compensated images to the transfer set; they show real ones, and ship as those do."""
    from hydistill_edge.methods import infer_set

    may_ship = all(source.may_ship for source in work.recipe.images.real)
    infer_set.add_compensated(writer, distilled, work.teacher, may_ship=may_ship)


def told(distilled: CompensatedSet) -> dict[str, Any]:
    """Return what the transfer set's manifest repeats of the compact set's."""
    return {name: distilled.manifest[name] for name in _TOLD}


def _labels(piece: LoadedImages) -> NDArray[np.int64]:
    return np.full(len(piece), -1, np.int64) if piece.labels is None else piece.labels
