"""Independence of style."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hydistill_edge.errors import ShapeError, UsageError
from hydistill_edge.objectives.style import draw_partners, mix_distribution, nt_xent


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units(count: int = 4, seed: int = 0) -> Tensor:
    return F.normalize(random(count, 3, seed=seed), dim=1)


SWAP = torch.tensor([1, 0])


def test_mixing_is_the_identity_when_the_share_is_one() -> None:
    images = random(2, 3, 4, 4)
    mixed = mix_distribution(images, partners=SWAP, shares=torch.ones(2))
    torch.testing.assert_close(mixed, images)


def test_mixing_gives_the_partners_statistics_when_the_share_is_zero() -> None:
    images = random(2, 3, 8, 8) * torch.tensor([1.0, 5.0]).view(2, 1, 1, 1) + 2.0
    mixed = mix_distribution(images, partners=SWAP, shares=torch.zeros(2))
    torch.testing.assert_close(mixed.mean(dim=(2, 3)), images[SWAP].mean(dim=(2, 3)))
    wanted = images[SWAP].std(dim=(2, 3), correction=1)
    torch.testing.assert_close(mixed.std(dim=(2, 3), correction=1), wanted, rtol=1e-5, atol=0)


def test_mixing_is_right_when_worked_by_hand() -> None:
    images = torch.tensor([[0.0, 2.0], [10.0, 18.0]], dtype=torch.float64).view(2, 1, 1, 2)
    mixed = mix_distribution(images, partners=SWAP, shares=torch.tensor([0.5, 1.0]))
    # Means 1 and 14, deviations sqrt(2) and 4 sqrt(2): halfway 7.5 and 2.5 times the first one.
    assert mixed[0].flatten().tolist() == pytest.approx([5.0, 10.0], abs=1e-5)
    assert mixed[1].flatten().tolist() == pytest.approx([10.0, 18.0])


def test_mixing_equals_numpy() -> None:
    images, shares = random(3, 2, 4, 5), random(3, seed=1).sigmoid()
    partners = torch.tensor([2, 0, 1])
    x, lam = images.numpy(), shares.numpy()[:, None, None, None]
    mean = x.mean(axis=(2, 3), keepdims=True)
    std = np.sqrt(x.var(axis=(2, 3), ddof=1, keepdims=True) + 1e-6)
    j = partners.numpy()
    wanted = (x - mean) / std * (lam * std + (1 - lam) * std[j]) + lam * mean + (1 - lam) * mean[j]
    found = mix_distribution(images, partners=partners, shares=shares)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10)


def test_statistics_carry_no_gradient() -> None:
    images = random(2, 1, 4, 4).requires_grad_()
    mixed = mix_distribution(images, partners=SWAP, shares=torch.full((2,), 0.5))
    torch.autograd.backward(mixed[0, 0, 1, 2])
    assert images.grad is not None
    assert images.grad.nonzero().tolist() == [[0, 0, 1, 2]]  # the statistics are of all pixels


def test_image_of_one_color_stays_finite() -> None:
    images = torch.full((2, 1, 4, 4), 0.5)
    mixed = mix_distribution(images, partners=SWAP, shares=torch.zeros(2))
    assert torch.isfinite(mixed).all()


@pytest.mark.parametrize(
    ("side", "partners"), [(1, 2), (4, 3)], ids=["single-pixels", "other-count"]
)
def test_mixing_is_refused_when_shapes_do_not_fit(side: int, partners: int) -> None:
    with pytest.raises(ShapeError, match="expected"):
        mix_distribution(
            random(2, 1, side, side),
            partners=torch.zeros(partners, dtype=torch.int64),
            shares=torch.ones(2),
        )


def test_partners_are_a_permutation_and_shares_follow_the_beta_distribution() -> None:
    partners, shares = draw_partners(4000, generator=torch.Generator().manual_seed(0))
    assert sorted(partners.tolist()) == list(range(4000))
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    # Var of Beta(a, a) is 1 / (4 (2 a + 1)).
    assert shares.var().item() == pytest.approx(1 / 4.8, abs=0.01)


def test_partners_repeat_when_the_seed_does() -> None:
    first, second = (draw_partners(9, generator=torch.Generator().manual_seed(3)) for _ in "ab")
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def brute_force(first: Tensor, second: Tensor, temperature: float) -> float:
    rows, total = np.concatenate([first.numpy(), second.numpy()]), 0.0
    count = len(first)
    for i in range(2 * count):
        exponentials = np.exp(rows @ rows[i] / temperature)
        others = [k for k in range(2 * count) if k != i]
        total -= np.log(exponentials[(i + count) % (2 * count)] / exponentials[others].sum())
    return float(total / (2 * count))


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_contrast_equals_brute_force(temperature: float) -> None:
    first, second = units(), units(seed=1)
    found = nt_xent(first, second, temperature=temperature)
    assert found.item() == pytest.approx(brute_force(first, second, temperature), rel=1e-12)


def test_contrast_is_zero_when_one_pair_stands_alone() -> None:
    assert nt_xent(units(1), units(1, seed=1)).item() == 0.0


def test_contrast_stays_finite_where_exponentials_overflow() -> None:
    loss = nt_xent(units().float(), units().float(), temperature=0.001)
    assert torch.isfinite(loss)
    assert loss.item() == pytest.approx(0.0, abs=1e-3)


def test_contrast_falls_when_views_agree() -> None:
    apart = torch.eye(4, dtype=torch.float64)
    assert nt_xent(apart, apart) < nt_xent(apart, apart.roll(1, 0))


def test_contrast_has_a_gradient_in_both_views() -> None:
    first, second = random(3, 4).requires_grad_(), random(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(nt_xent, (first, second))
    torch.autograd.backward(nt_xent(first, second))
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    assert second.grad is not None
    assert second.grad.abs().sum() > 0


def test_out_of_range_values_are_refused() -> None:
    with pytest.raises(UsageError, match="temperature is 0"):
        nt_xent(units(), units(), temperature=0)
    with pytest.raises(UsageError, match="beta is 0"):
        draw_partners(3, beta=0, generator=torch.Generator())
