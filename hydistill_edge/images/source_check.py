"""What can be refused of a labelled source before all its images are read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ImageSourceError
from hydistill_edge.images.readers import (
    ArrayReader,
    FolderReader,
    open_npz,
    open_safetensors,
)
from hydistill_edge.images.rows import select_rows
from hydistill_edge.images.sources import SourceSpec, iterate_source


def check_labelled_source(
    spec: SourceSpec,
    *,
    size: tuple[int, int],
    channels: int,
    adapt: bool,
    classes: Sequence[str],
) -> None:
    """Refuse early what `load_source` would refuse, as far as index, labels and one image tell.

    The labels of shards and torchvision data sets stand with each image: they are left to reading.

    Args:
        spec: the source, with `use_labels`.
        size: as in `load_source`.
        channels: as in `load_source`.
        adapt: as in `load_source`.
        classes: as in `load_source`; each must have an image.

    Raises:
        MissingFileError: the source is not there.
        ImageSourceError: it is broken, does not fit, or its labels do not.
    """
    one = iterate_source(
        spec, batch=1, size=size, channels=channels, adapt=adapt, classes=classes, all_classes=False
    )
    next(one)
    reader = _labelled_reader(spec)
    if reader is None:
        return
    with closing(reader):
        rows = select_rows(
            len(reader), rows=spec.rows, shuffle_seed=spec.shuffle_seed, limit=spec.limit
        )
        found = np.unique(reader.labels_of(rows))
        names = reader.class_names or classes
    _check_labels(found, names, classes, spec.title)


def _labelled_reader(spec: SourceSpec) -> FolderReader | ArrayReader | None:
    path = Path(spec.path)
    if spec.kind == "folder":
        return FolderReader(path, use_labels=True)
    if spec.kind == "npz":
        return open_npz(path, use_labels=True)
    return open_safetensors(path, use_labels=True) if spec.kind == "safetensors" else None


def _check_labels(
    found: NDArray[np.int64], names: Sequence[str], classes: Sequence[str], title: str
) -> None:
    """Check labels, which are places in the source's own names, against the network's classes."""
    if found[-1] >= len(names):
        raise ImageSourceError(
            f"image source {title} has the label {found[-1]}; expected 0 to {len(names) - 1}, for "
            f"{len(names)} classes"
        )
    if found[0] < 0:
        raise ImageSourceError(
            f"image source {title} has some images without a label; label them, or leave them out "
            "with rows"
        )
    there = {names[label] for label in found.tolist()}
    missing = [f'"{name}"' for name in classes if name not in there]
    if missing:
        raise ImageSourceError(
            f"image source {title} has no image of {len(missing)} of {len(classes)} classes: "
            f"{', '.join(missing[:10])}; add some, or take more rows"
        )
