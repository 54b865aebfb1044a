"""Stage teacher: load it once, check the contract, and write down what it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydistill_edge.recipe import FACTORED, REDUCED
from hydistill_edge.run_directory import digest_of_file, read_json
from hydistill_edge.stages.work import Work

if TYPE_CHECKING:
    from hydistill_edge.models.student import Student

SHARING = ("hidfd", "kd3")
"""Methods whose student takes over the teacher's classifier."""


def run(work: Work) -> None:
    """Write teacher.json."""
    section = work.recipe.teacher or work.recipe.student
    parts = [section.model_dump(mode="json"), network_state(section)]
    work.run.file_stage(
        "teacher", work.inputs(parts), "teacher.json", lambda: json.dumps(describe(work), indent=2)
    )
    if work.recipe.method in SHARING:
        _check_classifier(read_json(work.path("teacher.json")))
    if work.recipe.student.architecture in REDUCED and not work.path("student").is_dir():
        reduced(work)
    work.report("teacher", 1, 1, {})


def _check_classifier(facts: Mapping[str, Any]) -> None:
    """Refuse a teacher that these methods cannot use, before hours of making images for them.

    Raises:
        MethodError: its logits are no linear layer of its last map's mean.
    """
    if not facts["shares_classifier"]:
        from hydistill_edge.models.projected import not_shared

        raise not_shared(facts["shares_classifier_note"])


def reduced(work: Work, channels: int | None = None) -> Student:
    """Return the teacher made smaller, untrained, as the recipe asks for.

    Asked for before hours of making images, too: not every teacher can be.

    Args:
        work: gives teacher and recipe.
        channels: of the student's pixels; the teacher's where None.

    Raises:
        MethodError: its layers cannot be made thinner.
        UsageError: the share is too small for it.
    """
    from hydistill_edge.models.factoring import factor
    from hydistill_edge.models.slimming import slim

    section = work.recipe.student
    make = factor if section.architecture == FACTORED else slim
    return make(work.teacher, macs_share=section.share(), channels=channels)


def network_state(section: Any) -> list[str]:
    """Return digests of every file that a teacher's or own student's network is made of."""
    weights, architecture = Path(str(section.weights)), str(section.architecture)
    files = [weights]
    if weights.suffix.lower() == ".onnx":
        from hydistill_edge.models.onnx_file import external_files

        files += external_files(weights)
    if ".py:" in architecture:
        files.append(Path(architecture.rpartition(":")[0]))
    return [digest_of_file(file) for file in files if file.is_file()]  # loading tells what is not


def describe(work: Work) -> dict[str, object]:
    """Return the facts of the teacher that reports and manifests repeat."""
    from hydistill_edge.models.counting import count

    teacher, spec = work.teacher, work.teacher.spec
    size = count(teacher.network, channels=spec.channels, size=(spec.height, spec.width))
    return {
        "schema_version": 1,
        "role": "teacher" if work.recipe.teacher else "the student itself (method none)",
        "arch": teacher.architecture,
        "params": size.params,
        "macs": size.macs,
        "classes": list(teacher.classes),
        "input": {"height": spec.height, "width": spec.width, "channels": spec.channels},
        "mean": list(spec.mean),
        "std": list(spec.std),
        "digest": teacher.digest,
        "batch_norms": len(teacher.batch_norms()),
        "shares_classifier": teacher.shares_classifier,
        "shares_classifier_note": teacher.shares_classifier_note,
    }
