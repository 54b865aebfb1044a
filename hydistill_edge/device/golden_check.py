"""The golden check: does this device compute what the build machine proved?

The student's logits are held against the limits of the parity ladder (R2 for fp32, R3 for other
floats, R4 for int8), the decisions against those that the artifact itself gave where it was built.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.bundle.golden import GoldenSet
from hydistill_edge.bundle.manifest import Manifest
from hydistill_edge.targets.gates import Gate, exactly
from hydistill_edge.targets.parity import (
    R2_LIMITS,
    R3_LIMITS,
    R4_SYNTHETIC_LIMITS,
    Limits,
    compare,
    r3_shipped_precision,
)

# A share of a handful of images bounds nothing, so decisions are counted by a gate of their own.
LIMITS: dict[str, Limits] = {
    "fp32": R2_LIMITS,
    "fp16": replace(R3_LIMITS, top1_agreement=None),
    "bf16": replace(R3_LIMITS, top1_agreement=None),
    "int8": replace(R4_SYNTHETIC_LIMITS, top1_agreement=None),
}


def no_golden(note: str) -> Gate:
    """Return the gate of a bundle without golden images: not judged, and why."""
    why = f"the bundle has no golden images{': ' + note if note else ''}"
    return Gate("golden images", None, None, None, why=why)


def judge_golden(golden: GoldenSet, found: NDArray[np.float32], manifest: Manifest) -> list[Gate]:
    """Judge the logits that this device gave for the golden images.

    Args:
        golden: from the bundle.
        found: logits of its images, in order, shape (N, classes).
        manifest: of the bundle.
    """
    against_student = r3_shipped_precision(
        golden.student_logits, found, golden.ids, limits=LIMITS[manifest.precision]
    )
    own = golden.artifact_logits
    reference = golden.student_logits if own is None else own
    against_own = compare(reference, found, golden.ids, classes=manifest.classes)
    whose = "the student's" if own is None else "those of the same artifact on the build machine"
    decisions = exactly(
        "golden decisions that differ",
        against_own.n - against_own.agree,
        0,
        unit="images",
        why=f"{against_own.agree} of {against_own.n} are {whose}",
        worst=against_own.worst_flip_id,
    )
    return [*against_student.gates, decisions]
