"""The check in front of every inference: raw pixels, of the model's own size."""

from __future__ import annotations

import numpy as np

from hydistill_edge.errors import ShapeError
from hydistill_edge.targets.base import Images

UINT8 = np.dtype(np.uint8)


def check_pixels(images: Images, input_shape: tuple[int, int, int]) -> None:
    """Check that `images` are raw pixels of the model's size.

    This stands in front of every inference, so it reads attributes and touches no pixel.

    Raises:
        ShapeError: they are not.
    """
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != UINT8
        or images.shape[1:] != input_shape
        or not len(images)
    ):
        kind = getattr(images, "dtype", type(images).__name__)
        shape = getattr(images, "shape", "")
        height, width, channels = input_shape
        raise ShapeError(
            f"images are {kind} {shape}; expected uint8 (N, {height}, {width}, {channels}) with N "
            "at least 1: resize them to the model's input and hand over raw pixels, not floats"
        )
