"""Accuracies on labelled images, of a whole run or of one bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydistill_edge.build import open_recipe
from hydistill_edge.errors import ImageSourceError, MissingFileError
from hydistill_edge.images.sources import SourceSpec, load_source
from hydistill_edge.metrics import score
from hydistill_edge.run_directory import RunDirectory
from hydistill_edge.stages.evaluation import evaluate as evaluate_work
from hydistill_edge.stages.evaluation import require_labels
from hydistill_edge.stages.work import Report, Work, quiet

KINDS = {".npz": "npz", ".safetensors": "safetensors", ".tar": "shards"}
"""What a file's ending says about the kind of source; a folder is a folder of images."""


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
    source = labelled_source(data)
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


def labelled_source(data: Path) -> SourceSpec:
    """Return the source that a path on the command line means.

    Raises:
        MissingFileError: there is nothing there.
        ImageSourceError: a file of an unknown kind.
    """
    if not data.exists():
        raise MissingFileError(f"there are no images at {data}")
    if data.is_file() and data.suffix not in KINDS:
        raise ImageSourceError(
            f"{data} is no image source; expected a folder with one subfolder per class, or a "
            f"file that ends in {', '.join(KINDS)}"
        )
    kind: Any = "folder" if data.is_dir() else KINDS[data.suffix]
    return SourceSpec(kind, data, use_labels=True)


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
