"""Several students from one transfer set: the stages that they share once, the others for each.

<run>/teacher.json, transfer/      made once
<run>/small/                       small networks of method arch_overfitting, each trained once
<run>/students/<name>/             a run directory of its own for each student
<run>/errors/<name>.txt            the traceback of a student that could not be built
<run>/summary.json, report.html    all students beside each other
"""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydistill_edge.atomic import write_text
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
from hydistill_edge.family_summary import summarize
from hydistill_edge.run_directory import RunDirectory, write_json
from hydistill_edge.stages import evaluation
from hydistill_edge.stages.student import SMALL
from hydistill_edge.stages.work import Report, Work, quiet

REPORT = "report.html"
ERRORS = "errors"
"""Folder with one traceback per student that could not be built."""


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
    from hydistill_edge.report.family_page import write_family

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
        write_family(summary, path / REPORT)
        return Build(path, summary)


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


def _named(name: str, report: Report) -> Report:
    def told(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        report(f"{name} {stage}", done, total, metrics)

    return told
