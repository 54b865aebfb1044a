"""A made-up run directory: every file that a build writes, with plausible numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CLASSES = [str(digit) for digit in range(10)]
RunMaker = Callable[..., Path]


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def gate(name: str, value: float | None, limit: float, unit: str, **more: Any) -> dict[str, Any]:
    direction = more.pop("direction", "at_least")
    passed = (
        None if value is None else (value >= limit if direction == "at_least" else value <= limit)
    )
    fields = {
        "passed": passed,
        "why": "" if passed is not None else "not judged here",
        "worst": None,
    }
    return {"name": name, "value": value, "limit": limit, "direction": direction, "unit": unit} | (
        fields | more
    )


def rung(name: str, title: str, gates: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    answers = [entry["passed"] for entry in gates]
    passed = False if False in answers else (None if None in answers or not answers else True)
    fields: dict[str, Any] = {
        "source": "synthetic",
        "n": 300,
        "metrics": None,
        "worst": [],
        "note": "",
    }
    return {"rung": name, "title": title, "passed": passed, "gates": gates} | fields | more


def parity(snr_db: float, agreement: float, simulated_by: str | None = None) -> dict[str, Any]:
    real = None if simulated_by else 0.989
    worst = [
        {"id": f"synthetic-{n:05d}", "reference": "3", "candidate": "8", "max_abs": 1.91 - 0.2 * n}
        for n in range(4)
    ]
    int8 = [
        gate("cosine, mean", 0.9987, 0.99, "", worst="synthetic-00000"),
        gate("SNR", snr_db, 20.0, "dB"),
        gate(
            "top-1 agreement, 95% lower bound", agreement, 0.99, "fraction", why="300 of 300 agree"
        ),
        gate("mean KL", 0.0031, 0.1, "nats", direction="at_most"),
    ]
    metrics = {"snr_db": snr_db, "cosine_min": 0.981, "top1_agreement": min(1.0, agreement + 0.01)}
    rungs = [
        rung("R0", "structure of the graph", [gate("facts", 14, 14, "")], source="none", n=14),
        rung(
            "R1",
            "PyTorch against the exported graph",
            [gate("max abs", 3.1e-7, 1e-4, "of scale", direction="at_most")],
            metrics={"snr_db": 128.4},
        ),
        rung(
            "R2",
            "two runtimes at fp32",
            [gate("max abs", 9.7e-7, 1e-3, "of scale", direction="at_most")],
            metrics={"snr_db": 121.9},
        ),
        rung("R4", "int8 against the fp32 student", int8, metrics=metrics, worst=worst),
        rung(
            "R4",
            "int8 against the fp32 student",
            [gate("top-1 agreement, 95% lower bound", real, 0.985, "fraction")],
            source="real",
            n=40,
            metrics={"snr_db": snr_db + 1.3},
        ),
        rung("R6", "metamorphic", [gate("max abs", 0.0, 1e-3, "of scale", direction="at_most")]),
        rung("R7", "pixel path", [gate("equal decisions", 1.0, 1.0, "fraction")], n=16),
    ]
    answers = [entry["passed"] for entry in rungs]
    passed = False if False in answers else None if None in answers else True
    return {"schema_version": 1, "passed": passed, "simulated_by": simulated_by, "rungs": rungs}


def scope(center_ms: float, spread: float, n: int = 1024) -> dict[str, Any]:
    times = np.sort(center_ms * np.random.default_rng(7).lognormal(0, spread, n))
    counts, edges = np.histogram(times, bins=60)
    at = {f"p{q:g}".replace(".", ""): float(np.percentile(times, q)) for q in (50, 90, 95, 99)}
    return {
        "n": n,
        "min_ms": times[0],
        **{f"{name}_ms": value for name, value in at.items()},
        "p999_ms": None,
        "max_ms": times[-1],
        "mean_ms": times.mean(),
        "cov": times.std() / times.mean(),
        "throughput_per_s": 1000 / times.mean(),
        "bounded": {"p90_ms": 1.03 * at["p90"], "p99_ms": 1.11 * at["p99"], "p999_ms": None},
        "histogram": {"edges_ms": edges.tolist(), "counts": counts.tolist()},
    }


def latency(center_ms: float, **more: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "mode": "demo",
        "advisory": True,
        "advisory_why": "demo mode measures 3 s on a shared host",
        "measured_on": "x86_64, 2 of 8 cores, Linux",
        "verdict": "stable",
        "verdict_why": "coefficient of variation 3.1 %, limit 5 %",
        "cold": {"load_ms": 21.4, "first_inference_ms": 1.9, "build_s": None},
        "scopes": {"engine": scope(center_ms, 0.05), "frame": scope(1.35 * center_ms, 0.08)},
        "warmup": {"s": 1.2, "rounds": 4},
        "conditions": {
            "cpu": "made-up CPU 8-core, VNNI",
            "governor": "performance",
            "threads": 1,
            "batch": 1,
            "affinity": [0, 1],
            "runtime": {"name": "made-up", "version": "1.0"},
        },
        "memory": {"resident_peak_mib": 212.5},
        "disturbance": {"engine": {"throttled_ms": 0.0}},
        "gates": [gate("p90, bounded", 1.35 * center_ms * 1.12, 1.0, "ms", direction="at_most")],
        "note": "",
    } | more


def calibration(scheme: str, reason: str) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "count": 256,
        "digest": "c0ffee" * 10 + "c0ff",
        "ids": [f"synthetic-{n:05d}" for n in range(256)],
        "per_class": {name: 26 if name < "6" else 25 for name in CLASSES},
        "source": "transfer",
        "scheme": {
            "name": scheme,
            "activation_type": "uint8",
            "weight_type": "int8",
            "per_channel": True,
            "reduce_range": False,
            "range_estimator": "minmax",
        },
        "reason": reason,
    }


def score(name: str, accuracy: float, seed: int, classes: list[str]) -> dict[str, Any]:
    rng, per = np.random.default_rng(seed), 36
    table = np.zeros((len(classes), len(classes)), int)
    for row in range(len(classes)):
        hits = int(rng.binomial(per, accuracy))
        table[row, row] = hits
        np.add.at(table[row], rng.integers(0, len(classes), per - hits), 1)
    return {
        "name": name,
        "accuracy": table.trace() / table.sum(),
        "per_class": [
            {"class": label, "n": per, "accuracy": table[row, row] / per}
            for row, label in enumerate(classes)
        ],
        "confusion": table.tolist(),
        "roc_auc": 0.9991,
        "roc_auc_note": "",
        "agreement_with_teacher": None if name == "teacher" else 0.981,
        "agreement_with_student": None if name in ("teacher", "student") else 0.994,
    }


def preview(path: Path, classes: int) -> None:
    """Rings and strokes instead of digits: one shape per class, noisy."""
    rng, labels = np.random.default_rng(3), np.repeat(np.arange(classes), 14)
    y, x = np.mgrid[-1:1:16j, -1:1:16j]
    images = np.empty((len(labels), 16, 16, 1), np.uint8)
    for place, label in enumerate(labels):
        radius = np.hypot(x + rng.normal(0, 0.1), y + rng.normal(0, 0.1))
        wave = np.sin(6 * radius + label) + np.cos(label * np.arctan2(y, x))
        noisy = 128 + 55 * wave + rng.normal(0, 12, (16, 16))
        images[place, ..., 0] = noisy.clip(0, 255).astype(np.uint8)
    ids = np.array([f"synthetic-{n:05d}" for n in range(len(labels))])
    np.savez(path, images=images, labels=labels, ids=ids)


ARTIFACTS = {
    "onnxruntime-x86-vnni-int8": (0.992, 27.1, 0.31, "u8s8-per-channel"),
    "openvino-x86-vnni-int8": (0.991, 26.4, 0.27, "nncf-mixed"),
    "tensorrt-jetson-orin-nano-int8": (0.993, 28.8, None, "s8s8-symmetric-qdq"),
}


def make(folder: Path, *, classes: list[str] = CLASSES, name: str = "digits") -> Path:
    digest = "4f1d5a" * 10 + "9e7b"
    artifacts = []
    for key, (agreement, snr, ms, scheme) in ARTIFACTS.items():
        target, _, rest = key.partition("-")
        device, _, precision = rest.rpartition("-")
        home = folder / "targets" / key
        simulated = "onnxruntime" if ms is None else None
        nowhere = latency(
            1.0, scopes=None, verdict=None, gates=[], measured_on=None, note="no such device here"
        )
        write(home / "parity.json", parity(snr, agreement, simulated))
        write(home / "latency.json", latency(ms) if ms else nowhere)
        write(home / "calibration.json", calibration(scheme, f"{device} multiplies u8 by s8"))
        line = {
            "target": target,
            "device": device,
            "precision": precision,
            "file": f"targets/{key}/artifact/model.bin",
            "bytes": 24_812,
            "scheme": scheme,
            "gates": [gate("accuracy below the student", 0.3, 0.5, "points", direction="at_most")],
            "accuracy": 0.969,
            "student_agreement": 0.994,
            "teacher_agreement": 0.979,
            "passed": True if ms else None,
        }
        artifacts.append(line)
    write(
        folder / "summary.json",
        {
            "schema": 1,
            "name": name,
            "teacher": {
                "arch": "resnet20",
                "params": 271_000,
                "macs": 2_560_000,
                "accuracy": 0.986,
            },
            "student": {
                "arch": "resnet8",
                "params": 19_600,
                "macs": 480_000,
                "accuracy": 0.972,
                "teacher_agreement": 0.981,
                "gates": [gate("agreement on the hold-out", 0.981, 0.95, "fraction")],
            },
            "transfer": {"images": 2100, "real": 100, "synthetic": 2000, "bytes": 640_000},
            "artifacts": artifacts,
            "wall_s": {
                "teacher": 0.4,
                "images": 24.8,
                "student": 38.2,
                "targets": 9.1,
                "parity": 3.3,
            },
            "passed": True,
        },
    )
    write(folder / "teacher.json", {"schema_version": 1, "classes": classes, "digest": digest})
    write(folder / "environment.json", {"python": "3.11", "packages": {"torch": "2.15.0"}})
    write(
        folder / "transfer/manifest.json",
        {
            "method": "inversion",
            "digest": digest,
            "seeds": {"inversion": 7},
            "per_class": dict.fromkeys(classes, 2100 // len(classes)),
            "per_origin": {"real": 100, "synthetic": 2000},
        },
    )
    steps = [
        {
            "step": 50 * n,
            "lr": 0.1,
            "loss": 3.2 * math.exp(-n / 12) + 0.2 + 0.05 * math.sin(n),
            "holdout_agreement": None if n % 4 else 0.985 - 0.6 * math.exp(-n / 9),
        }
        for n in range(60)
    ]
    write(folder / "student/history.json", steps)
    models = [("teacher", 0.987), ("student", 0.972), *((key, 0.97) for key in ARTIFACTS)]
    scores = [score(model, share, seed, classes) for seed, (model, share) in enumerate(models)]
    write(folder / "evaluation.json", {"schema_version": 1, "images": 360, "models": scores})
    (folder / "recipe.yaml").write_text("name: digits\nmethod: kd\n", encoding="utf-8")
    preview(folder / "preview.npz", len(classes))
    return folder


@pytest.fixture(scope="session")
def shared_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a made-up run directory for tests that change nothing."""
    return make(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    """Return a function that writes a whole made-up run directory, with the changes asked for."""
    return lambda **changes: make(tmp_path / "run", **changes)
