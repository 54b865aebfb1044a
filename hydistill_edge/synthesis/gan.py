"""A conditional GAN trained on a few collected images, with a teacher's help.

Source: Tang, Chen and Gong 2024, "Hybrid Data-Free Knowledge Distillation" (HiDFD),
arXiv:2412.13525, first module. The teacher helps twice. Its penultimate features are what one head
of the discriminator must repeat, straight and crossed between real and generated images, which
keeps a discriminator that has seen a few thousand images from becoming sure of itself. And its
answers about generated images keep classes equally frequent.

What it needs: a teacher and collected images of every class, a few hundred to a few thousand in
all; their classes are what the teacher says.
What it gives: uint8 images of any number, by class.

Where this departs from the released code, and why:

- Features are integrated with gradient; there, the term is computed without and trains nothing.
- Category weights are refreshed while training; there, they never are.
- The teacher sees pixels under its own normalisation; there, it sees [-1, 1].
- Images are stored by one fixed mapping from [-1, 1]; there, each is stretched to its own range.
- Images come from the averaged generator, whose power-iteration vectors are brought back to length
  1 after averaging, as the norm of an average is below 1.
- Between 8 and 32 px the networks are narrower, and images may have one channel.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.coverage import ClassStatistics, class_statistics
from hydistill_edge.objectives.frequency import START_COUNT, category_weights, refreshed_counts
from hydistill_edge.synthesis.gan_health import Health, measure_health
from hydistill_edge.synthesis.gan_images import Sampled, to_bytes
from hydistill_edge.synthesis.gan_networks import NOISE, Discriminator, GanGenerator
from hydistill_edge.synthesis.gan_settings import GanSettings
from hydistill_edge.synthesis.gan_steps import TERMS, quick_losses
from hydistill_edge.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from hydistill_edge.training.compiling import quick_convolutions
from hydistill_edge.training.ema import Following
from hydistill_edge.training.optimizers import load_optimizer_tensors, optimizer_tensors
from hydistill_edge.training.precision import autocast
from hydistill_edge.training.sampling import Passes

__all__ = [
    "GanSettings",
    "GanTraining",
    "Sampled",
    "TrainedGan",
    "check_collected",
    "sample_gan",
    "train_gan",
]

CHECKPOINT_FILE = "gan.safetensors"

Progress = Callable[[int, int, Mapping[str, float]], None]

_HEALTH_IMAGES = 256


@dataclass(frozen=True)
class TrainedGan:
    """A trained generator and how it came about.

    Attributes:
        generator: the averaged one, in eval mode.
        raw: the last one, as it trained.
        discriminator: as it ended.
        history: per record: `iteration`, the mean of every term since the last one (before
            weighting), and the averaged generator's health.
        health: of the averaged generator at the end.
        weights: category weights at the end, shape (classes,).
        iterations: done.
        resumed_at: iteration at which this call went on; 0 if it began anew.
        seconds: wall time of training, interrupted parts included.
        note: what the reader of the images must know; empty when there is nothing.
    """

    generator: GanGenerator
    raw: GanGenerator
    discriminator: Discriminator
    history: list[dict[str, float]]
    health: Health
    weights: NDArray[np.float64]
    iterations: int
    resumed_at: int
    seconds: float
    note: str


def train_gan(
    teacher: Teacher,
    images: NDArray[np.uint8],
    *,
    settings: GanSettings | None = None,
    workdir: Path | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> TrainedGan:
    """Train a conditional GAN on collected images, whose classes the teacher says.

    Args:
        teacher: frozen.
        images: shape (N, H, W, C) uint8, at least one per class.
        settings: how to train.
        workdir: where the checkpoint lies; None for none. Called again after a kill, with the same
            arguments, training goes on and ends with the same networks.
        seed: of everything that is drawn.
        device: where to train.
        progress: called with (iterations done, iterations in all, the last record).

    Raises:
        MethodError: fewer images than classes, the loss is no longer finite, or the generator
            collapsed onto one image.
    """
    settings = settings or GanSettings()
    device = torch.device(device)
    check_collected(teacher, images)
    teacher.to(device).to(memory_format=torch.channels_last)
    training = GanTraining(teacher, images, settings, seed=seed, device=device)
    resumed_at = training.restore(workdir)
    started = time.monotonic() - training.seconds
    saved_at = time.monotonic()
    every = max(1, training.iterations // settings.records)
    while training.iteration < training.iterations:
        with quick_convolutions(device):
            training.step()
        last = training.iteration == training.iterations
        if training.iteration % every == 0 or last:
            training.record()
            if progress is not None:
                progress(training.iteration, training.iterations, training.history[-1])
        training.seconds = time.monotonic() - started
        if last or time.monotonic() - saved_at >= settings.checkpoint_seconds:
            training.save(workdir)
            saved_at = time.monotonic()
    health = training.health()
    if health.all_alike:
        raise MethodError(
            f"the GAN collapsed: {health.problem}; a set of such images teaches nothing. Train "
            "with more collected images or fewer iterations, or take synthetic images from the "
            "inversion"
        )
    return TrainedGan(
        generator=training.averaged(),
        raw=training.generator.eval(),
        discriminator=training.discriminator.eval(),
        history=training.history,
        health=health,
        weights=training.weights.cpu().numpy(),
        iterations=training.iteration,
        resumed_at=resumed_at,
        seconds=training.seconds,
        note="; ".join(part for part in (training.missing(), health.problem) if part),
    )


def check_collected(teacher: Teacher, images: NDArray[np.uint8]) -> None:
    """Refuse collected images that no GAN can be trained on.

    Raises:
        MethodError: wrong shape, or fewer images than classes.
    """
    if images.ndim != 4 or images.dtype != np.uint8:
        raise MethodError(
            f"collected images have shape {images.shape} and type {images.dtype}; expected "
            "(N, H, W, C) uint8"
        )
    classes = len(teacher.classes)
    if len(images) < max(2, classes):
        raise MethodError(
            f"{len(images)} collected images for {classes} classes; expected at least one per "
            "class, and hundreds for a good set: collect more, or use method kd with inverted "
            "images"
        )


class GanTraining:
    """The state of a training, its two steps, and its way to the checkpoint and back.

    Args:
        teacher: frozen, on the device.
        images: collected ones, shape (N, H, W, C) uint8.
        settings: how to train.
        seed: of everything that is drawn.
        device: where to train.
    """

    def __init__(
        self,
        teacher: Teacher,
        images: NDArray[np.uint8],
        settings: GanSettings,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.teacher, self.settings, self.device = teacher, settings, device
        count, height, width, channels = images.shape
        self.classes = len(teacher.classes)
        self.real = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)
        self.batch = min(settings.batch, count)
        self.iterations = settings.iterations or settings.epochs * max(1, count // self.batch)
        self._passes = Passes(count, batch=self.batch, seed=seed)
        self._seed = seed
        self.real_features, logits = _ask(teacher, self.real, self.batch)
        self.real_classes = logits.argmax(dim=1)
        self.real_statistics: ClassStatistics = class_statistics(
            self.real_features, self.real_classes, count=self.classes
        )
        shape = {"classes": self.classes, "channels": channels, "base": settings.width}
        self.generator = GanGenerator(**shape, size=(height, width), seed=seed)
        self.discriminator = Discriminator(
            **shape,
            size=(height, width),
            features=self.real_features.shape[1],
            teacher=teacher if settings.trunk == "teacher" else None,
            seed=seed + 1,
        )
        for network in (self.generator, self.discriminator):
            network.to(device).to(memory_format=torch.channels_last).train()
        self._of_discriminator, self._of_generator = quick_losses(
            self.generator,
            self.discriminator,
            teacher,
            settings,
            statistics=self.real_statistics,
            device=device,
        )
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self._following = Following(self.ema, self.generator)
        self._optimizers = {
            name: torch.optim.Adam(
                network.parameters(),
                lr=settings.learning_rate,
                betas=(0.0, 0.999),
                eps=1e-8,
                fused=True,
            )
            for name, network in (("g", self.generator), ("d", self.discriminator))
        }
        self.draws = torch.Generator(device).manual_seed(seed)
        self.counts = torch.full((self.classes,), START_COUNT, device=device, dtype=torch.float64)
        self.seen = torch.zeros(self.classes, device=device, dtype=torch.float64)
        self.weights = torch.ones(self.classes, device=device, dtype=torch.float64)
        self._sums = torch.zeros(len(TERMS), device=device, dtype=torch.float64)
        self._summed = 0
        self.iteration = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self._fingerprint = _fingerprint(teacher, images, settings, seed)

    def step(self) -> None:
        """Do one step of the discriminator, one of the generator, and average it."""
        rows = torch.from_numpy(self._passes.at(self.iteration)).to(self.device)
        self._sums += torch.cat([self.discriminator_step(rows), self.generator_step()])
        self._summed += 1
        self.iteration += 1
        self._average()
        every = self.settings.refresh_every(self.classes, self.batch)
        if self.iteration % every == 0:
            self.counts = refreshed_counts(self.counts, self.seen)
            self.weights = category_weights(
                self.counts, beta=self.settings.beta, weighting=self.settings.weighting
            )
            self.seen = torch.zeros_like(self.seen)

    def discriminator_step(self, rows: Tensor) -> Tensor:
        """Train the discriminator on collected images and as many new ones; return its terms."""
        noise, asked = self._draw()
        with autocast(self.device, self.settings.precision):
            loss, terms = self._of_discriminator(
                noise, asked, self.real[rows], self.real_features[rows], self.real_classes[rows]
            )
        self._descend("d", loss)
        return terms

    def generator_step(self) -> Tensor:
        """Train the generator, gradients passing through discriminator and teacher."""
        noise, asked = self._draw()
        self.discriminator.requires_grad_(False)
        with autocast(self.device, self.settings.precision):
            loss, terms, top = self._of_generator(noise, asked, self.weights)
        self._descend("g", loss)
        self.discriminator.requires_grad_(True)
        self.seen.scatter_add_(0, top, torch.ones_like(top, dtype=self.seen.dtype))
        return terms

    def averaged(self) -> GanGenerator:
        """Return a copy of the averaged generator with power-iteration vectors of length 1."""
        network = copy.deepcopy(self.ema)
        for name, buffer in network.named_buffers():
            if name.endswith(("._u", "._v")):
                buffer.copy_(F.normalize(buffer, dim=0, eps=1e-12))
        return network

    def health(self) -> Health:
        """Return how much alike the averaged generator's images are, against the real ones."""
        count = max(_HEALTH_IMAGES, 2 * self.classes)
        images, asked = _generate(self.averaged(), count, seed=self._seed, batch=self.batch)
        features, logits = _ask(self.teacher, images, self.batch)
        return measure_health(
            self.real,
            self.real_features,
            self.real_classes,
            images,
            features,
            asked,
            answers=logits.argmax(dim=1),
        )

    def missing(self) -> str:
        """Return which classes have no collected image, in a sentence; empty when all have."""
        present = set(self.real_classes.tolist())
        absent = [name for place, name in enumerate(self.teacher.classes) if place not in present]
        if not absent:
            return ""
        return (
            f"no collected image is of class {', '.join(absent)} for the teacher, so that its "
            "synthetic images are guesses; collect some"
        )

    def record(self) -> None:
        """Add an entry to the history.

        Raises:
            MethodError: the terms are no longer finite.
        """
        means = (self._sums / max(1, self._summed)).tolist()
        if not np.isfinite(means).all():
            raise MethodError(
                f"the GAN diverged: a loss is no longer finite at iteration {self.iteration}; "
                "expected finite numbers: lower the learning rate, or look for NaN in the "
                "teacher's features"
            )
        entry = {"iteration": float(self.iteration), **dict(zip(TERMS, means, strict=True))}
        self.history.append({**entry, **self.health().metrics()})
        self._sums.zero_()
        self._summed = 0

    def save(self, workdir: Path | None) -> None:
        """Write the checkpoint."""
        if workdir is None:
            return
        tensors = {
            "counts": self.counts,
            "seen": self.seen,
            "weights": self.weights,
            "sums": self._sums,
            "draws": self.draws.get_state(),
        }
        for name, network in self._networks().items():
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for name, optimizer in self._optimizers.items():
            state = optimizer_tensors(optimizer)
            tensors |= {f"optimizer_{name}.{key}": value for key, value in state.items()}
        values = {
            "fingerprint": self._fingerprint,
            "iteration": self.iteration,
            "summed": self._summed,
            "seconds": self.seconds,
            "history": self.history,
        }
        write_checkpoint(workdir / CHECKPOINT_FILE, Checkpoint(tensors, values))

    def restore(self, workdir: Path | None) -> int:
        """Go on from the checkpoint, if there is one of this training; return the iteration."""
        found = None if workdir is None else read_checkpoint(workdir / CHECKPOINT_FILE)
        if found is None or found.values["fingerprint"] != self._fingerprint:
            return 0
        for name, network in self._networks().items():
            network.load_state_dict(found.group(name))
        for name, optimizer in self._optimizers.items():
            load_optimizer_tensors(optimizer, found.group(f"optimizer_{name}"))
        for name in ("counts", "seen", "weights"):
            setattr(self, name, found.tensors[name].to(self.device))
        self._sums.copy_(found.tensors["sums"])
        self.draws.set_state(found.tensors["draws"])
        self.iteration, self._summed = found.values["iteration"], found.values["summed"]
        self.seconds, self.history = found.values["seconds"], found.values["history"]
        return self.iteration

    def _networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator, "ema": self.ema}

    def _draw(self) -> tuple[Tensor, Tensor]:
        noise = torch.randn((self.batch, NOISE), generator=self.draws, device=self.device)
        asked = torch.randint(self.classes, (self.batch,), generator=self.draws, device=self.device)
        return noise, asked

    def _descend(self, name: str, loss: Tensor) -> None:
        torch.autograd.backward(loss)
        self._optimizers[name].step()
        self._optimizers[name].zero_grad(set_to_none=True)

    def _average(self) -> None:
        keep = self.settings.ema if self.iteration > self.settings.ema_start else 0.0
        self._following.move(keep=keep)


def sample_gan(
    gan: TrainedGan,
    teacher: Teacher,
    *,
    count: int,
    seed: int = 0,
    batch: int = 250,
) -> Sampled:
    """Return images of the averaged generator, classes in turn, without duplicates.

    Args:
        gan: trained.
        teacher: asked about the stored uint8 images.
        count: images to make, duplicates included.
        seed: of the noise.
        batch: images at a time.

    Raises:
        UsageError: count is below 1.
    """
    if count < 1:
        raise UsageError(f"count is {count}; expected at least 1 image")
    made, asked = _generate(gan.generator, count, seed=seed, batch=batch)
    pixels = np.ascontiguousarray(made.permute(0, 2, 3, 1).cpu().numpy())
    _, first = np.unique(pixels.reshape(count, -1), axis=0, return_index=True)
    kept = np.sort(first)
    rows = torch.from_numpy(kept).to(made.device)
    _, logits = _ask(teacher, made[rows], batch)
    return Sampled(
        images=pixels[kept],
        targets=asked.cpu().numpy()[kept],
        logits=logits.float().cpu().numpy(),
        duplicates=count - len(kept),
    )


@torch.no_grad()
def _generate(
    generator: GanGenerator, count: int, *, seed: int, batch: int
) -> tuple[Tensor, Tensor]:
    """Return images (count, C, H, W) uint8 and the classes asked for, in turn."""
    device = next(generator.parameters()).device
    draws = torch.Generator(device).manual_seed(seed)
    asked = torch.arange(count, device=device) % generator.classes
    parts = []
    for classes in torch.split(asked, batch):
        noise = torch.randn((len(classes), NOISE), generator=draws, device=device)
        parts.append(to_bytes(generator(noise, classes)))
    return torch.cat(parts), asked


@torch.no_grad()
def _ask(teacher: Teacher, images: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Return the teacher's penultimate features (N, D) and logits of uint8 images."""
    answers = [teacher.features(part) for part in torch.split(images, batch)]
    features = torch.cat([answer.penultimate.flatten(1).float() for answer in answers])
    return features, torch.cat([answer.logits.float() for answer in answers])


def _fingerprint(
    teacher: Teacher, images: NDArray[np.uint8], settings: GanSettings, seed: int
) -> str:
    values = {
        "settings": asdict(settings),
        "seed": seed,
        "teacher": teacher.digest,
        "images": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        "shape": list(images.shape),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
