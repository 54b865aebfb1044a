"""The pixels in the making: how many, in which colors they start, at which sizes they grow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hydistill_edge.models.folding import PIXEL_CENTRE, PIXEL_SCALE
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher

COARSE_FROM_PX = 64
"""From this side on a start at lower resolution pays. At 32 px the layers see too little of what
they saw in training: a ResNet-9 ends at 1.4 times the BatchNorm distance. At 64 px a RegNetY that
breaks out into noise at full size (distance 171) ends at 0.6, in three quarters of the time."""

CONTRAST_SPREAD = 0.5
"""Standard deviation of the logarithm of the images' contrast at the start."""

QUARTER_FROM_PX = 192
COARSE_SHARE = 0.6


@dataclass(frozen=True)
class Canvas:
    """Shape and color statistics of the images to make.

    Attributes:
        channels: of the pixels.
        height: in pixels.
        width: in pixels.
        mean: shape (1, channels, 1, 1), of pixels in [0, 1].
        std: the same shape.
    """

    channels: int
    height: int
    width: int
    mean: Tensor
    std: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.height, self.width)

    def pixels(self, normalized: Tensor) -> Tensor:
        """Return pixels in [0, 1] of what is optimized, both of shape (N, C, H, W)."""
        return torch.addcmul(self.mean, normalized, self.std)

    def clamp_(self, normalized: Tensor) -> None:
        """Keep the pixels in [0, 1]."""
        torch.clamp_(normalized, (0.0 - self.mean) / self.std, (1.0 - self.mean) / self.std)

    def at(self, size: tuple[int, int]) -> Canvas:
        """Return the canvas at another size."""
        return replace(self, height=size[0], width=size[1])

    def smooth_noise(
        self, count: int, generator: torch.Generator, *, spread: float = 0.0
    ) -> Tensor:
        """Return noise of unit variance whose neighbours resemble each other, (N, C, H, W).

        Args:
            count: images.
            generator: draws.
            spread: share of the variance that lies between images, as brightness; with more than 0
                their contrast differs as well.
        """
        device = generator.device
        coarse_size = [max(1, side // 4) for side in self.size]
        coarse = torch.randn(
            (count, self.channels, *coarse_size), generator=generator, device=device
        )
        fine = torch.randn((count, self.channels, *self.size), generator=generator, device=device)
        noise = F.interpolate(coarse, size=self.size, mode="bilinear", align_corners=False)
        noise = noise + 0.3 * fine
        noise = noise / noise.std(dim=(0, 2, 3), keepdim=True)
        if spread > 0:
            each = torch.randn((2, count, 1, 1, 1), generator=generator, device=device)
            contrast = torch.exp(CONTRAST_SPREAD * each[0])
            noise = math.sqrt(1.0 - spread) * contrast * noise + math.sqrt(spread) * each[1]
            noise = noise / noise.std(dim=(0, 2, 3), keepdim=True)
        self.clamp_(noise)
        return noise.contiguous(memory_format=torch.channels_last)

    def enlarged(self, normalized: Tensor) -> Tensor:
        """Return images of a lower resolution at this size, shape (N, C, H, W)."""
        larger = F.interpolate(normalized, size=self.size, mode="bilinear", align_corners=False)
        self.clamp_(larger)
        return larger.contiguous(memory_format=torch.channels_last)


def canvas_of(source: Teacher | Student, channels: int | None, device: torch.device) -> Canvas:
    """Describe the images to make; color statistics are averaged where channels differ."""
    if isinstance(source, Student):
        known, (height, width) = source.channels, source.size
        mean = torch.full((known,), PIXEL_CENTRE / 255)
        std = torch.full((known,), PIXEL_SCALE / 255)
    else:
        known, (height, width) = source.spec.channels, source.spec.size
        mean, std = torch.tensor(source.spec.mean), torch.tensor(source.spec.std)
    if channels is None:
        channels = known
    if channels != known:
        mean, std = mean.mean().expand(channels), std.mean().expand(channels)
    shape = (1, channels, 1, 1)
    return Canvas(channels, height, width, mean.to(device).view(shape), std.to(device).view(shape))


def coarse_sizes(size: tuple[int, int], share: float | None) -> list[tuple[int, int]]:
    """Return the lower resolutions that images start at, the lowest first; none for a share of 0.

    Args:
        size: height and width of the finished images.
        share: of the iterations, `InversionSettings.coarse`.
    """
    shorter = min(size)
    if share == 0 or (share is None and shorter < COARSE_FROM_PX):
        return []
    divisors = (4, 2) if shorter >= QUARTER_FROM_PX else (2,)
    return [(-(-size[0] // divisor), -(-size[1] // divisor)) for divisor in divisors]


@dataclass(frozen=True)
class Phase:
    """A stretch of the optimization.

    Attributes:
        size: height and width of the images in it.
        iterations: at most.
        painted: a generator makes the images; otherwise their pixels are optimized.
    """

    size: tuple[int, int]
    iterations: int
    painted: bool = False


def plan_phases(
    size: tuple[int, int],
    coarse: Sequence[tuple[int, int]],
    *,
    iterations: int,
    share: float | None,
) -> list[Phase]:
    """Return the phases; the last is at full size, with at least one iteration."""
    share = COARSE_SHARE if share is None else share
    early = min(int(share * iterations), iterations - 1) if coarse else 0
    parts = [len(part) for part in np.array_split(np.arange(early), max(1, len(coarse)))]
    plan = [Phase(each, part) for each, part in zip(coarse, parts, strict=False) if part]
    return [*plan, Phase(size, iterations - early)]


def to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    """Return pixels in [0, 1] of shape (N, C, H, W) as bytes of shape (N, H, W, C)."""
    nhwc = (pixels * 255.0).round().clamp(0.0, 255.0).to(torch.uint8).permute(0, 2, 3, 1)
    images: NDArray[np.uint8] = nhwc.contiguous().cpu().numpy()
    return images
