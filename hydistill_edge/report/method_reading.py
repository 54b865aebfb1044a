"""Reading what the method left in student/ and transfer/ into the values of `method_data.py`."""

from __future__ import annotations

from typing import Any

import numpy as np

from hydistill_edge.report.method_data import (
    ClassMap,
    Collected,
    ComparedRow,
    Comparison,
    Compensated,
    Deployment,
    Epoch,
    Form,
    Gan,
    KeyLayer,
    KeyMaps,
    Keys,
    Method,
    Pilot,
    PilotClass,
    SelectionAudit,
)
from hydistill_edge.report.pictures import data_uri, png
from hydistill_edge.report.values import (
    Json,
    flag,
    items,
    mapping,
    number,
    numbers,
    objects,
    plain_numbers,
    text,
)

MAX_MAP_CLASSES = 24
MAX_MAP_SIDE = 64

_NEEDS = {
    "deficit": "made too rarely",
    "entropy": "teacher unsure",
    "gap": "no made image near",
}
_PROJECTORS = {"full": "three convolutions", "depthwise": "depthwise", "pointwise": "one 1x1"}


def read_method(
    *,
    deployment: Json,
    comparison: Json,
    selection: Json,
    keys: Json,
    hidfd: Json,
    infer: Json,
    pilot: Json,
    manifest: Json,
) -> Method:
    """Return what a method left to tell; an empty object stands for a file that is not there."""
    gan, distilled = (mapping(mapping(manifest, "details"), key) for key in ("gan", "infer"))
    return Method(
        deployment=_deployment(deployment) if deployment else None,
        comparison=_comparison(comparison) if comparison else None,
        selection=_selection(selection) if objects(selection, "epochs") else None,
        keys=_keys(keys) if objects(keys, "layers") else None,
        gan=_gan(gan) if gan else None,
        pilot=_pilot(pilot) if pilot else None,
        collected=_collected(hidfd) if hidfd else None,
        compensated=_compensated(infer, distilled) if infer or distilled else None,
    )


def _deployment(source: Json) -> Deployment:
    before, after, fold = (mapping(source, key) for key in ("before", "after", "fold"))
    forms = [_form("with projector and the teacher's classifier", before)]
    said = ""
    if after:
        forms.append(_form("with its own head, folded", after))
        kept = {
            "fitted": "the head as fitted by least squares was kept",
            "trained": "the network as trained was kept",
        }.get(text(fold, "kept"), "")
        said = f"{text(fold, 'steps')} steps; {kept}"
    parts = ("backbone", "projector", "classifier")
    return Deployment(
        head=text(source, "head"),
        forms=tuple(forms),
        parts={part: number(before, f"{part}_params") for part in parts},
        projectors=tuple(
            (
                f"{_PROJECTORS.get(text(row, 'kind'), text(row, 'kind'))}, "
                f"channels over {text(row, 'factor')}"
                if text(row, "kind") != "pointwise"
                else _PROJECTORS["pointwise"],
                number(row, "params"),
                number(row, "macs"),
                flag(row, "used") is True,
            )
            for row in objects(source, "projectors")
        ),
        images=number(source, "judged_images"),
        fold=said,
    )


def _form(name: str, source: Json) -> Form:
    return Form(
        name,
        number(source, "params"),
        number(source, "macs"),
        number(source, "holdout_agreement"),
    )


def _comparison(source: Json) -> Comparison:
    gate = mapping(source, "gate")
    return Comparison(
        of=text(source, "of"),
        measure=text(source, "measure"),
        shift=text(source, "shift"),
        images=number(source, "images"),
        rows=tuple(
            ComparedRow(
                name=text(row, "name"),
                what=text(row, "what"),
                steps=number(row, "steps"),
                agreement=number(row, "agreement"),
                worst_class=text(mapping(row, "worst_class"), "class"),
                worst_agreement=number(mapping(row, "worst_class"), "agreement"),
                shifted_agreement=number(row, "shifted_agreement"),
                per_class=tuple(
                    (text(entry, "class"), number(entry, "n"), number(entry, "agreement"))
                    for entry in objects(row, "per_class")
                ),
            )
            for row in objects(source, "rows")
        ),
        passed=flag(gate, "passed"),
        gap_points=number(gate, "gap_points"),
        reasons=_texts(gate, "reasons"),
        gated=bool(gate),
    )


def _selection(source: Json) -> SelectionAudit:
    epochs = objects(source, "epochs")
    first, last = epochs[0], epochs[-1]
    notes: dict[str, list[str]] = {}
    for place, entry in enumerate(epochs):
        for note in _texts(entry, "notes"):
            notes.setdefault(note, []).append(text(entry, "epoch") or str(place + 1))
    return SelectionAudit(
        epochs=tuple(
            Epoch(
                epoch=number(entry, "epoch") or place + 1,
                pool=number(entry, "pool"),
                selected=number(entry, "selected"),
                teacher_share=number(entry, "teacher_share"),
                by_threshold=flag(entry, "by_threshold"),
                thresholds=tuple(
                    value
                    for row in objects(entry, "per_class")
                    if (value := number(row, "threshold")) is not None
                ),
            )
            for place, entry in enumerate(epochs)
        ),
        per_class=tuple(
            (
                text(row, "class"),
                number(row, "predicted"),
                number(row, "threshold"),
                number(row, "selected"),
            )
            for row in objects(last, "per_class")
        ),
        per_source=tuple(
            (
                name or "unnamed",
                number(mapping(mapping(last, "per_source"), name), "pool"),
                _taken(mapping(mapping(first, "per_source"), name)),
                _taken(mapping(mapping(last, "per_source"), name)),
            )
            for name in mapping(last, "per_source")
        ),
        weights=plain_numbers(mapping(last, "weights")),
        notes=tuple(
            f"{note} ({f'epoch {said[0]}' if len(said) == 1 else f'{len(said)} epochs'})"
            for note, said in notes.items()
        ),
    )


def _taken(source: Json) -> float | None:
    pool, selected = number(source, "pool"), number(source, "selected")
    return None if not pool or selected is None else selected / pool


def _keys(source: Json) -> Keys:
    attention, held_out = mapping(source, "attention"), mapping(source, "held_out")
    layers = objects(source, "layers")
    names = [text(row, "layer") for row in layers]
    students = [text(row, "layer") for row in objects(source, "student_layers")]
    by_teacher = text(attention, "columns") != "student layers"
    table = tuple(numbers({"row": row}, "row") for row in items(attention, "mean"))
    rows, columns = (students, names) if by_teacher else (names, students)
    whole = len(table) == len(rows) and all(len(row) == len(columns) for row in table)
    used = mapping(source, "bytes_per_image")
    return Keys(
        variant=text(source, "variant"),
        top_k=number(source, "top_k"),
        factor=number(source, "threshold_factor"),
        threshold=number(source, "threshold"),
        layers=tuple(
            KeyLayer(
                name=text(row, "layer"),
                shape=" x ".join(f"{side:g}" for side in numbers(row, "shape")),
                influence=number(row, "influence"),
                chosen=flag(row, "chosen") is True,
                bytes=number(row, "bytes"),
            )
            for row in layers
        ),
        attention=table if whole else (),
        rows=tuple(rows),
        columns=tuple(columns),
        by_teacher=by_teacher,
        history=tuple(
            (
                number(entry, "epoch") or place + 1,
                tuple(int(at) for at in numbers(entry, "chosen") if 0 <= at < len(names)),
            )
            for place, entry in enumerate(objects(source, "history"))
        ),
        candidates=tuple(
            (text(row, "rule"), number(row, "threshold"), _texts(row, "layers"))
            for row in objects(source, "candidates")
        ),
        classes=tuple(
            (
                text(row, "class"),
                number(row, "images"),
                tuple(names[int(at)] for at in numbers(row, "chosen") if 0 <= at < len(names)),
            )
            for row in objects(held_out, "classes")
        ),
        one_class_only=tuple(
            (text(row, "layer"), text(row, "class"))
            for row in objects(held_out, "of_one_class_only")
        ),
        bytes_all=number(used, "all"),
        bytes_used=number(used, "used"),
        bytes_note=text(source, "bytes_note"),
        maps=_maps(mapping(source, "maps")),
    )


def _maps(source: Json) -> KeyMaps | None:
    layers = _texts(source, "layers")
    rows = []
    for row in objects(source, "classes")[:MAX_MAP_CLASSES]:
        uris = tuple(_map_picture(values) for values in items(row, "maps"))
        if len(uris) == len(layers) and all(uris):
            rows.append((text(row, "class"), number(row, "images"), uris))
    return KeyMaps(text(source, "note"), layers, tuple(rows)) if layers and rows else None


def _map_picture(values: Any) -> str:
    """Return a map (h, w) of numbers in [0, 1] as a grey picture; empty where it is none."""
    rows = [numbers({"row": row}, "row") for row in values] if isinstance(values, list) else []
    widths = {len(row) for row in rows}
    if len(widths) != 1 or not 0 < next(iter(widths)) <= MAX_MAP_SIDE or len(rows) > MAX_MAP_SIDE:
        return ""
    grey = (255 * np.clip(np.array(rows), 0.0, 1.0)).astype(np.uint8)
    return data_uri(png(grey[..., None]))


def _gan(source: Json) -> Gan:
    coverage, health = mapping(source, "coverage"), mapping(source, "health")
    return Gan(
        images=number(source, "count"),
        duplicates=number(source, "duplicates"),
        hit=number(source, "hit"),
        entropy=number(source, "class_entropy"),
        iterations=number(source, "iterations"),
        seconds=number(source, "seconds"),
        counts=plain_numbers(mapping(source, "class_counts")),
        coverage=tuple(
            (text(row, "class"), number(row, "share")) for row in objects(coverage, "per_class")
        ),
        flagged=_texts(coverage, "flagged"),
        missing=_texts(coverage, "missing"),
        density=number(coverage, "density"),
        neighbour_coverage=number(coverage, "coverage"),
        leak=plain_numbers(mapping(source, "leak")),
        pixel_diversity=number(health, "pixel_diversity"),
        feature_diversity=number(health, "feature_diversity"),
        note=text(source, "note"),
    )


def _pilot(source: Json) -> Pilot:
    return Pilot(
        kind=text(source, "kind"),
        candidates=number(source, "candidates"),
        count=number(source, "count"),
        near_duplicates=number(source, "near_duplicates"),
        classes=tuple(
            PilotClass(
                text(row, "class"),
                number(row, "wanted"),
                number(row, "chosen"),
                {
                    _NEEDS.get(name, name): value
                    for name, value in plain_numbers(mapping(row, "need")).items()
                },
            )
            for row in objects(source, "per_class")
        ),
        images=tuple(
            (text(row, "id"), text(row, "class"), number(row, "confidence"), text(row, "reason"))
            for row in objects(source, "images")
        ),
        notes=_texts(source, "notes"),
    )


def _collected(source: Json) -> Collected:
    saved = mapping(source, "data_reduction")
    return Collected(
        arm=text(source, "arm"),
        collected=number(source, "collected"),
        synthetic=number(source, "synthetic"),
        inflation=number(source, "inflation"),
        real_share=number(source, "real_share"),
        steps=number(source, "steps"),
        used_images=number(saved, "collected"),
        usual_images=number(saved, "usual"),
        reduction=number(saved, "share"),
    )


def _compensated(told: Json, made: Json) -> Compensated:
    budget, boundary = mapping(made, "budget"), mapping(told, "boundary")
    realism, coverage = mapping(made, "realism"), mapping(made, "coverage")
    images = plain_numbers(mapping(told, "images"))
    if not images and made:
        images = {"natural": number(made, "natural")}
    return Compensated(
        labels=text(told, "labels") or text(made, "labels"),
        images=images,
        bytes=plain_numbers(mapping(made, "bytes")),
        ipc=number(budget, "ipc"),
        natural_per_class=number(budget, "natural"),
        networks=tuple(
            (text(row, "name"), number(row, "agreement")) for row in objects(made, "networks")
        ),
        kinds=tuple(
            (
                kind,
                number(mapping(realism, kind), "named_as_intended"),
                number(mapping(realism, kind), "bn_distance"),
                number(mapping(coverage, kind), "density"),
                number(mapping(coverage, kind), "coverage"),
            )
            for kind in ("natural", "compensated")
            if mapping(realism, kind)
        ),
        nearest=plain_numbers(mapping(made, "nearest_real")),
        boundary={
            side: number(mapping(boundary, side), "share") for side in ("student", "teacher")
        },
        margin=number(boundary, "margin"),
        pairs=tuple(
            (
                str(names[0]),
                str(names[1]),
                number(row, "images"),
                number(row, "nearness"),
                number(row, "confused"),
            )
            for row in objects(told, "closest_pairs")
            if len(names := items(row, "classes")) == 2
        ),
        map=_class_map(mapping(told, "map")),
        note=text(made, "logit_note"),
        privacy=text(made, "privacy"),
    )


def _class_map(source: Json) -> ClassMap | None:
    classes, kinds = _texts(source, "classes"), _texts(source, "kind")
    columns = [numbers(source, key) for key in ("x", "y", "class")]
    if len({len(kinds), *map(len, columns)}) != 1 or not kinds:
        return None
    if not all(0 <= place < len(classes) for place in columns[2]):
        return None
    return ClassMap(
        classes,
        tuple((x, y, int(place), kind) for x, y, place, kind in zip(*columns, kinds, strict=True)),
        tuple(
            (
                text(row, "kind"),
                number(row, "images"),
                number(row, "named_as_intended"),
                number(row, "on_boundary"),
            )
            for row in objects(source, "kinds")
        ),
    )


def _texts(source: Json, key: str) -> tuple[str, ...]:
    return tuple(str(value) for value in items(source, key) if isinstance(value, str))
