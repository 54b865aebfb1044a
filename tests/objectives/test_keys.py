"""Maps between layers, influences and the choice of keys."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydistill_edge.errors import ShapeError, UsageError
from hydistill_edge.objectives.keys import (
    afd_loss,
    influences,
    largest_channels,
    map_distances,
    mean_square,
    representative,
    rtk_loss,
    unit_map,
)

Array = NDArray[np.float64]
STUDENT = ((3, 8, 8), (5, 4, 4))
TEACHER = ((4, 8, 8), (2, 4, 4), (6, 4, 4), (3, 2, 2))


def features(shapes: tuple[tuple[int, ...], ...], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def weights(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, rows, columns, generator=generator).double().softmax(dim=2)


def reference_map(maps: Array, size: tuple[int, int]) -> Array:
    """Square, mean over channels, mean over the pixels of each cell, length 1."""
    count, channels, height, width = maps.shape
    found = np.zeros((count, *size))
    for n, y, x in np.ndindex(*found.shape):
        cell = (n, slice(None), *(_cell(y, height, size[0]), _cell(x, width, size[1])))
        found[n, y, x] = (maps[cell] ** 2).sum(axis=0).mean() / channels
    flat = found.reshape(count, -1)
    return np.asarray(flat / np.sqrt((flat**2).sum(axis=1, keepdims=True)))


def _cell(place: int, length: int, cells: int) -> slice:
    return slice(place * length // cells, math.ceil((place + 1) * length / cells))


def reference_distances(student: list[Tensor], teacher: list[Tensor]) -> Array:
    found = np.zeros((5, len(teacher), len(student)))
    for t, target in enumerate(teacher):
        size = (target.shape[2], target.shape[3])
        for s, source in enumerate(student):
            difference = reference_map(target.numpy(), size) - reference_map(source.numpy(), size)
            found[:, t, s] = (difference**2).mean(axis=1)
    return found


def test_afd_loss_equals_numpy_in_float64() -> None:
    student, teacher, attention = features(STUDENT, 1), features(TEACHER, 2), weights(4, 2)
    expected = (attention.numpy() * reference_distances(student, teacher)).sum(axis=(1, 2)).mean()
    assert afd_loss(student, teacher, attention).item() == pytest.approx(expected, rel=1e-12)


def test_rtk_loss_equals_numpy_in_float64_with_keys_chosen() -> None:
    student, teacher, attention = features(STUDENT, 1), features(TEACHER, 2), weights(2, 4)
    kept = attention.numpy()[:, :, [0, 3]]
    kept = kept / kept.sum(axis=2, keepdims=True)
    distances = reference_distances(student, teacher)[:, [0, 3]].transpose(0, 2, 1)
    expected = (kept * distances).sum(axis=(1, 2)).mean()
    found = rtk_loss(student, teacher, attention, kept=(0, 3))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_map_is_that_of_hand_when_features_are_two_by_one() -> None:
    maps = torch.tensor([[[[1.0], [2.0]], [[3.0], [4.0]]]])  # squares: 1 4 and 9 16
    assert mean_square(maps).flatten().tolist() == [5.0, 10.0]
    expected = [1 / math.sqrt(5), 2 / math.sqrt(5)]
    assert unit_map(mean_square(maps)).flatten().tolist() == pytest.approx(expected)


def test_distance_is_zero_for_equal_maps_at_any_scale_and_channel_count() -> None:
    student = features(STUDENT[:1], 1)
    wider = torch.cat([3.0 * student[0], 3.0 * student[0]], dim=1)
    assert map_distances(student, [wider]).abs().max() < 1e-30


def test_student_map_grows_when_teacher_map_is_larger() -> None:
    small, large = torch.rand(2, 3, 2, 2), torch.rand(2, 3, 4, 4)
    grown = small.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(map_distances([small], [large]), map_distances([grown], [large]))


def test_dead_map_gives_finite_loss_and_gradient() -> None:
    dead = torch.zeros(5, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    loss = afd_loss([dead], features(TEACHER[:1], 2), torch.ones(5, 1, 1).double())
    loss.backward()
    assert dead.grad is not None
    assert math.isfinite(loss.item())
    assert bool(dead.grad.isfinite().all())


def test_all_keys_give_the_unselected_loss_to_the_last_bit() -> None:
    student, teacher = features(STUDENT, 1), features(TEACHER, 2)
    attention = 0.999 * weights(2, 4)  # as rows that miss 1 by rounding, only more so
    kept, threshold = representative([0.1, 0.4, 0.2, 0.3], factor=0.0)
    assert (kept, threshold) == ((0, 1, 2, 3), 0.0)
    unselected = (attention * map_distances(student, teacher).transpose(1, 2)).sum(dim=(1, 2))
    assert torch.equal(rtk_loss(student, teacher, attention, kept=kept), unselected.mean())
    assert torch.equal(rtk_loss(student, teacher, attention), unselected.mean())


def test_unkept_teacher_layer_changes_neither_loss_nor_gradients() -> None:
    student, teacher, attention = features(STUDENT, 1), features(TEACHER, 2), weights(2, 4)
    outcomes = []
    for noise in (0.0, float("nan")):
        seen = [maps.clone().requires_grad_() for maps in student]
        changed = [teacher[0], teacher[1] + noise, teacher[2] + noise, teacher[3]]
        loss = rtk_loss(seen, changed, attention, kept=(0, 3))
        outcomes.append([loss, *torch.autograd.grad(loss, seen)])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in outcomes[0][1:])


def test_gradient_is_zero_for_teacher_and_for_columns_that_are_not_kept() -> None:
    student = features(STUDENT, 1)
    teacher = [maps.requires_grad_() for maps in features(TEACHER, 2)]
    attention = weights(2, 4).requires_grad_()
    rtk_loss(student, teacher, attention, kept=(0, 3)).backward()
    assert attention.grad is not None
    assert attention.grad.abs().amax(dim=(0, 1)).gt(0).tolist() == [True, False, False, True]
    assert all(maps.grad is None for maps in teacher)


def test_attention_cannot_flee_to_other_keys_only_when_it_is_renormalized() -> None:
    student, teacher = features(STUDENT, 1), features(TEACHER, 2)
    away = weights(2, 4) * torch.tensor([0.01, 1.0, 1.0, 1.0]).double()
    away = away / away.sum(dim=2, keepdim=True)
    held, held_away = (rtk_loss(student, teacher, a, kept=(0,)) for a in (weights(2, 4), away))
    torch.testing.assert_close(held, held_away)
    fled = rtk_loss(student, teacher, away, kept=(0,), renormalize=False)
    assert fled < 0.1 * held


def test_only_the_chosen_channels_count() -> None:
    student, teacher, attention = features(STUDENT, 1), features(TEACHER[:1], 2), weights(2, 1)
    chosen = rtk_loss(student, teacher, attention, channels=[torch.tensor([1, 3])])
    cut = rtk_loss(student, [teacher[0][:, [1, 3]]], attention)
    assert torch.equal(chosen, cut)
    assert largest_channels(torch.tensor([1.0, 5.0, 2.0, 4.0]), share=0.5).tolist() == [1, 3]
    assert largest_channels(torch.tensor([1.0, 5.0]), share=0.01).tolist() == [1]


def test_influence_is_the_mean_of_the_largest_in_a_column() -> None:
    attention = torch.tensor([[[0.7, 0.3], [0.4, 0.6], [0.1, 0.9]]])
    assert influences(attention, top_k=2).tolist() == [pytest.approx([0.55, 0.75])]
    assert influences(attention).tolist() == influences(attention, top_k=2).tolist()


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_mean_influence_is_one_over_t_only_when_all_rows_count(top_k: int) -> None:
    mean = influences(weights(3, 4), top_k=top_k).mean().item()
    if top_k == 3:
        assert mean == pytest.approx(0.25, abs=1e-15)
    else:
        assert mean > 0.26


def test_order_of_teacher_layers_permutes_influences_and_keeps_the_loss() -> None:
    student, teacher, attention = features(STUDENT, 1), features(TEACHER, 2), weights(2, 4)
    order = [2, 0, 3, 1]
    moved = attention[:, :, order]
    assert torch.equal(influences(moved), influences(attention)[:, order])
    kept, _ = representative(influences(attention).mean(0).tolist(), factor=1.0)
    moved_kept, _ = representative(influences(moved).mean(0).tolist(), factor=1.0)
    assert {order[place] for place in moved_kept} == set(kept)
    found = rtk_loss(student, [teacher[t] for t in order], moved, kept=moved_kept)
    torch.testing.assert_close(found, rtk_loss(student, teacher, attention, kept=kept))


@pytest.mark.parametrize(
    ("factor", "kept"),
    [(0.5, (0, 1, 2, 3)), (1.0, (1, 3)), (1.5, (1,)), (9.0, (1,))],
    ids=["low", "mean", "high", "none reaches it"],
)
def test_keys_above_the_threshold_are_kept_and_the_largest_always(
    factor: float, kept: tuple[int, ...]
) -> None:
    found, threshold = representative([0.15, 0.4, 0.2, 0.25], factor=factor)
    assert found == kept
    assert threshold == pytest.approx(factor * 0.25)


def test_all_keys_are_kept_when_they_matter_alike() -> None:
    assert representative([0.1] * 10, factor=1.0)[0] == tuple(range(10))


@pytest.mark.parametrize("top_k", [0, 3])
def test_influences_are_refused_when_top_k_is_out_of_range(top_k: int) -> None:
    with pytest.raises(UsageError, match="from 1 to 2"):
        influences(weights(2, 4), top_k=top_k)


def test_loss_is_refused_when_attention_is_the_other_way_round() -> None:
    with pytest.raises(ShapeError, match=r"expected \(5, 2, 4\)"):
        rtk_loss(features(STUDENT, 1), features(TEACHER, 2), weights(4, 2))


def test_loss_is_refused_when_no_key_is_kept_or_a_tap_is_no_map() -> None:
    student, teacher = features(STUDENT, 1), features(TEACHER, 2)
    with pytest.raises(UsageError, match="no teacher key"):
        rtk_loss(student, teacher, weights(2, 4), kept=())
    with pytest.raises(ShapeError, match=r"\(5, 7\)"):
        mean_square(torch.zeros(5, 7))
