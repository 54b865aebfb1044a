"""Batch statistics of what enters BatchNorm layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, ShapeError
from hydistill_edge.objectives.bn_statistics import (
    BatchStatistics,
    Distance,
    LayerStatistics,
    bn_distance,
    bn_layers,
    channel_moments,
)


def images(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def two_norms() -> nn.Sequential:
    network = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1)
    ).append(nn.BatchNorm2d(4))
    for _, norm in bn_layers(network):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_(generator=torch.Generator().manual_seed(1))
        norm.running_var.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    return network.eval().requires_grad_(False)


def layer(
    mean: list[float], variance: list[float], running_mean: list[float], running_var: list[float]
) -> LayerStatistics:
    tensors = [torch.tensor(v).double() for v in (mean, variance, running_mean, running_var)]
    return LayerStatistics("norm", tensors[0], tensors[1], tensors[2], tensors[3], 1e-5)


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 5, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_channel_moments_match_numpy(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    activations = images(*shape, dtype=dtype) * 2 + 3
    mean, variance = channel_moments(activations)
    values = np.moveaxis(activations.double().numpy(), 1, 0).reshape(shape[1], -1)
    np.testing.assert_allclose(mean.numpy(), values.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(variance.numpy(), values.var(axis=1), rtol=1e-4)


def test_channel_moments_are_the_same_when_memory_is_channels_last() -> None:
    activations = images(4, 8, 5, 6)
    last = activations.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(channel_moments(last), channel_moments(activations))


def test_channel_moments_gradient_is_exact() -> None:
    activations = images(3, 2, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(channel_moments, (activations,))


@pytest.mark.parametrize("distance", ["kl", "l2"])
def test_bn_distance_gradient_is_exact_and_not_zero(distance: Distance) -> None:
    def loss(mean: Tensor, variance: Tensor) -> Tensor:
        remembered = (torch.zeros(2).double(), torch.ones(2).double())
        return bn_distance(
            [LayerStatistics("a", mean, variance, *remembered, 1e-5)], distance=distance
        )

    inputs = (torch.tensor([0.5, -1.0]).double(), torch.tensor([0.3, 2.0]).double())
    inputs = tuple(tensor.requires_grad_() for tensor in inputs)  # type: ignore[assignment]
    assert torch.autograd.gradcheck(loss, inputs)
    assert all(g.abs().min() > 0.01 for g in torch.autograd.grad(loss(*inputs), inputs))


def test_reader_gives_input_statistics_of_every_layer_when_network_is_in_eval() -> None:
    network, batch = two_norms(), images(5, 2, 6, 6)
    with BatchStatistics(network) as reader:
        network(batch)
        first, second = reader.take()
    expected = network[0](batch)
    assert [first.name, second.name] == ["1", "4"]
    torch.testing.assert_close(first.mean, expected.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(first.variance, expected.var(dim=(0, 2, 3), correction=0))
    torch.testing.assert_close(second.mean, network[:4](batch).mean(dim=(0, 2, 3)))


def test_reader_leaves_network_as_it_was_when_it_is_closed() -> None:
    network, batch = two_norms(), images(5, 2, 6, 6)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    logits = network(batch)
    with BatchStatistics(network) as reader:
        torch.testing.assert_close(network(batch), logits, rtol=0, atol=0)
    network(batch)
    assert reader.take() == []
    assert not network.training
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_distance_reaches_the_pixels_when_network_is_frozen() -> None:
    network, pixels = two_norms(), images(5, 2, 6, 6).requires_grad_()
    with BatchStatistics(network) as reader:
        network(pixels)
        torch.autograd.backward(bn_distance(reader.take()))
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 1e-3


def test_reader_keeps_two_entries_when_a_layer_is_called_twice() -> None:
    norm = nn.BatchNorm1d(2).eval()
    with BatchStatistics(norm) as reader:
        norm(images(3, 2))
        norm(images(3, 2))
        assert len(reader.take()) == 2
        assert reader.take() == []


def test_layers_without_running_statistics_are_not_read() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.GroupNorm(1, 2))
    assert len(BatchStatistics(network)) == 0


def test_kl_equals_hand_computation() -> None:
    # N(1, 4) from N(0, 1): (4 + 1 - 1 - log 4) / 2; the second channel agrees.
    statistics = layer([1.0, 0.0], [4.0, 1.0], [0.0, 0.0], [1.0, 1.0])
    expected = 0.5 * (4 - np.log(4.0)) / 2
    assert bn_distance([statistics]).item() == pytest.approx(expected, rel=1e-4)


def test_l2_equals_hand_computation() -> None:
    statistics = layer([3.0, 4.0], [1.0, 1.0], [0.0, 0.0], [1.0, 3.0])
    assert bn_distance([statistics], weights=[1.0], distance="l2").item() == pytest.approx(7.0)


@pytest.mark.parametrize("distance", ["kl", "l2"])
def test_distance_is_zero_with_finite_gradient_when_statistics_agree(distance: Distance) -> None:
    mean, variance = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    same = LayerStatistics("a", mean, variance, torch.zeros(2), torch.ones(2), 1e-5)
    loss = bn_distance([same], distance=distance)
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert mean.grad is not None
    assert mean.grad.isfinite().all()


@pytest.mark.parametrize("distance", ["kl", "l2"])
def test_distance_stays_finite_when_a_running_variance_is_zero(distance: Distance) -> None:
    dead = layer([5.0, 0.0], [3.0, 1.0], [0.0, 0.0], [0.0, 1.0])
    assert bn_distance([dead], distance=distance).isfinite()


def test_kl_leaves_out_a_channel_that_training_never_moved() -> None:
    dead = layer([5.0, 0.0], [3.0, 1.0], [0.0, 0.0], [0.0, 1.0])
    assert bn_distance([dead]).item() == pytest.approx(0.0, abs=1e-6)


def test_weights_pick_the_layers() -> None:
    far, near = layer([3.0], [1.0], [0.0], [1.0]), layer([1.0], [1.0], [0.0], [1.0])
    only_near = bn_distance([far, near], weights=[0.0, 2.0])
    assert only_near.item() == pytest.approx(2 * bn_distance([near]).item())


def test_kl_is_the_same_when_activations_change_unit() -> None:
    in_volts = layer([1.0], [4.0], [0.5], [2.0])
    in_millivolts = layer([1e3], [4e6], [5e2], [2e6])
    assert bn_distance([in_millivolts]).item() == pytest.approx(
        bn_distance([in_volts]).item(), rel=1e-4
    )


def test_distance_is_refused_when_no_layer_was_read() -> None:
    with pytest.raises(MethodError, match="no BatchNorm"):
        bn_distance([])


def test_distance_is_refused_when_weights_are_missing() -> None:
    with pytest.raises(ShapeError, match="1 weights for 2 layers"):
        bn_distance([layer([0.0], [1.0], [0.0], [1.0])] * 2, weights=[1.0])


def test_moments_are_refused_when_batch_is_empty() -> None:
    with pytest.raises(ShapeError, match=r"\(0, 3\)"):
        channel_moments(torch.zeros(0, 3))
