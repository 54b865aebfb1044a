"""How good and how fast a student comes out of a teacher from outside, on a plain computer?

Runs the main job on one of the two teachers that were trained elsewhere (a CIFAR-10 ResNet-9, a
steel RegNetY), with their unlabelled images and without any image. The student has at most a
quarter of the teacher's MACs; a whole build may take 45 minutes on two cores. The test split is
looked at once, by the build's last stage. How the students are made and trained was chosen by
agreement with the teacher on unlabelled images of the training split, also where the build itself
sees none.
Threads of training and synthesis are those that torch takes (OMP_NUM_THREADS); latencies are of
one thread.

    python tools/bench/outside_teacher.py cifar10 SHARED
    python tools/bench/outside_teacher.py neu_steel SHARED

SHARED is a folder with `teachers/` and `data/`; see their README files.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hydistill_edge.build import build, open_recipe
from hydistill_edge.images.resize import RESIZE_RULE
from hydistill_edge.models.student import Student
from hydistill_edge.naming import network_name
from hydistill_edge.recipe import Recipe
from hydistill_edge.run_directory import RunDirectory, read_json, write_json
from hydistill_edge.stages.work import Work, quiet
from hydistill_edge.targets.adapters import open_runner
from hydistill_edge.targets.gates import Gate, at_most
from hydistill_edge.targets.graph import export_student
from hydistill_edge.targets.latency import Contender, compare_latency, read_conditions
from hydistill_edge.targets.packages import version

RESULTS = Path(__file__).parent / "results"
LIMIT_S = 45 * 60
PACKAGES = ("torch", "torchvision", "onnx", "onnxruntime", "openvino", "nncf", "numpy")


SLIMMED = {"architecture": "slimmed", "macs_share": 0.25}
FACTORED = {"architecture": "factored", "macs_share": 0.25}


@dataclass(frozen=True)
class Row:
    """How one row is built.

    Attributes:
        student: section of the recipe.
        synthetic: images to make.
        minutes: at most for the student's training.
        real_share: of each batch; None for the images' own share.
        procedural: section of the recipe on images from formulas.
        training: what stands there beside what the case has for both rows.
    """

    student: Mapping[str, Any]
    synthetic: int
    minutes: int
    real_share: float | None = None
    procedural: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A teacher, and what a build may use, with and without real images."""

    teacher: Mapping[str, Any]
    pilot: Mapping[str, Any]
    test: Mapping[str, Any]
    images: Mapping[str, Any]
    training: Mapping[str, Any]
    unlabelled: Row
    none: Row


def cases(shared: Path) -> dict[str, Case]:
    """Return the two cases, with their paths."""
    data, teachers = shared / "data", shared / "teachers"
    return {
        "cifar10": Case(
            teacher={
                "weights": str(teachers / "cifar10_resnet9" / "teacher.safetensors"),
                "architecture": f"{teachers / 'cifar10_resnet9' / 'resnet9.py'}:build",
                "classes": [
                    "airplane",
                    "automobile",
                    "bird",
                    "cat",
                    "deer",
                    "dog",
                    "frog",
                    "horse",
                    "ship",
                    "truck",
                ],
                "input": {
                    "height": 32,
                    "width": 32,
                    "channels": 3,
                    "mean": [0.4914, 0.4822, 0.4465],
                    "std": [0.2470, 0.2435, 0.2616],
                },
            },
            pilot={
                "kind": "npz",
                "path": str(data / "cifar10" / "train.npz"),
                "rows": "::5",
                "limit": 5000,
            },
            test={"kind": "npz", "path": str(data / "cifar10" / "test.npz"), "use_labels": True},
            images={"channels": 3},
            training={"steps": 30_000, "batch": 128, "cutmix_share": 0.5},
            # Images made from the teacher are understood at once: real ones take the whole batch.
            unlabelled=Row(SLIMMED, synthetic=512, minutes=38, real_share=1.0),
            none=Row(
                FACTORED,
                synthetic=2048,
                minutes=17,
                procedural={"count": 25_000, "draws": 4, "crosses": 6},
                # A grey square hides what images from formulas have little of: something to see.
                training={
                    "batch": 64,
                    "procedural_share": 0.5,
                    "augment": {"crop_pad": 4, "flip": 0.5},
                },
            ),
        ),
        "neu_steel": Case(
            teacher={
                "weights": str(teachers / "neu_steel_regnet" / "teacher.safetensors"),
                "architecture": "torchvision:regnet_y_400mf",
                "classes": [
                    "crazing",
                    "inclusion",
                    "patches",
                    "pitted_surface",
                    "rolled-in_scale",
                    "scratches",
                ],
                "input": {
                    "height": 64,
                    "width": 64,
                    "channels": 3,
                    "mean": [0.50125] * 3,
                    "std": [0.20692] * 3,
                },
            },
            pilot={"kind": "npz", "path": str(data / "neu_steel" / "train.npz"), "rows": "::4"},
            test={"kind": "npz", "path": str(data / "neu_steel" / "test.npz"), "use_labels": True},
            images={"channels": 1},
            training={"steps": 6_000, "batch": 64},
            # The teacher's memory of textures is hard to imitate: real images lead.
            unlabelled=Row(
                {"architecture": "resnet20", "width": 0.35},
                synthetic=512,
                minutes=6,
                real_share=0.9,
            ),
            none=Row(
                SLIMMED,
                synthetic=512,
                minutes=28,
                procedural={"count": 21_000, "draws": 6},
                # Six logits an image say little; what they come from says more.
                training={"feature_weight": 1.0},
            ),
        ),
    }


def recipe_of(name: str, case: Case, kind: str) -> Recipe:
    """Return the recipe of one row, "unlabelled" or "none"."""
    row: Row = getattr(case, kind)
    plain = {
        "name": name,
        "teacher": dict(case.teacher),
        "images": {
            **case.images,
            "real": [dict(case.pilot)] if kind == "unlabelled" else [],
            "synthetic": {
                "count": row.synthetic,
                "procedural": dict(row.procedural),
            },
        },
        "student": dict(row.student),
        "training": {
            **case.training,
            **row.training,
            "real_share": row.real_share,
            "max_seconds": 60 * row.minutes,
        },
        "targets": [
            {"target": target, "device": "host", "precisions": ["fp32", "int8"]}
            for target in ("onnxruntime", "openvino")
        ],
        "evaluation": dict(case.test),
    }
    return Recipe.parse(yaml.safe_dump(plain), name=name)


def run_row(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Build once and return the row of the result."""
    summary = build(recipe, out=out, report=_print).summary
    artifacts = [
        {
            "target": artifact["target"],
            "precision": artifact["precision"],
            "accuracy": 100 * artifact["accuracy"],
            "student_agreement": artifact["student_agreement"],
            "p50_ms": artifact["latency"]["p50_ms"],
            "p99_ms": artifact["latency"]["p99_ms"],
            "bytes": artifact["bytes"],
            "passed": artifact["passed"],
        }
        for artifact in summary["artifacts"]
    ]
    return {
        "images": summary["transfer"],
        "student": {
            "arch": network_name(summary["student"]["arch"]),
            **{key: summary["student"][key] for key in ("width", "params", "macs")},
        },
        "macs_ratio": summary["student"]["macs"] / summary["teacher"]["macs"],
        "teacher_accuracy": 100 * summary["teacher"]["accuracy"],
        "student_accuracy": 100 * summary["student"]["accuracy"],
        "holdout_agreement": summary["student"]["holdout_agreement"],
        "artifacts": artifacts,
        "speedup_over_teacher": speedup(out, summary),
        "wall_s": round(sum(summary["wall_s"].values()), 1),
        "stage_s": summary["wall_s"],
    }


def speedup(out: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Time the teacher in fp32 (ONNX Runtime) against the faster int8 student, in turns."""
    work = Work(open_recipe(out), RunDirectory(out), quiet)
    teacher = Student.adopt(
        work.teacher.network,
        spec=work.teacher.spec,
        classes=work.teacher.classes,
        architecture=work.teacher.architecture,
        channels=work.recipe.image_size()[2],
        fold=False,
    )
    graph = export_student(teacher, out / "teacher.onnx", batch=1, resize=RESIZE_RULE)
    int8 = [entry for entry in summary["artifacts"] if entry["precision"] == "int8"]
    best = min(int8, key=lambda entry: float(entry["latency"]["p50_ms"]))
    images = [image[None] for image in work.transfer.images(work.partition.parity[:256])]
    with (
        open_runner("onnxruntime", graph.path, threads=1, precision="fp32") as old,
        open_runner(best["target"], out / best["file"], threads=1, precision="int8") as new,
    ):
        ratio = compare_latency(
            Contender("teacher fp32, onnxruntime", old.run, images),
            Contender(f"student int8, {best['target']}", new.run, images),
        )
    return {"times": 1 / ratio.ratio, "student_runtime": best["target"], **ratio.to_dict()}


def judge(rows: Mapping[str, Mapping[str, Any]]) -> list[Gate]:
    """Return the limits of every row; the first two are goals for a build with images."""
    gates = []
    for name, row in rows.items():
        behind = row["teacher_accuracy"] - row["student_accuracy"]
        int8 = [entry for entry in row["artifacts"] if entry["precision"] == "int8"]
        lost = max(row["student_accuracy"] - entry["accuracy"] for entry in int8)
        gates += [
            at_most(f"{name}: student behind its teacher", behind, 2.0, unit="points"),
            at_most(f"{name}: int8 behind the student", lost, 0.3, unit="points"),
            at_most(f"{name}: MACs of the teacher's", row["macs_ratio"], 0.25, unit="fraction"),
            at_most(f"{name}: whole build", row["wall_s"], LIMIT_S, unit="s"),
        ]
    return gates


def answer(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the sentence of the README table."""
    parts = []
    for name, row in rows.items():
        int8 = [entry["accuracy"] for entry in row["artifacts"] if entry["precision"] == "int8"]
        parts.append(
            f"{name}: teacher {row['teacher_accuracy']:.2f} %, student "
            f"{row['student_accuracy']:.2f} %, int8 {max(int8):.2f} % and "
            f"{row['speedup_over_teacher']['times']:.1f} times as fast as the teacher, "
            f"in {row['wall_s'] / 60:.0f} minutes"
        )
    return "; ".join(parts)


def _print(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
    if done == total or done % max(1, total // 20) == 0:
        shown = " ".join(f"{name}={value:.4g}" for name, value in metrics.items())
        print(f"{stage} {done}/{total} {shown}", flush=True)


def _earlier(file: Path) -> dict[str, Any]:
    """Return the rows that stand in a result, each with the conditions that it was measured in."""
    if not file.exists():
        return {}
    result = read_json(file)
    return {
        name: {**row, "conditions": row.get("conditions", result["conditions"])}
        for name, row in result["rows"].items()
    }


def main() -> None:
    """Run both rows of one case and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=("cifar10", "neu_steel"))
    parser.add_argument("shared", type=Path)
    parser.add_argument("--rows", nargs="+", default=["unlabelled", "none"])
    parser.add_argument("--keep", type=Path, help="folder for the run directories")
    arguments = parser.parse_args()
    case = cases(arguments.shared)[arguments.case]
    out = RESULTS / f"{arguments.case}_cpu.json"
    rows = _earlier(out)
    conditions = read_conditions(threads=1, versions={name: version(name) for name in PACKAGES})
    with tempfile.TemporaryDirectory() as temporary:
        for row in arguments.rows:
            name = f"{arguments.case}-{row}".replace("_", "-")
            recipe = recipe_of(name, case, row)
            rows[row] = run_row(recipe, (arguments.keep or Path(temporary)) / name)
            # Each row may have been run on another machine.
            rows[row]["conditions"] = conditions
            gates = judge(rows)
            write_json(
                out,
                {
                    "schema_version": 1,
                    "question": f"{str(__doc__).splitlines()[0]} ({arguments.case})",
                    "answer": answer(rows),
                    "passed": all(gate.passed for gate in gates),
                    "gates": [gate.to_dict() for gate in gates],
                    "rows": rows,
                    "conditions": conditions,
                },
            )
            print(json.dumps(rows[row], indent=2))


if __name__ == "__main__":
    main()
