"""Augmentation of a whole batch where it lies: CPU or GPU, one code path, no loop over images.

Everything happens in pixels, [0, 1], and keeps to that range. One block of random numbers is drawn
per batch, always of the same size, so switching one strength does not change what the others do,
and equal generator states give equal images (a CPU generator with images on a GPU too).

Order: shift, crop and flip (exact, one gather), rotation, scale and resized crop (one bilinear
sampling), colour, cutout. What is off costs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hydistill_edge.errors import ShapeError, UsageError

LUMINANCE = (0.299, 0.587, 0.114)
"""ITU-R 601 weights of red, green and blue, as in `to_channels`."""

CUTOUT_FILL = 0.5
"""Mid-grey: what the student's own normalisation turns into zero."""

_DRAWS = (
    "shift_y", "shift_x", "crop_y", "crop_x", "flip", "angle", "scale", "area", "aspect",
    "center_y", "center_x", "brightness", "contrast", "saturation", "cutout_y", "cutout_x",
)  # fmt: skip


@dataclass(frozen=True)
class AugmentSettings:
    """What is done to a batch, and how strongly; all strengths are 0, off, by default.

    Attributes:
        shift: largest circular shift, in pixels, along both axes.
        crop_pad: pads by so many pixels on each side, then crops back at a random place.
        pad_mode: what stands in the padding: the mirrored image, or black. Also outside a rotated
            or shrunk image.
        flip: probability of a horizontal flip, 0 to 1.
        rotate: largest angle, in degrees, either way.
        scale: largest relative change of size, either way, below 1.
        resized_crop: largest share of the area that a crop leaves out, below 1; the rest is
            resized to the whole. Aspect ratios change by at most a third.
        brightness: factor between 1 - s and 1 + s, 0 to 1.
        contrast: the same, around the image's mean luminance.
        saturation: the same, around each pixel's luminance; does nothing to grey images.
        cutout: side of a grey square, in pixels, somewhere in the image or partly outside.

    Raises:
        UsageError: strengths out of range; all of them are listed.
    """

    shift: int = 0
    crop_pad: int = 0
    pad_mode: Literal["reflect", "zero"] = "reflect"
    flip: float = 0.0
    rotate: float = 0.0
    scale: float = 0.0
    resized_crop: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    cutout: int = 0

    def __post_init__(self) -> None:
        limits = {"rotate": 180.0, "scale": 0.9, "resized_crop": 0.99}
        pixels = ("shift", "crop_pad", "cutout")
        problems = []
        for entry in fields(self):
            if entry.name == "pad_mode":
                continue
            value = getattr(self, entry.name)
            limit = math.inf if entry.name in pixels else limits.get(entry.name, 1.0)
            whole = "a whole number of pixels" if entry.name in pixels else "a number"
            if (entry.name in pixels and value != int(value)) or not 0 <= value <= limit:
                problems.append(f"{entry.name} {value}; expected {whole} from 0 to {limit:g}")
        if self.pad_mode not in ("reflect", "zero"):
            problems.append(f"pad_mode {self.pad_mode!r}; expected reflect or zero")
        if problems:
            raise UsageError("augmentation: " + "; ".join(problems))


OPERATIONS = {
    "color": ("brightness", "contrast", "saturation"),
    "crop": ("crop_pad", "resized_crop"),
    "cutout": ("cutout",),
    "flip": ("flip",),
    "rotate": ("rotate",),
    "scale": ("scale",),
    "shift": ("shift",),
}
"""Operation -> its strengths; for `draw_operations`."""


def draw_operations(
    settings: AugmentSettings, count: int, choice: np.random.Generator
) -> AugmentSettings:
    """Return the settings with some of their operations, the others being off.

    Args:
        settings: all operations with their strengths; those that are off are never drawn.
        count: operations to draw, none of them twice; where there are fewer, all are taken.
        choice: draws them.

    Source: Zhao and Bilen 2021, arXiv:2102.08259, draws one for each batch; Zhong and Liu 2025,
    arXiv:2309.04195, draws two.
    """
    names = [name for name, keys in OPERATIONS.items() if any(getattr(settings, k) for k in keys)]
    drawn = choice.permutation(len(names))[:count]
    taken = {key for place in drawn for key in OPERATIONS[names[place]]}
    off: dict[str, Any] = {
        key: 0 for keys in OPERATIONS.values() for key in keys if key not in taken
    }
    return replace(settings, **off)


class Augment:
    """Augments batches by its settings.

        augment = Augment(AugmentSettings(crop_pad=4, flip=0.5, cutout=8))
        images = augment(images, generator=generator)

    Args:
        settings: what is done, and how strongly.
    """

    def __init__(self, settings: AugmentSettings) -> None:
        self.settings = settings

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return the batch augmented; gradients flow through.

        Args:
            images: shape (N, C, H, W), C = 1 or 3: float in [0, 1], or uint8.
            generator: on the images' device or on the CPU; advanced by the same amount each time.

        Returns:
            Shape (N, C, H, W) float in [0, 1] (float32 for uint8): the same tensor where all is
            off. The given tensor is never changed.

        Raises:
            ShapeError: not such a batch, or too small for the padding.
        """
        _check_batch(images)
        settings = self.settings
        draws = _draw(len(images), images, generator)
        out = images
        if settings.shift or settings.crop_pad or settings.flip:
            out = _move(out, draws, settings)
        out = out.float().div_(255) if out.dtype == torch.uint8 else out
        if settings.rotate or settings.scale or settings.resized_crop:
            out = _sample(out, draws, settings)
        if settings.brightness or settings.contrast or settings.saturation:
            out = _recolor(out, draws, settings)
        if settings.cutout:
            out = _cut_out(out, draws, settings.cutout)
        return out


class Mixed(NamedTuple):
    """Images blended in pairs: `lam * images + (1 - lam) * images[permutation]`.

    Attributes:
        images: shape (N, C, H, W).
        lam: share of the first image of each pair, shape (N,) float32 in [0, 1].
        permutation: place of each pair's second image, shape (N,) int64.
    """

    images: Tensor
    lam: Tensor
    permutation: Tensor


def mixup(
    images: Tensor, *, alpha: float, generator: torch.Generator, shared: bool = False
) -> Mixed:
    """Blend every image with another one of the batch, with shares from Beta(alpha, alpha).

    Args:
        images: shape (N, C, H, W) float in [0, 1].
        alpha: above 0; small values leave most images nearly whole, 1 makes all shares alike.
        generator: on any device.
        shared: one share for the whole batch, as published, instead of one per pair.

    Raises:
        UsageError: alpha is not above 0.
        ShapeError: not a batch of float images.

    Source: Zhang et al. 2018, arXiv:1710.09412; one share per pair, unless asked otherwise.
    """
    lam, permutation = _pairs(images, alpha=alpha, generator=generator, shared=shared)
    weight = lam.to(images.dtype)[:, None, None, None]
    return Mixed(torch.lerp(images[permutation], images, weight), lam, permutation)


def cutmix(images: Tensor, *, alpha: float, generator: torch.Generator) -> Mixed:
    """Put a box of another image of the batch into every image, of an area from Beta(alpha, alpha).

    Args:
        images: shape (N, C, H, W) float in [0, 1].
        alpha: above 0; 1 makes all areas alike.
        generator: on any device.

    Returns:
        The images; `lam` is the share of pixels that stayed, since a box at the border is cut.

    Raises:
        UsageError: alpha is not above 0.
        ShapeError: not a batch of float images.

    Source: Yun et al. 2019, arXiv:1905.04899; one box per pair.
    """
    lam, permutation = _pairs(images, alpha=alpha, generator=generator)
    height, width = images.shape[2:]
    side = (1.0 - lam).sqrt()
    places = torch.rand((2, len(images)), generator=generator, device=generator.device)
    rows = _covered(places[0].to(images.device), (side * height).round().long(), height)
    columns = _covered(places[1].to(images.device), (side * width).round().long(), width)
    box = rows[:, :, None] & columns[:, None, :]
    mixed = torch.where(box[:, None], images[permutation], images)
    return Mixed(mixed, 1.0 - box.float().mean((1, 2)), permutation)


def _pairs(
    images: Tensor, *, alpha: float, generator: torch.Generator, shared: bool = False
) -> tuple[Tensor, Tensor]:
    """Return shares and permutation as in `Mixed`, for images that may be blended."""
    if not alpha > 0:
        raise UsageError(f"mixing alpha {alpha}; expected above 0")
    _check_batch(images)
    if images.dtype == torch.uint8:
        raise ShapeError("mixing blends float images; got uint8")
    count = len(images)
    permutation = torch.randperm(count, generator=generator, device=generator.device)
    # torch has no Beta distribution that takes a generator; NumPy's is seeded from ours
    seed = torch.randint(2**63 - 1, (), generator=generator, device=generator.device)
    shares = np.random.default_rng(int(seed)).beta(alpha, alpha, 1 if shared else count)
    lam = torch.from_numpy(shares).float().to(images.device).expand(count)
    return lam, permutation.to(images.device)


def _covered(draw: Tensor, lengths: Tensor, size: int) -> Tensor:
    """Return which of `size` places lie within a stretch around a random one, shape (N, size)."""
    first = (draw * size).long() - lengths // 2
    distance = torch.arange(size, device=draw.device) - first[:, None]
    return (distance >= 0) & (distance < lengths[:, None])


def _check_batch(images: Tensor) -> None:
    known = images.dtype == torch.uint8 or images.is_floating_point()
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not known:
        raise ShapeError(
            f"images have shape {tuple(images.shape)} and dtype {images.dtype}; expected "
            "(N, 1 or 3, height, width), float in [0, 1] or uint8"
        )


def _draw(count: int, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw all random numbers of a batch: uniform in [0, 1), shape (N,) each."""
    block = torch.rand((len(_DRAWS), count), generator=generator, device=generator.device)
    return dict(zip(_DRAWS, block.to(images.device, non_blocking=True), strict=True))


def _whole(draw: Tensor, limit: int) -> Tensor:
    """Turn a uniform draw into whole numbers from -limit to limit."""
    return (draw * (2 * limit + 1)).long().clamp_(max=2 * limit) - limit


def _symmetric(draw: Tensor, limit: float) -> Tensor:
    """Turn a uniform draw into numbers from -limit to limit."""
    return (2 * draw - 1) * limit


def _move(images: Tensor, draws: dict[str, Tensor], settings: AugmentSettings) -> Tensor:
    """Shift, crop and flip by looking every pixel up once."""
    count, channels, height, width = images.shape
    pad = settings.crop_pad
    if settings.pad_mode == "reflect" and pad >= min(height, width):
        raise ShapeError(
            f"images of {height}x{width} pixels cannot be padded by {pad} mirrored ones; take "
            'fewer, or pad_mode "zero"'
        )
    rows = torch.arange(height, device=images.device) + _whole(draws["crop_y"], pad)[:, None]
    columns = torch.arange(width, device=images.device).expand(count, width)
    if settings.flip:
        flipped = draws["flip"][:, None] < settings.flip
        columns = torch.where(flipped, columns.flip(1), columns)
    columns = columns + _whole(draws["crop_x"], pad)[:, None]
    outside = None
    if pad and settings.pad_mode == "zero":
        outside = _outside(rows, height)[:, :, None] | _outside(columns, width)[:, None, :]
    rows = _inside(rows, height) - _whole(draws["shift_y"], settings.shift)[:, None]
    columns = _inside(columns, width) - _whole(draws["shift_x"], settings.shift)[:, None]
    # one flat gather is several times quicker on a CPU than indexing by (n, :, y, x)
    places = (rows.remainder(height) * width)[:, :, None] + columns.remainder(width)[:, None, :]
    places = places.reshape(count, 1, height * width).expand(count, channels, height * width)
    moved = images.reshape(count, channels, height * width).gather(2, places).view(images.shape)
    return moved if outside is None else moved.masked_fill_(outside[:, None], 0)


def _outside(places: Tensor, size: int) -> Tensor:
    return (places < 0) | (places >= size)


def _inside(places: Tensor, size: int) -> Tensor:
    """Mirror places outside back in, without repeating the border pixel."""
    return (size - 1) - ((size - 1) - places.abs()).abs()


def _sample(images: Tensor, draws: dict[str, Tensor], settings: AugmentSettings) -> Tensor:
    """Rotate, scale and crop by one bilinear sampling."""
    _, _, height, width = images.shape
    angle = _symmetric(draws["angle"], math.radians(settings.rotate))
    # the window that is looked at: smaller than 1 shows a part, enlarged
    zoom = 1 / (1 + _symmetric(draws["scale"], settings.scale))
    area = 1 - draws["area"] * settings.resized_crop
    stretch = torch.exp(_symmetric(draws["aspect"], 0.5 * math.log(4 / 3)))
    if not settings.resized_crop:
        stretch = torch.ones_like(stretch)
    crop_y = (area.sqrt() * stretch).clamp(max=1)
    crop_x = (area.sqrt() / stretch).clamp(max=1)
    cos, sin = angle.cos(), angle.sin()
    # coordinates run from -1 to 1 on both axes, so a turn has to undo the aspect ratio
    tall = height / width
    across = [cos * crop_x * zoom, -sin * crop_y * zoom * tall, _place(draws["center_x"], crop_x)]
    down = [sin * crop_x * zoom / tall, cos * crop_y * zoom, _place(draws["center_y"], crop_y)]
    theta = torch.stack([torch.stack(across, 1), torch.stack(down, 1)], 1)
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    mode = "reflection" if settings.pad_mode == "reflect" else "zeros"
    sampled = F.grid_sample(images, grid, padding_mode=mode, align_corners=False)
    return sampled.clamp_(0, 1)  # interpolation weights may add up to 1 + 1e-7


def _place(draw: Tensor, side: Tensor) -> Tensor:
    """Return a random centre for a window of the given side that stays inside."""
    return (2 * draw - 1) * (1 - side)


def _recolor(images: Tensor, draws: dict[str, Tensor], settings: AugmentSettings) -> Tensor:
    """Change saturation, contrast and brightness, in this order, as one weighted sum.

    With g a pixel's luminance and m the image's mean of it, which saturation does not change:
    b (c (s x + (1 - s) g) + (1 - c) m) = bcs x + bc(1 - s) g + b(1 - c) m.
    """

    def factor(name: str, strength: float) -> Tensor:
        value = 1 + _symmetric(draws[name], strength)
        return value.to(images.dtype)[:, None, None, None]

    b = factor("brightness", settings.brightness)
    c = factor("contrast", settings.contrast)
    colored = images.shape[1] == 3
    s = factor("saturation", settings.saturation if colored else 0.0)
    out = images * (b * c * s)
    if (settings.saturation and colored) or settings.contrast:
        luminance = _luminance(images)
        if settings.saturation and colored:
            out.addcmul_(luminance, b * c * (1 - s))
        if settings.contrast:
            out.add_(luminance.mean((2, 3), keepdim=True) * (b * (1 - c)))
    return out.clamp_(0, 1)


def _luminance(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(LUMINANCE, dtype=images.dtype, device=images.device)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def _cut_out(images: Tensor, draws: dict[str, Tensor], side: int) -> Tensor:
    """Fill a square around a random pixel; at the border a part of it falls outside."""
    sides = torch.full((len(images),), side, device=images.device)
    rows = _covered(draws["cutout_y"], sides, images.shape[2])
    columns = _covered(draws["cutout_x"], sides, images.shape[3])
    return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], CUTOUT_FILL)
