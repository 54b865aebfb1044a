"""Evaluation images that the build has seen: those in its transfer set, the same or nearly so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.stages.work import Work

if TYPE_CHECKING:
    from hydistill_edge.images.sources import LoadedImages
    from hydistill_edge.images.transfer_set import TransferSet

PIECE = 2048
"""Used images that are read at once."""

SHOWN = 20
"""Of the images that were seen, in the summary; evaluation.json has all of them."""

NO_SET = "not looked for: this run has no transfer set any more"


@dataclass(frozen=True)
class Seen:
    """Which evaluation images were seen.

    Attributes:
        told: the entry of evaluation.json.
        unseen: places of those that were not; None where nobody looked.
    """

    told: dict[str, Any]
    unseen: NDArray[np.int64] | None

    def accuracy(self, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float | None:
        """Return the accuracy on the images that were not seen; None where there are none."""
        if self.unseen is None or not len(self.unseen):
            return None
        return float((logits[self.unseen].argmax(axis=1) == labels[self.unseen]).mean())


def find_seen(work: Work, loaded: LoadedImages) -> Seen:
    """Compare evaluation images with the real images of the run's transfer set."""
    from hydistill_edge.images.overlap import find_overlap
    from hydistill_edge.images.transfer_format import REAL_ORIGINS

    if not work.path("transfer").exists():
        return Seen({"compared_with": None, "note": NO_SET}, None)
    transfer = work.transfer
    rows = np.flatnonzero(np.isin(transfer.origins, REAL_ORIGINS))
    found = find_overlap(loaded.images, _pieces(transfer, rows))
    told = found.to_dict(evaluated=loaded.ids, used=transfer.ids)
    return Seen({**told, "note": warning(told, total=len(loaded.ids))}, found.unseen)


def _pieces(
    transfer: TransferSet, rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    for start in range(0, len(rows), PIECE):
        part = rows[start : start + PIECE]
        yield part, transfer.images(part)


def warning(told: Mapping[str, Any], *, total: int) -> str:
    """Return what a reader must know of the images that were seen; empty where there are none.

    Args:
        told: the entry of evaluation.json.
        total: evaluation images.
    """
    count = told["exact"] + told["near"]
    if not count:
        return ""
    return (
        f"{count} of {total} evaluation images were seen: they are among the "
        f"{told['compared_with']} real images of the transfer set ({told['exact']} the same, "
        f"{told['near']} near duplicates), so accuracies flatter; those without them stand beside. "
        "Near is a difference of at most half of what usually lies between two evaluation images; "
        f"{100 * told['alike_share']:.1f} % of these lie as near to each other"
    )


def overlap_line(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the summary's part of an entry of evaluation.json; None without one.

    Args:
        told: `overlap` of evaluation.json.
    """
    if told is None:
        return None
    names = ("compared_with", "exact", "near", "mirrored", "limit", "alike_share")
    return {
        **{name: told.get(name) for name in names},
        "ids": [entry["id"] for entry in told.get("images", ())[:SHOWN]],
        "note": told["note"],
    }
