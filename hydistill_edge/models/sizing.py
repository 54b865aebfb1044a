"""How the zoo's networks fit an input size and a width."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

MIN_MAP_PX = 4
"""A network drops strides until its final map has at least this many pixels on the shorter side.
CIFAR networks end at 4 to 8 px: below, the map says little about where something is."""

MAX_MAP_PX = 8
"""A network that can take a stride into its stem does so while the final map is larger."""

CHANNEL_STEP = 8
"""Scaled channel counts are multiples of this, which int8 kernels pack without padding."""


def scaled(channels: int, width: float) -> int:
    """Return a layer's channels under a width multiplier.

    Args:
        channels: of the published network; returned untouched at width 1.
        width: multiplier, above zero.
    """
    if width == 1.0:
        return channels
    return max(CHANNEL_STEP, round(channels * width / CHANNEL_STEP) * CHANNEL_STEP)


def plan_strides(
    size: tuple[int, int],
    published: Sequence[int],
    *,
    optional: int = 0,
    drop: Literal["first", "last"] = "first",
) -> list[int]:
    """Return the strides of a network for an input size.

    The rule: strides of 2 become 1, one after another, until the final map has at least
    `MIN_MAP_PX` pixels on the shorter side. Then the optional leading steps become 2, one after
    another, while the final map is larger than `MAX_MAP_PX`.

    Args:
        size: height and width of the input in pixels.
        published: strides along the network, optional steps included (as 1).
        optional: how many of the leading steps may become 2.
        drop: which strides go first. The first ones keep the published depth of each resolution
            at the end; the last ones keep the cost down where the early layers are wide.
    """
    strides = list(published)
    shorter = min(size)

    def final_px() -> int:
        return math.ceil(shorter / math.prod(strides))

    order = range(len(strides)) if drop == "first" else range(len(strides) - 1, -1, -1)
    for index in order:
        if final_px() >= MIN_MAP_PX:
            break
        strides[index] = 1
    for index in range(optional):
        if final_px() > MAX_MAP_PX:
            strides[index] = 2
    return strides


class ConvClassifier(nn.Module):
    """A convolutional classifier whose logits are a linear function of the mean of its last map.

    Args:
        stages: named parts, in order; together they make the final map (N, channels, h, w).
        channels: of the final map.
        classes: number of logits.
    """

    def __init__(self, stages: Mapping[str, nn.Module], *, channels: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(OrderedDict(stages))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of normalised images (N, C, H, W)."""
        final_map = self.features(images)
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(final_map, 1).flatten(1))
        return logits


def initialise(network: nn.Module) -> None:
    """Start convolutions from He's normal distribution, and norms from one and zero.

    Source: He et al. 2015, arXiv:1502.01852 (fan out, as published ResNet code does).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
