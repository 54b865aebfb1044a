"""Which kind of image calibrates best: real, inverted, of a GAN, natural, compensated, or noise?

One student (MobileNetV2 of width 0.25, trained on CIFAR-10 by `calibration_students.py`), two
runtimes, three draws. Per kind: what int8 loses, and how far each layer's range lies from that of
the real images. The GAN is method hidfd's, after 500 unlabelled images; natural and compensated
images are those of an `infer` set of 13 images per class with the teacher as only network. GAN and
compensators are trained for a fraction of the published iterations. About 30 minutes of one core.

    python tools/bench/calibration_kinds.py SHARED --keep FOLDER
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibration_sources import (
    MADE,
    RUNTIMES,
    SEEDS,
    Images,
    choose_images,
    draw_pools,
    interval,
    judge_case,
)
from calibration_students import KINDS, Subject, read_subject

from hydistill_edge.calibration.coverage import summarize
from hydistill_edge.images.resize import RESIZE_RULE
from hydistill_edge.models.ensemble import Ensemble
from hydistill_edge.run_directory import read_json, write_json
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.synthesis.compensator import make_compensators
from hydistill_edge.synthesis.gan import sample_gan, train_gan
from hydistill_edge.synthesis.gan_settings import GanSettings
from hydistill_edge.synthesis.infer_draw import draw_natural
from hydistill_edge.synthesis.infer_settings import CompensatorSettings
from hydistill_edge.targets.base import Graph
from hydistill_edge.targets.graph import export_student
from hydistill_edge.targets.graph_input import NORMALIZED
from hydistill_edge.targets.graph_layers import layer_inputs
from hydistill_edge.targets.latency import read_conditions
from hydistill_edge.targets.onnxruntime.activations import make_activation_reader
from hydistill_edge.targets.packages import version

QUESTION = str(__doc__).splitlines()[0]
RESULT = Path(__file__).parent / "results" / "calibration_kinds.json"
STUDENT = next(kind for kind in KINDS if kind.architecture == "mobilenet_v2")
ORDER = ("real", "inverted", "hidfd", "natural", "compensated", "noise")
COLLECTED, PER_CLASS = 500, 13
GAN = GanSettings(iterations=500, width=8)
COMPENSATORS = CompensatorSettings(iterations=150)


def draw_kinds(subject: Subject, seed: int, keep: Path) -> dict[str, Images]:
    """Return the images of every kind, shape (n, H, W, C) uint8 each, and real ones apart."""
    drawn = draw_pools(subject, seed, keep)
    kinds = {name: drawn.sources[name] for name in ("real", "inverted", "noise")}
    file = keep / f"kinds-{seed}.npz"
    if not file.exists():
        np.savez(file, **_made(subject, seed))
    with np.load(file) as found:
        kinds |= {name: found[name] for name in ("hidfd", "natural", "compensated")}
    return {**{name: kinds[name] for name in ORDER}, "apart": drawn.apart}


def _made(subject: Subject, seed: int) -> dict[str, Images]:
    choice = np.random.default_rng([seed, 1])
    collected = subject.pool[choice.permutation(len(subject.pool))[:COLLECTED]]
    gan = train_gan(subject.teacher, collected, settings=GAN, seed=seed)
    sampled = sample_gan(gan, subject.teacher, count=MADE, seed=seed)
    names = subject.teacher.classes
    natural = draw_natural(
        network_logits(subject.teacher, collected).argmax(axis=1),
        np.full(len(names), PER_CLASS),
        networks=1,
        class_names=names,
        seed=seed,
    )
    base = collected[natural.rows]
    found = make_compensators(Ensemble([subject.teacher]), base, natural, COMPENSATORS, seed=seed)
    added = base / 255 + found.values[natural.slots]
    compensated: Images = (255 * added.clip(0, 1)).round().astype(np.uint8)
    return {"hidfd": sampled.images, "natural": base, "compensated": compensated}


def range_errors(graph: Graph, real: Images, images: Images) -> dict[str, float]:
    """Return by layer input how far both ends of its range are off, over the real range's width."""
    tensors = layer_inputs(graph.path, leave_out=(NORMALIZED,))
    reader = make_activation_reader()
    wanted, got = (summarize(reader, graph.path, tensors, some) for some in (real, images))
    errors = {}
    for one, other in zip(wanted.tensors, got.tensors, strict=True):
        (low, high), (low_2, high_2) = one.range, other.range
        width = max(high - low, np.finfo(np.float32).tiny)
        errors[one.name] = (abs(low_2 - low) + abs(high_2 - high)) / width
    return errors


def run(subject: Subject, graph: Graph, seed: int, keep: Path) -> dict[str, Any]:
    """Return what every kind of image gives in one draw."""
    kinds = draw_kinds(subject, seed, keep)
    apart = kinds.pop("apart")
    found: dict[str, Any] = {}
    for name, pool in kinds.items():
        chosen = choose_images(subject, graph, pool, apart, seed)
        errors = range_errors(graph, kinds["real"], chosen.images)
        found[name] = {
            "images": len(chosen.images),
            "score": chosen.facts["score"],
            "range_error": float(np.mean(list(errors.values()))),
            "range_errors": errors,
        }
        for runtime in RUNTIMES:
            facts, logits = judge_case(subject, graph, runtime, chosen)
            right = logits.argmax(axis=1) == subject.labels
            found[name][runtime] = {
                "accuracy": facts["accuracy"],
                "estimator": facts["estimator"],
                "right": np.packbits(right).tolist(),
            }
        print(name, seed, found[name]["range_error"], found[name][RUNTIMES[1]]["accuracy"])
    return found


def make_rows(subject: Subject, draws: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per kind and runtime."""
    count = len(subject.labels)
    fp32 = network_logits(subject.student, subject.images).argmax(axis=1) == subject.labels
    rows = []
    for name in ORDER:
        for runtime in RUNTIMES:
            right = np.stack(
                [
                    np.unpackbits(np.array(draw[name][runtime]["right"], np.uint8), count=count)
                    for draw in draws
                ]
            ).astype(float)
            by_seed = 100 * right.mean(axis=1)
            rows.append(
                {
                    "images": name,
                    "runtime": runtime,
                    "fp32": 100 * float(fp32.mean()),
                    "mean": by_seed.mean(),
                    "std": by_seed.std(ddof=1),
                    "seeds": by_seed.tolist(),
                    "minus_fp32": interval(right - fp32),
                    "range_error": float(np.mean([draw[name]["range_error"] for draw in draws])),
                    "range_errors": {
                        layer: float(np.mean([draw[name]["range_errors"][layer] for draw in draws]))
                        for layer in draws[0][name]["range_errors"]
                    },
                    "scores": [draw[name]["score"] for draw in draws],
                }
            )
    return rows


def answer(rows: list[dict[str, Any]]) -> str:
    """Return the sentence of the README table."""
    parts = []
    for name in ORDER:
        mine = [row for row in rows if row["images"] == name]
        lost = " / ".join(f"{row['minus_fp32']['mean']:+.2f}" for row in mine)
        parts.append(f"{name} {lost} (range error {100 * mine[0]['range_error']:.0f} %)")
    return f"points against fp32 in {' / '.join(RUNTIMES)}: " + ", ".join(parts)


def main() -> None:
    """Run what is missing, and write the result."""
    parser = argparse.ArgumentParser(description=QUESTION)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--keep", type=Path, required=True, help="folder for networks and draws")
    parser.add_argument("--steps", type=int, default=600, help="of the student's training")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="draws")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    subject = read_subject(STUDENT, given.shared, given.keep, steps=given.steps)
    graph = export_student(subject.student, given.keep / "kinds.onnx", batch=1, resize=RESIZE_RULE)
    draws = []
    for seed in given.seeds:
        file = given.keep / f"kinds-{seed}.json"
        if not file.exists():
            write_json(file, run(subject, graph, seed, given.keep))
        draws.append(read_json(file))
    rows = make_rows(subject, draws)
    write_json(
        RESULT,
        {
            "schema_version": 1,
            "question": QUESTION,
            "answer": answer(rows),
            "passed": None,
            "gates": [],
            "student": STUDENT.name,
            "seeds": given.seeds,
            "rows": rows,
            "conditions": read_conditions(
                threads=1,
                versions={
                    name: version(name) for name in ("torch", "onnxruntime", "openvino", "nncf")
                },
            ),
            "wall_s": round(time.perf_counter() - began, 1),
        },
    )
    print(answer(rows))


if __name__ == "__main__":
    main()
