"""Images from trained networks alone: pixels optimized until the networks recognize their past.

Source: Yin et al. 2020, "Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion",
arXiv:1912.08795. A BatchNorm layer remembers mean and variance of its input over the training
images; noise is optimized until a batch has the same statistics in every layer and each image the
class that was asked for.

What it needs: networks with BatchNorm layers. Without them (GroupNorm, LayerNorm, or BatchNorm
folded in an ONNX file) the class prior, the prior on the last features and smoothness remain; the
images are then of the right class for the network and little else. A few real images handed in as
`real` stand in: the statistics of every convolution's output on them take BatchNorm's place. The
result says in `note` which of these it was.
What it gives: uint8 images, as many per class as were asked for, and the loss of every term.

Where this departs from the paper and its released code, and why:

- Statistics are compared by the divergence of normal distributions per channel rather than by
  unsquared norms summed over layers: free of units, so one setting serves shallow and deep nets.
- Pixels are kept in [0, 1], so that what is optimized is what is stored; step sizes stay the
  published ones, in units of the network's standard deviation.
- A large batch, a large step that falls along a cosine, and a start from smooth noise in the data's
  colors need about a tenth of the iterations.
- The class term stops paying once an image reaches its own confidence, drawn per image: a set
  in which the teacher is sure of everything teaches a student nothing about borders. A share of
  the images may lie on those borders by intent.
- Images start apart in brightness and contrast: BatchNorm remembers no difference between
  variance within images and between them, and images that start alike end alike.
- Large images start small and are enlarged on the way; the network itself runs at the small size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.bn_statistics import LayerStatistics
from hydistill_edge.objectives.diversity import same_class_similarity
from hydistill_edge.objectives.image_priors import (
    circular_shift,
    distance_to_mean,
    total_variation,
)
from hydistill_edge.objectives.output_prior import output_prior
from hydistill_edge.synthesis.canvas import (
    Canvas,
    Phase,
    canvas_of,
    coarse_sizes,
    plan_phases,
    to_uint8,
)
from hydistill_edge.synthesis.class_prior import Asked, ask, class_surprise
from hydistill_edge.synthesis.generator import RATE, SHARE, Generator
from hydistill_edge.synthesis.settings import InversionSettings
from hydistill_edge.synthesis.stopping import Schedule
from hydistill_edge.synthesis.witness import NO_BATCH_NORM_NOTE, Witness, witnesses
from hydistill_edge.training.precision import autocast

__all__ = ["NO_BATCH_NORM_NOTE", "InversionSettings", "Inverted", "invert"]

Progress = Callable[[int, int, Mapping[str, float]], None]
Source = Teacher | Student
Score = Callable[[Sequence[LayerStatistics]], float]
"""`score(layers)`: how good images are, in [0, 1], by what the layers of a network saw of them."""

Size = tuple[int, int]

SETTLED = 0.6
"""Share of the iterations after which images are no longer shifted. A network that is sensitive to
shifts gives every shift another gradient, and its classes never come out: of a RegNetY's images at
64 px it recognized 26 % with shifts to the end, and 88 % without any."""

_RECORD_EVERY = 10
_PROBED = 32  # images that a network must tell apart


@dataclass(frozen=True)
class Inverted:
    """Images made from a network.

    Attributes:
        images: shape (N, H, W, C) uint8.
        targets: shape (N,) int64, the class that was asked for; balanced. For a boundary image the
            larger one of its two.
        mixed_with: shape (N,) int64, the other class of a boundary image; -1 for plain ones.
        target_share: shape (N,) float64, probability asked for `targets`; 1 for plain images.
        history: one entry per ten iterations of every batch: `batch`, `iteration`, `side` (shorter
            side in pixels), `loss`, each term before weighting (`bn`, `class_prior`, ...), `hit`
            (share classified as asked), and `quality` where a batch may stop for its score.
        iterations: done in each batch; fewer than allowed where it had had enough.
        batch: images optimized together, in the largest batch.
        hit: share of the finished uint8 images that the network classifies as asked (one of the two
            for boundary images); the mean over several networks.
        bn_distance: mean divergence per layer of the finished uint8 images, None where nothing was
            there to compare with; the mean over several networks.
        seconds: wall time of the optimization.
        saved_seconds: estimate of what the start at lower resolution saved: its iterations at the
            pace of full size, less the time they took.
        note: what the reader of the images must know; empty when there is nothing.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.int64]
    mixed_with: NDArray[np.int64]
    target_share: NDArray[np.float64]
    history: list[dict[str, float]]
    iterations: tuple[int, ...]
    batch: int
    hit: float
    bn_distance: float | None
    seconds: float
    saved_seconds: float = 0.0
    note: str = ""

    @property
    def images_per_second(self) -> float:
        """Finished images per second of wall time."""
        return len(self.images) / self.seconds


@dataclass
class _Batch:
    """Images in the making."""

    normalized: Tensor  # (N, C, H, W), pixels minus mean over std
    targets: Tensor  # (N,) int64
    wanted: Tensor  # (N, classes) target probabilities
    confidence: Tensor  # (N,) at which an image stops paying


def invert(
    source: Source | Sequence[Source],
    *,
    count: int,
    settings: InversionSettings | None = None,
    among: Sequence[int] | None = None,
    channels: int | None = None,
    real: NDArray[np.uint8] | None = None,
    score: Score | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Inverted:
    """Make `count` images that a network takes for its own training images.

    Args:
        source: the network: a teacher for training images, a student for calibration images. Of
            several, with the same classes, losses are averaged, and the first one gives size and
            colors of the images.
        count: images to make; at least one per class that is asked for.
        among: places of the classes to ask for, in turn; None for all classes.
        settings: how to make them.
        channels: channels of the images, where they differ from the network's (1: grey images for
            a network that sees them repeated).
        real: shape (N, H, W, C) uint8, a few real images; used by networks without BatchNorm only.
        score: judges a batch for `settings.stop_quality`; of several networks the worst counts, and
            one without anything to compare with has no say.
        seed: same seed, same images (on the same machine).
        device: where to compute.
        progress: called with (iterations done, iterations in all, the last terms).

    Raises:
        MethodError: a network answers everything alike, with NaN, or knows one class only.
        UsageError: fewer images than classes, networks of different classes, unusable `real`, a
            score to stop at and nothing that judges.
    """
    settings = settings or InversionSettings()
    if settings.stop_quality > 0 and score is None:
        raise UsageError(
            f"stop_quality is {settings.stop_quality:g} and no score was handed in; hand one in, "
            "or set it to 0"
        )
    device = torch.device(device)
    sources = [source] if isinstance(source, Teacher | Student) else list(source)
    classes = _check_request(sources, count, real, among)
    places = np.arange(classes) if among is None else np.asarray(among)
    canvas = canvas_of(sources[0], channels, device)
    noise = torch.Generator(device).manual_seed(seed)
    choice, mixing = np.random.default_rng(seed), np.random.default_rng([seed, 1])

    finished: list[NDArray[np.uint8]] = []
    asked: list[Asked] = []
    history: list[dict[str, float]] = []
    iterations: list[int] = []
    saved, started = 0.0, time.perf_counter()
    with witnesses(
        sources,
        real=real,
        layer_weights=settings.layer_weights,
        output=settings.output,
        device=device,
    ) as panel:
        for witness in panel:
            witness.check_answers(canvas.pixels(canvas.smooth_noise(_PROBED, noise)))
        plan = _plan(panel, canvas, settings)
        painter = Generator(canvas, seed=seed) if settings.generator else None
        largest = settings.batch_for(
            canvas.size,
            sum(w.image_bytes(canvas) for w in panel) if settings.batch is None else 0,
        )
        parts = np.array_split(places[np.arange(count) % len(places)], -(-count // largest))
        steps = settings.iterations * len(parts)
        for number, part in enumerate(parts):
            request = ask(
                part,
                classes=classes,
                boundary=settings.boundary,
                confidence=settings.confidence,
                choice=choice,
                mixing=mixing,
            )
            batch = _start(request, classes, canvas.at(plan[0].size), noise, settings.spread)
            codes = None if painter is None else painter.codes(len(part), noise)
            run = _Run(panel, canvas, settings, plan, painter, score)
            for terms in run.optimize(batch, choice, codes):
                history.append({"batch": number, **terms})
                done = settings.iterations if run.finished else int(terms["iteration"])
                if progress is not None:
                    progress(number * settings.iterations + done, steps, terms)
            finished.append(to_uint8(canvas.pixels(batch.normalized)))
            asked.append(request)
            iterations.append(run.done)
            saved += run.saved_seconds
        seconds = time.perf_counter() - started
        hit, distance = _judge(panel, finished, asked, device)
    return Inverted(
        images=np.concatenate(finished),
        targets=np.concatenate([part.first for part in asked]).astype(np.int64),
        mixed_with=np.concatenate([part.second for part in asked]).astype(np.int64),
        target_share=np.concatenate([part.share for part in asked]),
        history=history,
        iterations=tuple(iterations),
        batch=max(len(part.first) for part in asked),
        hit=hit,
        bn_distance=distance,
        seconds=seconds,
        saved_seconds=saved,
        note="; ".join(dict.fromkeys(witness.note for witness in panel if witness.note)),
    )


class _Run:
    """The optimization of one batch, through all its phases."""

    def __init__(
        self,
        panel: Sequence[Witness],
        canvas: Canvas,
        settings: InversionSettings,
        plan: Sequence[Phase],
        painter: Generator | None,
        score: Score | None,
    ) -> None:
        self.panel, self.canvas, self.settings, self.plan = panel, canvas, settings, plan
        self.painter, self.score = painter, score
        self.schedule = Schedule(
            settings.iterations,
            settings.learning_rate,
            window=settings.stop_window,
            tolerance=settings.stop_tolerance,
        )
        self.paces: list[tuple[Phase, int, float]] = []  # iterations and seconds of each phase

    @property
    def done(self) -> int:
        return self.schedule.done

    @property
    def finished(self) -> bool:
        return self.schedule.finished

    @property
    def saved_seconds(self) -> float:
        _, full_steps, full_seconds = self.paces[-1]
        return sum(
            steps * full_seconds / full_steps - seconds
            for phase, steps, seconds in self.paces[:-1]
            if not phase.painted
        )

    def optimize(
        self, batch: _Batch, choice: np.random.Generator, codes: Tensor | None
    ) -> Iterator[dict[str, float]]:
        """Change the batch's images; yield the terms now and then."""
        for phase in self.plan:
            if self.finished:
                break
            canvas = self.canvas.at(phase.size)
            if tuple(batch.normalized.shape[2:]) != phase.size:
                batch.normalized = canvas.enlarged(batch.normalized)
            started, before = time.perf_counter(), self.done
            if phase.painted and self.painter is not None and codes is not None:
                yield from self._paint(batch, canvas, phase, choice, self.painter, codes)
            else:
                yield from self._at_size(batch, canvas, phase, choice)
            self.paces.append((phase, self.done - before, time.perf_counter() - started))

    def _paint(
        self,
        batch: _Batch,
        canvas: Canvas,
        phase: Phase,
        choice: np.random.Generator,
        painter: Generator,
        codes: Tensor,
    ) -> Iterator[dict[str, float]]:
        """Optimize the generator and the codes of the batch."""
        parameters = [codes.requires_grad_(), *painter.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=self.schedule.rate(), betas=(0.5, 0.99))
        until = self.done + phase.iterations
        while self.done < until and not self.finished:
            optimizer.param_groups[0]["lr"] = self.schedule.rate() * RATE
            batch.normalized = painter(codes)
            record = self._step(batch, canvas, optimizer, choice)
            if record is not None:
                yield record
        with torch.no_grad():
            batch.normalized = painter(codes)

    def _at_size(
        self, batch: _Batch, canvas: Canvas, phase: Phase, choice: np.random.Generator
    ) -> Iterator[dict[str, float]]:
        """Optimize the pixels."""
        normalized = batch.normalized.requires_grad_()
        optimizer = torch.optim.Adam([normalized], lr=self.schedule.rate(), betas=(0.5, 0.99))
        until = self.done + phase.iterations
        while self.done < until and not self.finished:
            optimizer.param_groups[0]["lr"] = self.schedule.rate()
            record = self._step(batch, canvas, optimizer, choice)
            with torch.no_grad():
                canvas.clamp_(normalized)
            if record is not None:
                yield record
        normalized.requires_grad_(False)

    def _step(
        self,
        batch: _Batch,
        canvas: Canvas,
        optimizer: torch.optim.Optimizer,
        choice: np.random.Generator,
    ) -> dict[str, float] | None:
        """Do one iteration; return its terms if it is one to record."""
        full = canvas.size == self.canvas.size
        schedule = self.schedule
        terms, hit = self._terms(batch, canvas, choice, native=full)
        loss = torch.stack([term * self._weight(name) for name, term in terms.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        comparable = full and schedule.watches and "bn" in terms
        due = full and not schedule.stalled and (schedule.done + 1) % _RECORD_EVERY == 0
        quality = self._quality() if due else None
        schedule.advance(
            terms["bn"].item() if comparable else None,
            enough=quality is not None and quality >= self.settings.stop_quality,
        )
        if schedule.done % _RECORD_EVERY and not schedule.finished:
            return None
        record = {name: term.item() for name, term in terms.items()}
        record |= {"loss": loss.item(), "hit": hit.item()}
        if quality is not None:
            record["quality"] = quality
        return {"iteration": schedule.done, "side": min(canvas.size), **record}

    def _quality(self) -> float | None:
        """Return the score of the last pass by the network that likes it least."""
        if self.score is None or self.settings.stop_quality == 0:
            return None
        return min((self.score(w.seen) for w in self.panel if w.remembers), default=None)

    def _weight(self, name: str) -> float:
        # The output term of each network carries its own weight: one may need it, another not.
        return 1.0 if name == "output" else float(getattr(self.settings, name))

    def _terms(
        self, batch: _Batch, canvas: Canvas, choice: np.random.Generator, *, native: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return every term, the mean over the networks, and the share of hits."""
        normalized = batch.normalized
        zero = normalized.new_zeros(canvas.channels)
        found: dict[str, list[Tensor]] = {"class_prior": [], "diversity": []}
        hits = []
        progress = self.schedule.done / self.settings.iterations
        reach = _reach(self.settings, canvas.size, self.canvas.size, progress)
        moved = canvas.pixels(_jittered(normalized, reach, choice, flip=self.settings.flip))
        for witness in self.panel:
            with autocast(normalized.device, self.settings.precision):
                outputs = witness.features(moved, None if native else canvas.size)
            logits = outputs.logits.float()
            surprise = class_surprise(logits, batch.wanted, -batch.confidence.log())
            found["class_prior"].append(surprise)
            similarity = same_class_similarity(outputs.penultimate.flatten(1), batch.targets)
            found["diversity"].append(similarity)
            if witness.remembers:
                found.setdefault("bn", []).append(witness.distance(weighted=True))
            else:
                witness.take()
            if witness.output_weight > 0 and witness.classifier_weight is not None:
                prior = output_prior(
                    outputs.penultimate,
                    batch.wanted,
                    batch.confidence,
                    weight=witness.classifier_weight,
                )
                found.setdefault("output", []).append(prior * witness.output_weight)
            hits.append((logits.argmax(dim=1) == batch.targets).float().mean())
        terms = {name: torch.stack(values).mean() for name, values in found.items()}
        terms["total_variation"] = total_variation(normalized)
        terms["l2"] = distance_to_mean(normalized, mean=zero)
        return terms, torch.stack(hits).mean()


def _plan(panel: Sequence[Witness], canvas: Canvas, settings: InversionSettings) -> list[Phase]:
    """Return the phases of every batch."""
    if settings.generator and settings.iterations > 1:
        painted = min(settings.iterations - 1, max(1, round(SHARE * settings.iterations)))
        return [
            Phase(canvas.size, painted, painted=True),
            Phase(canvas.size, settings.iterations - painted),
        ]
    sizes = [
        size
        for size in coarse_sizes(canvas.size, settings.coarse)
        if all(witness.takes(canvas, size) for witness in panel)
    ]
    return plan_phases(canvas.size, sizes, iterations=settings.iterations, share=settings.coarse)


def _start(
    request: Asked, classes: int, canvas: Canvas, noise: torch.Generator, spread: float
) -> _Batch:
    device = noise.device
    return _Batch(
        normalized=canvas.smooth_noise(len(request.first), noise, spread=spread),
        targets=torch.from_numpy(request.first).to(device),
        wanted=torch.from_numpy(request.distributions(classes)).float().to(device),
        confidence=torch.from_numpy(request.confidence).float().to(device),
    )


def _reach(settings: InversionSettings, size: Size, full: Size, progress: float) -> int:
    """Return the largest shift in pixels at a size, after a share of the iterations."""
    largest = min(full) / 16 if settings.jitter is None else settings.jitter
    return round(largest * min(size) / min(full) * max(0.0, 1.0 - progress / SETTLED))


def _jittered(normalized: Tensor, reach: int, choice: np.random.Generator, *, flip: bool) -> Tensor:
    rows, columns = choice.integers(-reach, reach + 1, 2).tolist()
    shifted = circular_shift(normalized, rows=rows, columns=columns)
    return shifted.flip(3) if flip and choice.random() < 0.5 else shifted


def _check_request(
    sources: Sequence[Source],
    count: int,
    real: NDArray[np.uint8] | None,
    among: Sequence[int] | None,
) -> int:
    """Return the number of classes; refuse what cannot be done."""
    if not sources:
        raise UsageError("no network was given; inversion needs at least one")
    names = sources[0].classes
    for place, other in enumerate(sources[1:], start=2):
        if other.classes != names:
            raise UsageError(
                f"network {place} knows the classes {', '.join(other.classes)} and the first one "
                f"{', '.join(names)}; several networks must agree on classes and their order"
            )
    if len(names) < 2:
        raise MethodError(f"the network knows {len(names)} class; inversion needs at least 2")
    if among is not None and not set(among) <= set(range(len(names))):
        raise UsageError(f"classes {list(among)}; expected places from 0 to {len(names) - 1}")
    wanted = len(names if among is None else among)
    if not 0 < wanted <= count:
        raise UsageError(
            f"{count} images were asked for {wanted} classes; ask for at least one per class"
        )
    if real is not None and (real.ndim != 4 or real.dtype != np.uint8 or len(real) < 1):
        raise UsageError(
            f"real images have shape {real.shape} and type {real.dtype}; expected uint8 of shape "
            "(N, H, W, C) with N >= 1"
        )
    return len(names)


@torch.no_grad()
def _judge(
    panel: Sequence[Witness],
    images: Sequence[NDArray[np.uint8]],
    asked: Sequence[Asked],
    device: torch.device,
) -> tuple[float, float | None]:
    """Return hit rate and distance of the finished images, in float32."""
    count = sum(len(part) for part in images)
    hit, distances = 0.0, []
    for witness in panel:
        distance = 0.0
        for part, request in zip(images, asked, strict=True):
            pixels = torch.from_numpy(part).permute(0, 3, 1, 2).to(device).float() / 255.0
            predicted = witness.features(pixels).logits.argmax(dim=1).cpu().numpy()
            hit += float(request.hits(predicted).sum()) / count / len(panel)
            if witness.remembers:
                distance += witness.distance(weighted=False).item() * len(part) / count
            else:
                witness.take()
        if witness.remembers:
            distances.append(distance)
    return hit, sum(distances) / len(distances) if distances else None
