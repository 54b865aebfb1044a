"""The model card: what a reader must know before the model decides anything, from the data alone.

Sections follow Mitchell et al. 2019, arXiv:1810.03993, as far as a build knows them. What is not
known is said to be unknown; nothing is rounded up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hydistill_edge.bundle.interval import proportion_interval
from hydistill_edge.bundle.manifest import Manifest

Facts = Mapping[str, Any]
"""A JSON object of the run directory."""

MAX_CLASSES_SHOWN = 100
METHODS = {"none": "The student was trained elsewhere and taken over as it was."}

_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~&])")
_VERDICTS = {True: "passed", False: "FAILED", None: "not judged"}


def model_card(
    manifest: Manifest,
    *,
    description: str = "",
    method: str = "",
    teacher: Facts | None = None,
    student: Facts | None = None,
    origins: Mapping[str, int] | None = None,
    parity: Facts | None = None,
    latency: Facts | None = None,
    calibration: Facts | None = None,
    evaluation: Facts | None = None,
) -> str:
    """Return the card as Markdown; equal arguments give equal text.

    Args:
        manifest: of the artifact.
        description: what the maker says it is for.
        method: name of the distillation method.
        teacher: `arch`, `params`, `macs` (teacher.json).
        student: `arch`, `params`, `macs`, `holdout_agreement` (student/facts.json).
        origins: images of the transfer set by origin.
        parity: parity.json of the artifact.
        latency: latency.json of the artifact.
        calibration: calibration.json of the artifact.
        evaluation: evaluation.json of the build.
    """
    sections = [
        ("Intended use", _use(manifest, description)),
        ("How it was made", _making(manifest, method, teacher, student, calibration)),
        ("Data", _data(manifest, origins, calibration, evaluation)),
        ("Accuracy", _accuracy(manifest, evaluation)),
        ("Agreement with the float student", _parity(parity)),
        ("Latency", _latency(latency)),
        ("When it says nothing", _reject(manifest)),
        ("Limits", _limits(manifest, origins, parity, latency, evaluation)),
        ("Identity", _identity(manifest)),
    ]
    title = f"# {_text(manifest.name)} {_text(manifest.version)}"
    parts = [title, *(f"## {name}\n\n" + "\n".join(lines) for name, lines in sections)]
    return "\n\n".join(parts) + "\n"


def _text(value: object) -> str:
    """Return text that Markdown shows as it is, on one line."""
    return _MARKUP.sub(r"\\\1", " ".join(str(value).split()))


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---"] * len(head), *[[str(cell) for cell in row] for row in rows]]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _count(value: object, unit: str) -> str:
    return f"{value:,} {unit}" if isinstance(value, int) else f"unknown number of {unit}"


def _use(manifest: Manifest, description: str) -> list[str]:
    shape = manifest.input
    shown = ", ".join(_text(name) for name in manifest.classes[:MAX_CLASSES_SHOWN])
    more = len(manifest.classes) - MAX_CLASSES_SHOWN
    return [
        _text(description) if description else "The maker gave no description.",
        "",
        f"Image classifier for the device profile {_text(manifest.device)} on {manifest.target} at "
        f"{manifest.precision}. It takes one {'grey' if shape.channels == 1 else 'RGB'} image of "
        f"{shape.height} x {shape.width} pixels (height x width; other sizes are resized by "
        f"{_text(shape.resize)}) and answers with one of {len(manifest.classes)} classes: "
        f"{shown}{f', and {more} more' if more > 0 else ''}.",
        "",
        f"License: {_text(manifest.license) if manifest.license else 'not stated'}.",
    ]


def _making(
    manifest: Manifest,
    method: str,
    teacher: Facts | None,
    student: Facts | None,
    calibration: Facts | None,
) -> list[str]:
    lines = []
    if method:
        known = METHODS.get(method, f"Distilled by the method {_text(method)}.")
        lines.append(f"- {known}")
    lines += [f"- Teacher: {_network(teacher)}", f"- Student: {_network(student)}"]
    agreement = (student or {}).get("holdout_agreement")
    if agreement is not None:
        lines.append(
            f"- The student agreed with the teacher on {_percent(agreement)} of held-out images of "
            "the transfer set; this share chose the weights, so it flatters them."
        )
    scheme = (calibration or {}).get("scheme")
    if scheme:
        lines.append(f"- Quantized as {_text(scheme['name'])}: {_text(scheme['reason'])}")
    elif manifest.scheme:
        lines.append(f"- Quantized as {_text(manifest.scheme)}.")
    else:
        lines.append(f"- Not quantized: {manifest.precision}.")
    tools = ", ".join(
        f"{_text(name)} {_text(manifest.tools[name])}" for name in sorted(manifest.tools)
    )
    return [*lines, f"- Tools: {tools or 'not stated'}"]


def _network(facts: Facts | None) -> str:
    if facts is None:
        return "not stated"
    return (
        f"{_text(facts.get('arch', 'unknown architecture'))}, "
        f"{_count(facts.get('params'), 'parameters')}, {_count(facts.get('macs'), 'MACs')}"
    )


def _data(
    manifest: Manifest,
    origins: Mapping[str, int] | None,
    calibration: Facts | None,
    evaluation: Facts | None,
) -> list[str]:
    if origins:
        parts = ", ".join(f"{_text(name)} {origins[name]:,}" for name in sorted(origins))
        lines = [f"- Transfer set, which trained the student: {sum(origins.values()):,} ({parts})"]
    else:
        lines = ["- Transfer set, which trained the student: not stated"]
    lines.append("- The teacher's own training data was not used and is not described here.")
    if calibration:
        lines.append(
            f"- Calibration: {calibration['count']:,} images of the transfer set, SHA-256 over the "
            f"pixels {calibration['digest']}; {_text(calibration['reason'])}"
        )
    lines.append(
        f"- Evaluation: {evaluation['images']:,} labelled images"
        if evaluation
        else "- Evaluation: none; the build was given no labelled images"
    )
    golden = manifest.golden
    kinds = sorted({image.origin for image in golden.images})
    told = f"{len(golden.images)} ({', '.join(kinds)})" if kinds else "none"
    return [*lines, f"- Golden images in this bundle: {told}"]


def _accuracy(manifest: Manifest, evaluation: Facts | None) -> list[str]:
    if not evaluation or not evaluation["models"]:
        return ["Not measured: the build was given no labelled images."]
    key = artifact_key(manifest)
    n = evaluation["images"]
    shown = [
        entry for entry in evaluation["models"] if entry["name"] in ("teacher", "student", key)
    ]
    rows = []
    for entry in shown:
        low, high = proportion_interval(round(entry["accuracy"] * n), n)
        name = "**this artifact**" if entry["name"] == key else entry["name"]
        interval = f"{_percent(low)} to {_percent(high)}"
        rows.append((name, _percent(entry["accuracy"]), interval, n))
    head = ("model", "accuracy", "95 % interval", "images")
    return [*_table(head, rows), "", *_per_class(shown[-1], is_artifact=shown[-1]["name"] == key)]


def _per_class(entry: Facts, *, is_artifact: bool) -> list[str]:
    measured = [row for row in entry.get("per_class", ()) if row["accuracy"] is not None]
    if not measured or not is_artifact:
        return ["This artifact was not evaluated by itself."] if not is_artifact else []
    worst = min(measured, key=lambda row: row["accuracy"])
    low, high = proportion_interval(round(worst["accuracy"] * worst["n"]), worst["n"])
    line = (
        f"Worst class: {_text(worst['class'])} at {_percent(worst['accuracy'])} of {worst['n']} "
        f"images (95 % interval {_percent(low)} to {_percent(high)})."
    )
    missing = [row["class"] for row in entry["per_class"] if row["accuracy"] is None]
    more = [f"No image of {', '.join(_text(name) for name in missing)}."] if missing else []
    note = [_text(entry["note"])] if entry.get("note") else []
    return [" ".join([line, *more, *note])]


def _parity(parity: Facts | None) -> list[str]:
    if not parity:
        return ["Not measured."]
    rows = []
    for rung in parity["rungs"]:
        share = (rung.get("metrics") or {}).get("top1_agreement")
        agreement = "" if share is None else _percent(share)
        verdict = _VERDICTS[rung["passed"]]
        title = f"{rung['rung']} {_text(rung['title'])}"
        rows.append((title, rung["source"], rung["n"], agreement, verdict))
    lines = _table(("rung", "images", "n", "top-1 agreement", "verdict"), rows)
    if parity.get("simulated_by"):
        lines += ["", f"Simulated: the same graph was run by {_text(parity['simulated_by'])}."]
    return lines


def _latency(latency: Facts | None) -> list[str]:
    if not latency or not latency.get("scopes"):
        note = (latency or {}).get("note", "")
        return [f"Not measured{': ' + _text(note) if note else '.'}"]
    rows = []
    for name, scope in latency["scopes"].items():
        times = [scope.get(key) for key in ("p50_ms", "p90_ms", "p99_ms")]
        cells = ["too few samples" if time is None else f"{time:.3f} ms" for time in times]
        rows.append((name, scope["n"], *cells))
    where = latency.get("measured_on") or "an unnamed machine"
    lines = [
        f"Measured on {_text(where)}, mode {_text(latency['mode'])}, verdict "
        f"{_text(latency.get('verdict') or 'none')}.",
        "",
        *_table(("scope", "n", "p50", "p90", "p99"), rows),
    ]
    if latency.get("advisory"):
        lines += ["", f"Advisory only: {_text(latency.get('advisory_why', ''))}"]
    return lines


def _reject(manifest: Manifest) -> list[str]:
    reject = manifest.reject
    if reject is None:
        return [
            "There is no reject rule, so every image gets an answer, however unsure"
            f"{': ' + _text(manifest.reject_note) if manifest.reject_note else '.'}"
        ]
    judge = "their true labels" if reject.fitted_on == "labels" else "the teacher's decisions"
    lines = [
        f"Fitted on {reject.n:,} real held-out images against {judge}, for at most "
        f"{_percent(reject.target_error)} wrong answers among the accepted: "
        f"{_percent(reject.coverage)} of them are accepted.",
    ]
    if reject.risk is not None and reject.risk_upper is not None:
        lines.append(
            f"Of the accepted, {_percent(reject.risk)} are wrong (one-sided 95 % bound: "
            f"{_percent(reject.risk_upper)}), measured on the same images that fitted the rule."
        )
    return [*lines, f"{_text(reject.note)}."] if reject.note else lines


def _limits(
    manifest: Manifest,
    origins: Mapping[str, int] | None,
    parity: Facts | None,
    latency: Facts | None,
    evaluation: Facts | None,
) -> list[str]:
    return [f"- {line}" for line in _limit_lines(manifest, origins, parity, latency, evaluation)]


def _limit_lines(
    manifest: Manifest,
    origins: Mapping[str, int] | None,
    parity: Facts | None,
    latency: Facts | None,
    evaluation: Facts | None,
) -> Iterator[str]:
    yield (
        "It knows its classes only: an image of anything else still gets one of them, and the "
        "reject rule, where there is one, was not fitted on such images."
    )
    yield "It imitates its teacher, mistakes and biases included."
    if not evaluation:
        yield "Its accuracy on labelled images is unknown."
    if origins is not None and not origins.get("real"):
        yield "The student was trained without a single real image."
    if manifest.reject is None:
        yield "Its probabilities are not calibrated."
    if parity and parity.get("passed") is not True:
        yield f"Agreement with the float student: {_VERDICTS[parity.get('passed')]}."
    if not latency or not latency.get("scopes"):
        yield "Its latency on the device is unknown."
    if manifest.note:
        yield _text(manifest.note)


def _identity(manifest: Manifest) -> list[str]:
    digests = manifest.digests
    named = {
        "student": digests.student,
        "teacher": digests.teacher,
        "transfer set": digests.transfer,
        "exported graph": digests.graph,
        "calibration images": digests.calibration,
    }
    rows = [(name, f"`{value}`") for name, value in named.items() if value is not None]
    return _table(("made from", "SHA-256"), rows)


def artifact_key(manifest: Manifest) -> str:
    """Return the artifact's name in evaluation.json."""
    return f"{manifest.target}-{manifest.device}-{manifest.precision}"
