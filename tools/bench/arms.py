"""What the benches that compare ways of training share: tasks, teachers, runs, paired differences.

A run is one way of training (an arm) with one seed. Each is written to a file of its own as soon as
it is done, so a bench that was stopped goes on, and two processes can share the seeds.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from hydistill_edge.images.augment import AugmentSettings
from hydistill_edge.images.sources import SourceSpec, load_source
from hydistill_edge.images.transfer_format import Origin
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.reconstruction import images_wanted, reconstruct
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.run_directory import read_json, write_json
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.targets.latency import read_conditions
from hydistill_edge.targets.packages import version

sys.path.append(str(Path(__file__).resolve().parents[1] / "reproduce"))

from classifier import (  # after the path
    WEIGHTS,
    ClassifierSettings,
    read_classifier,
    train_classifier,
)
from common import Split as LabelledImages

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
CONFIDENCE = 0.95
"""One-sided, of "shown" and "reversed"."""

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C) uint8 with true labels (N,)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Any) -> Split:
        return Split(self.images[rows], self.labels[rows])


def read_split(file: Path, *, side: int, channels: int, rows: str = "") -> Split:
    """Return the images of an npz file at side x side px, with their labels."""
    spec = SourceSpec(kind="npz", path=str(file), use_labels=True, rows=rows)
    found = load_source(spec, size=(side, side), channels=channels, adapt=True)
    assert found.labels is not None  # the source says use_labels
    return Split(found.images, found.labels)


def class_names(file: Path) -> tuple[str, ...]:
    """Return the class names that stand in an npz file."""
    with np.load(file) as found:
        return tuple(str(name) for name in found["class_names"])


def input_spec(images: Images) -> InputSpec:
    """Return size and statistics of images (N, H, W, C) uint8."""
    pixels = images.reshape(-1, images.shape[3]) / 255
    return InputSpec(
        height=images.shape[1],
        width=images.shape[2],
        channels=images.shape[3],
        mean=tuple(pixels.mean(axis=0).tolist()),
        std=tuple(pixels.std(axis=0).tolist()),
    )


def supervised_teacher(
    data: Split,
    classes: Sequence[str],
    *,
    architecture: str,
    width: float = 1.0,
    steps: int,
    batch: int = 128,
    augment: AugmentSettings,
    folder: Path,
    seed: int = 0,
) -> Teacher:
    """Return a teacher trained on labelled images; its weights are kept in `folder`.

    A tenth of the images, as many of each class, chooses the weights.
    """
    settings = ClassifierSettings(
        architecture,
        width=width,
        batch=batch,
        learning_rate=0.1,
        schedule="one_cycle",
        ema_share=0.02,
        holdout=len(data) // 10,
        evaluations=5,
        steps=steps,
    )
    labelled = LabelledImages(data.images, data.labels, tuple(classes))
    spec, device = input_spec(data.images), torch.device("cpu")
    if not (folder / WEIGHTS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        train_classifier(
            labelled, spec, settings, workdir=folder, seed=seed, device=device, augment=augment
        )
    return read_classifier(labelled, spec, settings, workdir=folder, device=device)


def write_set(
    folder: Path, teacher: Teacher, parts: Mapping[str, tuple[Origin, Images]]
) -> TransferSet:
    """Return a transfer set, made once, of images by the name of their source."""
    if not folder.exists():
        _, first = next(iter(parts.values()))
        with TransferSetWriter(
            folder,
            size=(first.shape[1], first.shape[2]),
            channels=first.shape[3],
            classes=teacher.classes,
            teacher_digest=teacher.digest,
        ) as writer:
            for name, (origin, images) in parts.items():
                ids = [f"{name}:{row:05d}" for row in range(len(images))]
                writer.add(images, network_logits(teacher, images), origin=origin, ids=ids)
    return TransferSet.open(folder)


def fitted(student: Student, teacher: Teacher, transfer: TransferSet, seed: int) -> Student:
    """Return a factored student with its layers fitted to the teacher's, as a build does it."""
    rows = np.random.default_rng(seed).permutation(len(transfer))
    shown = transfer.images(np.sort(rows[: images_wanted(transfer.size)]))
    reconstruct(student, teacher, torch.from_numpy(shown).permute(0, 3, 1, 2))
    return student


def accuracy(model: Student | Teacher, data: Split) -> float:
    """Return the accuracy in percent."""
    model.eval()
    with torch.no_grad():
        decided = network_logits(model, data.images).argmax(axis=1)
    return float(100 * (decided == data.labels).mean())


class Runs:
    """Finished runs, one file each.

    Args:
        folder: where they lie.
        seeds: that this process does.
    """

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        self.folder, self.seeds = folder / "runs", seeds
        self.folder.mkdir(parents=True, exist_ok=True)

    def do(self, arm: str, seed: int, run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what a run gave, by name of the number; run it where it is not done."""
        file = self.folder / f"{arm}-{seed}.json"
        if not file.exists():
            found = dict(run())
            write_json(file, found)
            shown = {key: value for key, value in found.items() if isinstance(value, float)}
            print(arm, seed, shown, flush=True)
        done: dict[str, Any] = read_json(file)
        return done

    def do_all(self, arms: Iterable[str], run: Callable[[str, int], Mapping[str, Any]]) -> None:
        """Run every arm with every seed of this process, one seed after the other."""
        for seed in self.seeds:
            for arm in arms:
                self.do(arm, seed, partial(run, arm, seed))

    def table(self, arms: Sequence[str], number: str = "accuracy") -> dict[str, dict[int, float]]:
        """Return one number of all finished runs, by arm and seed."""
        found: dict[str, dict[int, float]] = {}
        for arm in arms:
            files = {
                int(file.stem.rpartition("-")[2]): file
                for file in self.folder.glob(f"{arm}-*.json")
            }
            found[arm] = {seed: read_json(files[seed])[number] for seed in sorted(files)}
        return found


def summarize(table: Mapping[str, Mapping[int, float]]) -> dict[str, Any]:
    """Return `arms`: mean and standard deviation (n - 1) of each arm, and every seed."""
    return {
        arm: {
            "mean": float(np.mean(list(values.values()))),
            "std": float(np.std(list(values.values()), ddof=1)) if len(values) > 1 else None,
            "seeds": list(values.values()),
        }
        for arm, values in table.items()
    }


def compare(table: Mapping[str, Mapping[int, float]], better: str, worse: str) -> dict[str, Any]:
    """Return the paired difference of two arms over the seeds that both have.

    `verdict` is `shown` or `reversed` where the one-sided 95 % bound of Student's t is beyond 0,
    else `not resolved`.
    """
    seeds = sorted(table[better].keys() & table[worse].keys())
    differences = [table[better][seed] - table[worse][seed] for seed in seeds]
    mean = float(np.mean(differences))
    if len(seeds) < 2:
        return {"claim": f"{better} > {worse}", "mean": mean, "verdict": "not resolved"}
    error = float(np.std(differences, ddof=1) / math.sqrt(len(seeds)))
    bound = float(stats.t.ppf(CONFIDENCE, len(seeds) - 1)) * error
    verdict = "shown" if mean > bound else "reversed" if mean < -bound else "not resolved"
    return {
        "claim": f"{better} > {worse}",
        "mean": mean,
        "standard_error": error,
        "seeds": differences,
        "verdict": verdict,
    }


def write_result(
    name: str,
    *,
    question: str,
    table: Mapping[str, Mapping[int, float]],
    claims: Sequence[tuple[str, str]],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Write results/<name>.json: arms, paired differences of the claims, and what else is told."""
    compared = [
        compare(table, better, worse)
        for better, worse in claims
        if table.get(better) and table.get(worse)
    ]
    said = "; ".join(
        f"{entry['claim']} by {entry['mean']:.2f} ± {entry.get('standard_error', math.nan):.2f} "
        f"({entry['verdict']})"
        for entry in compared
    )
    result = {
        "schema_version": 1,
        "question": question,
        "answer": said,
        "passed": None,
        "gates": [],
        "arms": summarize({arm: values for arm, values in table.items() if values}),
        "paired": compared,
        **more,
        "conditions": read_conditions(
            threads=torch.get_num_threads(),
            versions={name: version(name) for name in ("torch", "numpy")},
        ),
    }
    write_json(RESULTS / f"{name}.json", result)
    print(said)
    return result


def arguments(question: str) -> argparse.Namespace:
    """Return the command line that these benches share: SHARED, --keep, --seeds."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("shared", type=Path, help="folder with `data/`")
    parser.add_argument("--keep", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    return parser.parse_args()
