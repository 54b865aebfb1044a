"""What do lighter projectors, and a head folded into the student, cost in accuracy?

Fashion-MNIST at 16 px, grey: a ResNet-20 teacher trained on 15,000 labelled images, a ResNet-8
student of a quarter of the width and 5,000 other images without labels. The published projector is
then twice as large as the student's backbone. Method hidfd trains every projector on these images
alone, method kd the plain student. `folded` trains on after the published projector, so `kd_longer`
has as many steps as both of its parts. About 20 minutes of one core.

    python tools/bench/projector_costs.py SHARED --keep RUNS
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from arms import (
    Images,
    Runs,
    accuracy,
    arguments,
    compare,
    summarize,
    write_result,
    write_set,
)
from fashion import AUGMENT, SIDE, Task, read_task
from torchvision_students import CLOCK_NAME, cpu_clock, median_bounds, summary

from hydistill_edge.calibration.scheme import choose_scheme
from hydistill_edge.images.resize import RESIZE_RULE
from hydistill_edge.methods import hidfd, kd
from hydistill_edge.methods.deployment import DOCUMENT
from hydistill_edge.methods.hidfd import HiDFDSettings
from hydistill_edge.methods.kd import KDSettings
from hydistill_edge.models.projector import ProjectorForm
from hydistill_edge.models.student import Student
from hydistill_edge.targets.base import Calibration
from hydistill_edge.targets.graph import export_student, save_model
from hydistill_edge.targets.graph_file import set_precision
from hydistill_edge.targets.latency import Contender, compare_latency
from hydistill_edge.targets.onnxruntime.quantize import quantize
from hydistill_edge.targets.onnxruntime.runner import OnnxRuntimeRunner
from hydistill_edge.targets.packages import version
from hydistill_edge.targets.profiles import load_profile

QUESTION = str(__doc__).splitlines()[0]

TEACHER_WIDTH = 1.0
STUDENT, STUDENT_WIDTH = "resnet8", 0.25
STEPS, FOLD_STEPS, BATCH = 1000, 1000, 64
CALIBRATED_ON = 128
ROUNDS, ROUND_SECONDS = 51, 0.05


def projected(form: ProjectorForm | None = None, **changes: Any) -> HiDFDSettings:
    """Return hidfd's published settings, scaled, on collected images alone."""
    return HiDFDSettings(
        arm="collected",
        inflation=1,
        steps=STEPS,
        batch=BATCH,
        projector=form,
        fold_steps=FOLD_STEPS,
        augment=AUGMENT,
        evaluations=10,
        **changes,
    )


def plain(steps: int) -> KDSettings:
    """Return the settings of method kd as they are, scaled."""
    return KDSettings(steps=steps, batch=BATCH, augment=AUGMENT, evaluations=10)


# Frozen before the first run.
PLAIN, PUBLISHED = "kd", "published"
ARMS: dict[str, KDSettings | HiDFDSettings] = {
    PLAIN: plain(STEPS),
    "kd_longer": plain(STEPS + FOLD_STEPS),
    PUBLISHED: projected(),
    "factor_4": projected(ProjectorForm(factor=4)),
    "depthwise": projected(ProjectorForm(kind="depthwise")),
    "depthwise_factor_4": projected(ProjectorForm(factor=4, kind="depthwise")),
    "pointwise": projected(ProjectorForm(kind="pointwise")),
    "folded": projected(head="folded"),
}
CLAIMS = (
    (PUBLISHED, PLAIN),
    *((PUBLISHED, name) for name in ARMS if name not in (PLAIN, "kd_longer", PUBLISHED)),
    ("folded", PLAIN),
    ("folded", "kd_longer"),
)
SIZES = ("params", "macs", "fp32_bytes", "int8_bytes")


def run(name: str, seed: int, task: Task, keep: Path) -> dict[str, Any]:
    """Train one arm and return its numbers; accuracies in percent."""
    started = time.monotonic()
    settings, teacher = ARMS[name], task.teacher
    transfer = write_set(keep / "set", teacher, {"unlabelled": ("real", task.unseen.images)})
    student = Student.create(
        STUDENT,
        classes=teacher.classes,
        channels=1,
        size=(SIDE, SIDE),
        width=STUDENT_WIDTH,
        seed=seed,
    )
    workdir = keep / f"student-{name}-{seed}"
    workdir.mkdir(exist_ok=True)
    if isinstance(settings, KDSettings):
        trained = kd.distill(teacher, student, transfer, settings, workdir=workdir, seed=seed)
    else:
        trained = hidfd.distill(teacher, student, transfer, settings, workdir=workdir, seed=seed)
    seconds = time.monotonic() - started
    size = trained.student.count()
    files = write_graphs(trained.student, task.unseen.images, workdir)
    with OnnxRuntimeRunner(files["int8"]) as runner:
        decided = runner.run(task.test.images).argmax(axis=1)
    return {
        "accuracy": accuracy(trained.student, task.test),
        "int8_accuracy": float(100 * (decided == task.test.labels).mean()),
        "params": size.params,
        "macs": size.macs,
        **{f"{kind}_bytes": file.stat().st_size for kind, file in files.items()},
        "deployment": trained.documents.get(DOCUMENT),
        "seconds": seconds,
    }


def write_graphs(student: Student, images: Images, folder: Path) -> dict[str, Path]:
    """Write what ONNX Runtime runs, in float and in int8."""
    graph = export_student(student, folder / "fp32.onnx", batch=1, resize=RESIZE_RULE)
    chosen = images[:CALIBRATED_ON]
    calibration = Calibration(
        images=chosen,
        ids=tuple(f"unlabelled:{row:05d}" for row in range(len(chosen))),
        digest="0" * 64,
        scheme=choose_scheme("onnxruntime", load_profile("host")),
    )
    model = quantize(graph, calibration)
    set_precision(model, "int8")
    file = folder / "int8.onnx"
    save_model(model, file)
    return {"fp32": graph.path, "int8": file}


def latency(names: Sequence[str], images: Images, keep: Path) -> dict[str, Any]:
    """Return by precision and arm how long one image takes against the plain student, in turns."""
    inputs = [image[None].copy() for image in images[:64]]
    found: dict[str, Any] = {}
    for precision in ("fp32", "int8"):
        with ExitStack() as stack:
            sides = {
                name: Contender(
                    name,
                    stack.enter_context(
                        OnnxRuntimeRunner(keep / f"student-{name}-0" / f"{precision}.onnx")
                    ).run,
                    inputs,
                )
                for name in names
            }
            found[precision] = {}
            for name in names:
                if name == PLAIN:
                    continue
                ratio = compare_latency(
                    sides[PLAIN],
                    sides[name],
                    rounds=ROUNDS,
                    seconds=ROUND_SECONDS,
                    warm_up_s=(0.2, 1.0),
                    clock=cpu_clock,
                )
                bounds = list(median_bounds(ratio.ratios))
                found[precision][name] = {**summary(ratio), "ratio_bounds_95": bounds}
    return found


def int8_table(runs: Runs) -> dict[str, Any]:
    """Return accuracies of the int8 files, and what they lose against the published projector."""
    table = runs.table(list(ARMS), "int8_accuracy")
    others = [name for name in ARMS if name != PUBLISHED]
    return {
        "arms": summarize(table),
        "paired": [compare(table, PUBLISHED, name) for name in others],
    }


def parts(runs: Runs) -> dict[str, Any]:
    """Return the parameters of backbone, projector and classifier of every projected student."""
    told = {name: runs.do(name, 0, dict)["deployment"] for name in ARMS}
    return {
        name: {key: value for key, value in found["before"].items() if key.endswith("_params")}
        for name, found in told.items()
        if found is not None
    }


def answer(
    table: Mapping[str, Mapping[int, float]],
    sizes: Mapping[str, Mapping[str, int]],
    times: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the sentence of the README table."""
    said = []
    for name in ARMS:
        size = f"{sizes[name]['params'] / sizes[PLAIN]['params']:.2f} times the parameters"
        wait = f"{times[name]['ratio']:.2f} times the latency" if name in times else "latency 1"
        paired = compare(table, name, PUBLISHED)
        error = paired.get("standard_error", math.nan)
        unsure = ", not resolved," if paired["verdict"] == "not resolved" else ""
        found = f"{paired['mean']:+.2f} ± {error:.2f} points{unsure}"
        if name == PUBLISHED:
            found = f"{np.mean(list(table[name].values())):.2f} %"
        said.append(f"{name} {found} at {size} and {wait}")
    return (
        "points against the published projector; parameters and int8 latency in ONNX Runtime "
        f"against the plain student of method kd: {'; '.join(said)}"
    )


def main() -> None:
    """Train what is missing, time the graphs and write the result."""
    started = time.monotonic()
    given = arguments(QUESTION)
    torch.set_num_threads(1)
    runs = Runs(given.keep, given.seeds)
    task = read_task(given.shared, given.keep, width=TEACHER_WIDTH)
    runs.do_all(ARMS, lambda name, seed: run(name, seed, task, given.keep))
    table = runs.table(list(ARMS))
    if not all(0 in seeds for seeds in table.values()):
        print("seed 0 is not done: the graphs of it are timed")
        return
    sizes = {name: {key: runs.do(name, 0, dict)[key] for key in SIZES} for name in ARMS}
    times = latency(list(ARMS), task.test.images, given.keep)
    write_result(
        "projector_costs",
        question=QUESTION,
        table=table,
        claims=CLAIMS,
        more={
            "answer": answer(table, sizes, times["int8"]),
            "teacher_accuracy": accuracy(task.teacher, task.test),
            "int8": int8_table(runs),
            "sizes": sizes,
            "parts": parts(runs),
            "fold": [runs.do("folded", seed, dict)["deployment"]["fold"] for seed in runs.seeds],
            "latency": {
                "against": PLAIN,
                "batch": 1,
                "threads": 1,
                "clock": CLOCK_NAME,
                "runtime": f"onnxruntime {version('onnxruntime')}",
                **times,
            },
            "seconds": summarize(runs.table(list(ARMS), "seconds")),
            "task": {
                "data": "fashion_mnist",
                "size": [SIDE, SIDE, 1],
                "teacher": {"architecture": "resnet20", "width": TEACHER_WIDTH},
                "student": {"architecture": STUDENT, "width": STUDENT_WIDTH},
                "unlabelled": len(task.unseen),
                "test_images": len(task.test),
                "student_steps": STEPS,
                "fold_steps": FOLD_STEPS,
                "batch": BATCH,
            },
            "wall_s": round(time.monotonic() - started, 1),
        },
    )


if __name__ == "__main__":
    main()
