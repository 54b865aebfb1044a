"""Reading a run directory into the values of `data.py`.

Any file may be missing, because a build may have stopped early or run one stage alone. What is
missing reads as None or empty; a file that cannot be read is told in `Run.problems`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydistill_edge.errors import MissingFileError, RunDirectoryError
from hydistill_edge.naming import network_name
from hydistill_edge.report.calibration_reading import read_calibration, read_set
from hydistill_edge.report.data import (
    Artifact,
    Gate,
    Latency,
    Model,
    Overlap,
    Parity,
    Run,
    Rung,
    Scope,
    Score,
    Transfer,
    WorstSample,
)
from hydistill_edge.report.method_reading import read_method
from hydistill_edge.report.pictures import read_pictures
from hydistill_edge.report.values import (
    Json,
    flag,
    flat,
    items,
    mapping,
    notes,
    number,
    numbers,
    objects,
    plain_numbers,
    text,
)

MAX_RECIPE_CHARS = 100_000


@dataclass
class _Folder:
    """Reads JSON files of the run directory and remembers those that could not be read."""

    path: Path
    found: int = 0
    problems: list[str] = field(default_factory=list)

    def json(self, *parts: str) -> Any:
        """Return a file's value, None where it is missing or broken."""
        path = self.path.joinpath(*parts)
        if not path.is_file():
            return None
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, OSError, RecursionError) as error:
            self.problems.append(f"{'/'.join(parts)} could not be read: {error}")
            return None
        self.found += 1
        return value

    def object(self, *parts: str) -> Json:
        """Return a file's object, an empty one where there is none."""
        value = self.json(*parts)
        return value if isinstance(value, Mapping) else {}


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        MissingFileError: there is no such folder.
        RunDirectoryError: the folder holds none of a run's files.
    """
    if not path.is_dir():
        raise MissingFileError(f"{path} is no folder; expected a run directory")
    folder = _Folder(path)
    summary = folder.object("summary.json")
    teacher_file = folder.object("teacher.json")
    manifest = folder.object("transfer", "manifest.json")
    evaluation = folder.object("evaluation.json")
    history = folder.json("student", "history.json")
    environment = folder.object("environment.json")
    choice = folder.object("calibration", "choice.json")
    artifacts = _artifacts(folder, summary)
    pictures = read_pictures(path, _class_names(teacher_file, manifest))
    if not folder.found:
        raise RunDirectoryError(
            f"{path} holds none of a run's files (summary.json, targets/, ...); "
            "expected the folder that `hydistill build` wrote"
        )
    return Run(
        name=text(summary, "name") or path.resolve().name,
        passed=flag(summary, "passed"),
        teacher=_model(mapping(summary, "teacher"), teacher_file),
        student=_model(mapping(summary, "student"), folder.object("student", "student.json")),
        transfer=_transfer(mapping(summary, "transfer"), manifest),
        calibration=read_set(choice) if choice else None,
        artifacts=artifacts,
        evaluation_images=number(evaluation, "images"),
        overlap=_overlap(mapping(evaluation, "overlap")),
        scores=tuple(_score(entry) for entry in objects(evaluation, "models")),
        history=tuple(plain_numbers(entry) for entry in objects({"steps": history}, "steps")),
        method=read_method(
            **{
                name: folder.object("student", f"{name}.json")
                for name in ("deployment", "comparison", "selection", "keys", "hidfd", "infer")
            },
            pilot=folder.object("transfer", "pilot.json"),
            manifest=manifest,
        ),
        wall_s=plain_numbers(mapping(summary, "wall_s")),
        peak_mib={
            stage: number(mapping(mapping(summary, "peak_memory_mib"), stage), "resident")
            for stage in mapping(summary, "peak_memory_mib")
        },
        environment=flat({k: v for k, v in environment.items() if k != "schema_version"}),
        recipe=_recipe(path / "recipe.yaml"),
        pictures=pictures,
        notes=notes(summary),
        problems=(*folder.problems, *pictures.problems),
    )


def _artifacts(folder: _Folder, summary: Json) -> tuple[Artifact, ...]:
    """Join the summary's artifacts with their folders, and with folders it does not name."""
    lines = {
        "-".join(text(entry, part) for part in ("target", "device", "precision")): entry
        for entry in objects(summary, "artifacts")
    }
    found = sorted(path.name for path in folder.path.glob("targets/*") if path.is_dir())
    return tuple(
        _artifact(folder, key, lines.get(key, {}))
        for key in [*lines, *(name for name in found if name not in lines)]
        if not key.endswith(".partial")
    )


def _artifact(folder: _Folder, key: str, line: Json) -> Artifact:
    parity = folder.object("targets", key, "parity.json")
    latency = folder.object("targets", key, "latency.json")
    calibration = folder.object("targets", key, "calibration.json")
    target, _, rest = key.partition("-")
    device, _, precision = rest.rpartition("-")
    return Artifact(
        key=key,
        target=text(line, "target") or target,
        device=text(line, "device") or device,
        precision=text(line, "precision") or precision,
        file=text(line, "file"),
        bytes=number(line, "bytes"),
        scheme=text(line, "scheme") or text(mapping(line, "scheme"), "name"),
        accuracy=number(line, "accuracy"),
        student_agreement=number(line, "student_agreement"),
        teacher_agreement=number(line, "teacher_agreement"),
        passed=flag(line, "passed"),
        gates=tuple(gate for gate in _gates(line) if gate not in _gates(latency)),
        parity=_parity(parity) if parity else None,
        latency=_latency(latency) if latency else None,
        calibration=read_calibration(calibration) if calibration else None,
        notes=notes(line),
    )


def _gate(entry: Json) -> Gate:
    return Gate(
        name=text(entry, "name"),
        passed=flag(entry, "passed"),
        value=number(entry, "value"),
        limit=number(entry, "limit"),
        direction=text(entry, "direction"),
        unit=text(entry, "unit"),
        why=text(entry, "why"),
        worst=text(entry, "worst"),
    )


def _gates(source: Json) -> tuple[Gate, ...]:
    return tuple(_gate(entry) for entry in objects(source, "gates"))


def _parity(source: Json) -> Parity:
    simulator = text(source, "simulated_by")
    return Parity(
        passed=flag(source, "passed"),
        rungs=tuple(
            Rung(
                rung=text(entry, "rung"),
                title=text(entry, "title"),
                source=text(entry, "source"),
                n=number(entry, "n"),
                passed=flag(entry, "passed"),
                gates=_gates(entry),
                metrics=plain_numbers(mapping(entry, "metrics")),
                worst=tuple(
                    WorstSample(
                        id=text(sample, "id"),
                        reference=text(sample, "reference"),
                        candidate=text(sample, "candidate"),
                        max_abs=number(sample, "max_abs"),
                    )
                    for sample in objects(entry, "worst")
                ),
                note=text(entry, "note"),
            )
            for entry in objects(source, "rungs")
        ),
        note=f"simulated by {simulator}" if simulator else text(source, "note"),
    )


def _latency(source: Json) -> Latency:
    scopes = mapping(source, "scopes")
    histograms = mapping(source, "histogram")
    return Latency(
        mode=text(source, "mode"),
        advisory=flag(source, "advisory") is not False,
        advisory_why=text(source, "advisory_why"),
        measured_on=text(source, "measured_on"),
        verdict=text(source, "verdict"),
        verdict_why=text(source, "verdict_why"),
        cold=plain_numbers(mapping(source, "cold")),
        scopes=tuple(
            _scope(name, entry, mapping(histograms, name))
            for name, entry in scopes.items()
            if isinstance(entry, Mapping)
        ),
        warmup=flat(mapping(source, "warmup")),
        conditions=flat(mapping(source, "conditions")),
        surroundings=flat({key: source.get(key) or {} for key in ("memory", "disturbance")}),
        gates=_gates(source),
        note=text(source, "note"),
    )


def _scope(name: str, source: Json, histogram: Json) -> Scope:
    histogram = mapping(source, "histogram") or histogram
    edges, counts = numbers(histogram, "edges_ms"), numbers(histogram, "counts")
    whole = len(edges) == len(counts) + 1 and sum(counts) > 0
    return Scope(
        name=name,
        n=number(source, "n"),
        times=_milliseconds(source),
        bounded=_milliseconds(mapping(source, "bounded")),
        cov=number(source, "cov"),
        throughput_per_s=number(source, "throughput_per_s"),
        edges_ms=edges if whole else (),
        counts=counts if whole else (),
    )


def _model(line: Json, details: Json) -> Model:
    return Model(
        arch=network_name(text(line, "arch") or text(details, "arch")),
        params=_first(line, details, "params"),
        macs=_first(line, details, "macs"),
        accuracy=number(line, "accuracy"),
        teacher_agreement=number(line, "teacher_agreement"),
        digest=text(line, "digest") or text(details, "digest"),
        gates=_gates(line),
        notes=notes(line),
    )


def _transfer(line: Json, manifest: Json) -> Transfer:
    origins = mapping(manifest, "per_origin")
    total = mapping(manifest, "bytes")
    return Transfer(
        images=_first(line, {"images": manifest.get("count")}, "images"),
        real=_first(line, origins, "real"),
        synthetic=_first(line, origins, "synthetic"),
        bytes=_first(line, {"bytes": total.get("total")}, "bytes"),
        method=text(manifest, "method"),
        digest=text(manifest, "digest"),
        per_class=plain_numbers(mapping(manifest, "per_class")),
        seeds=flat(mapping(manifest, "seeds")),
        notes=notes(line),
    )


def _score(entry: Json) -> Score:
    rows = [row for row in items(entry, "confusion") if isinstance(row, list)]
    return Score(
        name=text(entry, "name"),
        accuracy=number(entry, "accuracy"),
        per_class=tuple(
            (text(row, "class"), number(row, "n"), number(row, "accuracy"))
            for row in objects(entry, "per_class")
        ),
        confusion=tuple(numbers({"row": row}, "row") for row in rows),
        roc_auc=number(entry, "roc_auc"),
        roc_auc_note=text(entry, "roc_auc_note"),
        agreement_with_teacher=number(entry, "agreement_with_teacher"),
        agreement_with_student=number(entry, "agreement_with_student"),
        accuracy_without_overlap=number(entry, "accuracy_without_overlap"),
    )


def _overlap(entry: Json) -> Overlap:
    return Overlap(
        compared=number(entry, "compared_with"),
        images=tuple(
            (
                text(image, "id"),
                text(image, "used"),
                number(image, "distance"),
                flag(image, "mirrored"),
            )
            for image in objects(entry, "images")
        ),
        warning=text(entry, "note"),
    )


def _class_names(teacher: Json, manifest: Json) -> tuple[str, ...]:
    names = items(teacher, "classes") or items(manifest, "classes")
    return tuple(str(name) for name in names)


def _first(line: Json, details: Json, key: str) -> float | None:
    found = number(line, key)
    return number(details, key) if found is None else found


def _milliseconds(source: Json) -> dict[str, float | None]:
    """Return `p50_ms` and its like by their names without the unit."""
    found = plain_numbers(source)
    return {key.removesuffix("_ms"): value for key, value in found.items() if key.endswith("_ms")}


def _recipe(path: Path) -> str:
    if not path.is_file():
        return ""
    return path.read_text(encoding="utf-8", errors="replace")[:MAX_RECIPE_CHARS]
