"""A term that keeps the images of one class apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.widening import widened


def same_class_similarity(features: Tensor, classes: Tensor, *, allowed: float = 0.0) -> Tensor:
    """Return the mean cosine similarity above `allowed` between images of the same class.

    Class means are removed first: features after a ReLU are all alike in direction, and what two
    images of a class share is what makes them that class.

    Args:
        features: shape (N, D), penultimate features or logits; gradients flow here.
        classes: shape (N,), int64 class of each image.
        allowed: similarity that costs nothing, in [-1, 1].

    Returns:
        Scalar, shape (), float32, in [0, 1 - allowed]; zero when no class has two images.

    Raises:
        ShapeError: the two do not have the same number of images.
    """
    if features.dim() != 2 or classes.shape != features.shape[:1]:
        raise ShapeError(
            f"features {tuple(features.shape)} and classes {tuple(classes.shape)} do not fit; "
            "expected (N, D) and (N,)"
        )
    wide = widened(features)
    same = (classes[:, None] == classes[None, :]).to(wide.dtype)
    centered = wide - (same @ wide) / same.sum(dim=1, keepdim=True)
    direction = F.normalize(centered, dim=1)
    pairs = same - torch.eye(len(same), dtype=same.dtype, device=same.device)
    excess = (direction @ direction.T - allowed).clamp(min=0.0)
    return (excess * pairs).sum() / pairs.sum().clamp(min=1.0)
