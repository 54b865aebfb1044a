"""The network that paints a batch."""

from __future__ import annotations

import pytest
import torch

from hydistill_edge.synthesis.canvas import Canvas
from hydistill_edge.synthesis.generator import Generator


def canvas(height: int, width: int, channels: int = 3) -> Canvas:
    shape = (1, channels, 1, 1)
    return Canvas(channels, height, width, torch.full(shape, 0.4), torch.full(shape, 0.2))


def painted(generator: Generator, seed: int = 0) -> torch.Tensor:
    images: torch.Tensor = generator(generator.codes(6, torch.Generator().manual_seed(seed)))
    return images


@pytest.mark.parametrize("size", [(8, 8), (10, 7), (3, 5)], ids=str)
def test_painted_images_have_the_size_and_valid_pixels(size: tuple[int, int]) -> None:
    pixels = canvas(*size).pixels(painted(Generator(canvas(*size), seed=0, width=4)))
    assert pixels.shape == (6, 3, *size)
    assert pixels.min().item() >= -1e-6
    assert pixels.max().item() <= 1 + 1e-6


def test_painted_images_differ_and_repeat_with_their_seeds() -> None:
    first, again, other = (Generator(canvas(8, 8), seed=seed, width=4) for seed in (0, 0, 1))
    torch.testing.assert_close(painted(first), painted(again))
    assert (painted(first) - painted(other)).abs().max() > 0.1
    assert (painted(first, 0) - painted(first, 1)).abs().max() > 0.1


def test_weights_and_codes_have_a_gradient() -> None:
    generator = Generator(canvas(8, 8, 1), seed=0, width=4)
    codes = generator.codes(6, torch.Generator().manual_seed(0)).requires_grad_()
    torch.autograd.backward(generator(codes)[..., :4].square().mean())
    assert codes.grad is not None
    assert codes.grad.abs().max() > 0
    assert all(part.grad is not None for part in generator.parameters())


def test_global_generator_is_left_as_it_was() -> None:
    before = torch.random.get_rng_state()
    Generator(canvas(8, 8), seed=5, width=4)
    assert torch.equal(before, torch.random.get_rng_state())
