"""Several students from one transfer set: the stages that they share once, the others for each.

<run>/teacher.json, transfer/      made once
<run>/small/                       small networks of method arch_overfitting, each trained once
<run>/students/<name>/             a run directory of its own for each student
<run>/summary.json                 all students beside each other
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
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
from hydistill_edge.family import Family
from hydistill_edge.run_directory import RunDirectory, read_json, write_json
from hydistill_edge.stages.student import SMALL
from hydistill_edge.stages.summary import overall
from hydistill_edge.stages.work import Report, Work, quiet

METHOD_FILE = "arch_overfitting.json"

NO_SMALL = "no student of this recipe has method arch_overfitting with a small network"
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

    A gate that says no to one student is a value, as ever: the others are built. An error stops the
    build; what was finished is kept.

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
        HydistillError: as for `build.build`.
    """
    check_stage(only)
    tell = report or quiet
    path = Path(out) if out is not None else Path("runs") / family.name
    first = next(iter(family.members.values()))
    with RunDirectory(path) as run:
        if only in (None, "targets"):
            for name, recipe in family.members.items():
                require_builders(Work(recipe, RunDirectory(path / MEMBERS / name), quiet))
        work = Work(first, run, tell)
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
        summaries = {}
        for name, recipe in family.members.items():
            member = build_member(
                recipe,
                out=path / MEMBERS / name,
                shared=path,
                only=only,
                fresh=fresh,
                report=_named(name, tell),
            )
            summaries[name] = member.summary
        if only not in (None, "report"):
            return Build(path, {})
        summary = summarize(family, path, summaries)
        write_json(path / "summary.json", summary)
        return Build(path, summary)


def summarize(family: Family, path: Path, summaries: Mapping[str, Any]) -> dict[str, Any]:
    """Return summary.json of all students, schema version 1.

    Args:
        family: what was built.
        path: the run directory.
        summaries: name -> the student's own summary.json.
    """
    found = {name: _method_facts(path / MEMBERS / name) for name in family.members}
    small = next((facts for facts in found.values() if facts and facts["small"]), None)
    rows_of_small = next(
        (_held_out(path / MEMBERS / name) for name in found if found[name] is small), None
    )
    rows = []
    for name, recipe in family.members.items():
        summary = summaries[name]
        folder = path / MEMBERS / name
        rows.append(
            {
                "name": name,
                "folder": f"{MEMBERS}/{name}",
                "method": recipe.method,
                **summary["student"],
                **_gap(summary["student"], found[name], small, rows_of_small, folder),
                "artifacts": summary["artifacts"],
                "passed": summary["passed"],
            }
        )
    one = next(iter(summaries.values()))
    return {
        "schema_version": 1,
        "name": family.name,
        "teacher": one["teacher"],
        "transfer": one["transfer"],
        "small_network": small and small["small"],
        "small_network_note": "" if small else NO_SMALL,
        "students": rows,
        "wall_s": _wall_s(path, summaries),
        "passed": overall(row["passed"] for row in rows),
    }


def _gap(
    student: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    small: Mapping[str, Any] | None,
    rows_of_small: list[int] | None,
    folder: Path,
) -> dict[str, Any]:
    """Return how far a student is above the small network on the hold-out, in percent points."""
    nothing = {"gap_points": None, "gap_error_points": None}
    if own is not None and own["small"]:
        found = {name: own[name] for name in nothing}
        return {**found, "gap_note": "agreement with the teacher on held-out images"}
    if small is None:
        return {**nothing, "gap_note": NO_SMALL}
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


def _wall_s(path: Path, summaries: Mapping[str, Any]) -> dict[str, float]:
    """Return seconds per stage when it last ran: the shared ones once, the others summed."""
    totals = dict(RunDirectory(path).wall_s())
    for summary in summaries.values():
        for stage, seconds in summary["wall_s"].items():
            if stage not in SHARED:
                totals[stage] = totals.get(stage, 0.0) + seconds
    return {stage: round(seconds, 3) for stage, seconds in totals.items()}


def _named(name: str, report: Report) -> Report:
    def told(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        report(f"{name} {stage}", done, total, metrics)

    return told
