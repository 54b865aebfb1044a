"""How a set of natural images and compensators is made: one place for every weight and count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from hydistill_edge.errors import UsageError
from hydistill_edge.images.compensated_set import STORAGES, Storage
from hydistill_edge.models.ensemble import AVERAGES, Average
from hydistill_edge.training.precision import Precision

LabelMode = Literal["static", "dynamic"]
Choice = Literal["random", "confident"]

PUBLISHED_DEPTH = 20
"""BatchNorm layers of the ResNet-18 for which the weight of the statistics was published."""

_PIXELS_AT_ONCE = 512 * 32 * 32


@dataclass(frozen=True)
class CompensatorSettings:
    """How the set is made; the defaults are those published for 32 px.

    Attributes:
        ipc: budget in images per class, of which natural images and compensators are paid.
        natural: natural images per class; None for as many as the budget allows.
        networks: architectures of the zoo that are trained to answer like the teacher, each of
            which gives compensators of its own; each needs BatchNorm. Empty for the teacher alone.
            Published: resnet18, mobilenet_v2, efficientnet_b0 and a ShuffleNet.
        teacher: whether the teacher is one of the networks; it needs BatchNorm then.
        width: multiplier of the networks' channels.
        squeeze_epochs: passes over the real images that train each network. Published: 200.
        squeeze_batch: images per step there.
        squeeze_rate: peak learning rate there, of SGD along a cosine.
        flip: mirror half of the images there. Wrong where left and right differ in meaning.
        choice: which natural images of a class are taken: `random`, or `confident`, those that the
            networks are surest of.
        iterations: steps per compensator. Published: 1000 at 32 px, 2000 on ImageNet.
        learning_rate: first step size of Adam, in units of the input's standard deviation; falls to
            0 along a cosine.
        bn: weight of the BatchNorm statistics. Published: 1 at 32 px, 0.01 on ImageNet.
        first_layer: factor of the first BatchNorm layer.
        depth_free: divide the sum over BatchNorm layers by their number and multiply it by 20, as
            many as a ResNet-18 has, so that `bn` means the same for every architecture. False for
            the published sum.
        skip_layers: names of BatchNorm layers, of any of the networks, that do not count.
        jitter: largest circular shift in pixels; None for a seventh of the shorter side, which is
            the published 4 at 32 px and 32 at 224 px.
        resized_crop: largest share of the area that a crop leaves out, below 1. Published: 0 at 32
            px, 0.92 on ImageNet.
        mirror: share of the images that are mirrored. Published: 0 at 32 px, 0.5 on ImageNet.
        penalty: weight of the compensator's mean square, in normalized units; above 0 only where
            values explode.
        block: classes in memory at once; gradients of the blocks add up to one step. None for as
            many as have the pixels of 512 images of 32x32, at least 32.
        storage: `int8` with one scale per compensator and channel, or `float16`.
        scale: factor on the compensators where images are derived.
        labels: `static` stores one soft label per image; `dynamic` stores none, and the networks
            must be asked in training.
        average: whether the networks' `logits` are averaged, or their `probabilities`.
        long_tail: a stress test: the first class has so many times the natural images of the last
            one; 1 for equally many.
        label_noise: a stress test: share of the real images that are taken for another class.
        precision: `auto`, `float32` or `bf16`.
        checkpoint_seconds: wall time between checkpoints.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    ipc: int = 10
    natural: int | None = None
    networks: tuple[str, ...] = ()
    teacher: bool = True
    width: float = 1.0
    squeeze_epochs: int = 200
    squeeze_batch: int = 128
    squeeze_rate: float = 0.1
    flip: bool = True
    choice: Choice = "random"
    iterations: int = 1000
    learning_rate: float = 0.25
    bn: float = 1.0
    first_layer: float = 10.0
    depth_free: bool = True
    skip_layers: tuple[str, ...] = ()
    jitter: int | None = None
    resized_crop: float = 0.0
    mirror: float = 0.0
    penalty: float = 0.0
    block: int | None = None
    storage: Storage = "int8"
    scale: float = 1.0
    labels: LabelMode = "static"
    average: Average = "logits"
    long_tail: float = 1.0
    label_noise: float = 0.0
    precision: Precision = "auto"
    checkpoint_seconds: float = 30.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}; expected at least 1"
            for name in ("ipc", "natural", "squeeze_epochs", "iterations", "block", "long_tail")
            if (value := getattr(self, name)) is not None and not value >= 1
        ]
        problems += [
            f"{name} is {getattr(self, name)}; expected more than 0"
            for name in ("width", "squeeze_rate", "learning_rate")
            if not getattr(self, name) > 0
        ]
        problems += [
            f"{name} is {getattr(self, name)}; expected at least 0"
            for name in ("bn", "first_layer", "penalty", "scale")
            if not getattr(self, name) >= 0
        ]
        problems += [
            f"{name} is {getattr(self, name)}; expected a share of at least 0, below 1"
            for name in ("resized_crop", "label_noise")
            if not 0 <= getattr(self, name) < 1
        ]
        if not 0 <= self.mirror <= 1:
            problems.append(f"mirror is {self.mirror}; expected a share in [0, 1]")
        if self.squeeze_batch < 2:
            problems.append(
                f"squeeze_batch is {self.squeeze_batch}; expected at least 2 (BatchNorm)"
            )
        if self.jitter is not None and self.jitter < 0:
            problems.append(f"jitter is {self.jitter}; expected at least 0 pixels")
        for name, known in (
            ("choice", get_args(Choice)),
            ("storage", STORAGES),
            ("labels", get_args(LabelMode)),
            ("average", AVERAGES),
        ):
            if getattr(self, name) not in known:
                problems.append(f'{name} "{getattr(self, name)}"; expected {" or ".join(known)}')
        if not self.teacher and not self.networks:
            problems.append("teacher is false and networks is empty; expected at least one of both")
        if problems:
            raise UsageError("infer set settings: " + "; ".join(problems))

    @property
    def network_count(self) -> int:
        """How many networks give compensators, M."""
        return len(self.networks) + int(self.teacher)

    def reach(self, size: tuple[int, int]) -> int:
        """Return the largest shift in pixels for images of a size (height, width)."""
        return min(size) // 7 if self.jitter is None else self.jitter

    def block_for(self, size: tuple[int, int]) -> int:
        """Return how many classes are in memory at once for images of a size."""
        return self.block or max(32, _PIXELS_AT_ONCE // (size[0] * size[1]))
