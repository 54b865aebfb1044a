"""Misfit: by hand, its bound on the images a network remembers, and the network left alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hydistill_edge.objectives.misfit import reading_misfit


def norm(mean: list[float], variance: list[float]) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(mean)).eval()
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(torch.tensor(mean))
    layer.running_var.copy_(torch.tensor(variance))
    return layer


def test_misfit_by_hand() -> None:
    layer = norm([0.0, 1.0], [4.0, 0.25])
    images = torch.zeros(2, 2, 2, 2)
    images[0, 0] = 6.0  # three deviations from 0
    images[:, 1] = torch.tensor([[0.5, 1.5], [1.5, 2.5]])  # in the mean 1.5: one deviation
    with reading_misfit(layer) as reader:
        layer(images)
        misfit = reader.take()
    torch.testing.assert_close(misfit, torch.tensor([(9 + 1) / 2, 1 / 2]), rtol=1e-3, atol=0)


def test_layers_count_alike_and_vectors_too() -> None:
    network = nn.Sequential(norm([0.0], [1.0]), nn.Flatten(), nn.BatchNorm1d(4)).eval()
    images = torch.full((3, 1, 2, 2), 2.0)
    with reading_misfit(network) as reader:
        network(images)
        misfit = reader.take()
    torch.testing.assert_close(misfit, torch.full((3,), 4.0), rtol=1e-3, atol=0)


def test_a_channel_that_never_moved_does_not_count() -> None:
    layer = norm([0.0, 5.0], [1.0, 0.0])
    with reading_misfit(layer) as reader:
        layer(torch.ones(1, 2, 3, 3))
        assert reader.take().item() == pytest.approx(1.0, rel=1e-3)


def test_images_that_a_network_remembers_have_at_most_one_in_the_mean() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    )
    # Images differ from each other in light and contrast, and within themselves.
    light, contrast = torch.randn(512, 1, 1, 1), torch.rand(512, 1, 1, 1)
    images = light + contrast * torch.randn(512, 1, 8, 8)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the plain mean over all batches
    network.train()
    with torch.no_grad():
        network(images)
    network.eval()
    with reading_misfit(network) as reader, torch.no_grad():
        network(images)
        known = reader.take()
        network(10 * images)
        strange = reader.take()
    assert 0.3 < known.mean() <= 1.0
    assert strange.mean() > 10


def test_the_network_stays_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    with reading_misfit(network) as reader:
        assert reader
        network(torch.randn(2, 1, 4, 4))
        assert reader.take().shape == (2,)
    network(torch.randn(2, 1, 4, 4))
    assert not any(module._forward_pre_hooks for module in network.modules())
    with pytest.raises(RuntimeError, match="no BatchNorm layer was run"):
        reader.take()


def test_without_batchnorm_there_is_nothing_to_read() -> None:
    with reading_misfit(nn.Sequential(nn.Conv2d(1, 2, 1), nn.GroupNorm(1, 2))) as reader:
        assert not reader
