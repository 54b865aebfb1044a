"""The two networks of the conditional GAN: generator and discriminator, for any size from 8 px.

Source: Tang, Chen and Gong 2024, arXiv:2412.13525; Brock et al. 2019 (BigGAN), arXiv:1809.11096;
Hou et al. 2022 (ADC-GAN), arXiv:2107.10060; spectral norm: Miyato et al. 2018, arXiv:1802.05957.

At 32 and 64 px the widths are the published ones. Below, fewer blocks change the size and the base
width falls with the side; above, blocks are added at the end that has the most channels.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.errors import UsageError
from hydistill_edge.models.sizing import CHANNEL_STEP
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.seeding import seeded
from hydistill_edge.synthesis.gan_images import to_pixels
from hydistill_edge.synthesis.spectral_norm import spectral_norm

NOISE = 128
"""Values of the noise vector."""

BASE_WIDTH = 64
"""Channels at multiplier 1, from 32 px on; published."""

MIN_MAP_PX = 4
"""Side from which the generator starts, and below which the discriminator does not pool."""

MIN_SIDE_PX = 8

_INIT_STD = 0.02
_EPS = 1e-8
_GENERATOR_64 = (16, 16, 8, 4, 2)  # input, then output of each up-block
_HIDDEN = 1024  # of the map head


def base_width(size: tuple[int, int]) -> int:
    """Return the channels at multiplier 1 for images of a size (height, width)."""
    scaled = round(BASE_WIDTH * min(1.0, min(size) / 32) / CHANNEL_STEP) * CHANNEL_STEP
    return max(CHANNEL_STEP, scaled)


def halvings(size: tuple[int, int]) -> int:
    """Return how often the shorter side can be halved before it is below `MIN_MAP_PX`.

    Raises:
        UsageError: a side below 8 px.
    """
    if min(size) < MIN_SIDE_PX:
        raise UsageError(
            f"images of {size[0]}x{size[1]} px; the GAN needs at least {MIN_SIDE_PX} px per side"
        )
    return int(math.log2(min(size) / MIN_MAP_PX))


def generator_multipliers(steps: int) -> tuple[int, ...]:
    """Return the width multipliers of the generator: its input, then each of its up-blocks."""
    if steps <= 3:
        return (4,) * (steps + 1)
    published = _GENERATOR_64[: steps + 1]
    return (*published, *(1 for _ in range(steps + 1 - len(published))))


def discriminator_plan(steps: int) -> tuple[tuple[int, bool], ...]:
    """Return multiplier and whether it pools, of each block of the discriminator."""
    if steps <= 3:
        # Published at 32 px: four blocks, of which the first two halve 32 to 8 px.
        pooling = max(1, steps - 1)
        return tuple((4, index < pooling) for index in range(4))
    return tuple((min(16, 2**index), index < steps) for index in range(steps + 1))


class ConditionalNorm(nn.Module):
    """Batch norm whose gain, 1 + g(y), and bias, b(y), are looked up by class.

    Args:
        channels: of the map.
        classes: rows of both tables.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1, affine=False)
        self.gain = nn.Embedding(classes, channels)
        self.bias = nn.Embedding(classes, channels)

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return a map of the same shape (N, channels, h, w), for classes (N,)."""
        gain = 1.0 + self.gain(classes)[:, :, None, None]
        return torch.addcmul(self.bias(classes)[:, :, None, None], self.norm(features), gain)


class UpBlock(nn.Module):
    """A residual block that doubles height and width."""

    def __init__(self, channels_in: int, channels: int, classes: int) -> None:
        super().__init__()
        self.norm1 = ConditionalNorm(channels_in, classes)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm2 = ConditionalNorm(channels, classes)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels, 1)

    def forward(self, features: Tensor, classes: Tensor) -> Tensor:
        """Return a map (N, channels, 2 h, 2 w) of a map (N, channels_in, h, w)."""
        hidden = _doubled(F.relu(self.norm1(features, classes)))
        hidden = F.relu(self.norm2(self.conv1(hidden), classes))
        output: Tensor = self.conv2(hidden) + self.skip(_doubled(features))
        return output


class GanGenerator(nn.Module):
    """Images in [-1, 1] from noise and a class.

    Args:
        classes: number of classes.
        channels: of the images.
        size: height and width of the images in pixels, at least 8 each.
        base: channels at multiplier 1; None for `base_width`.
        seed: of the weights; torch's global generator is left as it was.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        base: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        steps = halvings(size)
        base = base_width(size) if base is None else base
        self.classes = classes
        self.size = size
        self.start = (-(-size[0] // 2**steps), -(-size[1] // 2**steps))
        widths = [base * multiplier for multiplier in generator_multipliers(steps)]
        with seeded(seed):
            self.first = nn.Linear(NOISE, widths[0] * self.start[0] * self.start[1])
            self.blocks = nn.ModuleList(
                UpBlock(before, after, classes) for before, after in pairwise(widths)
            )
            self.norm = nn.BatchNorm2d(widths[-1], eps=1e-5, momentum=0.1)
            self.last = nn.Conv2d(widths[-1], channels, 3, padding=1)
            _prepare(self)

    def forward(self, noise: Tensor, classes: Tensor) -> Tensor:
        """Return images (N, C, H, W) in [-1, 1] for noise (N, 128) and classes (N,) int64."""
        features: Tensor = self.first(noise).view(len(noise), -1, *self.start)
        for block in self.blocks:
            features = block(features, classes)
        images = torch.tanh(self.last(F.relu(self.norm(features))))
        top, left = ((images.shape[2 + side] - self.size[side]) // 2 for side in (0, 1))
        # Sides that are no multiple of a power of two come out a little too long.
        return images[:, :, top : top + self.size[0], left : left + self.size[1]]


class DownBlock(nn.Module):
    """A residual block without norm; the first one of a network has no ReLU in front."""

    def __init__(self, channels_in: int, channels: int, *, pools: bool, first: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        learned = first or pools or channels_in != channels
        self.skip = nn.Conv2d(channels_in, channels, 1) if learned else None
        self.pools = pools
        self.first = first

    def forward(self, features: Tensor) -> Tensor:
        """Return a map (N, channels, h, w), or half as high and wide."""
        hidden = features if self.first else F.relu(features)
        hidden = self._pooled(self.conv2(F.relu(self.conv1(hidden))))
        if self.skip is None:
            return hidden + features
        # At the image, pooling first is cheaper; later blocks convolve first, as published.
        output: Tensor = (
            self.skip(self._pooled(features)) if self.first else self._pooled(self.skip(features))
        )
        return hidden + output

    def _pooled(self, features: Tensor) -> Tensor:
        return F.avg_pool2d(features, 2) if self.pools else features


class Judged(NamedTuple):
    """What the discriminator says about a batch.

    Attributes:
        adv: score of being real, shape (N,).
        adc: scores of "real of class y" (2 y) and "generated of class y" (2 y + 1), shape
            (N, 2 classes).
        mapped: to be like the teacher's penultimate features, shape (N, features).
    """

    adv: Tensor
    adc: Tensor
    mapped: Tensor


class TeacherTrunk(nn.Module):
    """The frozen teacher and one linear layer in place of a trained trunk: an ablation.

    Source: an alternative file of the released code; the paper's discriminator has its own trunk.

    Args:
        teacher: frozen. It is no part of this module: its weights are neither trained nor saved.
        features: length of its penultimate vector.
        width: of the output.
    """

    def __init__(self, teacher: Teacher, features: int, width: int) -> None:
        super().__init__()
        self._teacher = (teacher,)
        self.linear = nn.Linear(features, width)

    def forward(self, images: Tensor) -> Tensor:
        """Return a map (N, width, 1, 1) of images (N, C, H, W) in [-1, 1]."""
        found = self._teacher[0].features(to_pixels(images)).penultimate.flatten(1)
        output: Tensor = self.linear(found)
        return output[:, :, None, None]


class Discriminator(nn.Module):
    """Judges images in [-1, 1] with three heads on one trunk.

    Args:
        classes: number of classes.
        channels: of the images.
        size: height and width of the images in pixels, at least 8 each.
        features: length of the teacher's penultimate vector.
        base: channels at multiplier 1; None for `base_width`.
        teacher: takes the place of the trunk; None for the paper's own trunk.
        seed: of the weights; torch's global generator is left as it was.
    """

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        features: int,
        base: int | None = None,
        teacher: Teacher | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        base = base_width(size) if base is None else base
        with seeded(seed):
            blocks, before = [], channels
            for index, (multiplier, pools) in enumerate(discriminator_plan(halvings(size))):
                after = base * multiplier
                blocks.append(DownBlock(before, after, pools=pools, first=index == 0))
                before = after
            self.trunk: nn.Module = nn.Sequential(*blocks)
            if teacher is not None:
                self.trunk = TeacherTrunk(teacher, features, before)
            self.adv = nn.Linear(before, 1)
            self.adc = nn.Linear(before, 2 * classes)
            hidden = min(_HIDDEN, 4 * before)
            self.map = nn.Sequential(nn.Linear(before, hidden), nn.Linear(hidden, features))
            _prepare(self)

    def forward(self, images: Tensor) -> Judged:
        """Return all three heads' answers about images (N, C, H, W) in [-1, 1]."""
        vector = F.relu(self.trunk(images)).sum(dim=(2, 3))
        return Judged(self.adv(vector)[:, 0], self.adc(vector), self.map(vector))


def _doubled(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="nearest")


def _prepare(network: nn.Module) -> None:
    """Draw weights from N(0, 0.02), then normalise convolutions and linear layers."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=_INIT_STD)
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            spectral_norm(module, eps=_EPS)
