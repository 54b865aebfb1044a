"""Stage images: real ones as given, synthetic ones from the teacher, all into the transfer set."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.images.transfer_format import MANIFEST
from hydistill_edge.run_directory import clear, write_json
from hydistill_edge.stages.logits import network_features, network_logits
from hydistill_edge.stages.work import Work, fingerprint

if TYPE_CHECKING:
    from hydistill_edge.images.sources import LoadedImages, SourceSpec
    from hydistill_edge.images.transfer_set import TransferSetWriter


MAX_REFERENCE = 256
"""Real images whose statistics may stand in for BatchNorm: more would change them little."""

CHECKPOINTS = "checkpoints"

PILOT_FILE = "pilot.json"

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
    if recipe.images.pilot is not None and recipe.images.pilot.after is not None:
        manifest = earlier_set(recipe.images.pilot.after) / MANIFEST
        parts.append(fingerprint(manifest) if manifest.exists() else None)
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

    clear(out, keep=CHECKPOINTS)
    recipe, skipped, excluded = work.recipe, [], 0
    height, width, channels = recipe.image_size()
    # Real ones first: what is wrong with them is told before the long work.
    sources = [load(work, source) for source in recipe.images.real]
    for source in sources:
        skipped += [asdict(entry) for entry in source.skipped]
        excluded += len(source.excluded)
    if recipe.images.pilot is not None:
        sources, chosen = choose(work, sources, recipe.images.pilot)
        write_json(out / PILOT_FILE, {"schema_version": 1, **chosen})
    maker = recipe.images.synthetic.maker
    make = _train_gan if maker == "gan" else _invert
    (out / CHECKPOINTS).mkdir(exist_ok=True)
    synthetic, made = make(work, sources, out / CHECKPOINTS)
    # The writer makes its own temporary folder beside the set: inside ours, nothing is left over.
    folder = out / "set"
    with TransferSetWriter(
        folder,
        size=(height, width),
        channels=channels,
        classes=recipe.class_names(),
        teacher_digest=work.teacher.digest,
        method=f"real and {maker}" if sources and made else maker if made else "real",
        seeds={"recipe": recipe.seed},
        details={
            "inversion": made if maker == "inversion" else {},
            **({"gan": made} if maker == "gan" else {}),
            "skipped": skipped,
            "excluded": excluded,
        },
    ) as writer:
        for spec, loaded in zip(recipe.images.real, sources, strict=True):
            _add_real(work, writer, spec, loaded)
        if len(synthetic):
            word = "gan" if maker == "gan" else "inverted"
            writer.add(
                synthetic,
                network_logits(work.teacher, synthetic),
                origin="synthetic",
                ids=[f"{word}-{index:06d}" for index in range(len(synthetic))],
                # A GAN may repeat what it was shown: its images ship where those may.
                may_ship=maker != "gan" or all(spec.may_ship for spec in recipe.images.real),
            )
    for file in folder.iterdir():
        file.rename(out / file.name)
    folder.rmdir()
    shutil.rmtree(out / CHECKPOINTS)


def earlier_set(run: str) -> Path:
    """Return where the transfer set of an earlier run directory lies."""
    return Path(run) / "transfer"


def choose(
    work: Work, sources: Sequence[LoadedImages], section: Any
) -> tuple[list[LoadedImages], dict[str, Any]]:
    """Return the sources with the chosen images only, and why each was chosen.

    Args:
        work: gives the teacher.
        sources: all real images.
        section: the recipe's `images.pilot`.
    """
    from hydistill_edge.images.pilot import Synthetic, choose_pilot
    from hydistill_edge.images.transfer_set import TransferSet

    images = np.concatenate([source.images for source in sources])
    ids = [name for source in sources for name in source.ids]
    features, synthetic = None, None
    if section.after is not None:
        earlier = TransferSet.open(earlier_set(section.after))
        rows = np.flatnonzero(earlier.origins == "synthetic")
        features = network_features(work.teacher, images)
        synthetic = Synthetic(
            logits=earlier.logits(rows),
            features=network_features(work.teacher, earlier.images(rows)),
            asked=earlier.pseudo_labels[rows],
        )
    pilot = choose_pilot(
        section.kind,
        images,
        network_logits(work.teacher, images),
        count=section.count,
        seed=work.recipe.seed,
        threshold=section.threshold,
        features=features,
        synthetic=synthetic,
        class_names=work.recipe.class_names(),
    )
    chosen = np.zeros(len(images), np.bool_)
    chosen[pilot.rows] = True
    ends = np.cumsum([len(source) for source in sources])
    kept = [
        _subset(source, np.flatnonzero(chosen[end - len(source) : end]))
        for source, end in zip(sources, ends, strict=True)
    ]
    told = pilot.to_dict(ids=ids, class_names=work.recipe.class_names())
    return kept, {"candidates": len(images), **told}


def _subset(source: LoadedImages, rows: NDArray[np.int64]) -> LoadedImages:
    def some(column: list[str] | None) -> list[str] | None:
        return None if column is None else [column[row] for row in rows.tolist()]

    return replace(
        source,
        images=source.images[rows],
        labels=None if source.labels is None else source.labels[rows],
        ids=[source.ids[row] for row in rows.tolist()],
        hashes=source.hashes[rows],
        addresses=some(source.addresses),
        licences=some(source.licences),
    )


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


def _train_gan(
    work: Work, sources: Sequence[LoadedImages], checkpoints: Path
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return images of a GAN trained on the real ones, shape (N, H, W, C), and how it went."""
    from hydistill_edge.synthesis.gan import sample_gan, train_gan
    from hydistill_edge.synthesis.gan_report import report_gan

    section = work.recipe.images.synthetic
    height, width, channels = work.recipe.image_size()
    if section.count == 0:
        return np.empty((0, height, width, channels), np.uint8), {}
    collected = np.concatenate([source.images for source in sources])

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        work.report("images", section.count * done // total, section.count, metrics)

    gan = train_gan(
        work.teacher,
        collected,
        settings=section.gan,
        workdir=checkpoints,
        seed=work.recipe.seed,
        device=work.torch_device,
        progress=progress,
    )
    sampled = sample_gan(gan, work.teacher, count=section.count, seed=work.recipe.seed)
    return sampled.images, report_gan(work.teacher, collected, gan, sampled)


def _invert(
    work: Work, sources: Sequence[LoadedImages], _checkpoints: Path
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
