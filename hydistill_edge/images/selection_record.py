"""The record of a training's selections: what was selected, when and why.

While training goes on, one small file per epoch keeps the selection as a bit per image, so that a
killed run goes on with the very images that it had chosen. At the end `audit` puts them together:
per epoch the counts, thresholds and notes; per image its class, its last score, and in which epochs
it was taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.atomic import replacing
from hydistill_edge.errors import RunDirectoryError
from hydistill_edge.images.safetensors_map import (
    BrokenSafetensorsError,
    SafetensorsMap,
    write_safetensors,
)
from hydistill_edge.images.selection import Rows, Scores, Selection

SCHEMA_VERSION = 1
SCORES = "scores.safetensors"
DECIMALS = 5
"""Of a confidence in the audit."""

NEARLY_ONE = 0.99


class SelectionRecord:
    """Selections of one training, in a folder.

    Args:
        folder: made when first written to.
        rows: places of the pool's images, shape (N,), rising.
        class_names: of the teacher.
        groups: shape (N,) the source of each image; what the audit counts by.
    """

    def __init__(
        self,
        folder: Path,
        rows: Rows,
        *,
        class_names: Sequence[str],
        groups: NDArray[np.str_],
    ) -> None:
        self._folder = folder
        self._rows = rows
        self._class_names = tuple(class_names)
        self._groups = groups

    def write(self, epoch: int, selection: Selection, scores: Scores) -> None:
        """Keep the selection of an epoch, counted from 1, and the scores that it was made from."""
        self._folder.mkdir(parents=True, exist_ok=True)
        chosen = np.isin(self._rows, selection.rows)
        facts = {"epoch": epoch, **selection.to_dict(self._class_names)}
        facts["per_source"] = self._by_source(chosen)
        facts["weights"] = _weight_spread(
            scores.disagreements[np.isin(scores.rows, selection.rows)]
        )
        _replace(
            self._path(epoch), {"selected": np.packbits(chosen)}, {"record": json.dumps(facts)}
        )
        _replace(
            self._folder / SCORES,
            {
                "rows": scores.rows,
                "confidences": scores.confidences,
                "classes": scores.classes,
                "disagreements": scores.disagreements,
            },
        )

    def keep_to(self, epoch: int) -> None:
        """Drop the selections of later epochs: they are of a run that was killed or changed."""
        for path in self._folder.glob("epoch-*.safetensors"):
            if int(path.stem.removeprefix("epoch-")) > epoch:
                path.unlink()

    def rows(self, epoch: int) -> Rows:
        """Return the rows that an epoch selected.

        Raises:
            RunDirectoryError: its file is missing or damaged.
        """
        return self._rows[self._chosen(epoch)[0]]

    def audit(self, ids: Sequence[str]) -> dict[str, Any]:
        """Return the whole record as plain values.

        Args:
            ids: of the pool's images, in the order of its rows.
        """
        count = len(self._rows)
        first, last, times = (np.zeros(count, np.int64) for _ in range(3))
        epochs = []
        chosen = np.zeros(count, np.bool_)
        for epoch in range(1, self._epochs() + 1):
            chosen, facts = self._chosen(epoch)
            epochs.append(facts)
            first[chosen & (first == 0)] = epoch
            last[chosen] = epoch
            times += chosen
        scores = self._read(self._folder / SCORES)
        thresholds = np.array([entry["threshold"] for entry in epochs[-1]["per_class"]])
        return {
            "schema_version": SCHEMA_VERSION,
            "classes": list(self._class_names),
            "epochs": epochs,
            "images": {
                "id": list(ids),
                "row": self._rows.tolist(),
                "class": scores["classes"].tolist(),
                "confidence": scores["confidences"].astype(np.float64).round(DECIMALS).tolist(),
                "threshold": thresholds[scores["classes"]].round(DECIMALS).tolist(),
                "selected": chosen.tolist(),
                "first_epoch": first.tolist(),
                "last_epoch": last.tolist(),
                "times": times.tolist(),
            },
        }

    def _epochs(self) -> int:
        return len(list(self._folder.glob("epoch-*.safetensors")))

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch:05d}.safetensors"

    def _chosen(self, epoch: int) -> tuple[NDArray[np.bool_], dict[str, Any]]:
        tensors = self._read(self._path(epoch))
        bits = np.unpackbits(tensors["selected"], count=len(self._rows))
        return bits.astype(np.bool_), json.loads(tensors.metadata["record"])

    def _read(self, path: Path) -> SafetensorsMap:
        try:
            return SafetensorsMap(path)
        except (OSError, BrokenSafetensorsError) as error:
            raise RunDirectoryError(
                f"{path}: the selection of an epoch is missing or damaged ({error}); delete the "
                "folder and train again"
            ) from error

    def _by_source(self, chosen: NDArray[np.bool_]) -> dict[str, dict[str, int]]:
        names, members = np.unique(self._groups, return_inverse=True)
        pool = np.bincount(members, minlength=len(names))
        selected = np.bincount(members[chosen], minlength=len(names))
        return {
            str(name): {"pool": int(pool[place]), "selected": int(selected[place])}
            for place, name in enumerate(names)
        }


def source_of(ids: Sequence[str]) -> NDArray[np.str_]:
    """Return the source in each id, `<source>:<key>`: the noise type where sources are of one."""
    return np.array([name.partition(":")[0] if ":" in name else "" for name in ids])


def _weight_spread(disagreements: NDArray[np.float32]) -> dict[str, float]:
    """Return how far apart the weights sigmoid(d) lie: early on nearly all of them are 1."""
    weights = 1.0 / (1.0 + np.exp(-disagreements.astype(np.float64)))
    if not len(weights):
        return {}
    return {
        "mean": float(weights.mean()),
        "std": float(weights.std()),
        "smallest": float(weights.min()),
        "nearly_one": float((weights > NEARLY_ONE).mean()),
    }


def _replace(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    with replacing(path) as partial:
        write_safetensors(partial, tensors, metadata)
