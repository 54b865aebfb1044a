"""Attention between the layers of a teacher and of a student: which layer should learn from which.

Two readings of one mechanism. Each side gives one vector per tapped layer, the mean of its map over
space, and the softmax says how much a query turns to each key:

- `AfdAttention`: the teacher's layers ask, the student's answer. Each row is a teacher layer, and
  its weights over the student's layers sum to 1.
- `RtkAttention`: the roles are exchanged. Each row is a student layer, and its weights over the
  teacher's layers sum to 1, so that a column tells how much one teacher layer matters.

Training only: neither is part of an exported student.

Source: Ji, Heo and Park 2021, "Show, Attend and Distill", arXiv:2102.02973, section 3; Yang, Kao
and Huang 2022, "Representative Teacher Keys", arXiv:2206.12788 (we could not read its equations;
the exchange of roles is our reading of its name and abstract).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hydistill_edge.errors import ShapeError, UsageError
from hydistill_edge.seeding import seeded

WIDTH = 128
"""Published width of queries and keys."""


class LayerAttention(nn.Module):
    """Attention of Q query layers over K key layers, each given as one vector per image.

    - query q: BatchNorm(W_q x), one linear layer each, no ReLU;
    - key k: ReLU(BatchNorm(W_k x)), one linear layer each;
    - bilinear key: one linear layer d -> d·Q shared by all keys, with BatchNorm over N·K rows, so
      that every query sees its own view of a key;
    - logit: (bilinear key · query + position of q · position of k) / sqrt(d);
    - softmax over the keys.

    Args:
        query_channels: length of each query layer's vector, Q numbers.
        key_channels: length of each key layer's vector, K numbers.
        width: d, of queries and keys.
        seed: of the weights; torch's global generator is left as it was.

    Raises:
        UsageError: no layer on one side, or a width below 1.
    """

    def __init__(
        self,
        query_channels: Sequence[int],
        key_channels: Sequence[int],
        *,
        width: int = WIDTH,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not query_channels or not key_channels or width < 1:
            raise UsageError(
                f"attention of {len(query_channels)} over {len(key_channels)} layers with width "
                f"{width}; expected at least one of each"
            )
        self.width = width
        with seeded(seed):
            self.queries = nn.ModuleList(_embedding(size, width) for size in query_channels)
            self.keys = nn.ModuleList(_embedding(size, width) for size in key_channels)
            self.bilinear = _embedding(width, width * len(query_channels))
            self.query_positions = nn.Parameter(torch.empty(len(query_channels), width))
            self.key_positions = nn.Parameter(torch.empty(len(key_channels), width))
            nn.init.xavier_normal_(self.query_positions)
            nn.init.xavier_normal_(self.key_positions)

    def attend(self, query_vectors: Sequence[Tensor], key_vectors: Sequence[Tensor]) -> Tensor:
        """Return how much each query turns to each key, shape (N, Q, K), float32; rows sum to 1.

        Args:
            query_vectors: Q tensors, each of shape (N, channels of its layer).
            key_vectors: K tensors, each of shape (N, channels of its layer).

        Raises:
            ShapeError: another number of layers than the attention was made for.
        """
        given, made = (len(query_vectors), len(key_vectors)), (len(self.queries), len(self.keys))
        if given != made:
            raise ShapeError(
                f"attention of {made[0]} over {made[1]} layers got vectors of {given[0]} and "
                f"{given[1]}; expected one vector per layer"
            )
        queries = torch.stack([f(x) for f, x in zip(self.queries, query_vectors, strict=True)], 1)
        keys = torch.stack([f(x) for f, x in zip(self.keys, key_vectors, strict=True)], 1).relu()
        count = len(queries)
        # One row per image and key, the key changing fastest: BatchNorm sees N·K rows.
        views = self.bilinear(keys.reshape(count * len(self.keys), self.width))
        views = views.reshape(count, len(self.keys), len(self.queries), self.width)
        logits = torch.einsum("nkqd,nqd->nqk", views, queries)
        logits = logits + self.query_positions @ self.key_positions.T
        if logits.dtype != torch.float64:
            logits = logits.float()
        return (logits / math.sqrt(self.width)).softmax(dim=-1)


class AfdAttention(LayerAttention):
    """AFD: teacher layers are queries, student layers are keys.

    Args:
        student_channels: of each student layer, S numbers.
        teacher_channels: of each teacher layer, T numbers.
        width: see `LayerAttention`.
        seed: see `LayerAttention`.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        width: int = WIDTH,
        seed: int = 0,
    ) -> None:
        super().__init__(teacher_channels, student_channels, width=width, seed=seed)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the attention, shape (N, T, S); each teacher layer's row over s sums to 1.

        Args:
            student: S tensors (N, C_s), means over space.
            teacher: T tensors (N, C_t), means over space.
        """
        return self.attend(teacher, student)


class RtkAttention(LayerAttention):
    """RTK: student layers are queries, teacher layers are keys.

    Made like `LayerAttention`: channels of the student's layers first, then of the teacher's.
    """

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the attention, shape (N, S, T); each student layer's row over t sums to 1.

        Args:
            student: S tensors (N, C_s), means over space.
            teacher: T tensors (N, C_t), means over space.
        """
        return self.attend(student, teacher)


def _embedding(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels_in, channels), nn.BatchNorm1d(channels))
