"""Measure latency again: of a whole run, or of one bundle, here and now."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast, get_args

import numpy as np

from hydistill_edge.build import open_recipe, read_artifacts, repeat
from hydistill_edge.bundle.pack import unpack
from hydistill_edge.errors import UsageError
from hydistill_edge.stages.latency import measure_runner
from hydistill_edge.stages.work import Report
from hydistill_edge.targets.adapters import open_runner
from hydistill_edge.targets.base import Precision, TargetName
from hydistill_edge.targets.latency import DISTINCT_INPUTS, ModeName
from hydistill_edge.targets.profiles import load_profile


def profile(
    subject: Path,
    *,
    device: str | None = None,
    mode: ModeName = "quick",
    report: Report | None = None,
) -> dict[str, Any]:
    """Measure a run's artifacts, or one bundle; return latency reports by artifact.

    A run keeps the new numbers in its latency.json files, its summary and its report; a bundle is
    only measured.

    Args:
        subject: a run directory or a .hydistill file.
        device: profile to judge by, for a bundle; default the one it was built for.
        mode: "demo", "quick" or "full".
        report: called as `report(stage, done, total, metrics)`.

    Raises:
        UsageError: an unknown mode, or a device given for a run, whose artifacts have their own.
    """
    if mode not in get_args(ModeName):
        raise UsageError(
            f'mode "{mode}" is unknown; expected one of {", ".join(get_args(ModeName))}'
        )
    if subject.is_dir():
        if device is not None:
            raise UsageError("--device is for a bundle; a run's artifacts name their own devices")
        recipe = open_recipe(subject)
        latency = recipe.latency.model_copy(update={"mode": mode})
        changed = recipe.model_copy(update={"latency": latency})
        repeat(changed, subject, "latency", report=report)
        return read_artifacts(subject, "latency.json")
    return {subject.name: _profile_bundle(subject, device, mode)}


def _profile_bundle(path: Path, device: str | None, mode: ModeName) -> dict[str, Any]:
    """Measure a bundle on seeded random pixels: latency does not depend on what they show."""
    with TemporaryDirectory() as folder:
        manifest = unpack(path, Path(folder) / "bundle")
        # The profile travels in the bundle: a user's own has no name that is known here.
        own = Path(folder) / "bundle" / "device.yaml"
        profile = load_profile(device or (own if own.exists() else manifest.device))
        size = (manifest.input.height, manifest.input.width, manifest.input.channels)
        images = np.random.default_rng(0).integers(0, 256, (2 * DISTINCT_INPUTS, *size), np.uint8)
        found = measure_runner(
            partial(
                open_runner,
                manifest.target,
                Path(folder) / "bundle" / manifest.entry,
                threads=manifest.threads,
                precision=cast(Precision, manifest.precision),
            ),
            images,
            target=cast(TargetName, manifest.target),
            profile=profile,
            mode=mode,
            threads=manifest.threads,
        )
    return found.to_dict()
