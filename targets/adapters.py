"""The targets by name: which builder, which runner, and what is usable here.

Importing this module loads no runtime; a runtime is loaded when its builder works or its runner
opens a file.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydistill_edge.errors import UsageError
from hydistill_edge.targets.base import Availability, Builder, Precision, Runner, TargetName
from hydistill_edge.targets.packages import availability as packages_availability

if TYPE_CHECKING:
    OpenRunner = Callable[..., Runner]


@dataclass(frozen=True, slots=True)
class Adapter:
    """Where the two halves of a target stand: "module:class"."""

    builder: str
    runner: str


_HERE = "hydistill_edge.targets"

TARGETS: Mapping[TargetName, Adapter] = {
    "onnxruntime": Adapter(
        builder=f"{_HERE}.onnxruntime.builder:OnnxRuntimeBuilder",
        runner=f"{_HERE}.onnxruntime.runner:OnnxRuntimeRunner",
    ),
    "openvino": Adapter(
        builder=f"{_HERE}.openvino.builder:OpenVinoBuilder",
        runner=f"{_HERE}.openvino.runner:OpenVinoRunner",
    ),
    "tensorrt": Adapter(
        builder=f"{_HERE}.tensorrt.builder:TensorRTBuilder",
        runner=f"{_HERE}.tensorrt.runner:TensorRTRunner",
    ),
}


def builder(target: str) -> Builder:
    """Return the target's builder.

    Raises:
        UsageError: there is no such target.
    """
    return cast(Builder, _load(TARGETS[_known(target)].builder)())


def open_runner(
    target: str, file: Path, *, threads: int = 1, precision: Precision | None = None
) -> Runner:
    """Load an artifact with its target's runner; use it in a `with`.

    Args:
        target: a name from `TARGETS`.
        file: the first file of the artifact.
        threads: of one inference.
        precision: what the artifact was built as; None takes what the file says.

    Raises:
        UsageError: there is no such target.
        TargetUnavailableError: the runtime is not installed here.
    """
    open_file = cast("OpenRunner", _load(TARGETS[_known(target)].runner))
    return open_file(file, threads=threads, precision=precision)


def availability() -> list[Availability]:
    """Return, for every target, what this machine can build and run, and what to do if not."""
    return [_availability(target) for target in TARGETS]


def _availability(target: TargetName) -> Availability:
    try:
        return builder(target).check()
    except ImportError:  # a builder may need onnx to be imported at all; a device has none
        return packages_availability(target)


def _known(name: str) -> TargetName:
    for target in TARGETS:
        if target == name:
            return target
    close = difflib.get_close_matches(name, TARGETS, n=1, cutoff=0.3)
    hint = f'; did you mean "{close[0]}"?' if close else ""
    raise UsageError(f'unknown target "{name}"; expected one of {", ".join(TARGETS)}{hint}')


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(import_module(module), name)
