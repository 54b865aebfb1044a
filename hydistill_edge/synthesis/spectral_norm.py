"""A layer's weight over its largest singular value, followed by power iteration.

As `torch.nn.utils.parametrizations.spectral_norm`, with the same names and numbers, and two
differences: it computes in float32 under autocast too, where a matrix-vector product would be
rounded to bfloat16 on a GPU, and it never writes through `out=`, so that a compiler takes it whole.

Source: Miyato et al. 2018, "Spectral Normalization for Generative Adversarial Networks",
arXiv:1802.05957, algorithm 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

START_ITERATIONS = 15
"""Of the power iteration, when it is put on a layer."""


class SpectralNorm(nn.Module):
    """Divides a weight by an estimate of its largest singular value.

    Args:
        weight: of the layer as it starts; the first dimension against all others.
        eps: smallest norm that a vector is divided by.
    """

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, *, eps: float) -> None:
        super().__init__()
        self.eps = eps
        matrix = weight.detach().flatten(1)
        for name, length in (("_u", matrix.shape[0]), ("_v", matrix.shape[1])):
            draw = matrix.new_empty(length).normal_(0, 1)
            self.register_buffer(name, F.normalize(draw, dim=0, eps=eps))
        for _ in range(START_ITERATIONS):
            self._iterate(matrix)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, normed; in training the estimate is first improved by one step."""
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            if self.training:
                self._iterate(matrix)
            # Copies: the next forward moves both, before the backward of this one.
            u, v = self._u.clone(), self._v.clone()
            return weight / torch.dot(u, torch.mv(matrix, v))

    @torch.no_grad()
    def _iterate(self, matrix: Tensor) -> None:
        self._u.copy_(F.normalize(torch.mv(matrix, self._v), dim=0, eps=self.eps))
        self._v.copy_(F.normalize(torch.mv(matrix.t(), self._u), dim=0, eps=self.eps))


def spectral_norm(layer: nn.Module, *, eps: float = 1e-12) -> None:
    """Norm a layer's weight from now on.

    Args:
        layer: with a `weight` of at least two dimensions, such as a convolution.
        eps: smallest norm that a vector is divided by.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    parametrize.register_parametrization(layer, "weight", SpectralNorm(weight, eps=eps))
