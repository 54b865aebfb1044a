"""What does int8 lose when its ranges come from synthetic images instead of real ones?

Seven networks (six families trained on CIFAR-10, the steel RegNetY teacher), two runtimes, five
sources of calibration images, three draws of each, eight for the steel network. Every set goes the
product's way: a covering choice of at most 128 images, estimators chosen by parity, the scheme of
this machine. The test split gives accuracies only: nothing is chosen by it. Three gates are held
against what each set loses: the int8 artifact's signal on images that the student gave and that set
no range (what the product goes by), and two scores of the set itself. Each one's threshold is
fitted on three networks and judged on the other four.

    python tools/bench/calibration_sources.py SHARED --keep FOLDER

SHARED holds `teachers/` and `data/`. FOLDER keeps trained networks and finished cases, so that a
killed run goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from calibration_students import KINDS, STEEL, Kind, Subject, read_subject
from numpy.typing import NDArray

from hydistill_edge.calibration.choose import choose_covering
from hydistill_edge.calibration.control import judge_control
from hydistill_edge.calibration.coverage import summarize
from hydistill_edge.calibration.layer_quality import LayerMoments
from hydistill_edge.calibration.quality import judge_quality
from hydistill_edge.calibration.ranges import METHODS, make_estimator
from hydistill_edge.calibration.scheme import choose_scheme
from hydistill_edge.calibration.select import select_by_parity
from hydistill_edge.images.content_hash import content_hashes
from hydistill_edge.images.resize import RESIZE_RULE
from hydistill_edge.run_directory import read_json, write_json
from hydistill_edge.stages.calibration import read_moments
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.stages.targets import LEAST_SELECTION
from hydistill_edge.synthesis.inversion import invert
from hydistill_edge.targets.adapters import builder, open_runner
from hydistill_edge.targets.base import Artifact, Calibration, Graph, Logits, Scheme
from hydistill_edge.targets.gates import Gate, at_least, at_most
from hydistill_edge.targets.graph import export_student
from hydistill_edge.targets.graph_input import NORMALIZED
from hydistill_edge.targets.graph_layers import layer_inputs
from hydistill_edge.targets.latency import read_conditions
from hydistill_edge.targets.onnxruntime.activations import make_activation_reader
from hydistill_edge.targets.packages import version
from hydistill_edge.targets.parity import run_in_batches
from hydistill_edge.targets.profiles import load_profile

RESULT = Path(__file__).parent / "results" / "calibration_sources.json"
SOURCES = ("real", "inverted", "inverted_from_teacher", "few_real", "noise")
RUNTIMES = ("onnxruntime", "openvino")
SEEDS = (0, 1, 2)
STEEL_SEEDS = tuple(range(8))
"""More draws: the steel test split has 480 images, and one of them is 0.2 points."""

MADE, CHOSEN, FEW, REFERENCE, CONTROLS = 256, 128, 20, 50, 128
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "nncf", "numpy")
HARD, SPOILED, FINE = 1.0, 0.5, 0.1  # points
HOST = load_profile("host")

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Pools:
    """What one draw of a network's sources holds.

    Attributes:
        sources: images by the name of the source.
        apart: real images in none of them.
        controls: images of the student's memory in none of them.
        seconds: that inversion took, by source.
    """

    sources: dict[str, Images]
    apart: Images
    controls: Images
    seconds: dict[str, float]


def draw_pools(subject: Subject, seed: int, keep: Path) -> Pools:
    """Return the images of every source, shape (n, H, W, C) uint8 each."""
    choice = np.random.default_rng(seed)
    order = choice.permutation(len(subject.pool))
    apart, few, real = np.split(order, [REFERENCE, REFERENCE + FEW])
    shape = (MADE, *subject.pool.shape[1:])
    few_real = subject.pool[few]
    sources = {
        "real": subject.pool[real[:MADE]],
        "few_real": few_real,
        "noise": choice.integers(0, 256, shape, dtype=np.uint8),
    }
    seconds = {}
    for name, network, own in (
        ("inverted", subject.student, subject.kind.name),
        # One draw serves all students of a teacher.
        ("inverted_from_teacher", subject.teacher, f"teacher {subject.teacher.digest[:8]}"),
    ):
        file = keep / f"{own.replace(' ', '-').replace(',', '')}-{seed}.npz"
        if not file.exists():
            # A few real images stand in where there is no BatchNorm; elsewhere nobody reads them.
            made = invert(
                network,
                count=MADE,
                channels=subject.pool.shape[3],
                real=few_real,
                seed=seed + (1000 if name == "inverted" else 2000),
            )
            np.savez(file, images=made.images, seconds=made.seconds, hit=made.hit)
        with np.load(file) as found:
            sources[name], seconds[name] = found["images"], float(found["seconds"])
    file = keep / f"{subject.kind.name.replace(' ', '-').replace(',', '')}-control-{seed}.npz"
    if not file.exists():
        made = invert(
            subject.student,
            count=CONTROLS,
            channels=subject.pool.shape[3],
            real=few_real,
            seed=seed + 3000,
        )
        np.savez(file, images=made.images)
    with np.load(file) as found:
        controls = found["images"]
    return Pools(sources, subject.pool[apart], controls, seconds)


@dataclass(frozen=True)
class Chosen:
    """What one source's draw calibrates with, whatever the runtime."""

    images: Images
    rest: Images  # of the same source, to compare estimators on
    facts: dict[str, Any]


def choose_images(subject: Subject, graph: Graph, pool: Images, apart: Images, seed: int) -> Chosen:
    """Return the calibration images of a source, and their quality."""
    chosen, rest, reason = _choose(subject, graph, pool, seed)
    facts = {"images": len(chosen), "reason": reason, **_scores(subject, graph, chosen, apart)}
    return Chosen(chosen, rest, facts)


def judge_case(
    subject: Subject, graph: Graph, runtime: str, chosen: Chosen, controls: Images | None = None
) -> tuple[dict[str, Any], Logits]:
    """Quantize once; return the facts, and the int8 logits on the test split.

    With control images the facts have what the product's gate looks at, `control_db`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        artifact, estimator = _quantize(subject, graph, runtime, chosen, Path(temporary))
        logits = _answer(runtime, artifact, subject.images)
        answered = None if controls is None else _answer(runtime, artifact, controls)
    accuracy = 100 * float((logits.argmax(axis=1) == subject.labels).mean())
    facts = {**chosen.facts, "estimator": estimator, "accuracy": accuracy}
    if controls is not None and answered is not None:
        exact = network_logits(subject.student, controls)
        facts["control_db"] = judge_control(exact, answered).signal_db
    return facts, logits


def _choose(subject: Subject, graph: Graph, pool: Images, seed: int) -> tuple[Images, Images, str]:
    student = subject.student
    found = choose_covering(
        images=lambda rows: pool[rows],
        hashes=content_hashes(pool),
        pseudo_labels=network_logits(student, pool).argmax(axis=1),
        ids=[f"{row:04d}" for row in range(len(pool))],
        classes=student.classes,
        count=CHOSEN,
        seed=seed,
        reader=make_activation_reader(),
        model=graph.path,
        tensors=layer_inputs(graph.path, leave_out=(NORMALIZED,)),
    )
    rest = np.setdiff1d(np.arange(len(pool)), found.rows)
    return pool[found.rows], pool[rest], found.reason


def _quantize(
    subject: Subject, graph: Graph, runtime: str, chosen: Chosen, folder: Path
) -> tuple[Artifact, str]:
    """Return the artifact, and its range estimator."""
    schemes = [choose_scheme(runtime, HOST, range_estimator=method) for method in METHODS]
    ids = tuple(f"{row:04d}" for row in range(len(chosen.images)))

    def build(scheme: Scheme) -> Artifact:
        out = folder / scheme.range_estimator
        out.mkdir()
        estimate = make_estimator(make_activation_reader(), chosen.images, scheme)
        calibration = Calibration(chosen.images, ids, "0" * 64, scheme, estimate)
        return builder(runtime).build(graph, "int8", HOST, calibration, out)

    judges = chosen.rest[:REFERENCE]
    if len(judges) < LEAST_SELECTION:
        return build(schemes[0]), METHODS[0]
    found = select_by_parity(
        schemes,
        build,
        lambda artifact: _answer(runtime, artifact, judges),
        network_logits(subject.student, judges),
    )
    return found.built, found.chosen.range_estimator


def _answer(runtime: str, artifact: Artifact, images: Images) -> Logits:
    with open_runner(runtime, artifact.file, threads=1, precision="int8") as runner:
        return run_in_batches(runner.run, images, 1)


def _scores(
    subject: Subject, graph: Graph, chosen: Images, apart: Images
) -> dict[str, float | None]:
    """Return the product's score, and the one by real images alone that it is held against."""
    tensors = layer_inputs(graph.path, leave_out=(NORMALIZED,))
    reader = make_activation_reader()
    labels = network_logits(subject.student, chosen).argmax(axis=1)
    names = subject.student.classes
    moments, bn_distances = read_moments(subject.student, chosen)

    def judge(moments: Sequence[LayerMoments]) -> float | None:
        return judge_quality(
            {name: int((labels == place).sum()) for place, name in enumerate(names)},
            activations=activations,
            real=real,
            moments=moments,
            bn_distances=bn_distances,
        ).score

    activations = summarize(reader, graph.path, tensors, chosen)
    real = summarize(reader, graph.path, tensors, apart)
    return {"score": judge(moments), "score_by_real_images": judge(())}


def run_subject(subject: Subject, keep: Path) -> Iterator[dict[str, Any]]:
    """Yield every case of one network; finished ones come from `keep`."""
    name = subject.kind.name.replace(" ", "-").replace(",", "")
    folder = keep / "cases" / name
    folder.mkdir(parents=True, exist_ok=True)
    graph = export_student(subject.student, folder / "student.onnx", batch=1, resize=RESIZE_RULE)
    for seed in STEEL_SEEDS if subject.kind is STEEL else SEEDS:
        pools: Pools | None = None
        for source in SOURCES:
            chosen: Chosen | None = None
            for runtime in RUNTIMES:
                file = folder / f"{runtime}-{source}-{seed}.json"
                if not file.exists():
                    pools = pools or draw_pools(subject, seed, keep)
                    chosen = chosen or choose_images(
                        subject, graph, pools.sources[source], pools.apart, seed
                    )
                    facts, logits = judge_case(subject, graph, runtime, chosen, pools.controls)
                    right = logits.argmax(axis=1) == subject.labels
                    case = {"student": subject.kind.name, "runtime": runtime, "source": source}
                    case |= {"seed": seed, **facts, "right": np.packbits(right).tolist()}
                    case |= {"inversion_s": pools.seconds.get(source)}
                    write_json(file, case)
                    print(name, runtime, source, seed, {**facts, "reason": ""}, flush=True)
                yield read_json(file)


def make_row(subject: Subject, runtime: str, cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one row of the result: one network in one runtime."""
    count = len(subject.labels)
    fp32 = network_logits(subject.student, subject.images).argmax(axis=1) == subject.labels
    row: dict[str, Any] = {
        "student": subject.kind.name,
        "runtime": runtime,
        "has_bn": subject.has_bn,
        "test_images": count,
        "fp32": 100 * float(fp32.mean()),
        "fits_threshold": subject.kind.fits_threshold,
    }
    right = {
        source: np.stack(
            [
                np.unpackbits(np.array(case["right"], np.uint8), count=count)
                for case in sorted(cases, key=lambda case: int(case["seed"]))
                if case["runtime"] == runtime and case["source"] == source
            ]
        ).astype(float)
        for source in SOURCES
    }
    for source in SOURCES:
        by_seed = 100 * right[source].mean(axis=1)
        row[source] = {
            "mean": by_seed.mean(),
            "std": by_seed.std(ddof=1),
            "seeds": by_seed.tolist(),
            "minus_real": interval(right[source] - right["real"]),
            "minus_fp32": interval(right[source] - fp32),
            **{
                f"{key}s": [
                    case[key]
                    for case in cases
                    if case["runtime"] == runtime and case["source"] == source
                ]
                for key in ("control_db", "score")
            },
        }
    row["hard"] = -row["noise"]["minus_real"]["mean"] >= HARD
    return row


def interval(differences: NDArray[np.float64]) -> dict[str, float]:
    """Return mean and 95 % interval, in points, of paired differences, shape (seeds, images)."""
    by_image = 100 * differences.mean(axis=0)
    mean = float(by_image.mean())
    half = 1.96 * float(by_image.std(ddof=1)) / len(by_image) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def judge_gate(rows: Sequence[dict[str, Any]], cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fit the quality gate's threshold on some networks, judge it on the others."""
    kinds = {row["student"]: row["fits_threshold"] for row in rows}
    real = {
        (case["student"], case["runtime"], case["seed"]): case["accuracy"]
        for case in cases
        if case["source"] == "real"
    }
    found: dict[str, Any] = {}
    for key in ("control_db", "score", "score_by_real_images"):
        table = [
            (
                kinds[case["student"]],
                case[key],
                real[case["student"], case["runtime"], case["seed"]] - case["accuracy"],
                [case["student"], case["runtime"], case["source"], case["seed"]],
            )
            for case in cases
            if case["source"] != "real" and case[key] is not None
        ]
        fitted = [(score, loss) for fits, score, loss, _ in table if fits]
        spoiled = [score for score, loss in fitted if loss > SPOILED]
        fine = [score for score, loss in fitted if loss < FINE]
        if not spoiled or not fine:
            found[key] = {"note": "the networks to fit on show no loss, or nothing else"}
            continue
        threshold = _threshold(spoiled, fine)
        judged = [row for row in table if not row[0]]
        found[key] = {
            "threshold": threshold,
            "fitted": {"spoiled": len(spoiled), "fine": len(fine)}
            | {"missed": sum(score >= threshold for score in spoiled)}
            | {"false_alarms": sum(score < threshold for score in fine)},
            "judged": {
                "spoiled": sum(loss > SPOILED for _, _, loss, _ in judged),
                "fine": sum(loss < FINE for _, _, loss, _ in judged),
                "missed": [
                    {"case": case, "score": score, "loss": loss}
                    for _, score, loss, case in judged
                    if loss > SPOILED and score >= threshold
                ],
                "false_alarms": [
                    {"case": case, "score": score, "loss": loss}
                    for _, score, loss, case in judged
                    if loss < FINE and score < threshold
                ],
            },
        }
    return found


def _threshold(spoiled: Sequence[float], fine: Sequence[float]) -> float:
    """Return the score with the fewest errors on both sides, in the middle of the widest gap."""
    edges = sorted({0.0, 1.0, *spoiled, *fine})
    gaps = {(low + high) / 2: high - low for low, high in itertools.pairwise(edges)}

    def errors(limit: float) -> int:
        return sum(score >= limit for score in spoiled) + sum(score < limit for score in fine)

    return min(gaps, key=lambda limit: (errors(limit), -gaps[limit]))


def judge(rows: Sequence[dict[str, Any]], quality: dict[str, Any]) -> list[Gate]:
    """Return the limits, each on its worst row."""
    gates = []
    for source in ("inverted", "inverted_from_teacher"):
        losses = {
            f"{row['student']}, {row['runtime']}": row[source]["minus_real"]
            for row in rows
            if row["has_bn"]
        }
        for key, limit in (("mean", 0.2), ("low", 0.5)):
            worst = min(losses, key=lambda name: losses[name][key])
            what = "loss against real images" if key == "mean" else "its 95 % bound"
            gates.append(
                at_most(f"{source}: {what}", -losses[worst][key], limit, unit="points", worst=worst)
            )
        steel = next(
            row for row in rows if row["student"] == STEEL.name and row["runtime"] == "openvino"
        )
        loss = -steel[source]["minus_fp32"]["mean"]
        gates.append(at_most(f"{source}: steel in openvino against fp32", loss, 0.5, unit="points"))
    gates.append(at_least("hard rows", sum(row["hard"] for row in rows), 4))
    for fault in ("missed", "false_alarms"):
        judged = quality["control_db"].get("judged")
        count = None if judged is None else len(judged[fault])
        gates.append(at_most(f"quality gate: {fault}", count, 0))
    return gates


def answer(rows: Sequence[dict[str, Any]], gates: Sequence[Gate]) -> str:
    """Return the sentence of the README table."""
    means = [row["inverted"]["minus_real"]["mean"] for row in rows if row["has_bn"]]
    noise = [row["noise"]["minus_real"]["mean"] for row in rows]
    return (
        f"networks with BatchNorm: {min(means):+.2f} to {max(means):+.2f} points from the "
        f"student's own memory, {min(noise):+.1f} to {max(noise):+.1f} from noise; "
        f"{sum(gate.passed is True for gate in gates)} of {len(gates)} limits hold"
    )


def main() -> None:
    """Run what is missing, and write the result."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("--keep", type=Path, required=True, help="folder for networks and cases")
    parser.add_argument("--steps", type=int, default=600, help="of each student's training")
    parser.add_argument("--students", nargs="+", help="beginnings of names; default all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    wanted: list[Kind] = [
        kind
        for kind in (STEEL, *KINDS)
        if not arguments.students
        or any(kind.name.startswith(start) for start in arguments.students)
    ]
    rows, every = [], []
    for kind in wanted:
        subject = read_subject(kind, arguments.shared, arguments.keep, steps=arguments.steps)
        cases = list(run_subject(subject, arguments.keep))
        every += cases
        rows += [make_row(subject, runtime, cases) for runtime in RUNTIMES]
        for row in rows[-len(RUNTIMES) :]:
            print(json.dumps(row), flush=True)
    if len(wanted) < len(KINDS) + 1:
        return  # a part of the rows is no result
    quality = judge_gate(rows, every)
    gates = judge(rows, quality)
    write_json(
        RESULT,
        {
            "schema_version": 1,
            "question": str(__doc__).splitlines()[0],
            "answer": answer(rows, gates),
            "passed": all(gate.passed for gate in gates),
            "gates": [gate.to_dict() for gate in gates],
            "rows": rows,
            "hard_rows": sum(row["hard"] for row in rows),
            "quality_gate": quality,
            "settings": {"made": MADE, "chosen": CHOSEN, "few_real": FEW, "seeds": list(SEEDS)}
            | {"steel_seeds": list(STEEL_SEEDS)},
            "conditions": read_conditions(
                threads=1, versions={name: version(name) for name in PACKAGES}
            ),
            "wall_s": round(time.perf_counter() - began, 1),
        },
    )


if __name__ == "__main__":
    main()
