"""Stage parity: prove, rung by rung, that each artifact computes what was trained."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hydistill_edge.bundle.golden import encode_png
from hydistill_edge.images.transfer_format import REAL_ORIGINS
from hydistill_edge.stages import artifacts
from hydistill_edge.stages.artifacts import Built
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.stages.work import Planned, Work
from hydistill_edge.targets import parity
from hydistill_edge.targets.base import Images, Logits, Runner
from hydistill_edge.targets.parity import Rung, Step
from hydistill_edge.targets.profiles import saturates_int8

if TYPE_CHECKING:
    from hydistill_edge.targets.parity import Source

EXPORT_IMAGES = 256  # R1 and R2 are exact comparisons: more images would find nothing more
CONSISTENCY_IMAGES = 32

SATURATES = (
    "this machine has no VNNI and the device has: its int8 sums are added in 16 bits here and "
    "saturate, so what fails here may pass there; build on a machine with VNNI, or for x86-avx2"
)


def run(work: Work) -> None:
    """Write parity.json beside every artifact."""
    parts = [work.recipe.parity.model_dump(), work.recipe.gates.model_dump(), work.recipe.seed]
    for done, planned in enumerate(work.planned):
        work.report("parity", done, len(work.planned), {})
        after = ("images", "student", "graph", f"targets.{planned.key}")
        work.run.file_stage(
            f"parity.{planned.key}",
            work.inputs(parts, after=after),
            f"targets/{planned.key}/parity.json",
            partial(_prove, work, planned),
        )
    work.report("parity", len(work.planned), len(work.planned), {})


def _prove(work: Work, planned: Planned) -> str:
    built = artifacts.read(work, planned)
    with built.open() as runner:
        ladder = Ladder(work, built, runner)
        report = parity.run_ladder(list(ladder.steps()), simulated_by=built.simulated_by)
    return json.dumps(report.to_dict(), indent=2)


class Ladder:
    """The rungs that one artifact has to climb."""

    def __init__(self, work: Work, built: Built, runner: Runner) -> None:
        self.work = work
        self.planned = built.planned
        self.runner = runner
        self.batch = built.planned.profile.batch
        self.classes = work.recipe.class_names()
        self.rows = work.partition.parity
        self.real = np.isin(work.transfer.origins[self.rows], REAL_ORIGINS)

    def steps(self) -> Iterator[Step]:
        """Yield the rungs in order."""
        precision = self.planned.precision
        yield Step("R0", "Structure of the file", "none", self.r0)
        yield Step("R1", parity.r1_export.title, "synthetic", self.r1)
        if self.planned.target == "openvino" or precision == "fp32":
            yield Step("R2", parity.r2_runtime.title, "synthetic", self.r2)
        if precision in ("fp16", "bf16"):
            yield Step("R3", parity.r3_shipped_precision.title, "synthetic", self.r3)
        if precision == "int8":
            yield Step("R4", "int8, synthetic images", "synthetic", lambda: self.r4("synthetic"))
            if self.real.any():  # without real images there is no question to leave open
                yield Step("R4", "int8, real images", "real", lambda: self.r4("real"))
        yield Step("R6", "Self-consistency of the runner", "synthetic", self.r6)
        yield Step("R7", "Raw file to decision", "synthetic", self.r7)

    def r0(self) -> Rung:
        """The file takes and gives what was ordered, and the device can read it."""
        from hydistill_edge.targets.graph import read_graph

        graph = read_graph(self.work.path("graph", self.planned.graph))
        probe = self.run(self.images(self.rows[:1]))
        expected = {
            "input shape": [self.batch, *self.work.recipe.image_size()],
            "logits": len(self.classes),
            "classes": list(self.classes),
        }
        found = {
            "input shape": [graph.batch, graph.height, graph.width, graph.channels],
            "logits": probe.shape[1],
            "classes": list(graph.classes),
            "opset": graph.opset,
            "IR version": graph.ir_version,
        }
        profile = self.planned.profile
        ceilings = {"opset": profile.max_opset, "IR version": profile.max_ir}
        return parity.r0_structure(expected, found, ceilings=ceilings)

    def r1(self) -> Rung:
        """The exported graph computes what PyTorch computes."""
        rows = self.rows[:EXPORT_IMAGES]
        return parity.r1_export(
            self.float_logits(rows), self.graph_logits("onnxruntime", rows), self.ids(rows)
        )

    def r2(self) -> Rung:
        """The target's runtime computes, in fp32, what ONNX Runtime computes."""
        rows = self.rows[:EXPORT_IMAGES]
        own = self.planned.precision == "fp32"
        found = self.run(self.images(rows)) if own else self.graph_logits("openvino", rows)
        return parity.r2_runtime(self.graph_logits("onnxruntime", rows), found, self.ids(rows))

    def r3(self) -> Rung:
        """The shipped float precision is close to fp32."""
        found = self.run(self.images(self.rows))
        return parity.r3_shipped_precision(
            self.float_logits(self.rows), found, self.ids(self.rows), classes=self.classes
        )

    def r4(self, source: Source) -> Rung:
        """The int8 artifact decides what the float student decides."""
        gates = self.work.recipe.gates
        limits, agreement = parity.R4_SYNTHETIC_LIMITS, gates.int8_agreement_synthetic
        if source == "real":
            limits, agreement = parity.R4_REAL_LIMITS, gates.int8_agreement_real
        rows = self.rows[self.real == (source == "real")]
        found = self.run(self.images(rows)) if len(rows) else np.empty((0, len(self.classes)))
        return parity.r4_int8(
            self.float_logits(rows),
            found,
            self.ids(rows),
            source=source,
            limits=dataclasses.replace(limits, top1_agreement=agreement),
            classes=self.classes,
            note=SATURATES if saturates_int8(self.planned.profile) else "",
        )

    def r6(self) -> Rung:
        """The runner answers the same question the same way."""
        rows = self.rows[:CONSISTENCY_IMAGES]
        return parity.r6_metamorphic(
            self.runner.run, self.images(rows), self.ids(rows), batch=self.batch
        )

    def r7(self) -> Rung:
        """From the bytes of a PNG file the decision is that from its pixels."""
        from hydistill_edge.images.resize import decode, resize, to_channels

        height, width, channels = self.work.recipe.image_size()

        def decide(data: bytes) -> int:
            image = resize(to_channels(decode(data), channels), (height, width))
            return int(self.run(image[None])[0].argmax())

        rows = self.work.partition.golden
        images = self.images(rows)
        decisions = self.run(images).argmax(axis=1)
        golden = [
            parity.Golden(name, encode_png(image), int(index))
            for name, image, index in zip(self.ids(rows), images, decisions, strict=True)
        ]
        return parity.r7_pixel_path(decide, golden, classes=self.classes)

    def images(self, rows: np.ndarray) -> Images:
        """Return pixels of rows of the transfer set."""
        return self.work.transfer.images(rows)

    def ids(self, rows: np.ndarray) -> list[str]:
        """Return source ids of rows of the transfer set."""
        return [self.work.transfer.ids[int(row)] for row in rows]

    def run(self, images: Images) -> Logits:
        """Run the artifact."""
        return parity.run_in_batches(self.runner.run, images, self.batch)

    def float_logits(self, rows: np.ndarray) -> Logits:
        """Return the float student's logits, by PyTorch."""
        return network_logits(self.work.student, self.images(rows))

    def graph_logits(self, target: str, rows: np.ndarray) -> Logits:
        """Return the exported fp32 graph's logits, by a runtime."""
        from hydistill_edge.targets.adapters import open_runner

        file = self.work.path("graph", self.planned.graph)
        with open_runner(target, file, threads=1, precision="fp32") as runner:
            return parity.run_in_batches(runner.run, self.images(rows), self.batch)
