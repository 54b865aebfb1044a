from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from hydistill_edge.errors import ImageSourceError, MissingFileError, ShapeError
from hydistill_edge.images.resize import RESIZE_RULE, RULES, decode, resize, to_channels


def random_image(height: int = 12, width: int = 9, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_resize_returns_the_same_array_when_the_size_is_equal() -> None:
    image = random_image()
    assert resize(image, (12, 9)) is image


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_keeps_the_channel_count_when_the_size_changes(channels: int) -> None:
    assert resize(random_image(channels=channels), (5, 20)).shape == (5, 20, channels)


def test_resize_averages_over_the_whole_image_when_it_shrinks() -> None:
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 200  # without antialiasing only 0 or 200 could come out
    assert np.abs(resize(stripes, (8, 8)).astype(int) - 100).max() <= 4


def test_resize_gives_weights_of_a_triangle_when_two_pixels_become_one() -> None:
    row = np.array([[[0], [100], [200], [50]]], np.uint8)
    # scale 2: centre 1.0 and 3.0, triangle of half width 2, weights 3:3:1 and 1:3:3
    expected = [(0 * 3 + 100 * 3 + 200 * 1) / 7, (100 * 1 + 200 * 3 + 50 * 3) / 7]
    assert resize(row, (1, 2)).ravel().tolist() == [round(value) for value in expected]


def test_rules_contain_the_named_rule_when_looked_up() -> None:
    assert RULES[RESIZE_RULE] is resize


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.float32)],
    ids=["two axes", "two channels", "float"],
)
def test_resize_refuses_when_the_array_is_no_image(image: NDArray[np.uint8]) -> None:
    with pytest.raises(ShapeError, match="expected \\(height, width, 1 or 3\\) uint8"):
        resize(image, (2, 2))


def test_resize_refuses_when_the_size_is_zero() -> None:
    with pytest.raises(ShapeError, match="0x4"):
        resize(random_image(), (0, 4))


def test_channels_repeat_when_grey_becomes_rgb() -> None:
    grey = random_image(channels=1)
    assert (to_channels(grey, 3) == grey).all()


def test_channels_become_luminance_when_rgb_becomes_grey() -> None:
    image = random_image()
    luminance = image.astype(float) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(to_channels(image, 1)[:, :, 0] - luminance).max() <= 0.51


def test_channels_refuse_when_the_count_is_four() -> None:
    with pytest.raises(ShapeError, match="4 channels"):
        to_channels(random_image(), 4)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_decode_returns_the_pixels_when_the_format_is_lossless(kind: str) -> None:
    image = random_image()
    assert (decode(encoded(Image.fromarray(image), kind)) == image).all()


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)],
)
def test_decode_gives_grey_or_rgb_when_the_mode_is_another(mode: str, channels: int) -> None:
    source = Image.fromarray(random_image()).convert(mode)
    assert decode(encoded(source)).shape == (12, 9, channels)


def test_decode_scales_to_eight_bits_when_pixels_have_sixteen() -> None:
    wide = np.array([[0, 257, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(wide))).ravel().tolist() == [0, 1, 255]


def test_decode_accepts_an_opened_image_when_given_one() -> None:
    image = random_image()
    assert (decode(Image.fromarray(image)) == image).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_decode_names_the_file_when_it_is_truncated(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "part-7.img"
    data = encoded(Image.fromarray(random_image(64, 64)), kind)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageSourceError, match=r"part-7\.img: truncated or corrupt"):
        decode(path)


def test_decode_names_the_formats_when_bytes_are_random() -> None:
    noise = np.random.default_rng(1).bytes(500)
    with pytest.raises(ImageSourceError, match=r"frame: not an image.*PNG"):
        decode(noise, name="frame")


def test_decode_refuses_before_decoding_when_there_are_too_many_pixels() -> None:
    with pytest.raises(ImageSourceError, match="9x12 is 108 pixels; at most 100"):
        decode(encoded(Image.fromarray(random_image())), max_pixels=100)


def test_decode_refuses_when_pixels_are_floats() -> None:
    floats = Image.fromarray(np.zeros((3, 3), np.float32))
    with pytest.raises(ImageSourceError, match="floating-point"):
        decode(encoded(floats, "TIFF"))


def test_decode_says_missing_when_the_path_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.png"):
        decode(tmp_path / "nowhere.png")


def test_import_needs_neither_torch_nor_runtime_when_on_a_device() -> None:
    code = "import sys, hydistill_edge.images.resize; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP"]))
@settings(max_examples=60, deadline=None)
def test_decode_gives_pixels_or_one_clear_error_when_bytes_are_altered(
    seed: int, kind: str
) -> None:
    random = np.random.default_rng(seed)
    content = bytearray(encoded(Image.fromarray(random_image()), kind))
    for place in random.integers(0, len(content), 3):
        content[place] = random.integers(256)
    try:
        pixels = decode(bytes(content), max_pixels=10_000)
    except ImageSourceError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] in (1, 3)
