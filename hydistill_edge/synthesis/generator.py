"""A small network that paints a whole batch: what images have in common is learned once.

Single pixels have to find every edge and texture for themselves. A few convolutions from one code
per image share them, so that early iterations gain more; the codes are optimized along. Pixel
steps follow, since a network of this size cannot paint every detail. It is painted at full size.

Source: the idea of learning generator and codes for a fixed network from Fang et al. 2022, "Up to
100x Faster Data-free Knowledge Distillation", arXiv:2112.06253 (there meta-learned; not here).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.seeding import seeded
from hydistill_edge.synthesis.canvas import Canvas

CODE = 64
SHARE = 0.8
"""Of the iterations, before the pixel steps."""

RATE = 1 / 30
"""Step size of the weights and codes over that of pixels."""


class Generator(nn.Module):
    """Paints images from codes, in normalized units with mean 0 and variance 1 over a batch.

    Args:
        canvas: size, channels and colors of the images.
        seed: of the first weights; torch's global generator is left as it was.
        width: channels of the last layers.
    """

    def __init__(self, canvas: Canvas, *, seed: int, width: int = 32) -> None:
        super().__init__()
        self.canvas = canvas
        self.width = width
        height, breadth = canvas.size
        self.sizes = [(-(-height // part), -(-breadth // part)) for part in (4, 2, 1)]
        self.low, self.high = ((end - canvas.mean) / canvas.std for end in (0.0, 1.0))
        with seeded(seed):
            base = self.sizes[0][0] * self.sizes[0][1]
            self.first = nn.Linear(CODE, 2 * width * base)
            self.layers = nn.ModuleList(
                [nn.Conv2d(2 * width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)]
            )
            self.last = nn.Conv2d(width, canvas.channels, 3, padding=1)
        self.to(canvas.mean.device)

    def codes(self, count: int, noise: torch.Generator) -> Tensor:
        """Return codes of new images, shape (count, 64)."""
        return torch.randn((count, CODE), generator=noise, device=noise.device)

    def forward(self, codes: Tensor) -> Tensor:
        """Return images of valid pixels, shape (N, C, H, W), for codes of shape (N, 64)."""
        maps = _normalized(self.first(codes).view(len(codes), 2 * self.width, *self.sizes[0]))
        for layer, size in zip(self.layers, self.sizes[1:], strict=True):
            maps = _normalized(layer(F.interpolate(maps, size=size, mode="nearest")))
            maps = F.leaky_relu(maps, 0.2)
        painted = _normalized(self.last(maps))
        return torch.maximum(torch.minimum(painted, self.high), self.low)


def _normalized(maps: Tensor) -> Tensor:
    return F.batch_norm(maps, None, None, training=True)
