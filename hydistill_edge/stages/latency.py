"""Stage latency: time every artifact that this machine can run, and say under which conditions."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from hydistill_edge.images.resize import resize
from hydistill_edge.stages import artifacts
from hydistill_edge.stages.work import Planned, Work
from hydistill_edge.targets.base import Images, Runner, TargetName
from hydistill_edge.targets.latency import (
    CPU_COV_LIMIT,
    DISTINCT_INPUTS,
    GPU_COV_LIMIT,
    LatencyReport,
    ModeName,
    measure,
    not_measured,
)
from hydistill_edge.targets.packages import NEEDS, version
from hydistill_edge.targets.profiles import DeviceProfile, check_host

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

FRAME_SCALE = 2
"""The frame scope starts at an image of twice the model's height and width, so that resizing is
part of the number."""


def run(work: Work) -> None:
    """Write latency.json beside every artifact, unless a fuller one of it stands there."""
    modes = get_args(ModeName)
    fuller = modes[modes.index(work.recipe.latency.mode) + 1 :]
    for done, planned in enumerate(work.planned):
        work.report("latency", done, len(work.planned), {})
        stage = f"latency.{planned.key}"
        if any(work.run.is_current(stage, _made_from(work, planned, mode)) for mode in fuller):
            continue  # `hydistill profile --mode full` has measured this very artifact
        work.run.file_stage(
            stage,
            _made_from(work, planned, work.recipe.latency.mode),
            f"targets/{planned.key}/latency.json",
            partial(_measured, work, planned),
        )
    work.report("latency", len(work.planned), len(work.planned), {})


def _made_from(work: Work, planned: Planned, mode: ModeName) -> str:
    """Return the digest of what a measurement of one artifact in one mode is made from."""
    return work.inputs(
        {**work.recipe.latency.model_dump(), "mode": mode},
        planned.judged_facts,
        after=("images", f"targets.{planned.key}"),
    )


def _measured(work: Work, planned: Planned) -> str:
    built = artifacts.read(work, planned)
    section, profile = work.recipe.latency, planned.profile
    if built.simulated_by:
        why = "TensorRT engines are built and measured on the device, not here"
        found = not_measured(why, mode=section.mode, limit=profile.latency)
    else:
        threads = section.threads or profile.threads
        found = measure_runner(
            partial(built.open, threads=threads),
            _inputs(work),
            target=planned.target,
            profile=profile,
            mode=section.mode,
            threads=threads,
        )
    return json.dumps(found.to_dict(), indent=2)


def _inputs(work: Work) -> Images:
    """Return at least 64 distinct images, shape (N, H, W, C).

    Where parity has fewer, seeded random pixels join them: latency does not depend on what images
    show.
    """
    images = work.transfer.images(work.partition.parity[: 4 * DISTINCT_INPUTS])
    shape = (max(0, DISTINCT_INPUTS - len(images)), *images.shape[1:])
    noise = np.random.default_rng(work.recipe.seed).integers(0, 256, shape, np.uint8)
    return np.concatenate([images, noise])


def measure_runner(
    open_runner: Callable[[], AbstractContextManager[Runner]],
    images: Images,
    *,
    target: TargetName,
    profile: DeviceProfile,
    mode: ModeName,
    threads: int,
) -> LatencyReport:
    """Measure one runner in both scopes; see `targets.latency.measure`.

    Args:
        open_runner: opens the artifact.
        images: shape (N, H, W, C) uint8 at the model's size, at least 64 distinct ones.
        target: whose runtime runs it; its version belongs to the conditions.
        profile: whose limit is judged, and with which this machine is compared.
        mode: how long to measure.
        threads: what the runner was told to take.
    """
    size = (images.shape[1], images.shape[2])
    large = (FRAME_SCALE * size[0], FRAME_SCALE * size[1])
    frames = [resize(image, large) for image in images]

    def decide(runner: Runner) -> Callable[[Any], int]:
        return lambda frame: int(runner.run(resize(frame, size)[None])[0].argmax())

    fits_frames = profile.batch == 1
    return measure(
        open_runner,
        images,
        mode=mode,
        batch=profile.batch,
        frame=decide if fits_frames else None,
        frames=frames if fits_frames else None,
        limit=profile.latency,
        mismatches=check_host(profile),
        threads=threads,
        versions={name: version(name) for name in NEEDS[target].run},
        cov_limit=GPU_COV_LIMIT if target == "tensorrt" else CPU_COV_LIMIT,
        extra_conditions={"device_profile": profile.name, "frame_size": list(large)},
    )
