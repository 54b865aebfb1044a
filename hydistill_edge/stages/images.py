"""Stage images: real ones as given, synthetic ones from the teacher, all into the transfer set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.run_directory import clear
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.stages.work import Work, fingerprint

if TYPE_CHECKING:
    from hydistill_edge.images.sources import LoadedImages, SourceSpec
    from hydistill_edge.images.transfer_set import TransferSetWriter


MAX_REFERENCE = 256
"""Real images whose statistics may stand in for BatchNorm: more would change them little."""

MIN_REFERENCE = 16
"""Fewer are not used: made images, which may ship, could come out like one of so few."""


def run(work: Work) -> None:
    """Write transfer/."""
    recipe = work.recipe
    parts = [
        recipe.to_dict()["images"],
        recipe.image_size(),
        recipe.seed,
        [state(source) for source in recipe.images.real],
    ]
    work.run.folder_stage(
        "images", work.inputs(parts, after=("teacher",)), "transfer", lambda out: _make(work, out)
    )
    work.partition  # noqa: B018  (too few images are told here, before hours of training)
    total = len(work.transfer)
    work.report("images", total, total, {})


def load(work: Work, source: SourceSpec) -> LoadedImages:
    """Return one source's images at the size that the device delivers."""
    from hydistill_edge.images.sources import load_source

    height, width, channels = work.recipe.image_size()
    return load_source(
        source,
        size=(height, width),
        channels=channels,
        adapt=work.recipe.images.adapt,
        classes=work.recipe.class_names(),
    )


def state(source: SourceSpec) -> Any:
    """Return what changes when the files of a source change."""
    path = Path(str(source.path))
    found = None
    if source.path and source.kind == "shards" and not path.exists():  # a pattern
        found = [fingerprint(file) for file in sorted(path.parent.glob(path.name))]
    elif source.path:
        found = fingerprint(path) if path.exists() else None
    told = [Path(file) for file in (source.provenance, source.exclude) if file]
    if not told:
        return found
    return [found, *(fingerprint(file) if file.exists() else None for file in told)]


def reference_images(sources: Sequence[LoadedImages]) -> NDArray[np.uint8] | None:
    """Return real images from all over the sources, shape (N, H, W, C), for the inversion.

    A teacher with BatchNorm does not need them. None where there are too few.
    """
    filled = [
        source.images for source in sources if source.spec.origin == "real" and len(source.images)
    ]
    ends = np.cumsum([len(images) for images in filled])
    if not filled or ends[-1] < MIN_REFERENCE:
        return None
    rows = np.linspace(0, ends[-1] - 1, min(MAX_REFERENCE, ends[-1])).astype(np.int64)
    chosen: NDArray[np.uint8] = np.concatenate(
        [
            images[rows[(rows >= end - len(images)) & (rows < end)] - (end - len(images))]
            for images, end in zip(filled, ends, strict=True)
        ]
    )
    return chosen


def _make(work: Work, out: Path) -> None:
    from hydistill_edge.images.transfer_set import TransferSetWriter

    clear(out)
    recipe, skipped, excluded = work.recipe, [], 0
    height, width, channels = recipe.image_size()
    # Real ones first: what is wrong with them is told before the long work.
    sources = [load(work, source) for source in recipe.images.real]
    for source in sources:
        skipped += [asdict(entry) for entry in source.skipped]
        excluded += len(source.excluded)
    synthetic, made = _invert(work, sources)
    # The writer makes its own temporary folder beside the set: inside ours, nothing is left over.
    folder = out / "set"
    with TransferSetWriter(
        folder,
        size=(height, width),
        channels=channels,
        classes=recipe.class_names(),
        teacher_digest=work.teacher.digest,
        method="real and inversion" if sources and made else "inversion" if made else "real",
        seeds={"recipe": recipe.seed},
        details={"inversion": made, "skipped": skipped, "excluded": excluded},
    ) as writer:
        for spec, loaded in zip(recipe.images.real, sources, strict=True):
            _add_real(work, writer, spec, loaded)
        if len(synthetic):
            writer.add(
                synthetic,
                network_logits(work.teacher, synthetic),
                origin="synthetic",
                ids=[f"inverted-{index:06d}" for index in range(len(synthetic))],
                may_ship=True,
            )
    for file in folder.iterdir():
        file.rename(out / file.name)
    folder.rmdir()


def _add_real(
    work: Work, writer: TransferSetWriter, spec: SourceSpec, loaded: LoadedImages
) -> None:
    writer.add(
        loaded.images,
        network_logits(work.teacher, loaded.images),
        origin=spec.origin,
        ids=loaded.ids,
        labels=loaded.labels,
        licence=spec.licence if loaded.licences is None else loaded.licences,
        may_ship=spec.may_ship,
        addresses=loaded.addresses,
    )


def _invert(
    work: Work, sources: Sequence[LoadedImages]
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return synthetic images, shape (N, H, W, C), and how well the inversion went."""
    from hydistill_edge.images.resize import resize
    from hydistill_edge.synthesis.inversion import invert

    recipe, section = work.recipe, work.recipe.images.synthetic
    height, width, channels = recipe.image_size()
    if section.count == 0:
        return np.empty((0, height, width, channels), np.uint8), {}

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        work.report("images", section.count * done // total, section.count, metrics)

    found = invert(
        work.teacher,
        count=section.count,
        settings=section.inversion,
        channels=channels,
        real=reference_images(sources),
        seed=recipe.seed,
        device=work.torch_device,
        progress=progress,
    )
    images = np.stack([resize(image, (height, width)) for image in found.images])
    return images, {
        "count": section.count,
        "hit": found.hit,
        "bn_distance": found.bn_distance,
        "boundary": int((found.mixed_with >= 0).sum()),
        "batch": found.batch,
        "iterations": list(found.iterations),
        "note": found.note,
        "history": found.history,
    }
