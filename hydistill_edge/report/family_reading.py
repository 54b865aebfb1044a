"""Reading the summary of several students into the values of `family_data.py`."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from hydistill_edge.naming import network_name
from hydistill_edge.report.family_data import Best, Family, Gap, Network, Student
from hydistill_edge.report.values import (
    Json,
    flag,
    items,
    mapping,
    notes,
    number,
    objects,
    plain_numbers,
    text,
)


def read_family(summary: Json) -> Family:
    """Read summary.json of several students; what is missing reads as None or empty."""
    small = mapping(summary, "small_network")
    return Family(
        name=text(summary, "name"),
        passed=flag(summary, "passed"),
        teacher=_network(mapping(summary, "teacher"), "teacher_agreement"),
        small=_network(small, "holdout_agreement") if small else None,
        small_note=text(summary, "small_network_note"),
        students=tuple(_student(row) for row in objects(summary, "students")),
        transfer=plain_numbers(mapping(summary, "transfer")),
        wall_s=plain_numbers(mapping(summary, "wall_s")),
        notes=notes(mapping(summary, "transfer")),
    )


def _network(source: Json, agreement: str) -> Network:
    return Network(
        arch=network_name(text(source, "arch")),
        params=number(source, "params"),
        macs=number(source, "macs"),
        accuracy=number(source, "accuracy"),
        agreement=number(source, agreement),
    )


def _student(row: Json) -> Student:
    failure = mapping(row, "failure")
    folder = text(row, "folder")
    return Student(
        name=text(row, "name"),
        method=text(row, "method"),
        # A student that could not be built may have the page of an earlier build.
        report=f"{quote(folder)}/report.html" if folder and not failure else "",
        devices=tuple(str(device) for device in items(row, "devices")),
        network=_network(row, "teacher_agreement"),
        accuracy_note=text(row, "accuracy_note"),
        agreement_note=text(row, "teacher_agreement_note"),
        to_small=_gap(row, "gap"),
        to_teacher=_gap(row, "teacher_gap"),
        best=_best(row),
        best_note=text(row, "best_int8_note"),
        passed=flag(row, "passed"),
        failed=tuple(_answers(row, passed=False)),
        open=tuple(_answers(row, passed=None)),
        failure=(text(failure, "kind"), text(failure, "message")) if failure else None,
    )


def _gap(row: Json, name: str) -> Gap:
    points, error = number(row, f"{name}_points"), number(row, f"{name}_error_points")
    return Gap(
        None if points is None else points / 100,
        None if error is None else error / 100,
        text(row, f"{name}_note"),
    )


def _best(row: Json) -> Best | None:
    wanted = text(row, "best_int8")
    for artifact in objects(row, "artifacts"):
        if _key(artifact) == wanted:
            latency = mapping(artifact, "latency")
            return Best(
                title=f"{text(artifact, 'target')} {text(artifact, 'precision')}",
                device=text(artifact, "device"),
                p50_ms=number(latency, "p50_ms"),
                bytes=number(artifact, "bytes"),
                accuracy=number(artifact, "accuracy"),
                agreement=number(artifact, "teacher_agreement"),
                advisory=flag(latency, "advisory") is not False,
                on=text(latency, "measured_on"),
                time_note=text(latency, "note"),
            )
    return None


def _answers(row: Json, *, passed: bool | None) -> list[str]:
    """Return which of a student's gates said no, or were not judged, and where."""
    found = [gate for gate in objects(row, "gates") if flag(gate, "passed") is passed]
    told = [text(gate, "name") for gate in found]
    for artifact in objects(row, "artifacts"):
        said = [text(gate, "name") for gate in objects(artifact, "gates") if _is(gate, passed)]
        if isinstance(artifact.get("parity"), Mapping) and _is(mapping(artifact, "parity"), passed):
            said.insert(0, "parity")
        title = f"{text(artifact, 'target')} {text(artifact, 'precision')}"
        told += [f"{name} of {title} for {text(artifact, 'device')}" for name in said]
    return told


def _is(source: Json, passed: bool | None) -> bool:
    return flag(source, "passed") is passed


def _key(artifact: Json) -> str:
    return "-".join(text(artifact, part) for part in ("target", "device", "precision"))
