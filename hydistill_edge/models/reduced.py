"""What all students that are made of their teacher share, whatever is taken out of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.anatomy import probe_input
from hydistill_edge.models.student import Student
from hydistill_edge.models.taps import list_taps
from hydistill_edge.models.teacher import Teacher

REMEDY = "choose a network of the zoo as student.architecture"


def check_share(macs_share: float) -> None:
    """Raise UsageError unless a share of the teacher's multiply-accumulates is one."""
    if not 0.0 < macs_share < 1.0:
        raise UsageError(
            f"macs_share {macs_share}: expected a share of the teacher's multiply-accumulates "
            "above 0 and below 1, such as 0.25"
        )


def taken_apart(teacher: Teacher) -> tuple[nn.Module, Tensor]:
    """Return a copy of the teacher's network on the CPU, and an image for it, shape (1, C, H, W).

    Raises:
        MethodError: it came as an ONNX file.
    """
    if teacher.architecture.startswith("onnx"):
        raise MethodError(
            "this teacher came as an ONNX file, whose graph is fixed, so its layers cannot be made "
            f"thinner: {REMEDY}"
        )
    whole = copy.deepcopy(teacher.network).cpu()
    spec = teacher.spec
    return whole, probe_input(whole, channels=spec.channels, size=spec.size)[:1]


def last_layer(network: nn.Module, example: Tensor) -> str:
    """Return the name of the layer that makes the logits: the one that is run last."""
    modules, kinds = dict(network.named_modules()), (nn.Linear, nn.Conv2d)
    return [
        tap.name for tap in list_taps(network, example) if isinstance(modules[tap.name], kinds)
    ][-1]


def adopt(
    network: nn.Module,
    teacher: Teacher,
    *,
    form: str,
    facts: Mapping[str, Any],
    channels: int | None,
) -> Student:
    """Return the student around what was made of a teacher's network.

    Args:
        network: smaller than the teacher's.
        teacher: what it was made of.
        form: in front of the architecture's name; see `naming`.
        facts: by which it is built again, beside the options of the teacher's own.
        channels: of the student's pixels; the teacher's where None.
    """
    return Student.adopt(
        network,
        spec=teacher.spec,
        classes=teacher.classes,
        # A teacher of a network in memory has no name to be built from again.
        architecture=f"{form}{teacher.architecture}" if ":" in teacher.architecture else "",
        options={"network": dict(teacher.options), **facts},
        channels=channels,
        # Its training mends what a folded mean changes at the border of the image.
        fold=True,
    )
