"""Several students from one transfer set: the stages that they share once, the others for each.

<run>/teacher.json, transfer/      made once
<run>/small/                       small networks of method arch_overfitting, each trained once
<run>/students/<name>/             a run directory of its own for each student
<run>/errors/<name>.txt            the traceback of a student that could not be built
<run>/summary.json                 all students beside each other
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from hydistill_edge.build import (
    MEMBERS,
    SHARED,
    STAGES,
    Build,
    build_member,
    check_stage,
    describe_build,
    require_builders,
)
from hydistill_edge.errors import (
    Failure,
    NoSpaceError,
    StudentsFailedError,
    TargetUnavailableError,
    describe,
)
from hydistill_edge.family import Family
from hydistill_edge.recipe import Recipe
from hydistill_edge.run_directory import RunDirectory, read_json, write_json, write_text
from hydistill_edge.stages import evaluation
from hydistill_edge.stages.student import SMALL
from hydistill_edge.stages.summary import overall, teacher_line, transfer_line
from hydistill_edge.stages.work import Report, Work, quiet

METHOD_FILE = "arch_overfitting.json"

ERRORS = "errors"
"""Folder with one traceback per student that could not be built."""

NOT_BUILT = "this student could not be built"
NONE_BUILT = "not measured: no student could be built"
NO_SMALL = "no student of this recipe has method arch_overfitting with a small network"
SMALL_NOT_BUILT = "the student that has a small network beside it could not be built"
OTHER_HOLDOUT = "judged on other held-out images than the small network"
NOT_TRAINED = "not trained, so nothing was held out"


def build_family(
    family: Family,
    *,
    out: str | Path | None = None,
    only: str | None = None,
    fresh: bool = False,
    report: Report | None = None,
) -> Build:
    """Run the stages of several students.

    A gate that says no to one student is a value, as ever: the others are built. So is an error:
    the summary says which student failed, and why. What concerns all of them stops the build: an
    error in a stage that they share, or a full disk. What was finished is kept in each case, and a
    second build makes what is missing.

    Args:
        family: what to build.
        out: the run directory; default `runs/<family.name>`.
        only: one stage to run alone, for every student; its inputs must be there.
        fresh: redo what is done.
        report: called as `report(stage, done, total, metrics)`; the stages of a student have its
            name in front.

    Returns:
        The run directory and its summary; empty where one stage ran alone.

    Raises:
        StudentsFailedError: one stage ran alone, and some students have failed in it.
        HydistillError: as for `build.build`, where it concerns all students.
    """
    check_stage(only)
    tell = report or quiet
    path = Path(out) if out is not None else Path("runs") / family.name
    first = next(iter(family.members.values()))
    with RunDirectory(path) as run:
        if only in (None, "targets"):
            _require_some(family, path)
        work = Work(first, run, tell)
        if only is None:
            evaluation.check(work)
        for stage in SHARED:
            if fresh and only in (None, stage):
                run.forget(stage)
            if only in (None, stage):
                STAGES[stage](work)
            if stage == "teacher":
                describe_build(run, family.to_yaml())
        if only in SHARED:
            return Build(path, {})
        if fresh and only in (None, "student"):
            shutil.rmtree(path / SMALL, ignore_errors=True)
        shutil.rmtree(path / ERRORS, ignore_errors=True)
        summaries: dict[str, Any] = {}
        failures: dict[str, Failure] = {}
        for name, recipe in family.members.items():
            one = partial(
                build_member,
                recipe,
                out=path / MEMBERS / name,
                shared=path,
                only=only,
                fresh=fresh,
                report=_named(name, tell),
            )
            found = _attempt(one, path / ERRORS / f"{name}.txt")
            if isinstance(found, Failure):
                failures[name] = found
            else:
                summaries[name] = found.summary
        if only not in (None, "report"):
            if failures:
                raise StudentsFailedError(failures)
            return Build(path, {})
        summary = summarize(family, work, summaries, failures)
        write_json(path / "summary.json", summary)
        return Build(path, summary)


def summarize(
    family: Family, work: Work, summaries: Mapping[str, Any], failures: Mapping[str, Failure]
) -> dict[str, Any]:
    """Return summary.json of all students, schema version 1.

    Args:
        family: what was built.
        work: on the run directory that all share.
        summaries: name -> the student's own summary.json, of those that were built.
        failures: name -> why it was not, of the others.
    """
    path = work.run.path
    found = {name: _method_facts(path / MEMBERS / name) for name in summaries}
    small = next((facts for facts in found.values() if facts and facts["small"]), None)
    rows_of_small = next(
        (_held_out(path / MEMBERS / name) for name in found if found[name] is small), None
    )
    no_small = SMALL_NOT_BUILT if any(map(_has_small, family.members.values())) else NO_SMALL
    rows = []
    for name, recipe in family.members.items():
        row = {"name": name, "folder": f"{MEMBERS}/{name}", "method": recipe.method}
        if name in failures:
            rows.append({**row, **_not_built(recipe), "failure": asdict(failures[name])})
            continue
        summary = summaries[name]
        folder = path / MEMBERS / name
        rows.append(
            {
                **row,
                **summary["student"],
                **_gap(summary["student"], found[name], small, rows_of_small, folder, no_small),
                "artifacts": summary["artifacts"],
                "passed": summary["passed"],
                "failure": None,
            }
        )
    one = next(iter(summaries.values()), None)
    teacher = one["teacher"] if one else {**teacher_line(work, {}), "accuracy_note": NONE_BUILT}
    passed = overall(row["passed"] for row in rows)
    return {
        "schema_version": 1,
        "name": family.name,
        "teacher": teacher,
        "transfer": transfer_line(work),
        "small_network": small and small["small"],
        "small_network_note": "" if small else no_small,
        "students": rows,
        "wall_s": _wall_s(path, family),
        # A student that is not there has passed nothing, so all of them have not.
        "passed": None if failures and passed else passed,
    }


def _require_some(family: Family, path: Path) -> None:
    """Refuse a recipe of whose students none can be built here, before images are made for them.

    Raises:
        TargetUnavailableError: naming what the first one misses, and the remedy.
    """
    refusals = [
        _refusal(Work(recipe, RunDirectory(path / MEMBERS / name), quiet))
        for name, recipe in family.members.items()
    ]
    first = refusals[0]
    if first is not None and None not in refusals:
        raise first


def _refusal(work: Work) -> TargetUnavailableError | None:
    try:
        require_builders(work)
    except TargetUnavailableError as error:
        return error
    return None


def _attempt(make: Callable[[], Build], file: Path) -> Build | Failure:
    """Return what was made, or why it was not; the traceback then goes into a file.

    Raises:
        NoSpaceError: the disk is full; also as the system's own error.
    """
    try:
        return make()
    except Exception as error:
        failure = describe(error)
        if failure.kind == NoSpaceError.__name__:
            raise
        write_text(
            file, "".join(traceback.format_exception(type(error), error, error.__traceback__))
        )
        return failure


def _not_built(recipe: Recipe) -> dict[str, Any]:
    """Return the row of a student that could not be built: what the recipe says, and no number."""
    unknown = ("params", "macs", "digest", "holdout_agreement", "deployment")
    return {
        "arch": recipe.student.architecture or "",
        "width": recipe.student.width,
        **dict.fromkeys(unknown),
        "teacher_agreement": None,
        "teacher_agreement_note": NOT_BUILT,
        "accuracy": None,
        "accuracy_note": NOT_BUILT,
        "worst_class": dict.fromkeys(("class", "n", "accuracy")),
        "gates": [],
        "gap_points": None,
        "gap_error_points": None,
        "gap_note": NOT_BUILT,
        "artifacts": [],
        "passed": None,
    }


def _has_small(recipe: Recipe) -> bool:
    return getattr(recipe.training, "small", None) is not None


def _gap(
    student: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    small: Mapping[str, Any] | None,
    rows_of_small: list[int] | None,
    folder: Path,
    no_small: str = NO_SMALL,
) -> dict[str, Any]:
    """Return how far a student is above the small network on the hold-out, in percent points."""
    nothing = {"gap_points": None, "gap_error_points": None}
    if own is not None and own["small"]:
        found = {name: own[name] for name in nothing}
        return {**found, "gap_note": "agreement with the teacher on held-out images"}
    if small is None:
        return {**nothing, "gap_note": no_small}
    if student["holdout_agreement"] is None:
        return {**nothing, "gap_note": NOT_TRAINED}
    if _held_out(folder) != rows_of_small:
        return {**nothing, "gap_note": OTHER_HOLDOUT}
    points = 100 * (student["holdout_agreement"] - small["small"]["holdout_agreement"])
    note = "against the small network of another student, on the same held-out images"
    return {**nothing, "gap_points": points, "gap_note": note}


def _method_facts(folder: Path) -> dict[str, Any] | None:
    file = folder / "student" / METHOD_FILE
    found: dict[str, Any] | None = read_json(file) if file.exists() else None
    return found


def _held_out(folder: Path) -> list[int] | None:
    file = folder / "student" / "holdout.json"
    return sorted(read_json(file)["rows"]) if file.exists() else None


def _wall_s(path: Path, family: Family) -> dict[str, float]:
    """Return seconds per stage when it last ran: the shared ones once, the others summed."""
    totals = dict(RunDirectory(path).wall_s())
    for name in family.members:
        for stage, seconds in RunDirectory(path / MEMBERS / name).wall_s().items():
            if stage not in SHARED:
                totals[stage] = totals.get(stage, 0.0) + seconds
    return {stage: round(seconds, 3) for stage, seconds in totals.items()}


def _named(name: str, report: Report) -> Report:
    def told(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        report(f"{name} {stage}", done, total, metrics)

    return told
