"""Shape checks that every objective shares."""

from __future__ import annotations

from torch import Tensor

from hydistill_edge.errors import ShapeError


def check_same_shape(student: Tensor, teacher: Tensor) -> None:
    """Refuse two tensors of different shapes; broadcasting would hide the mistake.

    Raises:
        ShapeError: the two shapes differ.
    """
    if student.shape != teacher.shape:
        raise ShapeError(
            f"student tensor {tuple(student.shape)} and teacher tensor {tuple(teacher.shape)} "
            "differ in shape; both must be the same layer's output for the same batch"
        )


def check_images(images: Tensor) -> None:
    """Refuse anything but a float image batch.

    Raises:
        ShapeError: `images` is not a floating-point tensor of shape (N, C, H, W).
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise ShapeError(
            f"got a {images.dtype} tensor of shape {tuple(images.shape)}; expected float pixels in "
            "[0, 1] of shape (N, C, H, W)"
        )
