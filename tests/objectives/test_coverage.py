"""How much of the teacher's feature space images reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hydistill_edge.errors import ShapeError, UsageError
from hydistill_edge.objectives.coverage import (
    class_statistics,
    class_statistics_distance,
    coverage_table,
    density_and_coverage,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def zeros(count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int64)


def test_table_is_full_when_both_sets_are_the_same() -> None:
    features, classes = random(60, 3), torch.arange(60) % 2
    table = coverage_table(features, classes, features, classes, classes=2)
    assert torch.equal(table.shares, torch.ones(2, 3))
    assert (table.flagged, table.missing) == ((), ())


def test_table_is_right_when_worked_by_hand() -> None:
    # Four bins of 25 values: up to 24.75, 49.5, 74.25, and above. Reached: the first and the last.
    real = torch.arange(100.0)[:, None]
    synthetic = torch.tensor([[-5.0], [3.0], [500.0]])
    table = coverage_table(real, zeros(100), synthetic, zeros(3), classes=1, bins=4)
    assert table.shares.tolist() == [[0.5]]
    assert table.flagged == (0,)


def test_bins_without_real_images_do_not_count() -> None:
    real = torch.tensor([[0.0]] * 9 + [[1.0]])  # a channel that is mostly off
    table = coverage_table(real, zeros(10), torch.tensor([[0.0]]), zeros(1), classes=1)
    assert table.shares.tolist() == [[0.5]]


def test_class_is_flagged_when_it_has_no_synthetic_image_and_missing_without_real_ones() -> None:
    table = coverage_table(random(20, 2), zeros(20), random(5, 2), zeros(5) + 1, classes=2)
    assert table.flagged == (0,)
    assert table.missing == (1,)
    assert table.per_class[0] == 0.0
    assert torch.isnan(table.per_class[1])


def brute_force(real: Tensor, synthetic: Tensor, k: int) -> dict[str, float]:
    r, s = real.double().numpy(), synthetic.double().numpy()
    radius = np.sort(np.linalg.norm(r[:, None] - r[None], axis=2), axis=1)[:, k]
    inside = np.linalg.norm(r[:, None] - s[None], axis=2) < radius[:, None]
    return {"density": inside.sum() / (k * len(s)), "coverage": inside.any(axis=1).mean()}


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_equal_brute_force(k: int) -> None:
    real, synthetic = random(40, 3), random(30, 3, seed=1) * 0.5
    found = density_and_coverage(real, synthetic, neighbours=k)
    assert found == pytest.approx(brute_force(real, synthetic, k))


def test_coverage_is_nil_when_the_sets_lie_apart() -> None:
    found = density_and_coverage(random(20, 3), random(20, 3) + 100.0)
    assert found == {"density": 0.0, "coverage": 0.0}


def test_class_statistics_equal_numpy() -> None:
    features, classes = random(9, 2), torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 2])
    found = class_statistics(features, classes, count=4)
    own = features[classes == 1].numpy()
    np.testing.assert_allclose(found.mean[1], own.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.deviation[1], own.std(axis=0, ddof=1), rtol=1e-5)
    assert found.count.tolist() == [3, 5, 1, 0]
    assert not found.deviation[2:].any()


def test_distance_is_zero_for_the_same_images_and_grows_with_a_shift() -> None:
    features, classes = random(20, 3), torch.arange(20) % 2
    real = class_statistics(features, classes, count=2)
    assert class_statistics_distance(features, classes, real=real).item() == 0.0
    shifted = class_statistics_distance(features + 2.0, classes, real=real)
    assert shifted.item() == pytest.approx(4.0, rel=1e-4)


def test_distance_has_a_finite_gradient_when_a_class_has_one_image() -> None:
    real = class_statistics(random(20, 3), torch.arange(20) % 2, count=3)
    features = random(4, 3, seed=1).requires_grad_()
    loss = class_statistics_distance(features, torch.tensor([0, 0, 1, 2]), real=real)
    torch.autograd.backward(loss)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    assert features.grad[:3].abs().min() > 0
    assert not features.grad[3].any()  # no real image of class 2


def test_unfitting_inputs_are_refused() -> None:
    with pytest.raises(ShapeError, match="do not fit"):
        coverage_table(random(3, 2), zeros(2), random(3, 2), zeros(3), classes=1)
    with pytest.raises(UsageError, match="1 bins"):
        coverage_table(random(3, 2), zeros(3), random(3, 2), zeros(3), classes=1, bins=1)
    with pytest.raises(ShapeError, match="more than 5 real"):
        density_and_coverage(random(5, 2), random(3, 2))
