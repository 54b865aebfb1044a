"""Smoothness priors of images that are being optimized."""

from __future__ import annotations

import torch
from torch import Tensor

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.shapes import check_images


def total_variation(images: Tensor) -> Tensor:
    """Return the mean squared difference between neighbouring pixels.

    Squared differences have a gradient that vanishes on flat areas, where that of absolute
    differences would keep jumping between its two signs.

    Args:
        images: shape (N, C, H, W), float pixels in [0, 1]; gradients flow here.

    Returns:
        Scalar, shape (): mean over vertical pairs plus mean over horizontal pairs; zero for flat
        images. A side of one pixel has no pairs and adds zero.

    Raises:
        ShapeError: `images` is not a float image batch.

    Source: Mahendran and Vedaldi 2015, arXiv:1412.0035, equation 3 with beta = 2.
    """
    check_images(images)
    total = images.new_zeros(())
    if images.shape[2] > 1:
        total = total + (images[:, :, 1:] - images[:, :, :-1]).square().mean()
    if images.shape[3] > 1:
        total = total + (images[..., 1:] - images[..., :-1]).square().mean()
    return total


def distance_to_mean(images: Tensor, *, mean: Tensor) -> Tensor:
    """Return the mean squared distance of the pixels from the data's mean color (the l2 prior).

    Args:
        images: shape (N, C, H, W), float pixels in [0, 1]; gradients flow here.
        mean: shape (C,), mean pixel per channel in [0, 1].

    Returns:
        Scalar, shape (); zero for images of the mean color.

    Raises:
        ShapeError: `images` is not a float image batch, or `mean` is not of shape (C,).

    Source: Yin et al. 2020, arXiv:1912.08795, equation 3 (there in normalized units).
    """
    check_images(images)
    if mean.shape != (images.shape[1],):
        raise ShapeError(
            f"mean has shape {tuple(mean.shape)}; expected one value per channel, "
            f"({images.shape[1]},)"
        )
    return (images - mean.to(images)[:, None, None]).square().mean()


def circular_shift(images: Tensor, *, rows: int, columns: int) -> Tensor:
    """Return the images shifted with wrap-around (jitter), shape (N, C, H, W).

    A shift of the whole batch keeps its pixel statistics exactly.
    """
    if rows == 0 and columns == 0:
        return images
    return torch.roll(images, shifts=(rows, columns), dims=(2, 3))
