from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hydistill_edge.errors import ShapeError, UsageError
from hydistill_edge.images.augment import (
    CUTOUT_FILL,
    OPERATIONS,
    Augment,
    AugmentSettings,
    cutmix,
    draw_operations,
    mixup,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 8, channels: int = 3, height: int = 12, width: int = 10) -> Tensor:
    return torch.rand((count, channels, height, width), generator=generator(99))


def augmented(images: Tensor, seed: int = 0, **strengths: Any) -> Tensor:
    return Augment(AugmentSettings(**strengths))(images, generator=generator(seed))


STRONG: dict[str, Any] = {
    "shift": 3, "crop_pad": 3, "flip": 0.5, "rotate": 20, "scale": 0.2, "resized_crop": 0.4,
    "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "cutout": 4,
}  # fmt: skip


def test_settings_cover_every_strength_when_tests_run_over_them() -> None:
    assert {entry.name for entry in fields(AugmentSettings)} == {*STRONG, "pad_mode"}


def test_batch_is_the_same_tensor_when_all_is_off() -> None:
    images = batch()
    assert augmented(images) is images


def test_uint8_becomes_pixels_in_zero_to_one_when_all_is_off() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert augmented(images).flatten().tolist() == pytest.approx([0, 0.2, 1])


@pytest.mark.parametrize("name", STRONG)
def test_strength_changes_images_when_it_is_on(name: str) -> None:
    assert not torch.equal(augmented(batch(), **{name: STRONG[name]}), batch())


@pytest.mark.parametrize("name", STRONG)
def test_batch_is_left_alone_when_augmented(name: str) -> None:
    images = batch()
    augmented(images, **{name: STRONG[name]})
    assert torch.equal(images, batch())


@given(
    seed=st.integers(0, 2**32),
    names=st.sets(st.sampled_from(sorted(STRONG))),
    pad_mode=st.sampled_from(["reflect", "zero"]),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=40, deadline=None)
def test_pixels_stay_in_range_and_repeat_when_the_seed_does(
    seed: int, names: set[str], pad_mode: str, channels: int
) -> None:
    strengths = {"pad_mode": pad_mode, **{name: STRONG[name] for name in names}}
    images = batch(channels=channels)
    once = augmented(images, seed, **strengths)
    assert once.shape == images.shape
    assert once.min() >= 0
    assert once.max() <= 1
    assert torch.equal(once, augmented(images, seed, **strengths))


def test_generator_moves_equally_when_strengths_differ() -> None:
    first, second = generator(), generator()
    Augment(AugmentSettings())(batch(), generator=first)
    Augment(AugmentSettings(**STRONG))(batch(), generator=second)
    assert torch.equal(first.get_state(), second.get_state())


def test_images_differ_from_each_other_when_they_were_equal() -> None:
    images = batch(1).expand(8, -1, -1, -1)
    moved = augmented(images, crop_pad=3)
    assert len({tuple(image.flatten().tolist()) for image in moved}) > 1


# -- geometry --------------------------------------------------------------------------------------


def test_flip_twice_is_the_identity_when_certain() -> None:
    once = augmented(batch(), flip=1)
    assert torch.equal(once, batch().flip(3))
    assert torch.equal(augmented(once, flip=1), batch())


def test_flip_turns_about_half_when_the_probability_is_a_half() -> None:
    images = batch(400, height=4, width=4)
    flipped = (augmented(images, flip=0.5) == images.flip(3)).flatten(1).all(1)
    assert 0.4 < flipped.float().mean() < 0.6


def test_shift_keeps_every_pixel_when_it_is_circular() -> None:
    images = batch()
    moved = augmented(images, shift=5)
    assert torch.equal(moved.flatten(2).sort().values, images.flatten(2).sort().values)


def test_shift_equals_a_roll_when_one_pixel_is_followed() -> None:
    images = torch.zeros(200, 1, 9, 9)
    images[:, :, 4, 4] = 1
    places = augmented(images, shift=2).nonzero()
    assert len(places) == 200
    assert set(places[:, 2].tolist()) == {2, 3, 4, 5, 6}
    assert set(places[:, 3].tolist()) == {2, 3, 4, 5, 6}


@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_crop_is_a_window_of_the_padded_image_when_compared_with_padding(mode: str) -> None:
    images, pad = batch(6), 3
    how = "reflect" if mode == "reflect" else "constant"
    padded = torch.nn.functional.pad(images, (pad,) * 4, mode=how)
    windows = padded.unfold(2, 12, 1).unfold(3, 10, 1).flatten(2, 3)
    moved = augmented(images, crop_pad=pad, pad_mode=mode)
    matches = (windows == moved[:, :, None]).all(-1).all(-1).all(1)
    assert (matches.sum(1) == 1).all()


def test_crop_reaches_every_place_when_there_are_many_images() -> None:
    images = torch.zeros(500, 1, 7, 7)
    images[:, :, 3, 3] = 1
    places = augmented(images, crop_pad=2, pad_mode="zero").nonzero()[:, 2:]
    assert {tuple(place) for place in places.tolist()} == {
        (y, x) for y in range(1, 6) for x in range(1, 6)
    }


def test_crop_is_refused_when_the_image_is_too_small_to_mirror() -> None:
    with pytest.raises(ShapeError, match="cannot be padded by 4 mirrored"):
        augmented(batch(height=4), crop_pad=4)


def test_uint8_and_float_agree_when_moved_alike() -> None:
    raw = (batch() * 255).to(torch.uint8)
    strengths = {**STRONG, "pad_mode": "zero"}
    assert torch.allclose(augmented(raw, **strengths), augmented(raw / 255, **strengths), atol=1e-6)


def test_rotation_keeps_circles_when_images_are_not_square() -> None:
    y, x = torch.meshgrid(torch.arange(20) - 9.5, torch.arange(30) - 14.5, indexing="ij")
    disc = ((y**2 + x**2) < 49).float().expand(16, 1, 20, 30)
    turned = augmented(disc, rotate=180, pad_mode="zero")
    assert (turned - disc).abs().mean() < 0.03


def test_rotation_moves_a_dot_by_at_most_the_angle_when_followed() -> None:
    images = torch.zeros(200, 1, 41, 41)
    images[:, :, 20, 38:40] = 1
    turned = augmented(images, rotate=30, pad_mode="zero").squeeze(1)
    rows = torch.arange(41) - 20.0
    mass = turned.sum((1, 2))
    angles = torch.atan2(
        (turned.sum(2) * rows).sum(1) / mass, (turned.sum(1) * rows).sum(1) / mass
    ) * (180 / math.pi)
    assert angles.abs().max() <= 30.5
    assert angles.abs().max() > 25


def test_scale_changes_the_area_when_a_square_is_watched() -> None:
    images = torch.zeros(100, 1, 40, 40)
    images[:, :, 10:30, 10:30] = 1
    areas = augmented(images, scale=0.25, pad_mode="zero").sum((1, 2, 3)) / 400
    assert 0.5 < areas.min() < 0.65
    assert 1.4 < areas.max() < 1.6


def test_resized_crop_shows_only_the_inside_when_a_ramp_is_watched() -> None:
    ramp = torch.linspace(0, 1, 32).expand(100, 1, 32, 32)
    span = augmented(ramp, resized_crop=0.75).flatten(1)
    widths = span.max(1).values - span.min(1).values
    assert 0.4 < widths.min() < 0.65
    assert widths.max() <= 1


# -- colour, cutout --------------------------------------------------------------------------------


def test_brightness_multiplies_when_alone() -> None:
    images = batch() / 2
    factors = (augmented(images, brightness=0.4) / images).flatten(1)
    assert (factors.max(1).values - factors.min(1).values).max() < 1e-5
    assert 0.6 - 1e-5 <= factors.min() < 0.9
    assert 1.1 < factors.max() <= 1.4 + 1e-5


def test_contrast_keeps_the_mean_luminance_when_nothing_is_clipped() -> None:
    images = 0.4 + 0.2 * batch()
    changed = augmented(images, contrast=0.5)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    means = [(pixels * weights).sum(1).mean((1, 2)) for pixels in (images, changed)]
    assert torch.allclose(means[0], means[1], atol=1e-5)
    assert not torch.allclose(images.std((1, 2, 3)), changed.std((1, 2, 3)), rtol=0.05)


def test_saturation_keeps_every_luminance_when_nothing_is_clipped() -> None:
    images = 0.4 + 0.2 * batch()
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    changed = augmented(images, saturation=0.8)
    assert torch.allclose((images * weights).sum(1), (changed * weights).sum(1), atol=1e-5)


def test_saturation_does_nothing_when_images_are_grey() -> None:
    images = batch(channels=1)
    assert torch.allclose(augmented(images, saturation=1), images)


def test_color_follows_the_definition_when_all_three_are_on() -> None:
    images = 0.4 + 0.1 * batch(2)
    got = augmented(images, brightness=0.2, contrast=0.2, saturation=0.2)
    block = torch.rand((16, 2), generator=generator())
    b, c, s = (1 + (2 * block[row] - 1) * 0.2 for row in (11, 12, 13))
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    for place in range(2):
        image = images[place]
        grey = (image * weights).sum(0, keepdim=True)
        image = grey + s[place] * (image - grey)
        mean = (image * weights).sum(0).mean()
        expected = b[place] * (mean + c[place] * (image - mean))
        assert torch.allclose(got[place], expected, atol=1e-6)


def test_cutout_fills_one_square_when_on() -> None:
    cut = augmented(torch.zeros(300, 3, 12, 12), cutout=4)
    filled = cut == CUTOUT_FILL
    assert (filled[:, 0] == filled[:, 2]).all()
    areas = filled[:, 0].sum((1, 2))
    assert areas.max() == 16
    assert areas.min() >= 4
    assert cut[~filled].max() == 0


def test_gradients_flow_when_everything_is_on() -> None:
    images = batch().requires_grad_()
    augmented(images, **STRONG).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_gradients_are_true_when_checked_by_differences() -> None:
    images = (0.4 + 0.2 * batch(2, height=6, width=6)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda pixels: augmented(pixels, **STRONG), (images,))


# -- mixup -----------------------------------------------------------------------------------------


def test_mixup_blends_pairs_when_shares_are_drawn() -> None:
    images = batch()
    mixed = mixup(images, alpha=1.0, generator=generator())
    for place in range(len(images)):
        lam, partner = mixed.lam[place], int(mixed.permutation[place])
        expected = lam * images[place] + (1 - lam) * images[partner]
        assert torch.allclose(mixed.images[place], expected, atol=1e-6)


def test_mixup_has_one_share_for_the_batch_when_it_is_shared() -> None:
    mixed = mixup(batch(), alpha=0.8, generator=generator(), shared=True)
    assert mixed.lam.shape == (len(batch()),)
    assert len(set(mixed.lam.tolist())) == 1


def test_mixup_repeats_when_the_seed_does() -> None:
    first, second = (mixup(batch(), alpha=0.4, generator=generator(5)) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert sorted(first.permutation.tolist()) == list(range(8))


def test_mixup_shares_have_the_variance_of_beta_when_many_are_drawn() -> None:
    lam = mixup(torch.zeros(5000, 1, 1, 1), alpha=0.5, generator=generator()).lam
    assert lam.mean() == pytest.approx(0.5, abs=0.02)
    assert lam.var() == pytest.approx(0.125, abs=0.01)  # 1 / (4 (2 alpha + 1))


def test_cutmix_takes_boxes_and_tells_the_share_that_stayed() -> None:
    images = torch.arange(6).float().div(6)[:, None, None, None].expand(6, 3, 12, 10).contiguous()
    mixed = cutmix(images, alpha=1.0, generator=generator())
    other = images[mixed.permutation]
    stayed = mixed.images == images
    assert ((mixed.images == other) | stayed).all()
    for row in range(6):
        if mixed.permutation[row] == row:
            continue
        places = (~stayed[row, 0]).nonzero()
        assert mixed.lam[row] == pytest.approx(1 - len(places) / 120)
        if len(places):
            top, left = places.amin(0).tolist()
            bottom, right = places.amax(0).tolist()
            assert len(places) == (bottom + 1 - top) * (right + 1 - left)


def test_cutmix_boxes_have_the_drawn_areas_when_none_is_cut_off() -> None:
    lam = cutmix(torch.zeros(4000, 1, 40, 40), alpha=1.0, generator=generator()).lam
    # Mean area of a box around any place, cut at the border: E[(s - s^2 / 4)^2], s = sqrt(uniform).
    assert 1 - lam.mean().item() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.01)
    assert lam.min() < 0.1
    assert lam.max() > 0.99


def test_cutmix_repeats_when_the_seed_does() -> None:
    first, second = (cutmix(batch(), alpha=1.0, generator=generator(5)) for _ in range(2))
    assert torch.equal(first.images, second.images)


def test_mixup_is_refused_when_alpha_is_zero() -> None:
    with pytest.raises(UsageError, match="alpha 0"):
        mixup(batch(), alpha=0, generator=generator())


# -- what does not fit -----------------------------------------------------------------------------


def test_settings_list_every_problem_when_several_are_wrong() -> None:
    with pytest.raises(UsageError) as caught:
        AugmentSettings(flip=1.5, crop_pad=-1, scale=1.0, pad_mode="mirror")  # type: ignore[arg-type]
    for part in ("flip 1.5", "crop_pad -1", "scale 1.0", "pad_mode 'mirror'"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.int64)],
    ids=["no batch", "four channels", "int64"],
)
def test_batch_is_refused_when_it_holds_no_images(images: Tensor) -> None:
    with pytest.raises(ShapeError, match="expected"):
        augmented(images)


@pytest.mark.gpu
def test_cpu_and_gpu_agree_when_the_generator_is_on_the_cpu() -> None:
    images = batch()
    on_gpu = augmented(images.cuda(), **STRONG)
    assert torch.allclose(on_gpu.cpu(), augmented(images, **STRONG), atol=1e-5)


def operations_of(strengths: AugmentSettings) -> tuple[str, ...]:
    """The operations that are on."""
    return tuple(
        name for name, keys in OPERATIONS.items() if any(getattr(strengths, key) for key in keys)
    )


def test_operations_cover_every_strength() -> None:
    grouped = [key for keys in OPERATIONS.values() for key in keys]
    assert sorted(grouped) == sorted(STRONG)


def test_two_different_operations_are_drawn_each_pair_as_often() -> None:
    choice = np.random.default_rng(0)
    drawn = Counter(
        operations_of(draw_operations(AugmentSettings(**STRONG), 2, choice)) for _ in range(2100)
    )
    assert len(drawn) == 21  # pairs of seven
    assert all(len(pair) == 2 and 60 <= count <= 140 for pair, count in drawn.items())


def test_drawn_operations_keep_their_strengths_and_what_is_off_stays_off() -> None:
    given = replace(AugmentSettings(**STRONG), pad_mode="zero", flip=0.0, scale=0.0)
    for seed in range(30):
        found = draw_operations(given, 1, np.random.default_rng(seed))
        (name,) = operations_of(found)
        assert name not in ("flip", "scale")
        assert found.pad_mode == "zero"
        assert all(getattr(found, key) == STRONG[key] for key in OPERATIONS[name])


@pytest.mark.parametrize("count", [2, 5])
def test_all_operations_are_taken_when_there_are_no_more(count: int) -> None:
    given = AugmentSettings(flip=0.5, brightness=0.2, contrast=0.1)
    assert draw_operations(given, count, np.random.default_rng(0)) == given


def test_nothing_is_drawn_when_no_operation_is_asked_for() -> None:
    assert draw_operations(AugmentSettings(**STRONG), 0, np.random.default_rng(0)) == (
        AugmentSettings()
    )
