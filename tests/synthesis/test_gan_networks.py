"""Generator and discriminator of the GAN."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hydistill_edge.errors import UsageError
from hydistill_edge.synthesis.gan_networks import (
    NOISE,
    Discriminator,
    GanGenerator,
    base_width,
    discriminator_plan,
    generator_multipliers,
    halvings,
)


def tiny_generator(size: tuple[int, int] = (8, 8), channels: int = 1) -> GanGenerator:
    return GanGenerator(classes=3, channels=channels, size=size, base=8, seed=1)


def tiny_discriminator(size: tuple[int, int] = (8, 8), channels: int = 1) -> Discriminator:
    return Discriminator(classes=3, channels=channels, size=size, features=5, base=8, seed=2)


def draw(count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.randn((count, NOISE), generator=torch.Generator().manual_seed(0))
    return noise, torch.arange(count) % 3


def shape(network: nn.Module, layer: str) -> tuple[int, ...]:
    tensors = network.state_dict()
    normalised = f"{layer}.parametrizations.weight.original"
    return tuple(tensors[normalised if normalised in tensors else f"{layer}.weight"].shape)


def test_generator_has_the_published_shapes_at_32_px() -> None:
    generator = GanGenerator(classes=10, channels=3, size=(32, 32))
    assert shape(generator, "first") == (256 * 4 * 4, 128)
    assert [shape(generator, f"blocks.{i}.conv1") for i in range(3)] == [(256, 256, 3, 3)] * 3
    assert shape(generator, "last") == (3, 256, 3, 3)
    assert shape(generator, "blocks.0.norm1.gain") == (10, 256)
    assert generator(*draw(2)).shape == (2, 3, 32, 32)


def test_discriminator_has_the_published_shapes_at_32_px() -> None:
    discriminator = Discriminator(classes=10, channels=3, size=(32, 32), features=512)
    maps: list[tuple[int, ...]] = []
    for block in discriminator.trunk:
        block.register_forward_hook(lambda *found: maps.append(tuple(found[2].shape[1:])))
    judged = discriminator(torch.zeros(2, 3, 32, 32))
    assert maps == [(256, 16, 16), (256, 8, 8), (256, 8, 8), (256, 8, 8)]
    assert [block.skip is None for block in discriminator.trunk] == [False, False, True, True]
    assert [shape(discriminator, f"map.{i}") for i in (0, 1)] == [(1024, 256), (512, 1024)]
    assert (judged.adv.shape, judged.adc.shape, judged.mapped.shape) == ((2,), (2, 20), (2, 512))


def test_widths_are_the_published_ones_at_64_px() -> None:
    assert halvings((64, 64)) == 4
    assert generator_multipliers(4) == (16, 16, 8, 4, 2)
    assert discriminator_plan(4) == ((1, True), (2, True), (4, True), (8, True), (16, False))
    assert base_width((64, 64)) == 64


@pytest.mark.parametrize(("side", "base"), [(8, 16), (16, 32), (28, 56), (32, 64), (128, 64)])
def test_base_width_falls_with_the_side_below_32_px(side: int, base: int) -> None:
    assert base_width((side, side)) == base


@pytest.mark.parametrize(
    ("size", "channels"),
    [((8, 8), 1), ((16, 16), 3), ((28, 28), 1), ((9, 14), 3), ((64, 48), 1)],
    ids=str,
)
def test_networks_fit_any_size(size: tuple[int, int], channels: int) -> None:
    images = tiny_generator(size, channels)(*draw())
    assert images.shape == (4, channels, *size)
    assert images.abs().max() <= 1
    assert tiny_discriminator(size, channels)(images).adc.shape == (4, 6)


def test_size_below_8_px_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 8 px"):
        tiny_generator((7, 32))


def test_class_changes_the_image() -> None:
    generator = tiny_generator().eval()
    noise = draw(1)[0].expand(2, -1)
    first, second = generator(noise, torch.tensor([0, 1]))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("network", [tiny_generator(), tiny_discriminator()], ids=["g", "d"])
def test_every_convolution_and_linear_layer_is_normalised_and_has_a_bias(
    network: nn.Module,
) -> None:
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all("_u" in str(list(dict(layer.named_buffers()))) for layer in layers)
    assert all(layer.bias is not None for layer in layers)
    network.eval()
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item() for layer in layers]
    assert norms == pytest.approx([1.0] * len(norms), rel=0.2)


def test_power_iteration_moves_once_per_forward_in_training_only() -> None:
    discriminator = tiny_discriminator()
    once = copy.deepcopy(discriminator)
    images = torch.zeros(2, 1, 8, 8)
    discriminator(images)
    for layer in (m for m in once.modules() if isinstance(m, nn.Conv2d | nn.Linear)):
        _ = layer.weight  # one access, one iteration
    assert all(
        torch.equal(*pair) for pair in zip(discriminator.buffers(), once.buffers(), strict=True)
    )
    before = [buffer.clone() for buffer in discriminator.eval().buffers()]
    discriminator(images)
    after = list(discriminator.buffers())
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_weights_start_small_and_repeat_with_the_seed() -> None:
    first, second = tiny_generator().state_dict(), tiny_generator().state_dict()
    original = first["first.parametrizations.weight.original"]
    assert original.std().item() == pytest.approx(0.02, rel=0.1)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
