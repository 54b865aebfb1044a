"""The summary of several students: each as a row, beside teacher and small network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydistill_edge.build import MEMBERS, SHARED
from hydistill_edge.errors import Failure
from hydistill_edge.family import Family
from hydistill_edge.recipe import Recipe
from hydistill_edge.run_directory import RunDirectory, read_json
from hydistill_edge.stages.summary import overall, teacher_line, transfer_line
from hydistill_edge.stages.work import Work, plan

METHOD_FILE = "arch_overfitting.json"

NOT_BUILT = "this student could not be built"
NONE_BUILT = "not measured: no student could be built"
NO_SMALL = "no student of this recipe has method arch_overfitting with a small network"
SMALL_NOT_BUILT = "the student that has a small network beside it could not be built"
NO_INT8 = "the recipe asks for no int8 artifact of this student"
OTHER_HOLDOUT = "judged on other held-out images than the small network"
NOT_TRAINED = "not trained, so nothing was held out"


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
    found = {name: _method_facts(path / MEMBERS / name, summaries[name]) for name in summaries}
    one = next(iter(summaries.values()), None)
    teacher = one["teacher"] if one else {**teacher_line(work, {}), "accuracy_note": NONE_BUILT}
    small = next((facts for facts in found.values() if facts and facts["small"]), None)
    rows_of_small = next(
        (_held_out(path / MEMBERS / name) for name in found if found[name] is small), None
    )
    no_small = SMALL_NOT_BUILT if any(map(_has_small, family.members.values())) else NO_SMALL
    rows = []
    for name, recipe in family.members.items():
        row = {
            "name": name,
            "folder": f"{MEMBERS}/{name}",
            "method": recipe.method,
            "devices": list(dict.fromkeys(planned.profile.name for planned in plan(recipe))),
        }
        if name in failures:
            rows.append({**row, **_not_built(recipe), "failure": asdict(failures[name])})
            continue
        summary = summaries[name]
        folder = path / MEMBERS / name
        rows.append(
            {
                **row,
                **summary["student"],
                **_gaps(summary["student"], found[name], small, rows_of_small, folder, no_small),
                **_teacher_gap(summary["student"], teacher),
                "artifacts": summary["artifacts"],
                **_best_int8(summary["artifacts"]),
                "passed": summary["passed"],
                "failure": None,
            }
        )
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
        "accuracy_without_overlap": None,
        "accuracy_note": NOT_BUILT,
        "worst_class": dict.fromkeys(("class", "n", "accuracy")),
        "gates": [],
        **_gap(None, None, NOT_BUILT),
        **_gap(None, None, NOT_BUILT, "holdout_gap"),
        "teacher_gap_points": None,
        "teacher_gap_note": NOT_BUILT,
        "artifacts": [],
        "best_int8": None,
        "best_int8_note": NOT_BUILT,
        "passed": None,
    }


def _has_small(recipe: Recipe) -> bool:
    return getattr(recipe.training, "small", None) is not None


def _gaps(
    student: Mapping[str, Any],
    own: Mapping[str, Any] | None,
    small: Mapping[str, Any] | None,
    rows_of_small: list[int] | None,
    folder: Path,
    no_small: str = NO_SMALL,
) -> dict[str, Any]:
    """Return how far a student is above the small network, in percent points.

    In accuracy where there are labelled images, in agreement on the hold-out where there are none;
    the latter stands for itself too. A student without a small network of its own is held against
    that of another one; the labelled images are the same for all of them.
    """
    if own is None or not own["small"]:
        beside, other = small, ", against the small network of another student"
    else:
        beside, other = own, ""
    held_out = _holdout_gap(student, beside, rows_of_small, folder, no_small, other)
    accuracy = beside and beside["small"]["accuracy"]
    if beside is None or accuracy is None or student["accuracy"] is None:
        return {**_gap(*held_out), **_gap(*held_out, "holdout_gap")}
    note = f"accuracy on the evaluation images{other}"
    points = 100 * (student["accuracy"] - accuracy)
    error = None if other else beside["accuracy_gap_error_points"]
    return {**_gap(points, error, note), **_gap(*held_out, "holdout_gap")}


def _holdout_gap(
    student: Mapping[str, Any],
    small: Mapping[str, Any] | None,
    rows_of_small: list[int] | None,
    folder: Path,
    no_small: str,
    other: str,
) -> tuple[float | None, float | None, str]:
    """Return the gap in agreement with the teacher, its standard error, and on what, or why not."""
    note = "agreement with the teacher on held-out images"
    if small is None:
        return None, None, no_small
    if not other:
        return small["gap_points"], small["gap_error_points"], note
    if student["holdout_agreement"] is None:
        return None, None, NOT_TRAINED
    if _held_out(folder) != rows_of_small:
        return None, None, OTHER_HOLDOUT
    points = 100 * (student["holdout_agreement"] - small["small"]["holdout_agreement"])
    return points, None, f"{note}{other}"


def _gap(points: float | None, error: float | None, note: str, name: str = "gap") -> dict[str, Any]:
    return {f"{name}_points": points, f"{name}_error_points": error, f"{name}_note": note}


def _teacher_gap(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far a student's accuracy is above the teacher's, in percent points."""
    if student["accuracy"] is None or teacher["accuracy"] is None:
        return {"teacher_gap_points": None, "teacher_gap_note": student["accuracy_note"]}
    points = 100 * (student["accuracy"] - teacher["accuracy"])
    return {"teacher_gap_points": points, "teacher_gap_note": "accuracy on the evaluation images"}


def _best_int8(artifacts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the key of the int8 artifact that a reader should look at first.

    One that passed comes before one that is not judged here, and that before one that failed; among
    equals the fastest comes first, then the smallest.
    """

    def rank(artifact: Mapping[str, Any]) -> tuple[int, float, int]:
        time = artifact["latency"]["p50_ms"]
        verdict = (True, None, False).index(artifact["passed"])
        return verdict, math.inf if time is None else time, artifact["bytes"]

    int8 = [artifact for artifact in artifacts if artifact["precision"] == "int8"]
    if not int8:
        return {"best_int8": None, "best_int8_note": NO_INT8}
    best = min(int8, key=rank)
    parts = (best["target"], best["device"], best["precision"])
    return {"best_int8": "-".join(parts), "best_int8_note": ""}


def _method_facts(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return arch_overfitting.json with what was measured of the small network on labelled images.

    None where the student has another method.
    """
    file = folder / "student" / METHOD_FILE
    if not file.exists():
        return None
    found: dict[str, Any] = read_json(file)
    if found["small"]:
        told = summary["method_facts"]["small_network"]
        found["small"] |= {name: told[name] for name in ("accuracy", "accuracy_note")}
        found["accuracy_gap_error_points"] = told["accuracy_gap_error_points"]
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
