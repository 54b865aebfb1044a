"""A network that images are made from, with all that it remembers of its training images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.anatomy import (
    Anatomy,
    Features,
    find_anatomy,
    probe_input,
    read_features,
)
from hydistill_edge.models.folding import PIXEL_CENTRE, PIXEL_SCALE
from hydistill_edge.models.pixels import adapt_pixels
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.bn_statistics import (
    BatchStatistics,
    LayerStatistics,
    bn_distance,
    bn_layers,
)
from hydistill_edge.synthesis.canvas import Canvas
from hydistill_edge.synthesis.real_statistics import LAYERS, RealStatistics

NO_BATCH_NORM_NOTE = (
    "the network has no BatchNorm layer with running statistics: these images satisfy the class "
    "prior and smoothness only, and are weaker; add a few real images where there are any"
)
REAL_STATISTICS_NOTE = (
    "the network has no BatchNorm layer with running statistics: the statistics of {count} real "
    "images in {layers} layers stood in for them; what those do not show is missing here as well"
)
ZERO_VARIANCE_NOTE = (
    "{dead} of {channels} BatchNorm channels have a running variance of zero and were left out: "
    "they never moved in training, or their statistics are lost"
)

DEFAULT_OUTPUT_WEIGHT = 0.1
_REAL_BATCH = 64
_CONSTANT_LOGITS = 1e-6  # float32 rounding of logits near 1


class Witness:
    """One network, frozen, with readers at its layers; made by `witnesses`.

    Attributes:
        source: the teacher or student.
        anatomy: where its features are.
        note: what the reader of the images must know; empty when there is nothing.
        seen: what the layers saw in the pass that `distance` was last asked about, without
            gradients.
    """

    def __init__(
        self,
        source: Teacher | Student,
        anatomy: Anatomy,
        statistics: BatchStatistics | RealStatistics,
        *,
        output: float | None,
    ) -> None:
        self.source = source
        self.anatomy = anatomy
        self.note = ""
        self.seen: list[LayerStatistics] = []
        self._statistics = statistics
        self._factors: Mapping[str, float] = {}
        last = anatomy.classifier
        layer = None if last is None else source.network.get_submodule(last)
        self._classifier = layer if isinstance(layer, nn.Linear) else None
        wanted = output
        if wanted is None:
            bare = ends_without_norm(source.network, anatomy)
            wanted = DEFAULT_OUTPUT_WEIGHT if bare else 0.0
        self.output_weight = wanted if self._classifier is not None else 0.0

    @property
    def classifier_weight(self) -> Tensor | None:
        """Weight of the layer that makes the logits, shape (C, D), None where there is none."""
        return None if self._classifier is None else self._classifier.weight

    @property
    def remembers(self) -> bool:
        """Whether there are statistics to compare with."""
        return len(self._statistics) > 0

    def weigh(self, factors: Mapping[str, float]) -> None:
        """Set the factors of single layers, by name; 1 for the others."""
        self._factors = factors

    def features(self, pixels: Tensor, size: tuple[int, int] | None = None) -> Features:
        """Run the network.

        Args:
            pixels: shape (N, C, H, W), floats in [0, 1]; channels are adapted.
            size: height and width that the network is run at; None for its own. Another one is for
                networks that take any size.
        """
        own = self.source.size if isinstance(self.source, Student) else self.source.spec.size
        channels = (
            self.source.channels if isinstance(self.source, Student) else self.source.spec.channels
        )
        adapted = adapt_pixels(pixels, channels=channels, size=size or own)
        if isinstance(self.source, Student):
            normalized = (adapted * 255.0 - PIXEL_CENTRE) / PIXEL_SCALE
        else:
            normalized = (adapted - self.source.input.mean) / self.source.input.std
        return read_features(self.source.network, normalized, self.anatomy)

    def take(self) -> list[LayerStatistics]:
        """Return what the layers saw since the last call."""
        return self._statistics.take()

    def distance(self, *, weighted: bool) -> Tensor:
        """Return how far the last forward pass was from what the network remembers, shape ().

        Args:
            weighted: with the factors of `weigh`; otherwise the mean over the layers.
        """
        seen = self.take()
        self.seen = [
            replace(layer, mean=layer.mean.detach(), variance=layer.variance.detach())
            for layer in seen
        ]
        factors = self._factors if weighted else {}
        weights = [factors.get(layer.name, 1.0) / len(seen) for layer in seen]
        return bn_distance(seen, weights=weights)

    def takes(self, canvas: Canvas, size: tuple[int, int]) -> bool:
        """Return whether the network runs at another size, with finite logits."""
        pixels = canvas.at(size).pixels(torch.zeros((2, canvas.channels, *size)).to(canvas.mean))
        try:
            with torch.no_grad():
                logits = self.features(pixels, size).logits
        except Exception:  # whatever a network may raise on a shape that it was not made for
            return False
        finally:
            self.take()
        return logits.shape == (2, len(self.source.classes)) and bool(logits.isfinite().all())

    def image_bytes(self, canvas: Canvas) -> int:
        """Return the bytes that one image keeps in memory until its gradient is known."""
        weights = {value.data_ptr() for value in self.source.network.state_dict().values()}
        kept: dict[int, int] = {}

        def pack(value: Tensor) -> Tensor:
            storage = value.untyped_storage()
            if value.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return value

        shape = (2, canvas.channels, *canvas.size)
        normalized = torch.zeros(shape).to(canvas.mean).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            # Held, so that no address is used twice while they are counted.
            outputs = self.features(canvas.pixels(normalized)), self.take()
        total = sum(kept.values())
        del outputs
        return total // 2

    @torch.no_grad()
    def check_answers(self, pixels: Tensor) -> None:
        """Refuse a network that cannot tell images apart.

        Args:
            pixels: shape (N, C, H, W), different from each other.

        Raises:
            MethodError: it answers with NaN, or everything alike.
        """
        logits = self.features(pixels).logits.float()
        self.take()
        if not logits.isfinite().all():
            raise MethodError(
                "the network answers noise with NaN or infinite logits; its weights are damaged or "
                "do not belong to this architecture"
            )
        spread = (logits.amax(dim=0) - logits.amin(dim=0)).max().item()
        if spread <= _CONSTANT_LOGITS * (1.0 + logits.abs().max().item()):
            raise MethodError(
                f"the network gives the same logits for {len(pixels)} different images (spread "
                f"{spread:.1e}); a constant network holds nothing to make images from: check its "
                "weights and its input statistics"
            )


@contextmanager
def witnesses(
    sources: Sequence[Teacher | Student],
    *,
    real: NDArray[np.uint8] | None,
    layer_weights: Mapping[str, float],
    output: float | None,
    device: torch.device,
) -> Iterator[list[Witness]]:
    """Hold networks frozen, with readers at their layers; then as they were.

    Args:
        sources: the networks.
        real: shape (N, H, W, C), real images for networks without BatchNorm; others ignore them.
        layer_weights: `InversionSettings.layer_weights`; a name may be of any of the networks.
        output: `InversionSettings.output`.
        device: where to compute.

    Raises:
        MethodError: real images cannot stand in for BatchNorm in a network.
        UsageError: a layer weight of no network.
    """
    with ExitStack() as stack:
        found = [
            _open(source, real=real, output=output, device=device, stack=stack)
            for source in sources
        ]
        names = [name for witness, known in found for name in known]
        if unknown := sorted(set(layer_weights) - set(names)):
            raise UsageError(
                f"layer_weights names {', '.join(unknown)}; the BatchNorm layers are "
                f"{', '.join(names) or 'none'}"
            )
        for witness, _ in found:
            witness.weigh(layer_weights)
        yield [witness for witness, _ in found]


def ends_without_norm(network: nn.Module, anatomy: Anatomy) -> bool:
    """Return whether a convolution or linear layer runs after the last BatchNorm.

    The classifier does not count: its input, right behind a BatchNorm, is held by that.
    """
    last_norm = last_layer = -1
    norms = {name for name, _ in bn_layers(network)}
    for place, tap in enumerate(anatomy.taps):
        if tap.name in norms:
            last_norm = place
        elif tap.name != anatomy.classifier and isinstance(network.get_submodule(tap.name), LAYERS):
            last_layer = place
    return last_layer > last_norm


def _open(
    source: Teacher | Student,
    *,
    real: NDArray[np.uint8] | None,
    output: float | None,
    device: torch.device,
    stack: ExitStack,
) -> tuple[Witness, list[str]]:
    """Return a witness and the names of the layers that it compares."""
    stack.enter_context(_frozen(source, device))
    network = source.network
    channels, size = (
        (source.channels, source.size)
        if isinstance(source, Student)
        else (source.spec.channels, source.spec.size)
    )
    anatomy = find_anatomy(network, probe_input(network, channels=channels, size=size))
    norms = bn_layers(network)
    if norms or real is None:
        batch_statistics = stack.enter_context(BatchStatistics(network))
        witness = Witness(source, anatomy, batch_statistics, output=output)
        witness.note = _norm_note(network)
        return witness, [name for name, _ in norms]
    leave_out = [] if anatomy.classifier is None else [anatomy.classifier]
    statistics = stack.enter_context(
        RealStatistics(network, leave_out=leave_out, overwritten=anatomy.overwritten)
    )
    witness = Witness(source, anatomy, statistics, output=output)
    pixels = torch.from_numpy(real).permute(0, 3, 1, 2)
    batches = [part.to(device).float() / 255.0 for part in torch.split(pixels, _REAL_BATCH)]
    statistics.remember(witness.features, batches)
    witness.note = REAL_STATISTICS_NOTE.format(count=len(real), layers=len(statistics))
    return witness, statistics.names


def _norm_note(network: nn.Module) -> str:
    variances: list[Any] = [norm.running_var for _, norm in bn_layers(network)]
    if not variances:
        return NO_BATCH_NORM_NOTE
    values = torch.cat([variance.flatten() for variance in variances])
    dead = int((values == 0).sum())
    return ZERO_VARIANCE_NOTE.format(dead=dead, channels=len(values)) if dead else ""


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
