from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from hydistill_edge.errors import ShapeError, UsageError
from hydistill_edge.models.pixels import InputSpec, PixelInput, adapt_pixels, as_float_pixels

GREY = InputSpec(4, 4, 1, (0.5,), (0.25,))
RGB = InputSpec(4, 4, 3, (0.5, 0.4, 0.3), (0.1, 0.2, 0.5))


def test_pixel_input_normalizes_each_channel_when_given_floats() -> None:
    pixels = torch.full((1, 3, 4, 4), 0.6)
    found = PixelInput(RGB)(pixels)[0, :, 0, 0]
    assert found.tolist() == pytest.approx([1.0, 1.0, 0.6])


def test_pixel_input_gives_the_same_when_given_uint8() -> None:
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    torch.testing.assert_close(PixelInput(RGB)(pixels), PixelInput(RGB)(pixels.float() / 255))


def test_pixel_input_repeats_grey_when_the_network_has_three_channels() -> None:
    found = adapt_pixels(torch.rand(1, 1, 4, 4), channels=3, size=(4, 4))
    assert torch.equal(found[:, 0], found[:, 2])


def test_pixel_input_takes_the_luminance_when_the_network_is_grey() -> None:
    image = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    found = adapt_pixels(torch.from_numpy(image).permute(2, 0, 1)[None], channels=1, size=(4, 4))
    wanted = np.asarray(Image.fromarray(image).convert("L"))
    assert np.abs(found[0, 0].numpy() * 255 - wanted).max() <= 1.0  # Pillow rounds


def test_resize_matches_pillow_when_sizes_differ() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 12), dtype=np.uint8)
    found = adapt_pixels(torch.from_numpy(image)[None, None], channels=1, size=(4, 5))
    wanted = np.asarray(Image.fromarray(image).resize((5, 4), Image.Resampling.BILINEAR))
    assert np.abs(found[0, 0].numpy() * 255 - wanted).max() <= 1.0  # Pillow rounds


def test_gradients_flow_through_every_adaption() -> None:
    pixels = torch.rand(1, 3, 9, 9, requires_grad=True)
    PixelInput(GREY)(pixels).square().sum().backward()
    assert pixels.grad is not None
    assert bool((pixels.grad != 0).all())


@pytest.mark.parametrize(
    "pixels",
    [
        pytest.param(torch.zeros(3, 4, 4), id="no-batch"),
        pytest.param(torch.zeros(1, 3, 4, 4, dtype=torch.int64), id="int64"),
        pytest.param(torch.zeros(1, 2, 4, 4), id="two-channels"),
    ],
)
def test_pixels_are_refused_when_they_cannot_be_images(pixels: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match=r"expected|only"):
        PixelInput(RGB)(pixels)


def test_float_pixels_pass_untouched() -> None:
    pixels = torch.rand(1, 1, 2, 2)
    assert as_float_pixels(pixels) is pixels


def test_input_spec_tells_all_problems_when_several_are_wrong() -> None:
    with pytest.raises(UsageError) as caught:
        InputSpec(0, 4, 3, (125.0,), (0.0, 0.1, 0.1))
    message = str(caught.value)
    assert all(part in message for part in ("height 0", "1 values for 3", "mean 125.0", "std 0.0"))


def test_input_spec_is_a_value() -> None:
    assert InputSpec(4, 4, 1, (0.5,), (0.25,)) == GREY
    assert GREY.size == (4, 4)
