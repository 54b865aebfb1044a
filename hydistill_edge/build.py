"""One recipe in, checked artifacts out: the stages, in the order in which the data flows.

    teacher -> images -> student -> graph -> calibration -> targets -> parity -> latency
            -> evaluation -> bundle -> report

Each stage reads what earlier ones left in the run directory, so each can run alone; a stage whose
inputs are unchanged is skipped. A failed gate is a value in `summary.json`, not an exception.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hydistill_edge import __version__
from hydistill_edge.atomic import write_text
from hydistill_edge.errors import (
    MissingFileError,
    RunDirectoryError,
    TargetUnavailableError,
    UsageError,
)
from hydistill_edge.recipe import Recipe
from hydistill_edge.run_directory import RunDirectory, read_json, write_json
from hydistill_edge.stages import (
    bundle,
    calibration,
    evaluation,
    graph,
    images,
    latency,
    parity,
    student,
    summary,
    targets,
    teacher,
)
from hydistill_edge.stages.work import Report, Work, plan, quiet
from hydistill_edge.targets.adapters import builder

STAGES: Mapping[str, Callable[[Work], None]] = {
    "teacher": teacher.run,
    "images": images.run,
    "student": student.run,
    "graph": graph.run,
    "calibration": calibration.run,
    "targets": targets.run,
    "parity": parity.run,
    "latency": latency.run,
    "evaluation": evaluation.run,
    "bundle": bundle.run,
    "report": summary.run,
}

READS: Mapping[str, tuple[str, ...]] = {
    "teacher": (),
    "images": ("teacher",),
    "student": ("teacher", "images"),
    "graph": ("student",),
    "calibration": ("graph", "images"),
    "targets": ("graph", "calibration"),
    "parity": ("images", "student", "graph", "targets"),
    "latency": ("images", "targets"),
    "evaluation": ("teacher", "student", "targets"),
    "bundle": ("student", "images", "targets", "parity", "latency", "evaluation"),
    "report": ("teacher", "student", "images", "targets", "parity", "latency", "evaluation"),
}
"""Stage -> the stages whose results it reads."""

SHARED: Mapping[str, str] = {"teacher": "teacher.json", "images": "transfer"}
"""Stage that several students share -> what it makes."""

MEMBERS = "students"
"""Folder with one run directory per student, where there are several."""

RECORDED_PACKAGES = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "nncf",
    "tensorrt",
    "numpy",
    "pillow",
)


@dataclass(frozen=True)
class Build:
    """A build's result.

    Attributes:
        path: the run directory.
        summary: summary.json as a value; empty where one stage ran alone.
        passed: False where a gate said no, None where nothing was judged.
    """

    path: Path
    summary: dict[str, Any]

    @property
    def passed(self) -> bool | None:
        """The verdict of the summary."""
        verdict: bool | None = self.summary.get("passed")
        return verdict


def build(
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    only: str | None = None,
    fresh: bool = False,
    report: Report | None = None,
) -> Build:
    """Run a recipe's stages.

    Args:
        recipe: what to build.
        out: the run directory; default `runs/<recipe.name>`.
        only: one stage to run alone; its inputs must be there.
        fresh: redo what is done.
        report: called as `report(stage, done, total, metrics)`.

    Returns:
        The run directory and its summary.

    Raises:
        UsageError: a stage above the one that is to run alone is stale.
        HydistillError: something could not be done; what was finished before is kept.
    """
    return _build(recipe, out=out, only=only, fresh=fresh, report=report, look_above=True)


def build_member(
    recipe: Recipe, *, out: Path, shared: Path, only: str | None, fresh: bool, report: Report
) -> Build:
    """Run the stages of one student of several; teacher and images are those of a shared run.

    Args:
        recipe: of this student.
        out: its own run directory.
        shared: the run directory that has teacher and images.
        only: as for `build`; none of `SHARED`.
        fresh: as for `build`; without effect on what is shared.
        report: called as `report(stage, done, total, metrics)`.

    Raises:
        HydistillError: as for `build`.
    """
    return _build(
        recipe, out=out, only=only, fresh=fresh, report=report, look_above=True, shared=shared
    )


def check_stage(only: str | None) -> None:
    """Refuse the name of a stage that there is not.

    Raises:
        UsageError: naming those that there are.
    """
    if only is not None and only not in STAGES:
        raise UsageError(f'there is no stage "{only}"; the stages are {", ".join(STAGES)}')


def _build(
    recipe: Recipe,
    *,
    out: str | Path | None,
    only: str | None,
    fresh: bool,
    report: Report | None,
    look_above: bool,
    shared: Path | None = None,
) -> Build:
    check_stage(only)
    with RunDirectory(Path(out) if out is not None else Path("runs") / recipe.name) as run:
        work = Work(recipe, run, report or quiet, shared=shared)
        if shared is not None:
            for name, path in SHARED.items():
                run.borrow(name, path, shared)
        if only in (None, "targets"):
            require_builders(work)
        if only is None:
            evaluation.check(work)
        elif look_above:
            refuse_stale(work, only)
        for name, stage in STAGES.items():
            if shared is not None and name in SHARED:
                with run.looking():
                    stage(work)
            elif only in (None, name):
                if fresh:
                    run.forget(name)
                stage(work)
            if name == "teacher":
                # A teacher that cannot be loaded leaves a finished run as it was.
                describe_build(run, recipe.to_yaml())
        done = only in (None, "report")
        return Build(run.path, read_json(run.path / "summary.json") if done else {})


def describe_build(run: RunDirectory, recipe: str) -> None:
    """Write the resolved recipe and the versions beside what is built."""
    write_text(run.path / "recipe.yaml", recipe)
    write_json(run.path / "environment.json", environment())


def require_builders(work: Work) -> None:
    """Refuse a recipe whose targets cannot be built here, before anything is trained for them.

    Raises:
        TargetUnavailableError: naming what is missing, and the remedy.
    """
    for planned in work.planned:
        found = builder(planned.target).check()
        if not found.can_build and work.run.record(f"targets.{planned.key}") is None:
            raise TargetUnavailableError(f"{found.why}; run {found.remedy}")


def refuse_stale(work: Work, only: str) -> None:
    """Refuse to run a stage alone on results that a build would make again.

    Raises:
        UsageError: a stage above it is stale.
        MissingFileError: one has not run.
    """
    above = {only}
    for name in reversed(list(STAGES)):
        above.update(READS[name] if name in above else ())
    report, work.report = work.report, quiet
    with work.run.looking():
        for name, stage in STAGES.items():
            if name in above - {only} and work.run.has_run(name):
                stage(work)
    work.report = report


def verify(path: Path, *, report: Report | None = None) -> dict[str, Any]:
    """Run the parity ladder of a finished run again; return its reports by artifact.

    Summary and report tell the new verdicts afterwards.

    Raises:
        MissingFileError: the folder is no run directory, or has no artifacts yet.
    """
    repeat(open_recipe(path), path, "parity", report=report)
    return read_artifacts(path, "parity.json")


def repeat(recipe: Recipe, path: Path, stage: str, *, report: Report | None = None) -> None:
    """Run one stage of a finished run again, and the report with what it found.

    The run may stand on another machine than its teacher and images: nobody looks for them.
    """
    for only in (stage, "report"):
        _build(recipe, out=path, only=only, fresh=only == stage, report=report, look_above=False)


def open_recipe(path: Path) -> Recipe:
    """Return the resolved recipe of a run directory.

    Raises:
        MissingFileError: there is none.
        UsageError: it is the run of several students.
    """
    if not RunDirectory.is_run(path) or not (path / "recipe.yaml").exists():
        raise MissingFileError(f"{path} is no run directory; `hydistill build` makes one")
    if (path / MEMBERS).is_dir():
        names = ", ".join(sorted(member.name for member in (path / MEMBERS).iterdir()))
        raise UsageError(
            f"{path} is the run of several students; give that of one: {path / MEMBERS}/NAME, "
            f"where NAME is one of {names}"
        )
    file = path / "recipe.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RunDirectoryError(
            f"{file} is not a text file ({error}); run `hydistill build` with your recipe again"
        ) from error
    return Recipe.parse(text, name=str(file))


def read_artifacts(path: Path, name: str) -> dict[str, Any]:
    """Return one JSON file of every artifact that a run's recipe asks for, by the artifact's key.

    Artifacts of an earlier recipe may lie there too; they are left out.
    """
    keys = [planned.key for planned in plan(open_recipe(path))]
    return {key: read_json(path / "targets" / key / name) for key in keys}


def environment() -> dict[str, Any]:
    """Return the versions that a build depends on."""
    return {
        "schema_version": 1,
        "hydistill_edge": __version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
