"""Attention between layers, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hydistill_edge.errors import ShapeError, UsageError
from hydistill_edge.models.attention import AfdAttention, LayerAttention, RtkAttention

STUDENT, TEACHER = (3, 5), (4, 2, 6)  # channels: S = 2, T = 3
Array = NDArray[np.float64]


def vectors(channels: tuple[int, ...], seed: int, count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, size, generator=generator).double() for size in channels]


def made(kind: type[AfdAttention] | type[RtkAttention]) -> AfdAttention | RtkAttention:
    return kind(STUDENT, TEACHER, width=4, seed=1).double()


def normed(rows: Array) -> Array:
    """BatchNorm in train mode with weight 1 and bias 0."""
    return np.asarray((rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5))


def embedded(layer: nn.Module, rows: Array) -> Array:
    weight, bias = (tensor.detach().numpy() for tensor in layer[0].parameters())  # type: ignore[index]
    return normed(rows @ weight.T + bias)


def reference(attention: LayerAttention, queries: list[Tensor], keys: list[Tensor]) -> Array:
    """The formulas entry by entry: softmax over keys of (view · query + positions) / sqrt(d)."""
    q = [embedded(f, x.numpy()) for f, x in zip(attention.queries, queries, strict=True)]
    k = [np.maximum(embedded(f, x.numpy()), 0.0) for f, x in zip(attention.keys, keys, strict=True)]
    count, width = q[0].shape
    rows = np.concatenate([np.stack([key[n] for key in k]) for n in range(count)])  # n, then k
    views = embedded(attention.bilinear, rows)
    at_q, at_k = (p.detach().numpy() for p in (attention.query_positions, attention.key_positions))
    logits = np.zeros((count, len(q), len(k)))
    for n, i, j in np.ndindex(*logits.shape):
        view = views[n * len(k) + j][i * width : (i + 1) * width]
        logits[n, i, j] = (view @ q[i][n] + at_q[i] @ at_k[j]) / np.sqrt(width)
    odds = np.exp(logits)
    return np.asarray(odds / odds.sum(axis=2, keepdims=True))


def test_afd_attention_equals_numpy_with_teacher_as_query() -> None:
    attention, student, teacher = made(AfdAttention), vectors(STUDENT, 2), vectors(TEACHER, 3)
    found = attention(student, teacher)
    assert found.shape == (5, 3, 2)
    np.testing.assert_allclose(found.detach(), reference(attention, teacher, student), rtol=1e-9)


def test_rtk_attention_equals_numpy_with_student_as_query() -> None:
    attention, student, teacher = made(RtkAttention), vectors(STUDENT, 2), vectors(TEACHER, 3)
    found = attention(student, teacher)
    assert found.shape == (5, 2, 3)
    np.testing.assert_allclose(found.detach(), reference(attention, student, teacher), rtol=1e-9)


@pytest.mark.parametrize(
    ("kind", "layers"), [(AfdAttention, "teacher"), (RtkAttention, "student")], ids=["afd", "rtk"]
)
def test_rows_sum_to_one_and_columns_do_not(
    kind: type[AfdAttention] | type[RtkAttention], layers: str
) -> None:
    found = made(kind)(vectors(STUDENT, 2), vectors(TEACHER, 3))
    rows = {"teacher": 3, "student": 2}[layers]
    torch.testing.assert_close(found.sum(dim=2), torch.ones(5, rows).double())
    assert (found.sum(dim=1) - 1).abs().max() > 0.1


def test_every_parameter_learns() -> None:
    attention = made(RtkAttention)
    weights = torch.arange(6.0).view(2, 3)
    (attention(vectors(STUDENT, 2), vectors(TEACHER, 3)) * weights).sum().backward()
    silent = {
        name
        for name, parameter in attention.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    }
    assert silent == set()


def test_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (RtkAttention((3,), (4,), seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first.key_positions, again.key_positions)
    assert not torch.equal(first.key_positions, other.key_positions)
    assert torch.equal(torch.get_rng_state(), before)


def test_attention_is_float32_under_autocast() -> None:
    attention = RtkAttention(STUDENT, TEACHER, width=4)
    student, teacher = ([x.float() for x in vectors(c, 2)] for c in (STUDENT, TEACHER))
    with torch.autocast("cpu", torch.bfloat16):
        found = attention(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(dim=2), torch.ones(5, 2))


def test_error_tells_the_layers_when_their_number_differs() -> None:
    with pytest.raises(ShapeError, match="2 over 3 layers got vectors of 2 and 1"):
        made(RtkAttention)(vectors(STUDENT, 2), vectors((4,), 3))


def test_attention_is_refused_when_a_side_has_no_layer() -> None:
    with pytest.raises(UsageError, match="attention of 0 over 1"):
        RtkAttention((), (4,))
