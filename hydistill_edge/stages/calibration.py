"""Stage calibration: which images the int8 ranges are taken from, and how good they are."""

from __future__ import annotations

import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.atomic import write_bytes
from hydistill_edge.calibration.choose import MOST_CANDIDATES, Choice, choose_covering
from hydistill_edge.calibration.coverage import Activations, summarize
from hydistill_edge.calibration.layer_quality import LayerMoments
from hydistill_edge.calibration.partition import ENOUGH, KEPT_SHARE, LEAST_KEPT, MOST_KEPT
from hydistill_edge.calibration.quality import Quality, judge_quality
from hydistill_edge.calibration.rows import Rows, balanced, content_order
from hydistill_edge.errors import MethodError, RunDirectoryError
from hydistill_edge.images.transfer_format import REAL_ORIGINS
from hydistill_edge.run_directory import read_json, write_json
from hydistill_edge.stages.images import MAX_REFERENCE, MIN_REFERENCE, no_images
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.stages.moments import layer_moments, moment_score
from hydistill_edge.stages.work import Work
from hydistill_edge.targets.base import Images

if TYPE_CHECKING:
    from hydistill_edge.images.content_hash import Hashes
    from hydistill_edge.models.student import Student

REFERENCE_IMAGES = 50
"""Real images that a set is judged against: more would cost time and tell little more."""

STUDENT_FACTOR = 2
"""Images made from the student, per image wanted: the choice wants something to choose from."""

MOST_LOOKED = 4 * MOST_CANDIDATES
"""Made images that the student is run over to see which of them fit it."""

PIECE = 1024  # images in memory at once while it is

CONTROLS = "controls.npz"


@dataclass(frozen=True)
class Candidates:
    """The images to choose from.

    Attributes:
        pixels: gives the images of rows, shape (n, H, W, C) uint8.
        hashes: of their contents, shape (N, bytes).
        labels: shape (N,), the class of each by the network that named it.
        ids: N source ids.
        source: "transfer" or "student".
        made: which were made rather than collected, shape (N,).
    """

    pixels: Any
    hashes: Hashes
    labels: NDArray[np.int64]
    ids: Any
    source: str
    made: NDArray[np.bool_]

    def images(self, rows: NDArray[np.int64]) -> Images:
        """Return the pixels of rows, shape (n, H, W, C) uint8."""
        found: Images = self.pixels(rows)
        return found


def run(work: Work) -> None:
    """Write calibration/: the chosen images, and choice.json with reasons and quality."""
    if not any(planned.precision == "int8" for planned in work.planned):
        work.report("calibration", 1, 1, {})
        return
    recipe = work.recipe
    # The limit on the controls is looked at in the report: no image changes with it.
    section = recipe.calibration.model_dump(exclude={"control_db"})
    parts = [section, recipe.parity.model_dump(), recipe.seed]
    parts.append(recipe.to_dict()["images"]["synthetic"]["inversion"])
    # With another division, the images of parity are others.
    parts.append([KEPT_SHARE, LEAST_KEPT, MOST_KEPT, ENOUGH])
    work.run.folder_stage(
        "calibration",
        work.inputs(parts, after=("graph", "images")),
        "calibration",
        lambda folder: _make(work, folder),
    )
    work.report("calibration", 1, 1, {})


def read_choice(work: Work) -> tuple[Images, dict[str, Any]]:
    """Return the chosen images, shape (N, H, W, C) uint8, and choice.json.

    Raises:
        RunDirectoryError: one of them is damaged.
    """
    facts: dict[str, Any] = read_json(work.path("calibration", "choice.json"))
    return _read_images(work.path("calibration", "images.npz")), facts


def read_controls(work: Work) -> Images:
    """Return the images that int8 artifacts are held against the student on, (N, H, W, C) uint8.

    None of them set a range, whatever set those that did.

    Raises:
        RunDirectoryError: the file is damaged.
    """
    path = work.path("calibration", CONTROLS)
    return _read_images(path) if path.exists() else no_images(work)


def _read_images(path: Path) -> Images:
    try:
        with np.load(path, allow_pickle=False) as file:
            images: Images = file["images"]
            return images
    except (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error) as error:
        raise RunDirectoryError(
            f"{path} is damaged ({error}); delete it and build again"
        ) from error


def _write_images(path: Path, images: Images) -> None:
    stream = io.BytesIO()
    np.savez(stream, images=images)
    write_bytes(path, stream.getvalue())


def read_moments(student: Student, images: Images) -> tuple[list[LayerMoments], dict[str, float]]:
    """Return what BatchNorm layers see of images beside what they remember.

    Args:
        student: on the CPU.
        images: shape (N, H, W, C) uint8, taken as one batch.

    Returns:
        Moments layer by layer, and by layer name the distance in nats, mean over the channels.
    """
    from hydistill_edge.objectives.bn_statistics import BatchStatistics

    with BatchStatistics(student.network) as reader:
        network_logits(student, images, batch=len(images))
        return layer_moments(reader.take())


def _make(work: Work, folder: Path) -> None:
    from hydistill_edge.targets.graph_input import NORMALIZED
    from hydistill_edge.targets.graph_layers import layer_inputs
    from hydistill_edge.targets.onnxruntime.activations import make_activation_reader

    graph = work.path("graph", sorted({planned.graph for planned in work.planned})[0])
    tensors = layer_inputs(graph, leave_out=(NORMALIZED,))
    reader = make_activation_reader()
    candidates = (
        _from_student(work) if work.recipe.calibration.source == "student" else _from_set(work)
    )
    apart = np.concatenate([work.partition.parity, work.partition.golden])
    fitting, misfits = _fitting(work, candidates)
    choice = choose_covering(
        images=candidates.images,
        hashes=candidates.hashes,
        pseudo_labels=candidates.labels,
        ids=candidates.ids,
        classes=work.recipe.class_names(),
        count=work.recipe.calibration.count,
        seed=work.recipe.seed,
        exclude=work.transfer.hashes[apart],
        among=fitting,
        reader=reader,
        model=graph,
        tensors=tensors,
        times=work.recipe.calibration.times,
    )
    if misfits:
        told = f"{misfits} made images left out, which do not fit the student's batch norms"
        choice = replace(choice, reason=f"{choice.reason}; {told}")
    images = candidates.images(choice.rows)
    real = _real_reference(work)
    quality = _judge(
        work,
        choice,
        images,
        summarize(reader, graph, tensors, images),
        summarize(reader, graph, tensors, real) if len(real) else None,
    )
    _write_images(folder / "images.npz", images)
    controls, controls_note = _controls(work)
    if len(controls):
        _write_images(folder / CONTROLS, controls)
    write_json(
        folder / "choice.json",
        {
            "schema_version": 1,
            "source": candidates.source,
            "misfits": misfits,
            **choice.to_dict(),
            "quality": quality.to_dict(),
            "controls": len(controls),
            "controls_note": controls_note,
        },
    )


def _from_set(work: Work) -> Candidates:
    """Take the whole set: a student that learned from procedural images needs their ranges.

    A steel student calibrated on inverted images alone lost 1 to 4 points, and none with both.
    """
    transfer = work.transfer
    return Candidates(
        transfer.images,
        transfer.hashes,
        transfer.pseudo_labels,
        transfer.ids,
        "transfer",
        ~np.isin(transfer.origins, REAL_ORIGINS),
    )


def _fitting(work: Work, candidates: Candidates) -> tuple[Rows, int]:
    """Return the candidates that may set ranges, and how many of those looked at do not fit.

    Some of the images that were made drive a student far out of the ranges that it works in: of
    those from formulas one in a hundred had a misfit of 270 to a slimmed RegNetY, real images 8.
    Ranges that hold these too waste steps. Without them, the median signal of that student on
    1,200 real images was 34.1 dB in ONNX Runtime and 35.4 in OpenVINO; with misfits up to 4 it was
    30.3 and 32.1, with all 26.6 and 32.0. Images that were taken may reach where they do.
    """
    from hydistill_edge.stages.logits import network_answer
    from hydistill_edge.synthesis.procedural_set import FITTING

    collected, made = np.flatnonzero(~candidates.made), np.flatnonzero(candidates.made)
    order = content_order(candidates.hashes, work.recipe.seed)
    looked = balanced(made, candidates.labels, order, MOST_LOOKED, None)
    if not len(looked):
        return collected, 0
    misfit = np.concatenate(
        [
            network_answer(work.student, candidates.images(looked[start : start + PIECE])).misfit
            for start in range(0, len(looked), PIECE)
        ]
    )
    fits = misfit <= FITTING
    least = min(len(looked), work.recipe.calibration.count - len(collected))
    if fits.sum() < least:  # better some that reach too far than none
        fits[np.argsort(misfit, kind="stable")[:least]] = True
    return np.union1d(collected, looked[fits]), int((~fits).sum())


def _from_student(work: Work) -> Candidates:
    """Make images from the student's own batch norms: those are the ranges that are quantized."""
    from hydistill_edge.images.content_hash import content_hashes

    count = max(STUDENT_FACTOR * work.recipe.calibration.count, len(work.recipe.class_names()))
    images = _inverted(work, count, seed=work.recipe.seed + 1)
    labels = network_logits(work.student, images).argmax(axis=1)
    ids = [f"student-inverted-{index:06d}" for index in range(count)]
    every = np.full(count, True)
    return Candidates(
        lambda rows: images[rows], content_hashes(images), labels, ids, "student", every
    )


def _controls(work: Work) -> tuple[Images, str]:
    """Make images from the student's own batch norms; where there are none, the note says why."""
    from hydistill_edge.objectives.bn_statistics import bn_layers

    count, classes = work.recipe.calibration.controls, len(work.recipe.class_names())
    if count == 0:
        return no_images(work), "the recipe asks for none"
    if not bn_layers(work.student.network) and _stand_ins(work) is None:
        return no_images(work), "no batch norms in the student, nor real images in their place"
    among = np.random.default_rng(work.recipe.seed).permutation(classes)[:count]
    try:
        made = _inverted(work, count, seed=work.recipe.seed + 2, among=sorted(among.tolist()))
    except MethodError as error:  # the score of the set then decides
        return no_images(work), str(error)
    return made, ""


def _inverted(work: Work, count: int, *, seed: int, among: Sequence[int] | None = None) -> Images:
    """Return images made from the student, shape (count, H, W, C) uint8.

    Args:
        work: gives the student.
        count: how many.
        among: places of the classes asked for; None for all.
        seed: never the recipe's own, under which the teacher gave its images.
    """
    from hydistill_edge.synthesis.inversion import invert

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        work.report("calibration", done, total + 1, metrics)

    return invert(
        work.student,
        count=count,
        among=among,
        settings=work.recipe.images.synthetic.inversion,
        real=_stand_ins(work),
        score=moment_score,
        seed=seed,
        device=work.torch_device,
        progress=progress,
    ).images


def _stand_ins(work: Work) -> Images | None:
    """Return real images for a student without BatchNorm; None where there are too few.

    None of those that parity is proven on or that travel: they must be new to the artifact.
    """
    transfer, parts = work.transfer, work.partition
    real = np.flatnonzero(transfer.origins == "real")
    rows = np.setdiff1d(real, np.concatenate([parts.parity, parts.golden]))
    return transfer.images(rows[:MAX_REFERENCE]) if len(rows) >= MIN_REFERENCE else None


def _real_reference(work: Work) -> Images:
    """Return real images to judge the set against; parity's, since no other is left over."""
    rows = work.partition.parity
    real = rows[work.transfer.origins[rows] == "real"]
    return work.transfer.images(real[:REFERENCE_IMAGES])


def _judge(
    work: Work,
    choice: Choice,
    images: Images,
    activations: Activations,
    real: Activations | None,
) -> Quality:
    moments, bn_distances = read_moments(work.student, images)
    return judge_quality(
        choice.per_class,
        activations=activations,
        real=real,
        moments=moments,
        bn_distances=bn_distances,
        limit=work.recipe.calibration.quality,
    )
