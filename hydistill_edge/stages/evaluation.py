"""Stage evaluation: accuracies of teacher, student and artifacts on labelled images, once."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hydistill_edge.errors import ImageSourceError, MissingFileError
from hydistill_edge.metrics import gap, score
from hydistill_edge.stages import artifacts
from hydistill_edge.stages.images import load, state
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.stages.overlap import find_seen
from hydistill_edge.stages.work import Work
from hydistill_edge.targets.parity import run_in_batches

if TYPE_CHECKING:
    from hydistill_edge.images.sources import LoadedImages, SourceSpec
    from hydistill_edge.models.student import Student

SMALL = "small network"
"""Name of the entry of the network that method arch_overfitting trains beside the student."""


def run(work: Work) -> None:
    """Write evaluation.json, where the recipe names labelled images."""
    source, shifted = work.recipe.evaluation, work.recipe.shifted_evaluation
    if source is None:
        # What an earlier recipe measured, perhaps of another student, must not stand in the report.
        work.run.drop("evaluation.json", "evaluation")
        work.report("evaluation", 1, 1, {})
        return
    after = (
        "teacher",
        "images",
        "student",
        *[f"targets.{planned.key}" for planned in work.planned],
    )
    parts = [work.recipe.to_dict()["evaluation"], state(source)]
    if shifted is not None:
        parts += [work.recipe.to_dict()["shifted_evaluation"], state(shifted)]
    work.run.file_stage(
        "evaluation",
        work.inputs(*parts, after=after),
        "evaluation.json",
        lambda: json.dumps(_both(work, source, shifted), indent=2),
    )
    work.report("evaluation", 1, 1, {})


def check(work: Work) -> None:
    """Refuse evaluation images that the stage would refuse, before anything is trained for them.

    Index, labels and the first image are looked at; what only the other images show comes later.

    Raises:
        MissingFileError: there are none.
        ImageSourceError: they cannot be read, do not fit, or have no labels.
    """
    from hydistill_edge.images.source_check import check_labelled_source

    height, width, channels = work.recipe.image_size()
    for name in ("evaluation", "shifted_evaluation"):
        source = getattr(work.recipe, name)
        if source is None:
            continue
        try:
            check_labelled_source(
                source,
                size=(height, width),
                channels=channels,
                adapt=work.recipe.images.adapt,
                classes=work.recipe.class_names(),
            )
        except (ImageSourceError, MissingFileError) as error:
            _ = work.teacher  # whose classes images are held against: its own fault is told first
            raise type(error)(f"{name}: {error}") from error


def _both(work: Work, source: SourceSpec, shifted: SourceSpec | None) -> dict[str, Any]:
    """Return evaluation.json: the usual images, and where there are any the shifted ones."""
    found = evaluate(work, source)
    if shifted is not None:
        told = evaluate(work, shifted)
        found["shifted"] = {key: told[key] for key in ("images", "skipped", "overlap", "models")}
    return found


def evaluate(work: Work, source: SourceSpec) -> dict[str, Any]:
    """Return evaluation.json for one labelled source.

    The small network of method arch_overfitting is a model of its own, with `student_gap_points`:
    how far the student's accuracy is above its, in percent points, and the paired standard error.

    Raises:
        ImageSourceError: the source has no labels.
    """
    loaded = load(work, source)
    labels = require_labels(loaded)
    classes = work.recipe.class_names()
    beside = small_network(work)
    total = len(work.planned) + 2 + (beside is not None)
    seen = find_seen(work, loaded)
    teacher = network_logits(work.teacher, loaded.images)
    work.report("evaluation", 1, total, {})
    student = network_logits(work.student, loaded.images)
    work.report("evaluation", 2, total, {})
    models = {"teacher": teacher, "student": student}
    if beside is not None:
        models[SMALL] = network_logits(beside, loaded.images)
        work.report("evaluation", 3, total, {})
    notes = {}
    for done, planned in enumerate(work.planned, start=len(models)):
        built = artifacts.read(work, planned)
        with built.open() as runner:
            batch = planned.profile.batch
            models[planned.key] = run_in_batches(runner.run, loaded.images, batch)
        if built.simulated_by:
            notes[planned.key] = f"simulated: the same graph run by {built.simulated_by}"
        work.report("evaluation", done + 1, total, {})
    more: dict[str, dict[str, float]] = {}
    if beside is not None:
        points, error = gap(student, models[SMALL], labels)
        more[SMALL] = {"student_gap_points": points, "student_gap_error_points": error}
    return {
        "schema_version": 1,
        "images": len(labels),
        "skipped": [asdict(entry) for entry in loaded.skipped],
        "overlap": seen.told,
        "models": [
            {
                **score(name, logits, labels, classes, teacher=teacher, student=student),
                "accuracy_without_overlap": seen.accuracy(logits, labels),
                **more.get(name, {}),
                "note": notes.get(name, ""),
            }
            for name, logits in models.items()
        ],
    }


def small_network(work: Work) -> Student | None:
    """Return the network that the student was trained beside; None where there was none."""
    from hydistill_edge.methods.arch_overfitting import SMALL_NETWORK
    from hydistill_edge.models.student import Student

    folder = work.path("student", SMALL_NETWORK)
    return Student.load(folder) if folder.is_dir() else None


def require_labels(loaded: LoadedImages) -> Any:
    """Return the true class indices, shape (N,).

    Raises:
        ImageSourceError: there are none, or some are missing.
    """
    if loaded.labels is None or (loaded.labels < 0).any():
        missing = "no labels" if loaded.labels is None else "some images without a label"
        raise ImageSourceError(
            f"the evaluation images have {missing}; give a folder with one subfolder per class, "
            "or an .npz with labels"
        )
    return loaded.labels
