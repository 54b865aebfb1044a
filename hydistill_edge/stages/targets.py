"""Stage targets: one artifact per target, device and precision."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hydistill_edge.run_directory import clear, write_json
from hydistill_edge.stages import artifacts
from hydistill_edge.stages.calibration import read_choice, read_controls
from hydistill_edge.stages.logits import network_logits
from hydistill_edge.stages.work import Planned, Work
from hydistill_edge.targets.base import Artifact, Calibration, Images, Logits, Scheme
from hydistill_edge.targets.parity import run_in_batches

if TYPE_CHECKING:
    from hydistill_edge.targets.base import Graph

SELECTION_IMAGES = 256
"""Images that range estimators are compared on."""

LEAST_SELECTION = 32
"""With fewer, one image more or less would decide."""


def run(work: Work) -> None:
    """Write targets/<target>-<device>-<precision>/ for every artifact of the recipe."""
    _drop_others(work)
    for done, planned in enumerate(work.planned):
        work.report("targets", done, len(work.planned), {})
        parts = [planned.key, planned.graph, planned.build_facts]
        after: tuple[str, ...] = ("graph",)
        if planned.precision == "int8":
            parts.append(work.recipe.calibration.ranges)
            after = ("graph", "calibration")
        work.run.folder_stage(
            f"targets.{planned.key}",
            work.inputs(parts, after=after),
            f"targets/{planned.key}",
            partial(make, work, planned),
        )
    work.report("targets", len(work.planned), len(work.planned), {})


def _drop_others(work: Work) -> None:
    """Remove artifacts of an earlier recipe: no report may show them as this one's."""
    wanted = {planned.key for planned in work.planned}
    for folder in work.path("targets").glob("*"):
        if folder.name not in wanted and not folder.name.startswith("."):
            stages = (f"{stage}.{folder.name}" for stage in ("targets", "parity", "latency"))
            work.run.drop(f"targets/{folder.name}", *stages)


def make(work: Work, planned: Planned, folder: Path) -> None:
    """Build one artifact into `folder`."""
    from hydistill_edge.targets.adapters import builder
    from hydistill_edge.targets.graph import read_graph

    clear(folder)  # builders start from an empty folder
    graph = read_graph(work.path("graph", planned.graph))
    if planned.precision == "int8":
        artifact, facts = _quantize(work, planned, graph, folder)
        write_json(folder / "calibration.json", facts)
    else:
        artifact = builder(planned.target).build(
            graph, planned.precision, planned.profile, None, folder
        )
    write_json(folder / "artifact.json", artifacts.describe(artifact, folder))


def _quantize(
    work: Work, planned: Planned, graph: Graph, folder: Path
) -> tuple[Artifact, dict[str, Any]]:
    """Build with every range estimator that is asked for; keep the one nearest to the student."""
    from hydistill_edge.calibration.control import judge_control
    from hydistill_edge.calibration.ranges import METHODS
    from hydistill_edge.calibration.scheme import choose_scheme
    from hydistill_edge.calibration.select import select_by_parity
    from hydistill_edge.targets.adapters import builder

    images, choice = read_choice(work)
    asked = work.recipe.calibration.ranges
    methods: Sequence[str] = (asked,)
    if asked == "auto":
        judges = _selection_images(work, choice)
        methods = METHODS if len(judges) >= LEAST_SELECTION else METHODS[:1]

    def build(scheme: Scheme) -> Artifact:
        out = folder / scheme.range_estimator
        out.mkdir()
        calibration = calibration_of(images, choice, scheme)
        return builder(planned.target).build(graph, "int8", planned.profile, calibration, out)

    def answer(artifact: Artifact, asked: Images) -> Logits:
        with artifacts.open_file(planned, artifact.file) as runner:
            return run_in_batches(runner.run, asked, planned.profile.batch)

    schemes = [
        choose_scheme(planned.target, planned.profile, range_estimator=method) for method in methods
    ]
    if len(schemes) == 1:
        built, scheme, selection = build(schemes[0]), schemes[0], None
    else:
        found = select_by_parity(
            schemes,
            build,
            lambda artifact: answer(artifact, judges),
            network_logits(work.student, judges),
        )
        built, scheme, selection = found.built, found.chosen, found.to_dict()
    artifact = _take(built, folder)
    facts = {**choice, "scheme": scheme.to_dict(), "selection": selection}
    controls = read_controls(work)
    if len(controls):
        exact = network_logits(work.student, controls)
        facts["control"] = judge_control(exact, answer(artifact, controls)).to_dict()
    return artifact, facts


def _take(built: Artifact, folder: Path) -> Artifact:
    """Move the chosen candidate's files up, and remove all candidates."""
    kept = {file: file.read_bytes() for file in built.files}
    names = {file: file.relative_to(built.file.parent) for file in built.files}
    clear(folder)
    for file, data in kept.items():
        (folder / names[file]).write_bytes(data)
    return dataclasses.replace(built, files=tuple(folder / names[file] for file in built.files))


def _selection_images(work: Work, choice: dict[str, Any]) -> Images:
    """Return images apart from those of calibration, parity and golden, shape (N, H, W, C)."""
    transfer, parts = work.transfer, work.partition
    taken = np.concatenate([parts.parity, parts.golden])
    rows = np.setdiff1d(np.arange(len(transfer)), taken)
    chosen = set(choice["ids"])
    free = [row for row in rows.tolist() if transfer.ids[row] not in chosen]
    origins = transfer.origins
    near = [row for row in free if origins[row] != "procedural"]
    free = near if len(near) >= LEAST_SELECTION else free
    step = max(1, len(free) // SELECTION_IMAGES)
    return transfer.images(np.array(free[::step][:SELECTION_IMAGES], np.int64))


def calibration_of(images: Images, choice: dict[str, Any], scheme: Scheme) -> Calibration:
    """Return what a builder needs to quantize: images, scheme, and our ranges on request."""
    from hydistill_edge.calibration.ranges import make_estimator
    from hydistill_edge.targets.onnxruntime.activations import make_activation_reader

    estimate = make_estimator(make_activation_reader(), images, scheme)
    return Calibration(images, tuple(choice["ids"]), choice["digest"], scheme, estimate)
