"""What does each part of a factored student's training give?

Teacher, images and judgement are those of `factoring_arms.py`. `all` is what a build does: factors
fitted to the teacher's layers by least squares, then method kd with a hint at every factored layer
and the teacher's own batch norm statistics. One part is left out in `truncated` (the fit), `logits`
(the hint) and `own_statistics`; all three are in `plain`, with the rate that suits it. About 20
minutes of one core.

    python tools/bench/factored_parts.py SHARED --keep RUNS
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from arms import LOGITS_ALONE, Runs, arguments, write_result
from factoring_arms import PROCEDURAL, REAL, SHARE, read_teacher, set_of, unlabelled_images

from hydistill_edge.methods.kd import KDSettings, distill
from hydistill_edge.models.factoring import factor
from hydistill_edge.models.reconstruction import images_wanted, reconstruct
from hydistill_edge.models.student import Student
from hydistill_edge.stages.logits import network_logits

QUESTION = str(__doc__).splitlines()[0]

# Frozen before the first run.
STEPS = 60
PARTS: Mapping[str, Mapping[str, Any]] = {
    "all": {},
    "truncated": {},
    "logits": {"layer_weight": 0.0},
    "own_statistics": {"held_statistics": False},
    "plain": LOGITS_ALONE,
}
UNFITTED = ("truncated", "plain")
ARMS = {
    **{f"{part}_made": (part, "made") for part in PARTS},
    **{f"{part}_real": (part, "real") for part in ("all", "plain")},
}
CLAIMS = (
    *(("all_made", f"{part}_made") for part in PARTS if part != "all"),
    ("all_real", "plain_real"),
)


def main() -> None:
    """Run what is missing and write the result."""
    given = arguments(QUESTION)
    teacher = read_teacher(given.shared)
    unlabelled, judged = unlabelled_images(given.shared, teacher)
    decided = network_logits(teacher, judged).argmax(axis=1)

    def agreement(student: Student) -> float:
        return float(100 * (network_logits(student, judged).argmax(axis=1) == decided).mean())

    def run(name: str, seed: int) -> dict[str, Any]:
        started = time.monotonic()
        part, kind = ARMS[name]
        workdir = given.keep / f"student-{name}-{seed}"
        workdir.mkdir(exist_ok=True)
        transfer = set_of(kind, teacher, unlabelled, seed, given.keep)
        student = factor(teacher, macs_share=SHARE)
        if part not in UNFITTED:
            rows = np.random.default_rng(seed).permutation(len(transfer))
            shown = transfer.images(np.sort(rows[: images_wanted(transfer.size)]))
            reconstruct(student, teacher, torch.from_numpy(shown).permute(0, 3, 1, 2))
        start = agreement(student.eval())
        settings = KDSettings(steps=STEPS, batch=64, cutmix_share=0.5, evaluations=3, **PARTS[part])
        trained = distill(teacher, student, transfer, settings, workdir=workdir, seed=seed)
        seconds = time.monotonic() - started
        return {"agreement": agreement(trained.student), "start": start, "seconds": seconds}

    runs = Runs(given.keep, given.seeds)
    runs.do_all(ARMS, run)
    starts = runs.table(tuple(ARMS), "start")
    write_result(
        "factored_parts",
        question=QUESTION,
        table=runs.table(tuple(ARMS), "agreement"),
        claims=CLAIMS,
        more={
            "untrained_agreement": {arm: list(found.values()) for arm, found in starts.items()},
            "steps": STEPS,
            "images": {"real": REAL, "made": PROCEDURAL.count},
        },
    )


if __name__ == "__main__":
    main()
