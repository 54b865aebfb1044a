"""Sizes and colors of images in the making."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hydistill_edge.synthesis.canvas import Canvas, coarse_sizes, plan_phases, to_uint8

Sizes = list[tuple[int, int]]


def canvas(side: int) -> Canvas:
    return Canvas(1, side, side, torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 0.25))


@pytest.mark.parametrize(
    ("size", "share", "expected"),
    [
        ((32, 32), None, []),
        ((64, 64), None, [(32, 32)]),
        ((64, 64), 0.5, [(32, 32)]),
        ((96, 96), None, [(48, 48)]),
        ((128, 97), None, [(64, 49)]),
        ((224, 224), None, [(56, 56), (112, 112)]),
        ((224, 224), 0.0, []),
    ],
    ids=str,
)
def test_large_images_start_small(
    size: tuple[int, int], share: float | None, expected: Sizes
) -> None:
    assert coarse_sizes(size, share) == expected


@pytest.mark.parametrize(
    ("coarse", "iterations", "share", "steps"),
    [
        ([], 100, None, [100]),
        ([(112, 112)], 100, None, [60, 40]),
        ([(56, 56), (112, 112)], 100, 0.5, [25, 25, 50]),
        ([(112, 112)], 4, 1.0, [3, 1]),
        ([(56, 56), (112, 112)], 1, None, [1]),
    ],
    ids=str,
)
def test_plan_ends_at_full_size_with_all_iterations_given(
    coarse: Sizes, iterations: int, share: float | None, steps: list[int]
) -> None:
    plan = plan_phases((224, 224), coarse, iterations=iterations, share=share)
    assert [phase.iterations for phase in plan] == steps
    assert plan[-1].size == (224, 224)


def test_enlarged_images_keep_their_content() -> None:
    small = torch.zeros(1, 1, 4, 4)
    small[..., 2:] = 1.0
    large = canvas(8).enlarged(small)
    assert large.shape == (1, 1, 8, 8)
    assert large[..., :3].max() == 0.0
    assert large[..., 5:].min() == 1.0


def test_noise_has_the_colors_of_the_data_and_valid_pixels() -> None:
    noise = canvas(16).smooth_noise(32, torch.Generator().manual_seed(0))
    pixels = canvas(16).pixels(noise)
    assert abs(pixels.mean().item() - 0.5) < 0.05
    assert pixels.std().item() == pytest.approx(0.25, abs=0.05)
    assert pixels.min().item() == pytest.approx(0.0, abs=1e-6)
    assert pixels.max().item() == pytest.approx(1.0, abs=1e-6)


def test_start_differs_in_brightness_and_contrast_when_spread() -> None:
    wide = canvas(32)
    wide = replace(wide, mean=torch.full_like(wide.mean, 0.5), std=torch.full_like(wide.std, 0.1))
    draw = [
        wide.smooth_noise(256, torch.Generator().manual_seed(0), spread=spread)
        for spread in (0.0, 0.5)
    ]
    brightness = [noise.mean(dim=(1, 2, 3)).var().item() for noise in draw]
    contrast = [noise.std(dim=(1, 2, 3)).log().std().item() for noise in draw]
    assert draw[1].std().item() == pytest.approx(1.0, abs=0.02)
    assert brightness[1] == pytest.approx(0.5, abs=0.12)
    assert brightness[0] < 0.05
    assert contrast[1] > 0.3 > contrast[0]


def test_pixels_become_bytes_in_the_order_of_image_files() -> None:
    pixels = torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1)
    assert to_uint8(pixels).tolist() == [[[[0, 255, 128]]]]
