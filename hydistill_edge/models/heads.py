"""Embedding heads: from a network's pooled vector to a point on the unit sphere."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.seeding import seeded

EMBEDDING = 128
"""Length of an embedding; the published width."""


class EmbeddingHead(nn.Module):
    """A linear layer with bias, then division by the L2 norm; used in training only.

    Args:
        channels: of the pooled vector.
        embedding: length of the embedding.
        seed: of the weights; torch's global generator is left as it was.
    """

    def __init__(self, channels: int, *, embedding: int = EMBEDDING, seed: int = 0) -> None:
        super().__init__()
        with seeded(seed):
            self.linear = nn.Linear(channels, embedding)

    def forward(self, vector: Tensor) -> Tensor:
        """Return embeddings of length 1, shape (N, embedding), of vectors (N, channels)."""
        # The norm is taken in float32: squares of half types overflow and vanish early.
        embedded: Tensor = F.normalize(self.linear(vector).float(), dim=1)
        return embedded
