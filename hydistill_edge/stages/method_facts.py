"""What the method left to tell, in short: the part of summary.json on student/ and transfer/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydistill_edge.run_directory import read_json

Facts = Mapping[str, Any]


def method_facts(run: Path) -> dict[str, Any]:
    """Return the headline of every document that a method may leave; None where it left none."""
    made = read_json(run / "transfer" / "manifest.json").get("details", {}).get("gan")
    return {
        "collected": _collected(_read(run, "student", "hidfd.json")),
        "comparison": _comparison(_read(run, "student", "comparison.json")),
        "selection": _selection(_read(run, "student", "selection.json")),
        "keys": _keys(_read(run, "student", "keys.json")),
        "small_network": _small_network(_read(run, "student", "arch_overfitting.json")),
        "pilot": _pilot(_read(run, "transfer", "pilot.json")),
        "gan": _gan(made or None),
    }


def _read(run: Path, *parts: str) -> Facts | None:
    path = run.joinpath(*parts)
    return read_json(path) if path.exists() else None


def _collected(told: Facts | None) -> dict[str, Any] | None:
    if told is None:
        return None
    saved = told["data_reduction"] or dict.fromkeys(("usual", "share"))
    return {
        "images": told["collected"],
        "synthetic": told["synthetic"],
        "real_share": told["real_share"],
        "usual": saved["usual"],
        "share_of_usual": saved["share"],
    }


def _comparison(told: Facts | None) -> dict[str, Any] | None:
    if told is None:
        return None
    names = ("name", "agreement", "shifted_agreement", "worst_class", "steps")
    gate = told["gate"]
    return {
        "of": told["of"],
        "images": told["images"],
        "rows": [{name: row[name] for name in names} for row in told["rows"]],
        "gate": gate and {name: gate[name] for name in ("passed", "reasons", "gap_points")},
    }


def _selection(told: Facts | None) -> dict[str, Any] | None:
    if told is None:
        return None
    first, last = told["epochs"][0], told["epochs"][-1]
    return {
        "epochs": len(told["epochs"]),
        "pool": last["pool"],
        "selected_first": first["selected"],
        "selected_last": last["selected"],
        "teacher_share_last": last["teacher_share"],
        "by_fallback": sum(not entry["by_threshold"] for entry in told["epochs"]),
    }


def _keys(told: Facts | None) -> dict[str, Any] | None:
    if told is None:
        return None
    return {
        "layers": len(told["layers"]),
        "kept": [row["layer"] for row in told["layers"] if row["chosen"]],
        "threshold": told["threshold"],
        "bytes_all": told["bytes_per_image"]["all"],
        "bytes_used": told["bytes_per_image"]["used"],
    }


def _small_network(told: Facts | None) -> dict[str, Any] | None:
    if told is None or told["small"] is None:
        return None
    return {
        "arch": told["small"]["arch"],
        "agreement": told["small"]["holdout_agreement"],
        **{name: told[name] for name in ("gap_points", "gap_error_points", "held_out")},
    }


def _pilot(told: Facts | None) -> dict[str, Any] | None:
    if told is None:
        return None
    return {
        name: told[name] for name in ("kind", "candidates", "count", "near_duplicates", "notes")
    }


def _gan(told: Facts | None) -> dict[str, Any] | None:
    if told is None:
        return None
    return {
        **{name: told[name] for name in ("count", "hit", "class_entropy", "seconds", "note")},
        "flagged": told["coverage"]["flagged"],
        "missing": told["coverage"]["missing"],
        "near_copies": told["leak"]["near_copies"],
        "exact_copies": told["leak"]["exact_copies"],
    }
