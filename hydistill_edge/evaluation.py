"""Accuracies on labelled images, of a whole run or of one bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydistill_edge.build import open_recipe
from hydistill_edge.images.sources import SourceSpec, kind_of, load_source
from hydistill_edge.metrics import score
from hydistill_edge.run_directory import RunDirectory
from hydistill_edge.stages.evaluation import evaluate as evaluate_work
from hydistill_edge.stages.evaluation import require_labels
from hydistill_edge.stages.work import Report, Work, quiet


def evaluate(subject: Path, data: Path, *, report: Report | None = None) -> dict[str, Any]:
    """Return accuracies, per-class accuracies and confusion, as in evaluation.json.

    Args:
        subject: a run directory (teacher, student and every artifact) or a .hydistill file.
        data: labelled images: a folder with one subfolder per class, .npz, .safetensors or .tar.
        report: called as `report(stage, done, total, metrics)`.

    Raises:
        MissingFileError: subject or data do not exist.
        ImageSourceError: images without labels, or of classes that the model does not know.
    """
    source = SourceSpec(kind_of(data), data, use_labels=True)
    if subject.is_dir():
        recipe = open_recipe(subject)
        adapting = recipe.images.model_copy(update={"adapt": True})
        work = Work(
            recipe.model_copy(update={"images": adapting}),
            RunDirectory(subject),
            report or quiet,
        )
        return evaluate_work(work, source)
    return evaluate_bundle(subject, source)


def evaluate_bundle(path: Path, source: SourceSpec) -> dict[str, Any]:
    """Return evaluation.json of one bundle, run by its own runtime on this machine."""
    from hydistill_edge.device import load

    with load(path) as model:
        shape = model.manifest.input
        loaded = load_source(
            source,
            size=(shape.height, shape.width),
            channels=shape.channels,
            adapt=True,
            classes=model.classes,
            all_classes=False,
        )
        labels = require_labels(loaded)
        logits = model.logits(loaded.images)
        name = f"{model.manifest.name} {model.manifest.version}"
        entry = score(name, logits, labels, model.classes)
    return {
        "schema_version": 1,
        "images": len(labels),
        "skipped": [{"id": image.id, "reason": image.reason} for image in loaded.skipped],
        "models": [{**entry, "note": ""}],
    }
