"""Which packages a target needs to build and to run, and what is missing here.

Looks packages up without importing them: the answer costs nothing and starts no runtime.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydistill_edge.errors import InputError
from hydistill_edge.targets.base import Availability, Calibration, Precision, TargetName

if TYPE_CHECKING:
    from hydistill_edge.targets.profiles import DeviceProfile


@dataclass(frozen=True, slots=True)
class Needs:
    """The import names that a target needs, and the extras that bring them."""

    run: tuple[str, ...]
    build: tuple[str, ...]
    extras: str


NEEDS: Mapping[TargetName, Needs] = {
    "onnxruntime": Needs(("onnxruntime",), ("onnxruntime", "onnx"), "build"),
    "openvino": Needs(("openvino",), ("openvino", "nncf", "onnx"), "build,openvino"),
    "tensorrt": Needs(("tensorrt",), ("onnx", "onnxruntime"), "build"),
}


def availability(target: TargetName) -> Availability:
    """Return whether the packages of `target` are installed, and if not, which and the remedy."""
    needs = NEEDS[target]
    absent_to_run = _absent(needs.run)
    absent = list(dict.fromkeys([*absent_to_run, *_absent(needs.build)]))
    extra = target if absent_to_run else needs.extras
    return Availability(
        target=target,
        can_build=not _absent(needs.build),
        can_run=not absent_to_run,
        why=f'target "{target}": {" and ".join(absent)} not installed' if absent else "",
        remedy=f'pip install "hydistill-edge[{extra}]"' if absent else "",
        versions={
            name: version(name)
            for name in dict.fromkeys([*needs.run, *needs.build])
            if name not in absent
        },
    )


def version(module: str) -> str:
    """Return the installed version of a runtime, whatever its distribution is called."""
    try:
        return importlib.metadata.version(module)
    except importlib.metadata.PackageNotFoundError:  # onnxruntime-gpu brings onnxruntime, too
        names = importlib.metadata.packages_distributions().get(module, [])
        return importlib.metadata.version(names[0]) if names else "unknown"


def check_precision(
    device: DeviceProfile,
    target: TargetName,
    precision: Precision,
    calibration: Calibration | None,
) -> None:
    """Check that the device allows the precision, and that int8 comes with calibration.

    Raises:
        InputError: it does not.
    """
    allowed = device.precisions(target)
    if precision not in allowed:
        raise InputError(
            f'device "{device.name}" does not allow {precision} in target "{target}"; expected '
            f"{' or '.join(allowed) or 'another target'}, or another device profile"
        )
    if precision == "int8" and (calibration is None or not len(calibration.images)):
        raise InputError(
            f'int8 for "{target}" on "{device.name}" came without calibration images; choose some '
            "from the transfer set, or make synthetic ones: ranges are never taken from noise"
        )


def _absent(modules: tuple[str, ...]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]
