"""What a budget of images per class buys: natural images, compensators, and their bytes.

Source: Zhang et al. 2025, "Breaking Class Barriers: Efficient Dataset Distillation via Inter-Class
Feature Compensator" (INFER), arXiv:2408.06927; the arithmetic is that of the released program.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.images.compensated_set import VALUE_BYTES, Storage

LABEL_BYTES = 2
"""Of one logit, stored as float16."""


@dataclass(frozen=True)
class Budget:
    """What is stored, and how many training images come of it.

    Attributes:
        ipc: nominal images per class.
        classes: number of classes, C.
        networks: number of networks, M.
        natural: natural images per class, n.
    """

    ipc: int
    classes: int
    networks: int
    natural: int

    @property
    def natural_images(self) -> int:
        """Natural images in all, n C."""
        return self.natural * self.classes

    @property
    def compensators(self) -> int:
        """Compensators in all, n M: one per network for each set of one image per class."""
        return self.natural * self.networks

    @property
    def stored(self) -> int:
        """Image-sized tensors that are stored; at most `nominal`."""
        return self.natural_images + self.compensators

    @property
    def nominal(self) -> int:
        """Images that the budget stands for, ipc C."""
        return self.ipc * self.classes

    @property
    def per_class(self) -> int:
        """Training images per class: each natural one, alone and with every compensator."""
        return self.natural * (1 + self.networks)

    @property
    def derived(self) -> int:
        """Training images in all."""
        return self.per_class * self.classes

    def bytes(self, *, values: int, storage: Storage, labels: bool) -> dict[str, int]:
        """Return the bytes of natural images, compensators, labels and all of them.

        Args:
            values: height x width x channels of an image.
            storage: of the compensators.
            labels: whether one soft label per training image is stored.
        """
        parts = {
            "natural": self.natural_images * values,
            "compensators": self.compensators * values * VALUE_BYTES[storage],
            "labels": self.derived * self.classes * LABEL_BYTES * labels,
        }
        return {**parts, "total": sum(parts.values())}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        names = ("natural_images", "compensators", "stored", "nominal", "per_class", "derived")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


def plan_budget(ipc: int, *, classes: int, networks: int, natural: int | None = None) -> Budget:
    """Return what a budget buys: n = floor(ipc / (1 + M / C)) natural images per class.

    Args:
        ipc: nominal images per class, at least 1.
        classes: number of classes, C.
        networks: number of networks, M.
        natural: take fewer natural images per class than that.

    Raises:
        MethodError: the budget buys not one natural image per class, or fewer than `natural`.
        UsageError: a count below 1.
    """
    for name, count in (("ipc", ipc), ("classes", classes), ("networks", networks)):
        if count < 1:
            raise UsageError(f"{name} is {count}; expected at least 1")
    allowed = ipc * classes // (classes + networks)  # exact, where a quotient of floats is not
    wanted = allowed if natural is None else natural
    if allowed < 1 or wanted > allowed:
        asked = max(1, wanted)
        raise MethodError(
            f"ipc {ipc} buys {allowed} natural images per class, with compensators of {networks} "
            f"networks for {classes} classes; expected at least {asked}: give ipc "
            f"{least_ipc(asked, classes=classes, networks=networks)}, or fewer networks"
        )
    return Budget(ipc, classes, networks, wanted)


def least_ipc(natural: int, *, classes: int, networks: int) -> int:
    """Return the smallest budget per class that buys so many natural images per class."""
    return -(-natural * (classes + networks) // classes)


def long_tailed(natural: int, *, classes: int, ratio: float) -> NDArray[np.int64]:
    """Return natural images per class that fall exponentially, shape (classes,), each at least 1.

    Args:
        natural: of the first class.
        classes: number of classes.
        ratio: the first class's count over the last one's, at least 1; 1 for equal counts.

    Source: Cui et al. 2019, arXiv:1901.05555, section 5 (long-tailed CIFAR).
    """
    if not ratio >= 1:
        raise UsageError(f"long_tail is {ratio}; expected at least 1")
    place = np.arange(classes) / max(1, classes - 1)
    return np.maximum(1, np.floor(natural * ratio**-place + 1e-9)).astype(np.int64)
