"""What two benchmarks share: torchvision students with random weights, images, and a clock.

Latency does not depend on what a network has learned; only its shape and types count. Two ways to
run one thread differ by a few percent: on a machine with other work, the processor time that the
process has used tells that, and the time on the wall does not.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from hydistill_edge.targets.latency import LatencyRatio

CLOCK_NAME = "time.process_time_ns"
cpu_clock = time.process_time_ns


def torchvision_student(architecture: str, *, size: int, **options: Any) -> Any:
    """Return a torchvision network of 10 classes and size x size pixels, as the export takes it."""
    import torch
    import torchvision

    torch.manual_seed(0)
    network = getattr(torchvision.models, architecture)(num_classes=10, **options).eval()
    classes = tuple(f"class-{index}" for index in range(10))
    return SimpleNamespace(network=network, classes=classes, channels=3, size=(size, size))


def photographs(count: int, size: int, *, seed: int = 0) -> Any:
    """Return images, shape (count, size, size, 3) uint8, that do not reach black and white.

    Like most photographs: a range taken from such data is not that of all pixels.
    """
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 221, (count, 8, 8, 3)).astype(np.float64)
    times = -(-size // 8)
    fine = coarse.repeat(times, axis=1).repeat(times, axis=2)[:, :size, :size]
    return np.clip(fine + rng.normal(0, 6, fine.shape), 8, 238).astype(np.uint8)


def median_bounds(ratios: tuple[float, ...]) -> tuple[float, float]:
    """Return the 95 % interval of the median of round ratios, from order statistics."""
    ordered, n = sorted(ratios), len(ratios)
    margin = round(0.98 * n**0.5)
    return ordered[max(n // 2 - margin, 0)], ordered[min(n // 2 + margin, n - 1)]


def summary(ratio: LatencyRatio) -> dict[str, Any]:
    """Return a ratio without the lists of its rounds."""
    return {
        key: value
        for key, value in ratio.to_dict().items()
        if not key.endswith("s_ms") and key != "ratios"
    }
