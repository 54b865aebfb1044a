"""The type that every objective computes in."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(tensor: Tensor) -> Tensor:
    """Widen half types to float32, and leave float64 (used by gradient checks) alone."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
