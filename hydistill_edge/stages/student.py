"""Stage student: train it by the recipe's method, or take in the user's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hydistill_edge.recipe import FACTORED, METHODS, REDUCED
from hydistill_edge.run_directory import clear, write_json
from hydistill_edge.stages.teacher import network_state, reduced
from hydistill_edge.stages.work import Work, fingerprint

if TYPE_CHECKING:
    from hydistill_edge.methods.distilled import Distilled
    from hydistill_edge.models.student import Student

CHECKPOINTS = "checkpoints"

SMALL = "small"
"""Folder of the run that several students share: the small networks, each trained once."""

NOT_TRAINED = "method none: the student is the user's own, so nothing was held out"


def run(work: Work) -> None:
    """Write student/: weights, facts and, where it was trained, the training's history."""
    recipe = work.recipe
    plain = recipe.to_dict()
    own = recipe.student.weights is not None
    parts = [recipe.method, plain["student"], plain["training"], recipe.seed]
    parts.append(network_state(recipe.student) if own else None)
    parts.append([recipe.image_size(), recipe.class_names()])
    decisions = getattr(recipe.training, "decisions", None)
    if decisions is not None:
        parts.append(fingerprint(Path(decisions)))
    after = ("teacher",) if recipe.method == "none" else ("teacher", "images")
    work.run.folder_stage(
        "student", work.inputs(parts, after=after), "student", lambda out: _make(work, out)
    )
    work.report("student", 1, 1, {})


def _make(work: Work, folder: Path) -> None:
    clear(folder, keep=CHECKPOINTS)
    if work.recipe.method == "none":
        student = _adopt(work)
        facts: dict[str, Any] = {"holdout_agreement": None, "holdout_note": NOT_TRAINED}
        history: list[dict[str, Any]] = []
    else:
        student, facts, history = _distill(work, folder)
    student.save(folder)
    write_json(folder / "history.json", history)
    write_json(folder / "facts.json", {**_describe(student, folder), **facts})
    # Last, so that a disk that is full by now costs no training.
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _distill(work: Work, folder: Path) -> tuple[Student, dict[str, Any], list[dict[str, Any]]]:
    recipe = work.recipe
    student = _untrained(work)

    def progress(done: int, total: int, metrics: Mapping[str, float]) -> None:
        work.report("student", done, total, metrics)

    checkpoints = folder / CHECKPOINTS
    checkpoints.mkdir(exist_ok=True)
    more: dict[str, Any] = {}
    if work.shared is not None and recipe.method == "arch_overfitting":
        more["small_workdir"] = work.shared / SMALL
    result = _method(recipe.method)(
        work.teacher,
        student,
        work.transfer,
        recipe.training,
        workdir=checkpoints,
        seed=recipe.seed,
        device=work.torch_device,
        progress=progress,
        **more,
    )
    facts = {
        "holdout_agreement": result.holdout_agreement,
        "holdout_note": "agreement with the teacher on held-out images of the transfer set",
        "steps": result.steps,
        "best_step": result.best_step,
    }
    write_json(folder / "holdout.json", {"rows": result.holdout_rows.tolist()})
    for name, document in result.documents.items():
        write_json(folder / name, document)
    for name, network in result.networks.items():
        network.save(folder / name)
    return result.student.cpu(), facts, result.history


def _untrained(work: Work) -> Student:
    """Return the student that the method trains: fresh, or the teacher made smaller."""
    section = work.recipe.student
    height, width, channels = work.recipe.image_size()
    if section.architecture in REDUCED:
        student = reduced(work, channels)
        if section.architecture == FACTORED:
            _reconstruct(work, student)
        return student

    from hydistill_edge.models.student import Student

    return Student.create(
        str(section.architecture).removeprefix("zoo:"),
        classes=work.recipe.class_names(),
        channels=channels,
        size=(height, width),
        width=section.width,
        seed=work.recipe.seed,
    )


def _reconstruct(work: Work, student: Student) -> None:
    """Fit a factored student's layers to what the teacher's give for images of the set.

    Real ones come first, as they show best what the layers see on the device; none that is held
    out is among them.
    """
    import torch

    from hydistill_edge.methods.pool import is_real, split
    from hydistill_edge.models.reconstruction import images_wanted, reconstruct

    recipe, transfer = work.recipe, work.transfer
    rows, _ = split(transfer, recipe.training.holdout, recipe.seed)
    rows = np.random.default_rng(recipe.seed).permutation(rows)
    rows = rows[np.argsort(~is_real(transfer)[rows], kind="stable")][: images_wanted(transfer.size)]
    images = torch.from_numpy(transfer.images(np.sort(rows))).permute(0, 3, 1, 2)
    device = work.torch_device
    reconstruct(student.to(device), work.teacher.to(device), images.to(device))


def _method(name: str) -> Callable[..., Distilled]:
    """Return the `distill` of a method: it stands in the module of the method's settings."""
    distill: Callable[..., Distilled] = import_module(METHODS[name].partition(":")[0]).distill
    return distill


def _adopt(work: Work) -> Student:
    """Return the user's own network as a student, its input statistics folded in."""
    from hydistill_edge.models.student import Student
    from hydistill_edge.models.teacher import Teacher

    recipe = work.recipe
    section = recipe.student
    loaded = work.teacher
    if recipe.teacher is not None:
        loaded = Teacher.load(
            Path(str(section.weights)),
            architecture=section.architecture,
            classes=recipe.class_names(),
            spec=_spec(section.input),
            options=dict(section.options),
        )
    return Student.adopt(
        loaded.network,
        spec=loaded.spec,
        classes=recipe.class_names(),
        architecture=loaded.architecture,
        options=dict(section.options),
        channels=recipe.image_size()[2],
        fold=section.fold_input,
        seed=recipe.seed,
    )


def _spec(section: Any) -> Any:
    from hydistill_edge.models.pixels import InputSpec

    return InputSpec(**dict(section))


def _describe(student: Student, folder: Path) -> dict[str, Any]:
    size = student.count()
    return {
        "schema_version": 1,
        "arch": student.architecture,
        "width": student.width,
        "params": size.params,
        "macs": size.macs,
        "input_note": student.input_note,
        "digest": student.digest,
    }
