"""Stage targets: one artifact per target, device and precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydistill_edge.run_directory import clear, write_json
from hydistill_edge.stages import artifacts
from hydistill_edge.stages.calibration import read_choice
from hydistill_edge.stages.work import Planned, Work
from hydistill_edge.targets.base import Calibration


def run(work: Work) -> None:
    """Write targets/<target>-<device>-<precision>/ for every artifact of the recipe."""
    for done, planned in enumerate(work.planned):
        work.report("targets", done, len(work.planned), {})
        parts = [planned.key, planned.graph, planned.build_facts]
        after: tuple[str, ...] = ("graph",)
        if planned.precision == "int8":
            after = ("graph", "calibration")
        work.run.folder_stage(
            f"targets.{planned.key}",
            work.inputs(parts, after=after),
            f"targets/{planned.key}",
            partial(make, work, planned),
        )
    work.report("targets", len(work.planned), len(work.planned), {})


def make(work: Work, planned: Planned, folder: Path) -> None:
    """Build one artifact into `folder`."""
    from hydistill_edge.targets.adapters import builder
    from hydistill_edge.targets.graph import read_graph

    clear(folder)  # builders start from an empty folder
    calibration = None
    if planned.precision == "int8":
        calibration, facts = read_calibration(work, planned)
        write_json(folder / "calibration.json", facts)
    artifact = builder(planned.target).build(
        read_graph(work.path("graph", planned.graph)),
        planned.precision,
        planned.profile,
        calibration,
        folder,
    )
    write_json(folder / "artifact.json", artifacts.describe(artifact, folder))


def read_calibration(work: Work, planned: Planned) -> tuple[Calibration, dict[str, Any]]:
    """Return the images and the scheme of an int8 artifact, and calibration.json."""
    from hydistill_edge.calibration.ranges import estimate_ranges
    from hydistill_edge.calibration.scheme import choose_scheme
    from hydistill_edge.targets.onnxruntime.activations import make_activation_reader

    images, choice = read_choice(work)
    scheme = choose_scheme(planned.target, planned.profile)

    def estimate(model: Path, tensors: Sequence[str]) -> dict[str, tuple[float, float]]:
        ranges = estimate_ranges(
            make_activation_reader(), model, tensors, images, method=scheme.range_estimator
        )
        return {name: (found.low, found.high) for name, found in ranges.items()}

    calibration = Calibration(images, tuple(choice["ids"]), choice["digest"], scheme, estimate)
    return calibration, {**choice, "scheme": scheme.to_dict()}
