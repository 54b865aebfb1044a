"""Reading calibration/choice.json and each artifact's calibration.json.

Runs of older versions lack coverage, quality and selection; these read as None or empty.
"""

from __future__ import annotations

from hydistill_edge.report.calibration_data import (
    Calibration,
    CalibrationSet,
    Control,
    Coverage,
    Estimator,
    LayerCoverage,
    LayerRange,
    Quality,
    QualityPart,
)
from hydistill_edge.report.values import (
    Json,
    flag,
    flat,
    items,
    mapping,
    number,
    objects,
    plain_numbers,
    text,
)


def read_calibration(source: Json) -> Calibration:
    """Return what one artifact's calibration.json tells."""
    scheme = mapping(source, "scheme")
    why = text(scheme, "reason")
    return Calibration(
        images=read_set(source),
        scheme=flat({key: value for key, value in scheme.items() if key != "reason"}),
        # Where the scheme gives no reason of its own, the file's was about the scheme.
        reason=why or text(source, "reason"),
        estimators=_estimators(source, text(scheme, "range_estimator")),
        estimators_reason=text(mapping(source, "selection"), "reason"),
        control=_control(mapping(source, "control")),
    )


def _control(source: Json) -> Control | None:
    if not source:
        return None
    return Control(
        images=number(source, "images"),
        signal_db=number(source, "signal_db"),
        agreement=number(source, "agreement"),
    )


def read_set(source: Json) -> CalibrationSet:
    """Return what calibration.json or choice.json tells about the images."""
    coverage, quality = mapping(source, "coverage"), mapping(source, "quality")
    return CalibrationSet(
        count=number(source, "count"),
        digest=text(source, "digest"),
        per_class=plain_numbers(mapping(source, "per_class")),
        source=text(source, "source"),
        reason=text(source, "reason"),
        coverage=_coverage(coverage) if coverage else None,
        quality=_quality(quality) if quality else None,
    )


def _coverage(source: Json) -> Coverage:
    return Coverage(
        candidates=number(source, "candidates"),
        complete=flag(source, "complete"),
        picks=_reasons(source, "picks"),
        outliers=_reasons(source, "outliers"),
        layers=tuple(
            LayerCoverage(
                tensor=text(entry, "tensor"),
                bins=number(entry, "bins"),
                covered=number(entry, "covered"),
                low=number(entry, "low"),
                high=number(entry, "high"),
                candidates_low=number(entry, "candidates_low"),
                candidates_high=number(entry, "candidates_high"),
            )
            for entry in objects(source, "layers")
        ),
    )


def _reasons(source: Json, key: str) -> tuple[tuple[str, str], ...]:
    return tuple((text(entry, "id"), text(entry, "why")) for entry in objects(source, key))


def _quality(source: Json) -> Quality:
    parts = [
        QualityPart(
            name=text(entry, "name"),
            value=number(entry, "value"),
            weight=number(entry, "weight"),
            why=text(entry, "why"),
        )
        for entry in objects(source, "parts")
    ]
    return Quality(
        score=number(source, "score"),
        limit=number(source, "limit"),
        passed=flag(source, "passed"),
        reference=text(source, "reference"),
        parts=tuple(sorted(parts, key=lambda part: -(part.weight or 0.0))),
        layers=tuple(
            LayerRange(
                name=text(entry, "name"),
                low=number(entry, "low"),
                high=number(entry, "high"),
                reference_low=number(entry, "reference_low"),
                reference_high=number(entry, "reference_high"),
                covered=number(entry, "covered"),
                excess_bits=number(entry, "excess_bits"),
                cut=number(entry, "cut"),
                signal_db=number(entry, "signal_db"),
            )
            for entry in objects(source, "layers")
        ),
        advice=tuple(word for word in items(source, "advice") if isinstance(word, str)),
    )


def _estimators(source: Json, used: str) -> tuple[Estimator, ...]:
    """Return the rows of `selection`, which is a list of them or an object that holds them."""
    selection = mapping(source, "selection")
    chosen = text(selection, "estimator") or used
    rows = objects(selection, "rows") if selection else objects(source, "selection")
    return tuple(
        Estimator(
            name=text(row, "estimator"),
            snr_db=number(row, "snr_db"),
            agreement=number(row, "agreement"),
            failed=text(row, "failed"),
            chosen=bool(chosen) and text(row, "estimator") == chosen,
        )
        for row in rows
    )
