"""Images of a GAN: between [-1, 1], where it works, and pixels, which others take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Sampled:
    """Images from a trained generator.

    Attributes:
        images: shape (N, H, W, C) uint8, without duplicates.
        targets: shape (N,) int64, the class that was asked for.
        logits: the teacher's, shape (N, classes) float32.
        duplicates: images that were dropped.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    logits: NDArray[np.float32]
    duplicates: int

    @property
    def hit(self) -> float:
        """Share of the images that the teacher names as asked."""
        return float((self.logits.argmax(axis=1) == self.targets).mean())

    @property
    def class_counts(self) -> list[int]:
        """Images of each class by the teacher's answer."""
        classes = self.logits.shape[1]
        counts = np.bincount(self.logits.argmax(axis=1), minlength=classes)
        return [int(count) for count in counts]


def to_signed(images: Tensor) -> Tensor:
    """Return uint8 pixels as floats in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def to_pixels(signed: Tensor) -> Tensor:
    """Return images in [-1, 1] as pixels in [0, 1], which is what a teacher takes."""
    return (signed + 1.0) * 0.5


def to_bytes(signed: Tensor) -> Tensor:
    """Return images in [-1, 1] as uint8 pixels; one fixed mapping for all."""
    return ((signed + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
