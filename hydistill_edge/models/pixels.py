"""From pixels to a network's input: channels, size, normalisation.

Everywhere else an image is a pixel tensor: float32 in [0, 1] or uint8, shape (N, C, H, W). Only
the teacher and the student know mean and standard deviation, and only through this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.errors import ShapeError, UsageError

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601, the ones Pillow's mode L uses)."""


@dataclass(frozen=True)
class InputSpec:
    """What a network expects at its input.

    Attributes:
        height: pixels.
        width: pixels.
        channels: channels of the network, 1 (grey) or 3 (RGB) in practice.
        mean: per network channel, of pixels in [0, 1].
        std: per network channel, of pixels in [0, 1]; above zero.

    Raises:
        UsageError: a value out of range; all problems are told together.
    """

    height: int
    width: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        problems = [
            f"{name} {value!r}: expected a whole number of at least 1"
            for name, value in (
                ("height", self.height),
                ("width", self.width),
                ("channels", self.channels),
            )
            if not isinstance(value, int) or value < 1
        ]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                problems.append(
                    f"{name} has {len(values)} values for {self.channels} channels: give one per "
                    "channel "
                    "of the network (a grey image that the network sees as RGB has three)"
                )
        problems += [
            f"mean {value!r}: expected a pixel mean in [0, 1]; divide by 255 if it counts grey "
            "levels"
            for value in self.mean
            if not (math.isfinite(value) and 0.0 <= value <= 1.0)
        ]
        problems += [
            f"std {value!r}: expected above 0 and at most 1, of pixels in [0, 1]; "
            "divide by 255 if it counts grey levels"
            for value in self.std
            if not (math.isfinite(value) and 0.0 < value <= 1.0)
        ]
        if problems:
            raise UsageError(
                "the network's input is not well described:\n  " + "\n  ".join(problems)
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.height, self.width)


def as_float_pixels(pixels: Tensor) -> Tensor:
    """Return pixels as floats in [0, 1]: uint8 is divided by 255, floats pass.

    Raises:
        ShapeError: not of shape (N, C, H, W), or neither uint8 nor a float type.
    """
    if pixels.dim() != 4:
        raise ShapeError(f"pixels of shape {tuple(pixels.shape)}: expected (N, C, H, W)")
    if pixels.dtype == torch.uint8:
        return pixels.to(torch.float32) / 255.0
    if not pixels.is_floating_point():
        raise ShapeError(
            f"pixels of type {pixels.dtype}: expected uint8 in 0..255 or floats in [0, 1]"
        )
    return pixels


def adapt_pixels(pixels: Tensor, *, channels: int, size: tuple[int, int]) -> Tensor:
    """Bring pixels to the channels and size of a network; gradients flow.

    Grey is repeated, RGB becomes its luminance, another size is resized by antialiased bilinear
    interpolation. What already fits is returned untouched.

    Args:
        pixels: shape (N, C, H, W), uint8 or floats in [0, 1].
        channels: wanted channels.
        size: wanted (height, width) in pixels.

    Returns:
        Floats in [0, 1], shape (N, channels, *size).

    Raises:
        ShapeError: the channels are neither the wanted ones nor grey to RGB nor RGB to grey.
    """
    pixels = as_float_pixels(pixels)
    given = pixels.shape[1]
    if given == 3 and channels == 1:
        weights = torch.tensor(LUMINANCE, dtype=pixels.dtype, device=pixels.device)
        pixels = (pixels * weights.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    elif given == 1 and channels > 1:
        pixels = pixels.expand(-1, channels, -1, -1)
    elif given != channels:
        raise ShapeError(
            f"pixels with {given} channels for a network with {channels}: "
            "only grey to many (repeat) and RGB to grey (luminance) are adapted"
        )
    if tuple(pixels.shape[-2:]) != tuple(size):
        pixels = F.interpolate(
            pixels, size=size, mode="bilinear", antialias=True, align_corners=False
        )
    return pixels


class PixelInput(nn.Module):
    """Pixels in, the network's normalised input out.

    Args:
        spec: what the network expects.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.spec = spec
        # Not persistent: they belong to the description of the input, not to the weights.
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the normalised input, shape (N, spec.channels, spec.height, spec.width).

        Args:
            pixels: shape (N, C, H, W), uint8 or floats in [0, 1].

        Raises:
            ShapeError: shape, type or channels that cannot be adapted.
        """
        adapted = adapt_pixels(pixels, channels=self.spec.channels, size=self.spec.size)
        return (adapted - self.mean) / self.std
