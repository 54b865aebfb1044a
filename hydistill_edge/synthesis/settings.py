"""How images are made from a network: one place for every weight and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hydistill_edge.errors import UsageError
from hydistill_edge.training.precision import Precision

_MIB = 1024 * 1024
_WEIGHTS = ("bn", "class_prior", "diversity", "total_variation", "l2", "output")
_SHARES = ("boundary", "coarse", "stop_quality")


@dataclass(frozen=True)
class InversionSettings:
    """How images are made.

    Attributes:
        iterations: steps per batch of images, at most.
        batch: images optimized together; their common statistics are matched, so that a large batch
            leaves the single image more freedom. None for as many pixels as 512 images of 32x32
            have, between 32 and 512 images, or fewer where `memory_mib` holds fewer.
        memory_mib: what the activations of a batch may take, where `batch` is None.
        learning_rate: first step size of Adam, in units of the input's standard deviation; falls
            along a cosine.
        bn: weight of the BatchNorm statistics.
        layer_weights: factor of single BatchNorm layers, by name; 1 for the others.
        class_prior: weight of the class term.
        confidence: lowest and highest probability at which an image stops paying for its class;
            drawn evenly between them per image.
        boundary: share of the images whose target is a mixture of two classes; they lie where
            the network decides.
        output: weight of the prior on the last features that the classifier's weights imply. None
            for 0.1 where layers without BatchNorm come last, and 0 elsewhere.
        diversity: weight of the similarity between images of a class.
        total_variation: weight of the smoothness prior, of pixels in normalized units.
        l2: weight of the distance to the mean color, in normalized units.
        spread: share of the start's variance that lies between the images, as brightness, in
            [0, 1); their contrast differs then, too. BatchNorm cannot tell variance between images
            from variance within them, so images that start alike end alike, and reach none of the
            extremes that real ones do.
        jitter: largest circular shift in pixels, drawn per iteration; None for a sixteenth of the
            shorter side. Falls to 0 over the first three fifths of the iterations.
        flip: mirror the batch in half of the iterations. Wrong where left and right differ in
            meaning, as in digits and text.
        coarse: share of the iterations at lower resolution (half; from 192 px a quarter first),
            before the images are enlarged. None for 0.6 from 64 px, and 0 below.
        generator: paint the images of a batch with a small network first, shared by all batches,
            and optimize pixels in the last fifth of the iterations; at full size throughout.
        stop_window: iterations over which progress is judged; a batch whose BatchNorm distance no
            longer falls ends with a short decline of the step size. 0 never stops early.
        stop_tolerance: smallest relative fall of that distance, from one window to the next, that
            counts as progress.
        stop_quality: score of the images (that of the calibration gate, over a batch) at which a
            batch has had enough, in [0, 1]; looked at every tenth iteration at full size. 0 never
            stops for it.
        precision: `auto`, `float32` or `bf16`.

    Raises:
        UsageError: a value is out of range; all problems are listed.
    """

    iterations: int = 100
    batch: int | None = None
    memory_mib: int = 4096
    learning_rate: float = 0.3
    bn: float = 100.0
    layer_weights: Mapping[str, float] = field(default_factory=dict)
    class_prior: float = 10.0
    confidence: tuple[float, float] = (0.9, 0.999)
    boundary: float = 0.0
    output: float | None = None
    diversity: float = 0.1
    total_variation: float = 0.001
    l2: float = 0.0
    spread: float = 0.5
    jitter: int | None = None
    flip: bool = False
    coarse: float | None = None
    generator: bool = False
    stop_window: int = 0
    stop_tolerance: float = 0.02
    stop_quality: float = 0.0
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value}; expected at least 1"
            for name in ("iterations", "batch", "memory_mib")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        problems += [
            f"{name} is {value}; expected a weight of at least 0"
            for name in _WEIGHTS
            if (value := getattr(self, name)) is not None and not value >= 0
        ]
        if not 0 <= self.spread < 1:
            problems.append(f"spread is {self.spread}; expected a share in [0, 1)")
        if not self.learning_rate > 0:
            problems.append(f"learning_rate is {self.learning_rate}; expected more than 0")
        low, high = self.confidence
        if not 0 < low <= high < 1:
            problems.append(f"confidence is {self.confidence}; expected 0 < lowest <= highest < 1")
        problems += [
            f"{name} is {value}; expected a share in [0, 1]"
            for name in _SHARES
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1
        ]
        if self.jitter is not None and self.jitter < 0:
            problems.append(f"jitter is {self.jitter}; expected at least 0 pixels")
        if self.stop_window < 0:
            problems.append(f"stop_window is {self.stop_window}; expected at least 0 iterations")
        if not 0 <= self.stop_tolerance < 1:
            problems.append(f"stop_tolerance is {self.stop_tolerance}; expected one in [0, 1)")
        if problems:
            raise UsageError("inversion settings: " + "; ".join(problems))

    def batch_for(self, size: tuple[int, int], image_bytes: int = 0) -> int:
        """Return how many images are optimized together.

        Args:
            size: height and width of the images.
            image_bytes: what one image takes in memory while it is optimized; 0 if not known.
        """
        if self.batch is not None:
            return self.batch
        wanted = min(512, max(32, 512 * 32 * 32 // (size[0] * size[1])))
        return max(1, min(wanted, self.memory_mib * _MIB // max(1, image_bytes)))
