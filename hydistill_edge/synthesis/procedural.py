"""Images from formulas: textures, shapes and both together, of no data and no network.

Source: Baradad et al. 2021, "Learning to See by Looking at Noise", arXiv:2106.05963, which trains
on images of two such families: noise with the power spectrum of natural images, and dead leaves
(Lee, Mumford and Huang 2001), shapes that cover each other. Bent by simple functions, laid over
each other and colored, they are what all pictures have in common: edges, grain, stripes, spots.

An image inverted from a network satisfies that network, pixel by pixel; shifted by two pixels it
may no longer. Images from formulas look alike wherever they are shifted to, and each one costs a
millisecond. `procedural_set.py` chooses among them by what the teacher sees in them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Images = NDArray[np.uint8]

MEAN, STD = 0.5, 0.2
"""Brightness and contrast, in [0, 1], where the network's own normalization is not of pixels."""

_LEAST_STD, _MOST_STD = 0.05, 0.45
_EPSILON = 1e-6


def draw(
    first: int,
    count: int,
    *,
    size: tuple[int, int],
    channels: int,
    mean: Sequence[float] = (MEAN,),
    std: Sequence[float] = (STD,),
    seed: int = 0,
) -> Images:
    """Return images number `first` to `first + count` of a seed.

    Args:
        first: number of the first one; an image depends on its number and the seed alone.
        count: how many.
        size: height and width in pixels.
        channels: 1 or 3.
        mean: of the pixels in [0, 1], per channel, as the network is normalized; brightness varies
            around it. Taken as `MEAN` and `STD` where it cannot be of pixels, as 0 and 1 cannot.
        std: of the pixels, the same way.
        seed: another seed, other images.

    Returns:
        Shape (count, H, W, C) uint8.
    """
    center, spread = _brightness(mean, std)
    images = np.empty((count, *size, channels), np.uint8)
    for place in range(count):
        choice = np.random.default_rng([seed, first + place])
        light = np.clip(choice.normal(center, 0.7 * spread), 0.05, 0.95)
        contrast = spread * np.exp(0.5 * choice.normal())
        colored = _colored(size, choice) if channels == 3 else _picture(size, choice)[..., None]
        images[place] = np.clip(255 * (light + contrast * colored), 0, 255)
    return images


def _brightness(mean: Sequence[float], std: Sequence[float]) -> tuple[float, float]:
    center, spread = float(np.mean(mean)), float(np.mean(std))
    is_of_pixels = 0 < center < 1 and _LEAST_STD <= spread <= _MOST_STD
    return (center, spread) if is_of_pixels else (MEAN, STD)


def _colored(size: tuple[int, int], choice: np.random.Generator) -> Field:
    """Return a picture in three channels: light and shade, and two tints that are weaker."""
    light, first, second = (_picture(size, choice) for _ in range(3))
    strength = np.exp(choice.uniform(np.log(0.03), np.log(0.8)))
    tints = strength * choice.normal(size=(2, 3))
    cast = choice.uniform(0, 0.8) * choice.normal(size=3)
    colored = light[..., None] + first[..., None] * tints[0] + second[..., None] * tints[1] + cast
    return np.asarray(colored, np.float32)


def _picture(size: tuple[int, int], choice: np.random.Generator) -> Field:
    """Return a texture, leaves, two textures side by side, or leaves with grain; mean 0, std 1."""
    kind = choice.random()
    if kind < 0.35:
        picture = _texture(size, choice)
    elif kind < 0.6:
        picture = _leaves(size, choice)
    elif kind < 0.85:
        share = _step(
            _spectrum(size, choice), at=choice.uniform(-1, 2), slope=choice.uniform(2, 15)
        )
        under = choice.uniform(0.1, 1) * _texture(size, choice)
        over = choice.uniform(0.1, 1) * _texture(size, choice) + 1.5 * choice.normal()
        picture = (1 - share) * under + share * over
    else:
        grain = choice.uniform(0.1, 1) * _texture(size, choice)
        picture = choice.uniform(0.3, 1) * _leaves(size, choice) + grain
    return _standardized(picture)


def _texture(size: tuple[int, int], choice: np.random.Generator) -> Field:
    """Return noise, as it is or bent: blotches, ridges, grooves, spots or peaks."""
    noise = _spectrum(size, choice)
    kind = choice.integers(6)
    if kind == 0:
        return noise
    if kind == 1:
        return np.asarray(np.tanh(choice.uniform(0.5, 6) * noise))
    if kind == 2:
        return np.abs(noise)
    if kind == 3:
        return -np.abs(noise)
    if kind == 4:
        return _step(noise, at=choice.uniform(-1.5, 1.5), slope=choice.uniform(2, 20))
    return np.asarray(np.exp(choice.uniform(0.3, 1) * noise))


def _spectrum(size: tuple[int, int], choice: np.random.Generator) -> Field:
    """Return noise whose power falls with frequency, or lies in one band; often with a grain."""
    rows, columns = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    angle = choice.uniform(0, np.pi)
    stretch = np.exp(choice.uniform(0, 2.5)) if choice.random() < 0.6 else 1.0
    along = (columns * np.cos(angle) + rows * np.sin(angle)) * stretch
    across = (rows * np.cos(angle) - columns * np.sin(angle)) / stretch
    lowest = choice.uniform(0.3, 2) / max(size)
    frequency = np.sqrt(along**2 + across**2 + lowest**2)
    if choice.random() < 0.25:
        middle = choice.uniform(0.03, 0.35)
        amplitude = np.exp(-(((frequency - middle) / (0.3 * middle + 0.01)) ** 2))
    else:
        amplitude = frequency ** -choice.uniform(0.5, 3.5)
    phases = choice.normal(size=amplitude.shape) + 1j * choice.normal(size=amplitude.shape)
    return _standardized(np.fft.irfft2(amplitude * phases, s=size))


def _leaves(size: tuple[int, int], choice: np.random.Generator) -> Field:
    """Return shapes that cover each other: ellipses, boxes, lines or all of them."""
    side = max(size)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    image = np.full(size, choice.normal(), np.float32)
    grains = [_spectrum(size, choice) for _ in range(4)] if choice.random() < 0.5 else []
    kind = choice.integers(4)
    for _ in range(int(np.exp(choice.uniform(np.log(3), np.log(80))))):
        radius = side * np.exp(choice.uniform(np.log(0.02), np.log(0.4)))
        down, across = choice.uniform(-0.1, 1.1, 2) * size
        angle, slender = choice.uniform(0, np.pi), np.exp(0.7 * choice.normal())
        u = ((x - across) * np.cos(angle) + (y - down) * np.sin(angle)) / slender
        v = ((y - down) * np.cos(angle) - (x - across) * np.sin(angle)) * slender
        shape = kind if kind < 3 else choice.integers(3)
        if shape == 0:
            inside = u * u + v * v < radius * radius
        elif shape == 1:
            inside = (np.abs(u) < radius) & (np.abs(v) < radius)
        else:
            inside = (np.abs(u) < 3 * radius) & (np.abs(v) < max(0.6, 0.08 * radius))
        tone = np.float32(choice.normal())
        if grains:
            grain = grains[choice.integers(4)] * np.float32(choice.uniform(0, 0.5))
            image[inside] = tone + grain[inside]
        else:
            image[inside] = tone
    return image


def _step(values: Field, *, at: float, slope: float) -> Field:
    """Return a soft threshold in [0, 1]."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * slope * (values - at)))


def _standardized(values: NDArray[np.floating]) -> Field:
    """Return values of mean 0 and standard deviation 1; all 0 where they are all alike."""
    centered = values - values.mean()
    return np.asarray(centered / (centered.std() + _EPSILON), np.float32)
