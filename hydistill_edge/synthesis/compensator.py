"""Universal feature compensators: what is added to one image of every class at once.

Source: Zhang, Du, Liu and Zhou 2025, "Breaking Class Barriers: Efficient Dataset Distillation via
Inter-Class Feature Compensator" (INFER), arXiv:2408.06927; it builds on SRe2L, Yin et al. 2023,
arXiv:2306.13092.

One tensor u is added to one natural image of each class. A frozen network shall still name every
class, and its BatchNorm layers shall see what they remember:

    L(u) = 1/C Σ_c CE(f(A(x_c + u)), c) + r Σ_l g_l (‖m_l - m'_l‖ + ‖v_l - v'_l‖)

with A a random circular shift, m and v the mean and variance of what enters layer l, m' and v' what
it remembers, g 10 for the first layer and 1 for the others. So u carries features between classes,
and one stored tensor makes as many images as there are classes.

What it needs: networks with BatchNorm, and natural images of every class.
What it gives: one compensator per network and slot, in pixels of [0, 1]; they are never clamped
themselves, only the images that are derived from them.

Where this departs from the released program, and why:

- Where classes do not fit into memory together, gradients of the blocks add up to one step on one
  u; there, every block got a u of its own, which brings the barrier between classes back. The
  statistics are then those of each block, averaged by size.
- u lives in pixels: the step size, which is in normalized units, is multiplied by the network's
  standard deviation.
- The sum over layers is brought to that of 20 layers (`depth_free`), so that its weight fits any
  network.
- Crops and mirrors, where asked for, are drawn per image.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hydistill_edge.errors import MethodError, ShapeError, UsageError
from hydistill_edge.images.augment import Augment, AugmentSettings
from hydistill_edge.models.ensemble import Classifier, Ensemble
from hydistill_edge.objectives.bn_statistics import (
    BatchStatistics,
    LayerStatistics,
    bn_distance,
    bn_layers,
)
from hydistill_edge.objectives.image_priors import circular_shift
from hydistill_edge.synthesis.canvas import canvas_of
from hydistill_edge.synthesis.infer_draw import Natural
from hydistill_edge.synthesis.infer_settings import PUBLISHED_DEPTH, CompensatorSettings
from hydistill_edge.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hydistill_edge.training.precision import autocast
from hydistill_edge.training.schedules import cosine

CHECKPOINT_FILE = "compensators.safetensors"

_BEYOND = (-4.0, 9.0)
"""Lowest value, and extent, of sums that crops and mirrors leave as they are."""

Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Compensators:
    """Optimized compensators.

    Attributes:
        values: differences of pixels in [0, 1], shape (K, H, W, C) float32.
        slots: whose natural images each is added to, shape (K,).
        networks: place of the network that each was optimized on, shape (K,).
        records: per compensator, at its last step: `cross_entropy`, `bn` (both before weighting),
            `hit` (share of its images that the network names right), `largest` (absolute value).
        resumed_at: compensators that were there when this call began.
    """

    values: NDArray[np.float32]
    slots: NDArray[np.int64]
    networks: NDArray[np.int64]
    records: list[dict[str, float]]
    resumed_at: int


def make_compensators(
    ensemble: Ensemble,
    images: NDArray[np.uint8],
    natural: Natural,
    settings: CompensatorSettings,
    *,
    workdir: Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Compensators:
    """Optimize one compensator per slot and network.

    Args:
        ensemble: the frozen networks.
        images: the natural images, in the order of `natural`, shape (B, H, W, C).
        natural: their classes and slots.
        settings: how.
        workdir: where finished compensators are kept; None for nowhere. Called again after a kill,
            with the same arguments, it goes on with the next compensator.
        seed: of the shifts; those of a compensator depend on its slot and network only.
        device: where to compute.
        progress: called with (steps done, steps in all, the last record).

    Raises:
        MethodError: a network has no BatchNorm, or values are no longer finite.
        UsageError: `skip_layers` names a layer of no network.
        ShapeError: images and natural differ in number.
    """
    device = torch.device(device)
    if len(images) != len(natural) or not len(images):
        raise ShapeError(f"{len(images)} images for {len(natural)} rows; expected as many, above 0")
    check_networks(ensemble.networks, settings.skip_layers)
    ensemble.to(device).to(memory_format=torch.channels_last)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    jobs = [
        (slot, network)
        for slot in range(int(natural.slots.max()) + 1)
        for network in range(len(ensemble))
    ]
    digest = _fingerprint(ensemble, images, natural, settings, seed)
    kept = _Kept.read(workdir, digest, settings.checkpoint_seconds)
    resumed_at = len(kept.values)
    for place, (slot, network) in enumerate(jobs[resumed_at:], start=resumed_at):
        rows = np.flatnonzero(natural.slots == slot)

        def tell(step: int, *, before: int = place) -> None:
            if progress is not None:
                last = kept.records[-1] if kept.records else {}
                total = len(jobs) * settings.iterations
                progress(before * settings.iterations + step, total, last)

        found, record = optimize_compensator(
            ensemble.networks[network],
            pixels[torch.from_numpy(rows)].to(device).float() / 255.0,
            torch.from_numpy(natural.classes[rows]).to(device),
            settings,
            seed=[seed, slot, network],
            tell=tell,
        )
        kept.add(found.cpu(), {"slot": slot, "network": network, **record})
    kept.write()
    return Compensators(
        torch.cat(kept.values).permute(0, 2, 3, 1).contiguous().numpy(),
        np.array([slot for slot, _ in jobs], np.int64),
        np.array([network for _, network in jobs], np.int64),
        kept.records,
        resumed_at,
    )


def optimize_compensator(
    network: Classifier,
    images: Tensor,
    classes: Tensor,
    settings: CompensatorSettings,
    *,
    seed: Sequence[int],
    tell: Callable[[int], None] | None = None,
    per_class: bool = False,
) -> tuple[Tensor, dict[str, float]]:
    """Optimize one compensator; the last iterate is kept, as published.

    Args:
        network: frozen, in eval mode, with BatchNorm.
        images: one natural image per class, shape (n, C, H, W), floats in [0, 1].
        classes: class of each, shape (n,) int64.
        settings: how.
        seed: of the shifts.
        tell: called with the steps done, now and then.
        per_class: a tensor of its own for each image: the baseline with barriers between classes.

    Returns:
        The compensator in pixels, shape (1, C, H, W) float32, or (n, C, H, W) with `per_class`, and
        its record (`Compensators`).

    Raises:
        MethodError: values are no longer finite.
    """
    count, channels, height, width = images.shape
    std = canvas_of(network, channels, images.device).std
    tensors = count if per_class else 1
    normalized = torch.zeros((tensors, channels, height, width), device=images.device)
    normalized.requires_grad_()
    optimizer = torch.optim.Adam([normalized], settings.learning_rate, betas=(0.5, 0.9), eps=1e-8)
    blocks = -(-count // settings.block_for((height, width)))
    parts = list(
        zip(torch.tensor_split(images, blocks), torch.tensor_split(classes, blocks), strict=True)
    )
    view = _View(settings, (height, width), seed)
    every = max(1, settings.iterations // 20)
    terms: dict[str, Tensor] = {}
    with BatchStatistics(network.network) as reader:
        for iteration in range(settings.iterations):
            optimizer.param_groups[0]["lr"] = cosine(
                iteration, total=settings.iterations, peak=settings.learning_rate
            )
            shift = view.shift()
            optimizer.zero_grad(set_to_none=True)
            terms = {}
            own = torch.tensor_split(normalized, blocks) if per_class else [normalized] * blocks
            for (part, wanted), added in zip(parts, own, strict=True):
                seen = view(part + added * std, shift)
                found = compensator_terms(network, reader, seen, wanted, settings)
                share = len(part) / count
                # One block's graph at a time: the gradients add up on the one tensor.
                torch.autograd.backward(
                    share * (found["cross_entropy"] + settings.bn * found["bn"])
                )
                for name, term in found.items():
                    terms[name] = terms.get(name, torch.zeros_like(term)) + share * term.detach()
            if settings.penalty:
                torch.autograd.backward(settings.penalty * normalized.square().mean())
            optimizer.step()
            if tell is not None and (iteration + 1) % every == 0:
                tell(iteration + 1)
    compensator = (normalized * std).detach()
    record = {name: term.item() for name, term in terms.items()}
    record["largest"] = compensator.abs().max().item()
    if not all(np.isfinite(value) for value in record.values()):
        raise MethodError(
            f"a compensator is no longer finite after {settings.iterations} steps; expected finite "
            "values: lower learning_rate or bn, or give a penalty above 0"
        )
    return compensator, record


def compensator_terms(
    network: Classifier,
    reader: BatchStatistics,
    images: Tensor,
    classes: Tensor,
    settings: CompensatorSettings,
) -> dict[str, Tensor]:
    """Return the terms of the loss on a batch of images with their compensator, each a scalar.

    Args:
        network: whose layers `reader` reads.
        reader: of the network's BatchNorm inputs.
        images: shape (n, C, H, W), floats, not clamped.
        classes: shape (n,).
        settings: weights of the layers.

    Returns:
        `cross_entropy`, `bn` (without its weight), and `hit`, the share named right.
    """
    with autocast(images.device, settings.precision):
        logits = network(images.contiguous(memory_format=torch.channels_last)).float()
    layers = reader.take()
    return {
        "cross_entropy": F.cross_entropy(logits, classes),
        "bn": bn_distance(layers, weights=layer_weights(layers, settings), distance="l2"),
        "hit": (logits.argmax(dim=1) == classes).float().mean(),
    }


def layer_weights(layers: Sequence[LayerStatistics], settings: CompensatorSettings) -> list[float]:
    """Return the factor of each BatchNorm layer, in the order of execution.

    Args:
        layers: what was read in one pass.
        settings: `first_layer`, `skip_layers` and `depth_free`.
    """
    depth = PUBLISHED_DEPTH / len(layers) if settings.depth_free else 1.0
    return [
        0.0
        if layer.name in settings.skip_layers
        else depth * (settings.first_layer if place == 0 else 1.0)
        for place, layer in enumerate(layers)
    ]


def check_networks(networks: Sequence[Classifier], skip_layers: Sequence[str] = ()) -> None:
    """Refuse networks that compensators cannot be made from.

    Raises:
        MethodError: one has no BatchNorm layer with running statistics.
        UsageError: `skip_layers` names a layer of no network.
    """
    known: set[str] = set()
    for network in networks:
        names = [name for name, _ in bn_layers(network.network)]
        if not names:
            word = network.architecture or "a network"
            raise MethodError(
                f"{word}: has no BatchNorm layer with running statistics, and compensators are "
                "made from these; name networks that have some, such as resnet20 or mobilenet_v2; "
                "if this is the teacher, leave it out (teacher: false)"
            )
        known.update(names)
    if unknown := sorted(set(skip_layers) - known):
        raise UsageError(
            f"skip_layers names {', '.join(unknown)}; the BatchNorm layers are "
            f"{', '.join(sorted(known))}"
        )


class _View:
    """The random view of every step: crops and mirrors per image, one shift for all of them."""

    def __init__(
        self, settings: CompensatorSettings, size: tuple[int, int], seed: Sequence[int]
    ) -> None:
        self._reach = settings.reach(size)
        self._choice = np.random.default_rng(list(seed))
        self._augment = None
        if settings.resized_crop or settings.mirror:
            self._augment = Augment(
                AugmentSettings(resized_crop=settings.resized_crop, flip=settings.mirror)
            )
        self._generator = torch.Generator().manual_seed(int(self._choice.integers(2**62)))

    def shift(self) -> tuple[int, int]:
        """Draw rows and columns, each from 0 to the largest shift."""
        rows, columns = self._choice.integers(0, self._reach + 1, 2).tolist()
        return rows, columns

    def __call__(self, images: Tensor, shift: tuple[int, int]) -> Tensor:
        if self._augment is not None:
            # It keeps to [0, 1]; sums of image and compensator reach beyond, and pass in a smaller
            # scale, which resampling does not mind.
            low, wide = _BEYOND
            inside = self._augment((images - low) / wide, generator=self._generator)
            images = inside * wide + low
        return circular_shift(images, rows=shift[0], columns=shift[1])


class _Kept:
    """Finished compensators, and the file that keeps them."""

    def __init__(self, path: Path | None, digest: str, seconds: float) -> None:
        self._path, self._digest, self._seconds = path, digest, seconds
        self._written_at, self._written = time.monotonic(), 0
        self.values: list[Tensor] = []
        self.records: list[dict[str, float]] = []

    @staticmethod
    def read(workdir: Path | None, digest: str, seconds: float) -> _Kept:
        """Return what an earlier call with the same digest finished."""
        kept = _Kept(None if workdir is None else workdir / CHECKPOINT_FILE, digest, seconds)
        checkpoint = None if kept._path is None else read_checkpoint(kept._path)
        if checkpoint is not None and checkpoint.values["fingerprint"] == digest:
            kept.values = list(torch.split(checkpoint.tensors["values"], 1))
            kept.records = checkpoint.values["records"]
            kept._written = len(kept.values)
        return kept

    def add(self, value: Tensor, record: dict[str, float]) -> None:
        """Take one in, and write the file where the last time is long enough ago."""
        self.values.append(value)
        self.records.append(record)
        if time.monotonic() - self._written_at >= self._seconds:
            self.write()

    def write(self) -> None:
        """Write the file where something is new."""
        if self._path is not None and len(self.values) > self._written:
            values = {"fingerprint": self._digest, "records": self.records}
            write_checkpoint(self._path, Checkpoint({"values": torch.cat(self.values)}, values))
            self._written_at, self._written = time.monotonic(), len(self.values)


def _fingerprint(
    ensemble: Ensemble,
    images: NDArray[np.uint8],
    natural: Natural,
    settings: CompensatorSettings,
    seed: int,
) -> str:
    values = {
        "settings": asdict(settings),
        "seed": seed,
        "networks": [network.digest for network in ensemble.networks],
        "images": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        "classes": natural.classes.tolist(),
        "slots": natural.slots.tolist(),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
