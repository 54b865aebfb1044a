"""Images from a trained network alone: pixels optimized until the network recognizes its past.

Source: Yin et al. 2020, "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion",
arXiv:1912.08795. A BatchNorm layer remembers mean and variance of its input over the training
images; noise is optimized until a batch has the same statistics in every layer and each image the
class that was asked for.

What it needs: a network with BatchNorm layers. Without them (GroupNorm, LayerNorm, BatchNorm folded
in an ONNX file) the class prior and smoothness remain; the result says so in `note`.
What it gives: uint8 images, as many per class as were asked for, and the loss of every term.

Where this departs from the paper and its released code, and why:

- Statistics are compared by the divergence of normal distributions per channel rather than by
  unsquared norms summed over layers: free of units, so one setting serves shallow and deep nets.
- Pixels are kept in [0, 1], so that what is optimized is what is stored; step sizes stay the
  published ones, in units of the network's standard deviation.
- A large batch, a large step that falls along a cosine, and a start from smooth noise in the data's
  colors need about a tenth of the iterations.
- The class term stops paying once an image reaches its own confidence, drawn per image: a set
  in which the teacher is sure of everything teaches a student nothing about borders.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.folding import PIXEL_CENTRE, PIXEL_SCALE
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.bn_statistics import BatchStatistics, bn_distance, bn_layers
from hydistill_edge.objectives.diversity import same_class_similarity
from hydistill_edge.objectives.image_priors import (
    circular_shift,
    distance_to_mean,
    total_variation,
)
from hydistill_edge.training.precision import Precision, autocast
from hydistill_edge.training.schedules import cosine

Progress = Callable[[int, int, Mapping[str, float]], None]

NO_BATCH_NORM_NOTE = (
    "the network has no BatchNorm layer with running statistics: these images satisfy the class "
    "prior and smoothness only, and are weaker; add a few real images where there are any"
)
_RECORD_EVERY = 10
_CONSTANT_LOGITS = 1e-6  # float32 rounding of logits near 1


@dataclass(frozen=True)
class InversionSettings:
    """How images are made.

    Attributes:
        iterations: steps per batch of images.
        batch: images optimized together; their common statistics are matched, so that a large batch
            leaves the single image more freedom. None for as many pixels as 512 images of 32x32
            have, between 32 and 512 images.
        learning_rate: first step size of Adam, in units of the input's standard deviation; falls
            along a cosine.
        bn: weight of the BatchNorm statistics.
        layer_weights: factor of single BatchNorm layers, by name; 1 for the others.
        class_prior: weight of the class term.
        confidence: lowest and highest probability at which an image stops paying for its class;
            drawn evenly between them per image.
        diversity: weight of the similarity between images of a class.
        total_variation: weight of the smoothness prior, of pixels in normalized units.
        l2: weight of the distance to the mean color, in normalized units.
        jitter: largest circular shift in pixels, drawn per iteration; None for a sixteenth of the
            shorter side.
        flip: mirror the batch in half of the iterations. Wrong where left and right differ in
            meaning, as in digits and text.
        precision: `auto`, `float32` or `bf16`.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    iterations: int = 100
    batch: int | None = None
    learning_rate: float = 0.3
    bn: float = 100.0
    layer_weights: Mapping[str, float] = field(default_factory=dict)
    class_prior: float = 1.0
    confidence: tuple[float, float] = (0.9, 0.999)
    diversity: float = 0.1
    total_variation: float = 0.001
    l2: float = 0.0
    jitter: int | None = None
    flip: bool = False
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        low, high = self.confidence
        weights = ("bn", "class_prior", "diversity", "total_variation", "l2")
        problems = [
            f"{name} is {value}; expected at least 1"
            for name, value in (("iterations", self.iterations), ("batch", self.batch))
            if value is not None and value < 1
        ]
        problems += [
            f"{name} is {getattr(self, name)}; expected a weight of at least 0"
            for name in weights
            if not getattr(self, name) >= 0
        ]
        if not self.learning_rate > 0:
            problems.append(f"learning_rate is {self.learning_rate}; expected more than 0")
        if not 0 < low <= high < 1:
            problems.append(f"confidence is {self.confidence}; expected 0 < lowest <= highest < 1")
        if self.jitter is not None and self.jitter < 0:
            problems.append(f"jitter is {self.jitter}; expected at least 0 pixels")
        if problems:
            raise UsageError("inversion settings: " + "; ".join(problems))

    def batch_for(self, size: tuple[int, int]) -> int:
        """Return how many images of a size (height, width) are optimized together."""
        if self.batch is not None:
            return self.batch
        return min(512, max(32, 512 * 32 * 32 // (size[0] * size[1])))


@dataclass(frozen=True)
class Inverted:
    """Images made from a network.

    Attributes:
        images: shape (N, H, W, C) uint8.
        targets: shape (N,) int64, the class that was asked for; balanced.
        history: one entry per ten iterations of every batch: `batch`, `iteration`, `loss`, each
            term before weighting (`bn`, `class_prior`, ...), `hit` (share classified as asked).
        hit: share of the finished uint8 images that the network classifies as asked.
        bn_distance: mean divergence per layer of the finished uint8 images, None without BatchNorm.
        seconds: wall time of the optimization.
        note: what the reader of the images must know; empty when there is nothing.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    history: list[dict[str, float]]
    hit: float
    bn_distance: float | None
    seconds: float
    note: str = ""

    @property
    def images_per_second(self) -> float:
        """Finished images per second of wall time."""
        return len(self.images) / self.seconds


@dataclass(frozen=True)
class _Canvas:
    """Shape and color statistics of the images to make."""

    channels: int
    height: int
    width: int
    mean: Tensor  # (1, channels, 1, 1), pixels in [0, 1]
    std: Tensor  # the same

    def pixels(self, normalized: Tensor) -> Tensor:
        return torch.addcmul(self.mean, normalized, self.std)

    def clamp_(self, normalized: Tensor) -> None:
        """Keep the pixels in [0, 1]."""
        torch.clamp_(normalized, (0.0 - self.mean) / self.std, (1.0 - self.mean) / self.std)


def invert(
    source: Teacher | Student,
    *,
    count: int,
    settings: InversionSettings | None = None,
    channels: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Inverted:
    """Make `count` images that the network takes for its own training images.

    Args:
        source: the network: a teacher for training images, a student for calibration images.
        count: images to make; at least one per class.
        settings: how to make them.
        channels: channels of the images, where they differ from the network's (1: grey images for
            a network that sees them repeated).
        seed: same seed, same images (on the same machine).
        device: where to compute.
        progress: called with (iterations done, iterations in all, the last terms).

    Raises:
        MethodError: the network answers everything alike, with NaN, or knows one class only.
        UsageError: fewer images than classes.
    """
    settings = settings or InversionSettings()
    device = torch.device(device)
    classes = len(source.classes)
    _check_request(classes, count)
    canvas = _canvas(source, channels, device)
    noise = torch.Generator(device).manual_seed(seed)
    choice = np.random.default_rng(seed)
    batches = -(-count // settings.batch_for((canvas.height, canvas.width)))
    parts = np.array_split(np.arange(count) % classes, batches)
    steps = settings.iterations * len(parts)

    finished: list[NDArray[np.uint8]] = []
    history: list[dict[str, float]] = []
    started = time.perf_counter()
    with _frozen(source, device), BatchStatistics(source.network) as reader:
        _check_answers(source, canvas, noise)
        layer_weights = _layer_weights(source.network, settings.layer_weights)
        reader.take()
        for number, part in enumerate(parts):
            batch = _Batch(
                normalized=_smooth_noise(canvas, len(part), noise),
                targets=torch.from_numpy(part).to(device),
                patience=torch.from_numpy(-np.log(choice.uniform(*settings.confidence, len(part))))
                .float()
                .to(device),
            )
            for iteration, terms in _optimize(
                source, batch, canvas, settings, reader, layer_weights, choice
            ):
                history.append({"batch": number, "iteration": iteration, **terms})
                if progress is not None:
                    progress(number * settings.iterations + iteration, steps, terms)
            finished.append(_to_uint8(canvas.pixels(batch.normalized)))
        seconds = time.perf_counter() - started
        images = np.concatenate(finished)
        targets = np.concatenate(parts).astype(np.int64)
        hit, distance = _judge(source, images, parts, reader, device)
    note = "" if bn_layers(source.network) else NO_BATCH_NORM_NOTE
    return Inverted(images, targets, history, hit, distance, seconds, note)


@dataclass(frozen=True)
class _Batch:
    """Images in the making."""

    normalized: Tensor  # (N, C, H, W), pixels minus mean over std; changed in place
    targets: Tensor  # (N,) int64
    patience: Tensor  # (N,) cross entropy at which an image stops paying, in nats


def _optimize(
    source: Teacher | Student,
    batch: _Batch,
    canvas: _Canvas,
    settings: InversionSettings,
    reader: BatchStatistics,
    layer_weights: list[float],
    choice: np.random.Generator,
) -> Iterator[tuple[int, dict[str, float]]]:
    """Optimize one batch in place; yield (iterations done, terms) now and then."""
    normalized = batch.normalized.requires_grad_()
    optimizer = torch.optim.Adam([normalized], lr=settings.learning_rate, betas=(0.5, 0.99))
    zero = normalized.new_zeros(canvas.channels)
    for iteration in range(settings.iterations):
        optimizer.param_groups[0]["lr"] = cosine(
            iteration, total=settings.iterations, peak=settings.learning_rate
        )
        with autocast(normalized.device, settings.precision):
            outputs = source.features(canvas.pixels(_jittered(normalized, settings, choice)))
        logits = outputs.logits.float()
        surprise = F.cross_entropy(logits, batch.targets, reduction="none")
        terms = {
            "class_prior": (surprise - batch.patience).clamp(min=0.0).mean(),
            "diversity": same_class_similarity(outputs.penultimate, batch.targets),
            "total_variation": total_variation(normalized),
            "l2": distance_to_mean(normalized, mean=zero),
        }
        if len(reader):
            terms["bn"] = bn_distance(reader.take(), weights=layer_weights)
        loss = torch.stack([term * getattr(settings, name) for name, term in terms.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        with torch.no_grad():
            canvas.clamp_(normalized)
        done = iteration + 1
        if done % _RECORD_EVERY == 0 or done == settings.iterations:
            record = {name: term.item() for name, term in terms.items()}
            record["loss"] = loss.item()
            record["hit"] = (logits.argmax(dim=1) == batch.targets).float().mean().item()
            yield done, record
    normalized.requires_grad_(False)


def _jittered(
    normalized: Tensor, settings: InversionSettings, choice: np.random.Generator
) -> Tensor:
    reach = settings.jitter
    if reach is None:
        reach = min(normalized.shape[2:]) // 16
    rows, columns = choice.integers(-reach, reach + 1, 2).tolist()
    shifted = circular_shift(normalized, rows=rows, columns=columns)
    return shifted.flip(3) if settings.flip and choice.random() < 0.5 else shifted


def _smooth_noise(canvas: _Canvas, count: int, generator: torch.Generator) -> Tensor:
    """Return noise of unit variance whose neighbours resemble each other, in normalized units."""
    size = (canvas.height, canvas.width)
    device = generator.device
    coarse_size = [max(1, side // 4) for side in size]
    coarse = torch.randn(count, canvas.channels, *coarse_size, generator=generator, device=device)
    fine = torch.randn(count, canvas.channels, *size, generator=generator, device=device)
    noise = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False) + 0.3 * fine
    noise = noise / noise.std(dim=(0, 2, 3), keepdim=True)
    canvas.clamp_(noise)
    return noise.contiguous(memory_format=torch.channels_last)


def _to_uint8(pixels: Tensor) -> NDArray[np.uint8]:
    nhwc = (pixels * 255.0).round().clamp(0.0, 255.0).to(torch.uint8).permute(0, 2, 3, 1)
    images: NDArray[np.uint8] = nhwc.contiguous().cpu().numpy()
    return images


@contextmanager
def _frozen(source: nn.Module, device: torch.device) -> Iterator[None]:
    """Hold a network in eval mode, without gradients of its weights; then as it was."""
    training = source.training
    needed = [parameter for parameter in source.parameters() if parameter.requires_grad]
    source.to(device).to(memory_format=torch.channels_last).eval()
    for parameter in needed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        source.train(training)
        for parameter in needed:
            parameter.requires_grad_(True)


def _canvas(source: Teacher | Student, channels: int | None, device: torch.device) -> _Canvas:
    """Describe the images to make; color statistics are averaged where channels differ."""
    if isinstance(source, Student):
        known, (height, width) = source.channels, source.size
        mean, std = (
            torch.full((known,), PIXEL_CENTRE / 255),
            torch.full((known,), PIXEL_SCALE / 255),
        )
    else:
        known, (height, width) = source.spec.channels, source.spec.size
        mean, std = torch.tensor(source.spec.mean), torch.tensor(source.spec.std)
    if channels is None:
        channels = known
    if channels != known:
        mean, std = mean.mean().expand(channels), std.mean().expand(channels)
    shape = (1, channels, 1, 1)
    return _Canvas(channels, height, width, mean.to(device).view(shape), std.to(device).view(shape))


def _layer_weights(body: nn.Module, factors: Mapping[str, float]) -> list[float]:
    """Return one weight per BatchNorm layer, 1 / number of layers times its factor."""
    names = [name for name, _ in bn_layers(body)]
    if unknown := sorted(set(factors) - set(names)):
        raise UsageError(
            f"layer_weights names {', '.join(unknown)}; the BatchNorm layers are "
            f"{', '.join(names) or 'none'}"
        )
    return [factors.get(name, 1.0) / len(names) for name in names]


def _check_request(classes: int, count: int) -> None:
    if classes < 2:
        raise MethodError(f"the network knows {classes} class; inversion needs at least 2")
    if count < classes:
        raise UsageError(
            f"{count} images were asked for {classes} classes; ask for at least one per class"
        )


@torch.no_grad()
def _check_answers(source: Teacher | Student, canvas: _Canvas, generator: torch.Generator) -> None:
    """Refuse a network that cannot tell images apart."""
    logits = source.features(canvas.pixels(_smooth_noise(canvas, 32, generator))).logits.float()
    if not logits.isfinite().all():
        raise MethodError(
            "the network answers noise with NaN or infinite logits; its weights are damaged or do "
            "not belong to this architecture"
        )
    spread = (logits.amax(dim=0) - logits.amin(dim=0)).max().item()
    if spread <= _CONSTANT_LOGITS * (1.0 + logits.abs().max().item()):
        raise MethodError(
            f"the network gives the same logits for 32 different images (spread {spread:.1e}); "
            "a constant network holds nothing to make images from: check its weights and its "
            "input statistics"
        )


@torch.no_grad()
def _judge(
    source: Teacher | Student,
    images: NDArray[np.uint8],
    parts: list[NDArray[np.int64]],
    reader: BatchStatistics,
    device: torch.device,
) -> tuple[float, float | None]:
    """Return hit rate and BatchNorm distance of the finished images, in float32."""
    hits, distances, start = 0, [], 0
    for part in parts:
        stop = start + len(part)
        batch = torch.from_numpy(images[start:stop]).permute(0, 3, 1, 2).to(device)
        logits = source(batch.float() / 255.0)
        hits += int((logits.argmax(dim=1).cpu().numpy() == part).sum())
        if len(reader):
            distances.append(bn_distance(reader.take()).item() * len(part))
        start = stop
    distance = sum(distances) / len(images) if distances else None
    return hits / len(images), distance
