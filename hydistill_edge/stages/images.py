"""Stage images: real ones as given, synthetic ones from the teacher, all into the transfer set."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import MissingFileError
from hydistill_edge.images.transfer_format import MANIFEST
from hydistill_edge.run_directory import clear, write_json
from hydistill_edge.stages.logits import network_answer, network_features, network_logits
from hydistill_edge.stages.moments import moment_score
from hydistill_edge.stages.work import Work, fingerprint

if TYPE_CHECKING:
    from hydistill_edge.images.real_images import RealImages
    from hydistill_edge.images.sources import LoadedImages, SourceSpec
    from hydistill_edge.images.transfer_set import TransferSetWriter


MAX_REFERENCE = 256
"""Real images whose statistics may stand in for BatchNorm: more would change them little."""

PIECE = 1024
"""Images that are read at once."""

KEPT_BYTES = 256 * 2**20
"""Real images that take more than this together are read again where they are needed again."""

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
    from hydistill_edge.images.tar_shards import find_shards

    path = Path(str(source.path))
    found = None
    if source.path and source.kind == "shards" and not path.exists():  # a pattern
        with suppress(MissingFileError):
            found = [fingerprint(file) for file in find_shards(path)]
    elif source.path:
        found = fingerprint(path) if path.exists() else None
    told = [Path(file) for file in (source.provenance, source.exclude) if file]
    if not told:
        return found
    return [found, *(fingerprint(file) if file.exists() else None for file in told)]


def reference_images(real: RealImages) -> NDArray[np.uint8] | None:
    """Return real images from all over the sources, shape (N, H, W, C), for the inversion.

    A teacher with BatchNorm does not need them. None where there are too few.
    """
    return real.some(MAX_REFERENCE, least=MIN_REFERENCE)


def pieces(work: Work, source: SourceSpec) -> Iterator[LoadedImages]:
    """Yield one source's images, at the size that the device delivers, piece by piece."""
    from hydistill_edge.images.sources import iterate_source

    height, width, channels = work.recipe.image_size()
    return iterate_source(
        source,
        batch=PIECE,
        size=(height, width),
        channels=channels,
        adapt=work.recipe.images.adapt,
        classes=work.recipe.class_names(),
    )


def _make(work: Work, out: Path) -> None:
    from hydistill_edge.images.real_images import RealImages
    from hydistill_edge.images.transfer_set import TransferSetWriter
    from hydistill_edge.stages import compensated

    clear(out, keep=CHECKPOINTS)
    recipe = work.recipe
    height, width, channels = recipe.image_size()
    real = RealImages(recipe.images.real, lambda spec: pieces(work, spec), kept_bytes=KEPT_BYTES)
    if recipe.images.pilot is not None:
        chosen = choose(work, real, recipe.images.pilot)
        write_json(out / PILOT_FILE, {"schema_version": 1, **chosen})
    maker = recipe.images.synthetic.maker
    make = _train_gan if maker == "gan" else _invert
    (out / CHECKPOINTS).mkdir(exist_ok=True)
    distilled = compensated.compensate(work, real, out) if maker == "infer" else None
    # The writer makes its own temporary folder beside the set: inside ours, nothing is left over.
    folder = out / "set"
    with TransferSetWriter(
        folder,
        size=(height, width),
        channels=channels,
        classes=recipe.class_names(),
        teacher_digest=work.teacher.digest,
        seeds={"recipe": recipe.seed},
    ) as writer:
        # Real ones first: what is wrong with them is told before the long work.
        for piece in real:
            _add_real(work, writer, piece)
        if distilled is not None:
            compensated.add_compensated(work, writer, distilled)
            synthetic, made = no_images(work), compensated.told(distilled)
        else:
            synthetic, made = make(work, real, out / CHECKPOINTS)
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
        drawn = _draw(work, writer)
        writer.describe(
            method=" and ".join(
                word
                for word, there in (("real", real.specs), (maker, made), ("procedural", drawn))
                if there
            ),
            details={
                **({"procedural": drawn} if drawn else {}),
                "inversion": made if maker == "inversion" else {},
                **({maker: made} if maker != "inversion" else {}),
                "skipped": [asdict(entry) for entry in real.skipped],
                "excluded": real.excluded,
            },
        )
    for file in folder.iterdir():
        file.rename(out / file.name)
    folder.rmdir()
    shutil.rmtree(out / CHECKPOINTS)


def earlier_set(run: str) -> Path:
    """Return where the transfer set of an earlier run directory lies."""
    return Path(run) / "transfer"


def choose(work: Work, real: RealImages, section: Any) -> dict[str, Any]:
    """Leave the chosen images only, and return why each was chosen.

    Args:
        work: gives the teacher.
        real: all real images; from now on, the chosen ones.
        section: the recipe's `images.pilot`.
    """
    from hydistill_edge.images.packed_strings import PackedStrings
    from hydistill_edge.images.pilot import Candidates, Synthetic, choose_among
    from hydistill_edge.images.transfer_set import TransferSet

    strategic = section.after is not None
    parts, names = [], []
    for piece in real:
        logits = network_logits(work.teacher, piece.images)
        features = network_features(work.teacher, piece.images) if strategic else None
        parts.append(Candidates.of(piece.images, logits, features))
        names.append(PackedStrings.pack(piece.ids))
    synthetic = None
    if strategic:
        earlier = TransferSet.open(earlier_set(section.after))
        rows = np.flatnonzero(earlier.origins == "synthetic")
        synthetic = Synthetic(
            logits=earlier.logits(rows),
            features=network_features(work.teacher, earlier.images(rows)),
            asked=earlier.pseudo_labels[rows],
        )
    candidates = Candidates.join(parts)
    pilot = choose_among(
        section.kind,
        candidates,
        count=section.count,
        seed=work.recipe.seed,
        threshold=section.threshold,
        synthetic=synthetic,
        class_names=work.recipe.class_names(),
    )
    real.choose(pilot.rows)
    told = pilot.to_dict(ids=PackedStrings.join(names), class_names=work.recipe.class_names())
    return {"candidates": len(candidates), **told}


def _add_real(work: Work, writer: TransferSetWriter, piece: LoadedImages) -> None:
    spec = piece.spec
    writer.add(
        piece.images,
        network_logits(work.teacher, piece.images),
        origin=spec.origin,
        ids=piece.ids,
        labels=piece.labels,
        licence=spec.licence if piece.licences is None else piece.licences,
        may_ship=spec.may_ship,
        addresses=piece.addresses,
    )


def _train_gan(
    work: Work, real: RealImages, checkpoints: Path
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return images of a GAN trained on the real ones, shape (N, H, W, C), and how it went."""
    from hydistill_edge.synthesis.gan import sample_gan, train_gan
    from hydistill_edge.synthesis.gan_report import report_gan

    section = work.recipe.images.synthetic
    if section.count == 0:
        return no_images(work), {}
    collected = real.images()

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
    work: Work, real: RealImages, _checkpoints: Path
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return synthetic images, shape (N, H, W, C), and how well the inversion went."""
    from hydistill_edge.images.resize import resize
    from hydistill_edge.synthesis.inversion import invert

    recipe, section = work.recipe, work.recipe.images.synthetic
    height, width, channels = recipe.image_size()
    if section.count == 0:
        return no_images(work), {}

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        work.report("images", section.count * done // total, section.count, metrics)

    found = invert(
        work.teacher,
        count=section.count,
        settings=section.inversion,
        channels=channels,
        real=reference_images(real),
        score=moment_score,
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


def _draw(work: Work, writer: TransferSetWriter) -> dict[str, Any]:
    """Add images from formulas, as many of each class; return how it went."""
    from hydistill_edge.synthesis.procedural_set import draw_set

    settings, spec = work.recipe.images.synthetic.procedural, work.teacher.spec
    if settings.count == 0:
        return {}
    height, width, channels = work.recipe.image_size()
    classes = work.recipe.class_names()
    found = draw_set(
        lambda images: network_answer(work.teacher, images),
        settings,
        classes=len(classes),
        size=(height, width),
        channels=channels,
        mean=spec.mean,
        std=spec.std,
        seed=work.recipe.seed,
        progress=lambda done, total: work.report("images", done, total, {}),
    )
    writer.add(
        found.images,
        found.logits,
        origin="procedural",
        ids=found.ids,
        may_ship=True,
    )
    return found.to_dict(classes)


def no_images(work: Work) -> NDArray[np.uint8]:
    """Return none of the device's images, shape (0, H, W, C) uint8."""
    return np.empty((0, *work.recipe.image_size()), np.uint8)
