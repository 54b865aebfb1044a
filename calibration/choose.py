"""Which images calibrate: drawn, or the fewest that show what all of them show.

`choose` draws; `choose_covering` looks into the student. Both are balanced over the teacher's
classes and depend on the images' contents and the seed alone: neither on their order nor on their
names. Fewer images than asked for is an answer, written into `reason`, as long as there are any.
`partition`, which keeps apart what calibrates, proves parity and travels, is offered here too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hydistill_edge.calibration.coverage import Activations, join, summarize
from hydistill_edge.calibration.partition import DEFAULT_COUNT, Partition, partition
from hydistill_edge.calibration.rows import (
    Hashes,
    Rows,
    balanced,
    check_columns,
    content_order,
    distinct,
    keys,
)
from hydistill_edge.calibration.set_cover import Cover, Outlier, cover, find_outliers
from hydistill_edge.errors import ShapeError, TransferSetError
from hydistill_edge.targets.base import ActivationReader, Images

__all__ = [
    "DEFAULT_COUNT",
    "Choice",
    "Covering",
    "Partition",
    "choose",
    "choose_covering",
    "describe",
    "partition",
    "pixel_digest",
]

MOST_CANDIDATES = 2048
"""Images that the student is run over to choose among them; a few milliseconds each."""

_BLOCK = 512  # images in memory at once while candidates are read


@dataclass(frozen=True, slots=True)
class Choice:
    """The images of one set, as calibration.json tells about them.

    Attributes:
        rows: their places in the transfer set.
        ids: their source ids.
        digest: sha256 (hex) over their pixels, in order.
        per_class: class name to number of images with that pseudo-label, for every class.
        reason: how they were chosen, in one sentence.
        coverage: what the images were taken for; None where they were drawn.
    """

    rows: Rows
    ids: tuple[str, ...]
    digest: str
    per_class: dict[str, int]
    reason: str
    coverage: Covering | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values of calibration.json that are about the images."""
        facts = {
            "count": len(self.ids),
            "digest": self.digest,
            "ids": list(self.ids),
            "per_class": dict(self.per_class),
            "reason": self.reason,
        }
        return facts if self.coverage is None else {**facts, "coverage": self.coverage.to_dict()}


@dataclass(frozen=True, slots=True)
class Covering:
    """How images came to be taken for what the student's layers see.

    Attributes:
        candidates: images that were looked at.
        picks: id and reason of every image taken, in the order of taking.
        outliers: id and reason of every image left out as an outlier.
        layers: per tensor: `bins` and how many are `covered`, the range that the chosen images
            reach (`low`, `high`), and that of all candidates but the outliers.
        complete: whether every bin is covered.
    """

    candidates: int
    picks: tuple[tuple[str, str], ...]
    outliers: tuple[tuple[str, str], ...]
    layers: tuple[dict[str, Any], ...]
    complete: bool

    @property
    def bins(self) -> tuple[int, int]:
        """Bins covered, and all of them."""
        return sum(row["covered"] for row in self.layers), sum(row["bins"] for row in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values of calibration.json that are about coverage."""
        return {
            "candidates": self.candidates,
            "complete": self.complete,
            "picks": [{"id": name, "why": why} for name, why in self.picks],
            "outliers": [{"id": name, "why": why} for name, why in self.outliers],
            "layers": [dict(row) for row in self.layers],
        }


def choose(
    *,
    images: Callable[[Rows], Images],
    hashes: Hashes,
    pseudo_labels: ArrayLike,
    ids: Sequence[str],
    classes: Sequence[str],
    count: int = DEFAULT_COUNT,
    seed: int = 0,
    confidences: ArrayLike | None = None,
    exclude: Hashes | None = None,
    among: Rows | None = None,
) -> Choice:
    """Choose a class-balanced set of images.

    Args:
        images: gives the pixels of rows, shape (n, H, W, C) uint8, at the graph's input size.
        hashes: content hashes, shape (N, bytes) uint8.
        pseudo_labels: the teacher's class of every image, shape (N,).
        ids: N source ids.
        classes: names of the classes.
        count: images wanted; all that there are where there are fewer.
        seed: another seed, another choice.
        confidences: shape (N,); where given, a class's images are spread over its ranking by
            confidence, so that hard and easy ones both set ranges; else they are drawn by hash.
        exclude: content hashes, shape (M, bytes), of images that must not be chosen.
        among: rows to choose among; None means all.

    Raises:
        TransferSetError: there is not one image to choose.
        ShapeError: columns of different lengths.
    """
    labels = np.asarray(pseudo_labels, np.int64)
    check_columns(hashes, pseudo_labels=labels, ids=ids)
    pool = _free(hashes, exclude, among, count)
    score = None if confidences is None else np.asarray(confidences, np.float64)
    rows = balanced(pool, labels, content_order(hashes, seed), count, score)
    how = "drawn by content hash" if score is None else "spread over the teacher's confidence"
    reason = f"{len(rows)} of {len(pool)} images, balanced over the classes, {how}"
    if len(rows) < count:
        reason += f"; {count} were asked for and no more are there"
    return describe(
        rows, images=images(rows), pseudo_labels=labels, ids=ids, classes=classes, reason=reason
    )


def choose_covering(
    *,
    images: Callable[[Rows], Images],
    hashes: Hashes,
    pseudo_labels: ArrayLike,
    ids: Sequence[str],
    classes: Sequence[str],
    count: int = DEFAULT_COUNT,
    seed: int = 0,
    confidences: ArrayLike | None = None,
    exclude: Hashes | None = None,
    among: Rows | None = None,
    reader: ActivationReader | None = None,
    model: Path | None = None,
    tensors: Sequence[str] = (),
    times: int = 1,
    candidates: int = MOST_CANDIDATES,
) -> Choice:
    """Choose the fewest images, balanced over the classes, that cover the student's activations.

    The student's float graph runs over the candidates. Bins of every channel's extremes and of
    every tensor's values, narrow towards the tails, are to be reached by the chosen images, and
    images far outside of what is usual are left out, so that none sets a range by itself.
    Without a reader, a model or a tensor it is `choose`, and `reason` says so.

    Args:
        images: as for `choose`, like all arguments up to `among`.
        hashes: see `choose`.
        pseudo_labels: see `choose`.
        ids: see `choose`.
        classes: see `choose`.
        count: most images; a smaller set is returned once it covers every bin.
        seed: breaks ties, and draws the candidates where there are too many.
        confidences: used only where nothing can be read.
        exclude: see `choose`.
        among: see `choose`.
        reader: runs the model and yields its tensors.
        model: the student's graph in float.
        tensors: names of what its layers read: the inputs of Conv, Gemm and MatMul.
        times: images that each bin is to have.
        candidates: most images to look at; where there are more, a balanced draw of them.

    Raises:
        TransferSetError: there is not one image to choose.
        ShapeError: columns of different lengths.
        InputError: a tensor is not read, or not finite.
    """
    labels = np.asarray(pseudo_labels, np.int64)
    check_columns(hashes, pseudo_labels=labels, ids=ids)
    if reader is None or model is None or not tensors:
        drawn = choose(
            images=images,
            hashes=hashes,
            pseudo_labels=labels,
            ids=ids,
            classes=classes,
            count=count,
            seed=seed,
            confidences=confidences,
            exclude=exclude,
            among=among,
        )
        return replace(drawn, reason=f"{drawn.reason}; activations were not looked at")
    pool, order = _free(hashes, exclude, among, count), content_order(hashes, seed)
    pool = balanced(pool, labels, order, candidates, None)
    pool = pool[np.argsort(order[pool], kind="stable")]  # ties go by content, not by place
    activations = join(
        [
            summarize(reader, model, tensors, images(pool[start : start + _BLOCK]))
            for start in range(0, len(pool), _BLOCK)
        ]
    )
    outliers = find_outliers(activations, labels[pool])
    left_out = [outlier.image for outlier in outliers]
    found = cover(activations, labels[pool], count=count, without=left_out, times=times)
    names = [ids[int(row)] for row in pool]
    coverage = _explained(activations, found, outliers, names)
    rows = np.sort(pool[found.images])
    choice = describe(
        rows,
        images=images(rows),
        pseudo_labels=labels,
        ids=ids,
        classes=classes,
        reason=_covering_reason(coverage, len(rows)),
    )
    return replace(choice, coverage=coverage)


def _free(hashes: Hashes, exclude: Hashes | None, among: Rows | None, count: int) -> Rows:
    """Return the rows of different images that may be chosen, rising."""
    pool = distinct(hashes)
    if among is not None:  # a copy of a row handed in is as good as the row
        rows = np.unique(among).astype(np.int64)
        pool = rows[distinct(hashes[rows])]
    if exclude is not None:
        pool = pool[~np.isin(keys(hashes)[pool], keys(exclude))]
    if not len(pool) or count < 1:
        raise TransferSetError(
            f"no image to calibrate with: {len(hashes)} in the transfer set, {len(pool)} of them "
            f"free, {count} asked for; make synthetic images or ask for at least one"
        )
    return pool


def _explained(
    activations: Activations, found: Cover, outliers: Sequence[Outlier], names: Sequence[str]
) -> Covering:
    usual = np.setdiff1d(np.arange(len(activations)), [outlier.image for outlier in outliers])
    layers = []
    for tensor in activations.tensors:
        covered, bins = found.covered[tensor.name]
        (low, high), (least, greatest) = (tensor.take(rows).range for rows in (found.images, usual))
        layers.append(
            {
                "tensor": tensor.name,
                "bins": bins,
                "covered": covered,
                "low": low,
                "high": high,
                "candidates_low": least,
                "candidates_high": greatest,
            }
        )
    return Covering(
        candidates=len(activations),
        picks=tuple((names[pick.image], pick.why) for pick in found.picks),
        outliers=tuple((names[outlier.image], outlier.why) for outlier in outliers),
        layers=tuple(layers),
        complete=found.complete,
    )


def _covering_reason(coverage: Covering, count: int) -> str:
    covered, bins = coverage.bins
    text = (
        f"{count} images, the fewest found among {coverage.candidates}, balanced over the classes, "
        f"that cover {covered} of {bins} activation bins of {len(coverage.layers)} tensors"
    )
    if not coverage.complete:
        text += f"; more than {count} images would be needed for the rest"
    if coverage.outliers:
        shown = "; ".join(f"{name} {why}" for name, why in coverage.outliers[:3])
        text += f"; left out as outliers: {len(coverage.outliers)} ({shown})"
    return text


def describe(
    rows: Rows,
    *,
    images: Images,
    pseudo_labels: ArrayLike,
    ids: Sequence[str],
    classes: Sequence[str],
    reason: str,
) -> Choice:
    """Return what is to be told about rows that were chosen already.

    Args:
        rows: their places.
        images: their pixels, shape (n, H, W, C) uint8, as the quantizer sees them.
        pseudo_labels: of the whole transfer set, shape (N,).
        ids: of the whole transfer set.
        classes: names of the classes.
        reason: how they were chosen.

    Raises:
        ShapeError: not one image per row.
    """
    if len(images) != len(rows):
        raise ShapeError(f"{len(images)} images for {len(rows)} rows; expected one each")
    found = np.bincount(np.asarray(pseudo_labels, np.int64)[rows], minlength=len(classes))
    return Choice(
        rows=rows,
        ids=tuple(ids[int(row)] for row in rows),
        digest=pixel_digest(images),
        per_class={name: int(number) for name, number in zip(classes, found, strict=True)},
        reason=reason,
    )


def pixel_digest(images: Images) -> str:
    """Return the sha256 (hex) over the pixels in order.

    Args:
        images: shape (N, H, W, C) uint8.
    """
    return hashlib.sha256(np.ascontiguousarray(images).data).hexdigest()
