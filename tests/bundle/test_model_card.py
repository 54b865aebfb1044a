"""The model card says what is known, with n and interval, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hydistill_edge.bundle.manifest import Manifest
from hydistill_edge.bundle.model_card import model_card

EVIDENCE: dict[str, Any] = {
    "description": "Finds scratches.",
    "method": "kd",
    "teacher": {"arch": "zoo:resnet18", "params": 11_000_000, "macs": 70_000_000},
    "student": {"arch": "resnet8", "params": 80_000, "macs": 1_000_000, "holdout_agreement": 0.97},
    "origins": {"real": 100, "synthetic": 4000},
    "parity": {
        "passed": None,
        "simulated_by": "onnxruntime",
        "rungs": [
            {
                "rung": "R4", "title": "int8", "source": "real", "n": 100, "passed": None,
                "metrics": {"top1_agreement": 1.0},
            },
            {
                "rung": "R6", "title": "consistency", "source": "synthetic", "n": 0,
                "passed": False, "metrics": None,
            },
        ],
    },
    "latency": {
        "mode": "quick", "advisory": True, "advisory_why": "demo mode", "verdict": "stable",
        "measured_on": "Some CPU",
        "scopes": {"engine": {"n": 1024, "p50_ms": 0.5, "p90_ms": 0.6, "p99_ms": None}},
    },
    "calibration": {
        "count": 256, "digest": "3" * 64, "reason": "balanced",
        "scheme": {"name": "u8s8", "reason": "the CPU has VNNI"},
    },
    "evaluation": {
        "images": 200,
        "models": [
            {"name": "teacher", "accuracy": 0.98, "per_class": []},
            {"name": "onnxruntime-other-int8", "accuracy": 0.1, "per_class": []},
            {
                "name": "onnxruntime-x86-vnni-int8", "accuracy": 0.95, "note": "",
                "per_class": [
                    {"class": "good", "n": 190, "accuracy": 0.96},
                    {"class": "bad", "n": 10, "accuracy": 0.8},
                ],
            },
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "# widgets 1.0.0",
        "Finds scratches.",
        "- Teacher: zoo:resnet18, 11,000,000 parameters, 70,000,000 MACs",
        "- Quantized as u8s8: the CPU has VNNI",
        "4,100 (real 100, synthetic 4,000)",
        "| teacher | 98.00 % | 94.96 % to 99.45 % | 200 |",
        "| **this artifact** | 95.00 % | 91.00 % to 97.58 % | 200 |",
        "Worst class: bad at 80.00 % of 10 images (95 % interval 44.39 % to 97.48 %).",
        "| R4 int8 | real | 100 | 100.00 % | not judged |",
        "| R6 consistency | synthetic | 0 |  | FAILED |",
        "Simulated: the same graph was run by onnxruntime.",
        "Measured on Some CPU, mode quick, verdict stable.",
        "| engine | 1024 | 0.500 ms | 0.600 ms | too few samples |",
        "Advisory only: demo mode",
        "Fitted on 100 real held-out images against their true labels",
        "| student | `" + "1" * 64 + "` |",
    ],
)
def test_card_tells_what_is_known(manifest: Manifest, line: str) -> None:
    assert line in model_card(manifest, **EVIDENCE)


@pytest.mark.parametrize(
    "line",
    [
        "The maker gave no description.",
        "License: not stated.",
        "Teacher: not stated",
        "Not measured: the build was given no labelled images.",
        "so every image gets an answer, however unsure: too few real images",
        "- Its accuracy on labelled images is unknown.",
        "- Its latency on the device is unknown.",
        "- Its probabilities are not calibrated.",
    ],
)
def test_card_says_so_when_something_is_unknown(make: Callable[..., Manifest], line: str) -> None:
    assert line in model_card(make(reject=None, reject_note="too few real images"))


def test_card_shows_names_as_they_are_when_they_look_like_markup(
    make: Callable[..., Manifest],
) -> None:
    manifest = make(classes=("<script>", "a|b"), license="MIT [x](http://y)")

    card = model_card(manifest, description="# no\nheading")

    assert "\\<script\\>, a\\|b" in card
    assert "MIT \\[x\\]\\(http://y\\)" in card
    assert "\\# no heading" in card


def test_card_says_that_the_artifact_was_not_evaluated_when_only_others_were(
    manifest: Manifest,
) -> None:
    evaluation = {**EVIDENCE["evaluation"], "models": EVIDENCE["evaluation"]["models"][:2]}

    assert "This artifact was not evaluated by itself." in model_card(
        manifest, evaluation=evaluation
    )


def test_card_is_the_same_when_made_twice(manifest: Manifest) -> None:
    assert model_card(manifest, **EVIDENCE) == model_card(manifest, **EVIDENCE)
