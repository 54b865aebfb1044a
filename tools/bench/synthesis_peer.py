"""How much faster than Sony MCT are images made from a network, and are they as good for int8?

Two networks trained here (CIFAR-10 at 32 px, patches of circuit boards at 64 px), three seeds or
more. Ours by its defaults; MCT's data generation by its defaults, in its own environment, at the
1,000 iterations of its published results (a call that names no number does 500; `--iterations 500`
compares with that). Both make as many images, on one thread, one after the other (who is first
alternates); MCT's process starts outside the clock. Each set as a whole gives the ranges (min-max)
of one and the same int8 quantizer for ONNX Runtime; nothing is chosen by what comes out. Real
images and noise stand beside them. About 40 minutes on one core, most of them MCT's.

    python tools/bench/synthesis_peer.py SHARED --keep FOLDER --peer-python PEER/bin/python

SHARED holds `data/`. FOLDER keeps trained networks and finished draws: a killed run goes on.
PEER is a virtual environment with model-compression-toolkit, torch and torchvision.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hydistill_edge.calibration.ranges import make_estimator
from hydistill_edge.calibration.scheme import choose_scheme
from hydistill_edge.images.augment import Augment, AugmentSettings
from hydistill_edge.images.resize import RESIZE_RULE
from hydistill_edge.images.sources import SourceSpec, load_source
from hydistill_edge.models.counting import count as count_size
from hydistill_edge.models.student import Student
from hydistill_edge.models.weights import digest_weights
from hydistill_edge.run_directory import read_json, write_json
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.synthesis.inversion import InversionSettings, invert
from hydistill_edge.targets.adapters import builder, open_runner
from hydistill_edge.targets.base import Calibration, Graph, Images
from hydistill_edge.targets.gates import Gate, at_least
from hydistill_edge.targets.graph import export_student
from hydistill_edge.targets.latency import read_conditions
from hydistill_edge.targets.onnxruntime.activations import make_activation_reader
from hydistill_edge.targets.packages import version
from hydistill_edge.targets.parity import run_in_batches
from hydistill_edge.targets.profiles import load_profile
from hydistill_edge.training.precision import autocast, has_native_bf16

RESULT = Path(__file__).parent / "results" / "synthesis_peer.json"
PEER = Path(__file__).with_name("synthesis_peer_mct.py")
THREADS = 1
IMAGES, ITERATIONS, SEEDS = 32, 1000, 3
SOURCES = ("ours", "peer", "real", "noise")
SPEEDUP, GOAL, LEAST_GAIN = 10.0, 20.0, -0.2
HELD_OUT = 5  # every fifth row is a real calibration image that the network has not seen
RESAMPLES = 4000
PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Case:
    """A network to train, and what on.

    Attributes:
        data: folder of the data set.
        side: of the images, in pixels; grey ones become RGB, since MCT makes nothing else.
        architecture: of the zoo.
        width: multiplier of its channels.
        epochs: of the training.
        batch: of the training.
        learning_rate: highest one.
        augment: what training images go through.
    """

    data: str
    side: int
    architecture: str
    width: float
    epochs: int
    batch: int
    learning_rate: float
    augment: AugmentSettings


CASES = {
    "32px": Case(
        "cifar10", 32, "resnet9", 0.25, 5, 128, 0.1, AugmentSettings(crop_pad=4, flip=0.5)
    ),
    "64px": Case(
        "deeppcb_patches", 64, "resnet20", 0.5, 6, 64, 0.05, AugmentSettings(crop_pad=6, flip=0.5)
    ),
}


@dataclass(frozen=True)
class Subject:
    """A trained network and its images, all of shape (n, H, W, 3) uint8."""

    name: str
    case: Case
    student: Student
    real: Images
    test: Images
    labels: NDArray[np.int64]


def read_subject(name: str, shared: Path, keep: Path) -> Subject:
    """Return a network and its images; train it where `keep` does not hold it yet."""
    case = CASES[name]
    images, labels, classes = _split(case, shared, "train")
    held_out = np.arange(len(images)) % HELD_OUT == 0
    folder = keep / f"{case.data}-{case.architecture}"
    if not folder.exists():
        _train(case, images[~held_out], labels[~held_out], classes).save(folder)
    test, truth, _ = _split(case, shared, "test")
    return Subject(name, case, Student.load(folder).eval(), images[held_out], test, truth)


def _split(
    case: Case, shared: Path, split: str
) -> tuple[Images, NDArray[np.int64], tuple[str, ...]]:
    spec = SourceSpec("npz", shared / "data" / case.data / f"{split}.npz", use_labels=True)
    size = (case.side, case.side)
    loaded = load_source(spec, size=size, channels=3, adapt=True)
    assert loaded.labels is not None  # both splits hold them
    assert loaded.class_names is not None
    return loaded.images, loaded.labels, loaded.class_names


def _train(
    case: Case, images: Images, labels: NDArray[np.int64], classes: Sequence[str]
) -> Student:
    student = Student.create(
        case.architecture,
        classes=classes,
        channels=3,
        size=(case.side, case.side),
        width=case.width,
        seed=0,
    ).train()
    pixels, truth = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
    generator, augment = torch.Generator().manual_seed(0), Augment(case.augment)
    steps = len(images) // case.batch * case.epochs
    optimizer = torch.optim.SGD(
        student.parameters(), case.learning_rate, 0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, case.learning_rate, steps)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < case.batch:
            order = torch.randperm(len(images), generator=generator)
        rows, order = order[: case.batch], order[case.batch :]
        with autocast(torch.device("cpu")):
            logits: Tensor = student(augment(pixels[rows], generator=generator))
        loss = F.cross_entropy(logits.float(), truth[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"{case.architecture} {step}/{steps} loss {loss.item():.3f}", flush=True)
    return student.eval()


def make_ours(subject: Subject, count: int, seed: int) -> tuple[Images, dict[str, Any]]:
    """Return images by our defaults, and what they cost."""
    began, began_cpu = time.perf_counter(), time.process_time()
    made = invert(subject.student, count=count, seed=seed)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
    return made.images, {
        **_cost(seconds, cpu_seconds, sum(made.iterations)),
        "hit": made.hit,
        "bn_distance": made.bn_distance,
    }


def make_peers(
    subject: Subject, count: int, seed: int, *, iterations: int, python: Path
) -> tuple[Images, dict[str, Any]]:
    """Return images by MCT, and what they cost.

    Raises:
        RuntimeError: the network that MCT saw is not ours.
    """
    case, student = subject.case, subject.student
    probe = subject.test[:16]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        request = {
            "architecture": case.architecture,
            "width": case.width,
            "classes": len(student.classes),
            "size": student.size,
            "count": count,
            "iterations": iterations,
            "seed": seed,
            "threads": THREADS,
        }
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        weights = {name: part.numpy() for name, part in student.network.state_dict().items()}
        np.savez(folder / "weights.npz", **weights)
        np.save(folder / "probe.npy", probe)
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "TQDM_DISABLE": "1"}
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
        subprocess.run([str(python), str(PEER), temporary], check=True, env=environment)
        with np.load(folder / "images.npz") as file:
            images, logits = file["images"], file["probe_logits"]
        answer = read_json(folder / "answer.json")
    expected = network_logits(student, probe)
    error = float(np.abs(logits - expected).max() / np.abs(expected).max())
    if not error < 1e-4:
        raise RuntimeError(
            f"MCT's copy of the {subject.name} network differs by {error:.2g} of the largest "
            "logit; expected less than 1e-4: its environment builds another network"
        )
    facts = _cost(answer["seconds"], answer["cpu_seconds"], iterations)
    return images, {**facts, "settings": answer["settings"], "versions": answer["versions"]}


def _cost(seconds: float, cpu_seconds: float, iterations: int) -> dict[str, float]:
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "seconds_per_iteration": round(seconds / iterations, 5),
    }


def quantized_right(subject: Subject, graph: Graph, images: Images) -> NDArray[np.bool_]:
    """Return, per test image, whether int8 with ranges from `images` is right."""
    profile = load_profile("host")
    scheme = choose_scheme("onnxruntime", profile, range_estimator="minmax")
    ids = tuple(f"{row:04d}" for row in range(len(images)))
    estimate = make_estimator(make_activation_reader(), images, scheme)
    calibration = Calibration(images, ids, "0" * 64, scheme, estimate)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        artifact = builder("onnxruntime").build(graph, "int8", profile, calibration, out)
        with open_runner("onnxruntime", artifact.file, threads=1, precision="int8") as runner:
            logits = run_in_batches(runner.run, subject.test, 1)
    return np.asarray(logits.argmax(axis=1) == subject.labels)


def draw(
    subject: Subject, graph: Graph, seed: int, *, count: int, iterations: int, python: Path
) -> dict[str, Any]:
    """Return all about one seed: costs, and which test images each int8 network gets right."""
    choice = np.random.default_rng(seed)
    sets = {
        "real": subject.real[choice.permutation(len(subject.real))[:count]],
        "noise": choice.integers(0, 256, (count, *subject.test.shape[1:]), dtype=np.uint8),
    }
    facts: dict[str, Any] = {}
    for who in ("ours", "peer") if seed % 2 == 0 else ("peer", "ours"):
        sets[who], facts[who] = (
            make_ours(subject, count, seed)
            if who == "ours"
            else make_peers(subject, count, seed, iterations=iterations, python=python)
        )
        assert sets[who].shape == sets["noise"].shape  # as many images, as large
    for source in SOURCES:
        right = quantized_right(subject, graph, sets[source])
        facts.setdefault(source, {})["accuracy"] = 100 * float(right.mean())
        facts[source]["right"] = np.packbits(right).tobytes().hex()
    return facts


def make_case(subject: Subject, draws: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Return what the result says of one network."""
    size = count_size(subject.student.network, channels=3, size=subject.student.size)
    float_right = network_logits(subject.student, subject.test).argmax(axis=1) == subject.labels
    rows = []
    for seed, found in draws.items():
        ours, peer = found["ours"], found["peer"]
        rows.append(
            {
                "seed": seed,
                "ours_s": ours["seconds"],
                "peer_s": peer["seconds"],
                "speedup": peer["seconds"] / ours["seconds"],
                "cpu_speedup": peer["cpu_seconds"] / ours["cpu_seconds"],
                "ours_s_per_iteration": ours["seconds_per_iteration"],
                "peer_s_per_iteration": peer["seconds_per_iteration"],
                **{f"{source}_accuracy": found[source]["accuracy"] for source in SOURCES},
                "ours_hit": ours["hit"],
                "ours_bn_distance": ours["bn_distance"],
            }
        )
    right = {
        source: np.stack([_unpacked(found[source]["right"], subject) for found in draws.values()])
        for source in SOURCES
    }
    speedups = [row["speedup"] for row in rows]
    last = [found["peer"] for found in draws.values()][-1]
    return {
        "network": f"{subject.case.architecture}, width {subject.case.width}",
        "data": subject.case.data,
        "params": size.params,
        "macs": size.macs,
        "test_images": len(subject.test),
        "float_accuracy": 100 * float(float_right.mean()),
        "speedup": {"mean": float(np.mean(speedups)), "min": min(speedups)},
        "accuracy_gain_points": interval(right["ours"] - right["peer"]),
        "minus_real_points": {
            source: interval(right[source] - right["real"])
            for source in SOURCES
            if source != "real"
        },
        "seeds": rows,
        "peer_settings": last["settings"],
        "peer_versions": last["versions"],
    }


def _unpacked(right: str, subject: Subject) -> NDArray[np.float64]:
    bits = np.frombuffer(bytes.fromhex(right), np.uint8)
    return np.unpackbits(bits, count=len(subject.test)).astype(np.float64)


def interval(differences: NDArray[np.float64]) -> dict[str, float]:
    """Return mean and 95 % interval, in points, of paired differences, shape (seeds, images).

    Bootstrapped: seeds and images are drawn again, each from its own.
    """
    choice = np.random.default_rng(0)
    seeds, images = differences.shape
    means = []
    for _ in range(RESAMPLES):
        times = np.bincount(choice.integers(0, images, images), minlength=images)
        by_seed = differences @ times / images
        means.append(100 * float(by_seed[choice.integers(0, seeds, seeds)].mean()))
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": 100 * float(differences.mean()), "low": float(low), "high": float(high)}


def judge(cases: Mapping[str, Any]) -> list[Gate]:
    """Return the limits of every case; the speedup is that of its slowest seed."""
    gates = []
    for name, case in cases.items():
        gates.append(at_least(f"speedup at {name}, slowest seed", case["speedup"]["min"], SPEEDUP))
        low = case["accuracy_gain_points"]["low"]
        gates.append(
            at_least(f"accuracy gain at {name}, lower bound", low, LEAST_GAIN, unit="points")
        )
    return gates


def write_result(
    out: Path, cases: Mapping[str, Any], settings: Mapping[str, Any], *, wall_s: float
) -> str:
    """Write what is there so far; return the answer in a sentence."""
    whole = (
        settings["peer_iterations"] == ITERATIONS
        and set(cases) == set(CASES)
        and all(len(case["seeds"]) >= SEEDS for case in cases.values())
    )
    gates = judge(cases) if whole else []
    answer = "; ".join(_sentence(name, case) for name, case in cases.items())
    write_json(
        out,
        {
            "schema_version": 1,
            "question": str(__doc__).splitlines()[0],
            "answer": answer,
            "passed": all(gate.passed for gate in gates) if whole else None,
            "gates": [gate.to_dict() for gate in gates],
            "complete": whole,
            "cases": dict(cases),
            "settings": {**settings, "goal_speedup": GOAL},
            "conditions": read_conditions(
                threads=THREADS,
                versions={name: version(name) for name in PACKAGES},
                extra={"bf16_in_hardware": has_native_bf16(torch.device("cpu"))},
            ),
            "seeds": sorted({row["seed"] for case in cases.values() for row in case["seeds"]}),
            "wall_s": round(wall_s, 1),
        },
    )
    return answer


def _sentence(name: str, case: Mapping[str, Any]) -> str:
    gain = case["accuracy_gain_points"]
    return (
        f"{name}: {case['speedup']['mean']:.1f} times as fast, int8 {gain['mean']:+.2f} points "
        f"({gain['low']:+.2f} to {gain['high']:+.2f})"
    )


def main() -> None:
    """Run what is missing; write the result after every seed."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("--keep", type=Path, required=True, help="for networks and draws")
    parser.add_argument("--peer-python", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="of MCT")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    given.keep.mkdir(parents=True, exist_ok=True)
    settings = {
        "images": given.images,
        "peer_iterations": given.iterations,
        "ours": asdict(InversionSettings()),
        "ranges": "minmax",
        "threads": THREADS,
    }
    cases: dict[str, Any] = {}
    subjects = [read_subject(name, given.shared, given.keep) for name in given.cases]
    wall_s = 0.0
    for subject in subjects:
        digest = digest_weights(subject.student.network)
        asked = {**settings, "network": digest}
        graph_file = given.keep / f"{subject.case.data}-{subject.case.architecture}.onnx"
        graph = export_student(subject.student, graph_file, batch=1, resize=RESIZE_RULE)
        draws: dict[int, dict[str, Any]] = {}
        for seed in range(given.seeds):
            file = given.keep / f"{subject.name}-{given.images}-{given.iterations}-{seed}.json"
            # Through JSON, where a tuple is a list.
            if not file.exists() or read_json(file)["asked"] != json.loads(json.dumps(asked)):
                began = time.perf_counter()
                found = draw(
                    subject,
                    graph,
                    seed,
                    count=given.images,
                    iterations=given.iterations,
                    python=given.peer_python,
                )
                took = round(time.perf_counter() - began, 1)
                write_json(file, {"asked": asked, "draw": found, "wall_s": took})
            kept = read_json(file)
            draws[seed] = kept["draw"]
            wall_s += kept["wall_s"]
            cases[subject.name] = make_case(subject, draws)
            answer = write_result(given.out, cases, settings, wall_s=wall_s)
            print(f"seed {seed}: {answer}", flush=True)


if __name__ == "__main__":
    main()
