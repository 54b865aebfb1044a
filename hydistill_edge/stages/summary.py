"""Stage report: everything the run found, as summary.json and as one page."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hydistill_edge.atomic import write_bytes
from hydistill_edge.images.transfer_format import REAL_ORIGINS
from hydistill_edge.run_directory import read_json, write_json
from hydistill_edge.stages import artifacts, evaluation
from hydistill_edge.stages.artifacts import Built
from hydistill_edge.stages.method_facts import method_facts
from hydistill_edge.stages.overlap import overlap_line
from hydistill_edge.stages.work import Planned, Work
from hydistill_edge.targets.gates import at_least

PREVIEW_PER_CLASS, PROCEDURAL_PER_CLASS = 12, 3
SKIPPED = "{} images could not be read and were left out; transfer/manifest.json lists them"
NOT_EVALUATED = "not measured: the recipe names no evaluation images"


def run(work: Work) -> None:
    """Write summary.json and report.html."""
    from hydistill_edge.report.html import write_report

    work.report("report", 0, 1, {})
    summary = summarize(work)
    # Always made anew: it takes a moment, and a report must never show an older run's numbers.
    write_json(work.path("summary.json"), summary)
    save_preview(work)
    write_report(work.run.path)
    work.report("report", 1, 1, {})


def save_preview(work: Work) -> None:
    """Write preview.npz: made images of every class, for the report's contact sheet.

    Real images stay out: a report is a thing that people pass on.
    """
    transfer = work.transfer
    labels = transfer.pseudo_labels
    origins = transfer.origins
    drawn, inverted = (np.flatnonzero(origins == kind) for kind in ("procedural", "synthetic"))
    rows = []
    for label in range(len(work.recipe.class_names())):
        some = drawn[labels[drawn] == label][:PROCEDURAL_PER_CLASS]
        rows += [inverted[labels[inverted] == label][: PREVIEW_PER_CLASS - len(some)], some]
    chosen = np.concatenate(rows)
    path = work.path("preview.npz")
    if not len(chosen):
        path.unlink(missing_ok=True)
        return
    stream = io.BytesIO()
    ids = np.array([transfer.ids[int(row)] for row in chosen], np.str_)
    np.savez_compressed(stream, images=transfer.images(chosen), labels=labels[chosen], ids=ids)
    write_bytes(path, stream.getvalue())


def summarize(work: Work) -> dict[str, Any]:
    """Return summary.json, schema version 1."""
    told = _optional(work, "evaluation.json") or {}
    scores = {entry["name"]: entry for entry in told.get("models", [])}
    for entry in (told.get("shifted") or {}).get("models", []):
        scores[entry["name"]]["accuracy_shifted"] = entry["accuracy"]
    built = [artifacts.read(work, planned) for planned in work.planned]
    rows = [_artifact(work, artifact, scores) for artifact in built]
    student = _student(work, scores)
    verdicts = [row["passed"] for row in rows] + [gate["passed"] for gate in student["gates"]]
    return {
        "schema_version": 1,
        "name": work.recipe.name,
        "method": work.recipe.method,
        "teacher": teacher_line(work, scores),
        "student": student,
        "transfer": transfer_line(work),
        "overlap": overlap_line(told.get("overlap")),
        "method_facts": _method_facts(work, scores),
        "artifacts": rows,
        "wall_s": work.run.wall_s(),
        "peak_memory_mib": work.run.peak_mib(),
        "passed": overall(verdicts),
    }


def overall(verdicts: Iterable[bool | None]) -> bool | None:
    """Return False where anything failed, None where nothing was judged, True otherwise.

    What is not judged here does not fail a build; publishing it asks for a device's receipt.
    """
    judged = [verdict for verdict in verdicts if verdict is not None]
    return all(judged) if judged else None


def teacher_line(work: Work, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return the teacher's part of the summary.

    Args:
        work: on the run directory.
        scores: name -> entry of evaluation.json.
    """
    facts = read_json(work.path("teacher.json"))
    return {
        **{name: facts[name] for name in ("arch", "params", "macs", "role", "digest")},
        **_accuracy(scores.get("teacher")),
    }


def _student(work: Work, scores: Mapping[str, Any]) -> dict[str, Any]:
    facts = read_json(work.path("student", "facts.json"))
    score = scores.get("student")
    limit = work.recipe.gates.student_agreement
    agreement = facts["holdout_agreement"]
    gates = []
    if limit is not None:
        gates.append(
            {
                "name": "student agreement on the hold-out",
                "passed": None if agreement is None else agreement >= limit,
                "value": agreement,
                "limit": limit,
                "why": "" if agreement is not None else "no training, so no hold-out",
            }
        )
    return {
        **{name: facts[name] for name in ("arch", "width", "params", "macs", "digest")},
        "holdout_agreement": agreement,
        "deployment": _deployment(work),
        "teacher_agreement": score["agreement_with_teacher"] if score else agreement,
        "teacher_agreement_note": "on the evaluation images" if score else facts["holdout_note"],
        **_accuracy(score),
        "worst_class": _worst_class(score),
        "gates": gates,
    }


def _method_facts(work: Work, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the method left to tell, with the small network's accuracy."""
    facts = method_facts(work.run.path)
    if facts["small_network"] is not None:
        score = scores.get(evaluation.SMALL)
        facts["small_network"] |= {
            **_accuracy(score),
            "accuracy_gap_points": score and score["student_gap_points"],
            "accuracy_gap_error_points": score and score["student_gap_error_points"],
        }
    return facts


def _worst_class(score: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the class with the lowest accuracy on the evaluation images."""
    known = [row for row in (score or {}).get("per_class", []) if row["accuracy"] is not None]
    worst = min(known, key=lambda row: float(row["accuracy"]), default=None)
    return {name: worst and worst[name] for name in ("class", "n", "accuracy")}


def _deployment(work: Work) -> dict[str, Any] | None:
    """Return what of a student with a projector is deployed, and at what price."""
    told = _optional(work, "student", "deployment.json")
    if told is None:
        return None
    names = ("params", "macs", "holdout_agreement")
    return {
        "head": told["head"],
        **{
            side: told[side] and {name: told[side][name] for name in names}
            for side in ("before", "after")
        },
    }


def transfer_line(work: Work) -> dict[str, Any]:
    """Return the transfer set's part of the summary."""
    manifest = read_json(work.path("transfer", "manifest.json"))
    origins, details = manifest["per_origin"], manifest["details"]
    skipped, excluded = len(details.get("skipped", ())), details.get("excluded", 0)
    real = sum(origins.get(origin, 0) for origin in REAL_ORIGINS)
    return {
        "images": manifest["count"],
        "real": real,
        "synthetic": manifest["count"] - real,
        "bytes": manifest["bytes"]["total"],
        "duplicates": manifest["duplicates_dropped"],
        "skipped": skipped,
        "excluded": excluded,
        "skipped_note": SKIPPED.format(skipped) if skipped else "",
        "procedural_note": _procedural_note(details.get("procedural")),
    }


def _procedural_note(drawn: Mapping[str, Any] | None) -> str:
    if not drawn:
        return ""
    told = f"{drawn['count']:,} images are from formulas, chosen of {drawn['drawn']:,} by class"
    if drawn["crossed"]:
        told += f", {drawn['crossed']:,} of them crossed out of rare ones"
    return f"{told}; {drawn['note']}" if drawn["note"] else told


def _artifact(work: Work, built: Built, scores: Mapping[str, Any]) -> dict[str, Any]:
    planned = built.planned
    parity = _optional(work, "targets", planned.key, "parity.json")
    latency = _optional(work, "targets", planned.key, "latency.json")
    score = scores.get(planned.key)
    gates = list((latency or {}).get("gates", []))
    gates += _calibration_gates(work, planned)
    drop = _accuracy_drop(work, planned.precision, score, scores.get("student"))
    verdicts = [
        parity["passed"] if parity else None,
        *[gate["passed"] for gate in gates],
        *([drop["passed"]] if drop else []),
    ]
    failed = any(verdict is False for verdict in verdicts)
    # A simulated proof, or none, is not a proof: such an artifact is judged on its device.
    proven = parity is not None and parity["passed"] is True and built.simulated_by is None
    row = {
        "target": planned.target,
        "device": planned.profile.name,
        "precision": planned.precision,
        "file": str(built.file.relative_to(work.run.path)),
        "bytes": built.size_bytes,
        "scheme": (built.facts["scheme"] or {}).get("name"),
        "note": built.facts["note"],
        "parity": _parity_line(parity, built),
        "latency": _latency_line(latency),
        **_accuracy(score),
        "student_agreement": score and score["agreement_with_student"],
        "teacher_agreement": score and score["agreement_with_teacher"],
        "gates": [*gates, *([drop] if drop else [])],
        "passed": False if failed else (True if proven else None),
    }
    if built.simulated_by and score:
        row["accuracy_note"] = f"simulated: the same graph run by {built.simulated_by}"
    return row


def _calibration_gates(work: Work, planned: Planned) -> list[dict[str, Any]]:
    """Return the gates on what an int8 artifact was calibrated with.

    What a set of images costs depends on the runtime, so the control images decide where there are
    any; the score of the set decides where there are none, or where the recipe asks for one.
    """
    told = _optional(work, "targets", planned.key, "calibration.json")
    if planned.precision != "int8" or told is None:
        return []
    quality, control, section = told["quality"], told.get("control"), work.recipe.calibration
    advice = "; ".join(quality["advice"])
    gates = []
    if control is not None:
        why = f"{control['images']} images of the student's memory that set no range"
        gates.append(
            at_least(
                "int8 signal on control images",
                control["signal_db"],
                section.control_db,
                unit="dB",
                why=f"{why}; {advice}" if advice else why,
            )
        )
    if control is None or section.quality is not None:
        gates.append(
            at_least(
                "quality of the calibration images",
                quality["score"],
                quality["limit"],
                unit="score",
                why=advice or f"judged against {quality['reference']}",
            )
        )
    return [gate.to_dict() for gate in gates]


def _accuracy_drop(
    work: Work, precision: str, score: Mapping[str, Any] | None, student: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    limit = work.recipe.gates.accuracy_drop_points
    if limit is None or precision != "int8":
        return None
    if score is None or student is None:
        value, passed = None, None
    else:
        value = 100 * (student["accuracy"] - score["accuracy"])
        passed = value <= limit + 1e-9  # the difference of two fractions is not exact
    return {
        "name": "accuracy below the float student",
        "passed": passed,
        "value": value,
        "limit": limit,
        "unit": "percent points",
        "why": "" if score else NOT_EVALUATED,
    }


def _accuracy(score: Mapping[str, Any] | None) -> dict[str, Any]:
    if score is None:
        return {"accuracy": None, "accuracy_without_overlap": None, "accuracy_note": NOT_EVALUATED}
    shifted = {key: score[key] for key in ("accuracy_shifted",) if key in score}
    return {
        "accuracy": score["accuracy"],
        "accuracy_without_overlap": score["accuracy_without_overlap"],
        "accuracy_note": "",
        **shifted,
    }


def _parity_line(parity: Mapping[str, Any] | None, built: Built) -> dict[str, Any]:
    if parity is None:
        return {"passed": None, "note": "the parity ladder has not run"}
    last = next((rung for rung in reversed(parity["rungs"]) if rung["metrics"]), None)
    metrics = (last or {}).get("metrics") or {}
    return {
        "passed": parity["passed"],
        "snr_db": metrics.get("snr_db"),
        "top1_agreement": metrics.get("top1_agreement"),
        "simulated_by": built.simulated_by,
    }


def _latency_line(latency: Mapping[str, Any] | None) -> dict[str, Any]:
    scope = ((latency or {}).get("scopes") or {}).get("engine")
    if latency is None or scope is None:
        note = (latency or {}).get("note") or "latency has not been measured"
        names = ("scope", "p50_ms", "p90_ms", "p99_ms", "n", "verdict", "measured_on")
        return {**dict.fromkeys(names), "note": note}
    return {
        "scope": "engine",
        **{name: scope[name] for name in ("p50_ms", "p90_ms", "p99_ms", "n")},
        "verdict": latency["verdict"],
        "measured_on": latency["measured_on"],
        "advisory": latency["advisory"],
    }


def _optional(work: Work, *parts: str) -> dict[str, Any] | None:
    path = work.path(*parts)
    if not path.exists():
        return None
    value: dict[str, Any] = read_json(path)
    return value
