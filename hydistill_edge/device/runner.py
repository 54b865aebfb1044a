"""The runner: a bundle in, decisions out.

    from hydistill_edge.device import load

    with load("widgets.hydistill") as model:
        result = model("photo.png")
        print(result.label, result.probability, result.accepted)

Pictures are decoded, adapted and resized by the very functions that prepared the student's images
(`images/resize.py`); everything after the pixels is inside the model file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Union, cast

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.bundle.golden import read_golden
from hydistill_edge.bundle.manifest import Manifest
from hydistill_edge.bundle.pack import Bundle
from hydistill_edge.bundle.reject import apply_reject
from hydistill_edge.device.cache import unpacked
from hydistill_edge.errors import BundleError, ShapeError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage
    from typing_extensions import Self

    from hydistill_edge.targets.base import Precision, Runner
    from hydistill_edge.targets.gates import Gate

ImageLike = Union[
    str, "PathLike[str]", bytes, bytearray, memoryview, "PillowImage", NDArray[np.uint8]
]
"""A path, an encoded file's bytes, a Pillow image, or pixels of shape (H, W) or (H, W, C) uint8."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What the model says about one image.

    Attributes:
        label: name of the most probable class.
        index: its place in `Model.classes`.
        probability: its probability, in [0, 1]; calibrated where the bundle has a reject rule.
        accepted: whether the answer is sure enough to act on; None where the bundle has no reject
            rule (its manifest says why).
        probabilities: of all classes, shape (classes,) float32.
        logits: as the model gave them, shape (classes,) float32.
    """

    label: str
    index: int
    probability: float
    accepted: bool | None
    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32]


def load(
    path: str | PathLike[str], *, threads: int | None = None, cache: Path | None = None
) -> Model:
    """Open a bundle: every byte is checked, then its runtime is started.

    Args:
        path: a .hydistill file.
        threads: threads of the runtime; default those of the device profile.
        cache: where unpacked bundles are kept; default $HYDISTILL_CACHE or the user's cache.

    Raises:
        MissingFileError: there is no such file.
        BundleError: hostile, altered or incomplete, or made for a resize rule unknown here.
        TargetUnavailableError: its runtime is not installed here; the message says what to do.
        NoSpaceError: the disk is full.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; expected at least 1, or None for the profile's")
    return Model(Path(path), threads=threads, cache=cache)


class Model:
    """A loaded model; a context manager, and callable. Use it from one thread at a time.

    Attributes:
        manifest: what the bundle says about itself.
        classes: names of the classes, in the order of the logits.
    """

    def __init__(self, path: Path, *, threads: int | None, cache: Path | None) -> None:
        self.path = path
        self._stack = ExitStack()
        try:
            with Bundle(path) as bundle:
                bundle.verify()
                self.manifest: Manifest = bundle.manifest
                self._resize = _resize_rule(self.manifest, path)
                self._folder = self._stack.enter_context(unpacked(bundle, cache))
            self._runner: Runner | None = self._open_runner(threads)
        except BaseException:
            self._stack.close()
            raise
        self.classes: tuple[str, ...] = self.manifest.classes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the runtime. The model cannot be used afterwards; closing twice is harmless."""
        self._runner = None
        self._stack.close()

    def __call__(self, image: ImageLike) -> Result:
        """Decide about one image.

        Raises:
            MissingFileError, ImageSourceError, ShapeError: the image cannot be used.
            BundleError: the model gave no finite numbers.
        """
        return self._results(self.logits(self.pixels(image)[None]))[0]

    def batch(self, images: Iterable[ImageLike]) -> list[Result]:
        """Decide about several images; results in their order.

        Raises:
            MissingFileError, ImageSourceError, ShapeError: an image cannot be used.
            BundleError: the model gave no finite numbers.
        """
        pixels = [self.pixels(image) for image in images]
        return self._results(self.logits(np.stack(pixels))) if pixels else []

    def pixels(self, image: ImageLike) -> NDArray[np.uint8]:
        """Return an image as the model takes it, shape (height, width, channels) uint8.

        Raises:
            MissingFileError, ImageSourceError, ShapeError: the image cannot be used.
        """
        from hydistill_edge.images.resize import decode, to_channels

        if isinstance(image, np.ndarray):
            raw = _raw_pixels(image)
        elif isinstance(image, str | PathLike):
            raw = decode(Path(image))
        elif isinstance(image, bytes | bytearray | memoryview):
            raw = decode(bytes(image))
        else:
            raw = decode(_pillow(image))
        shape = self.manifest.input
        return self._resize(to_channels(raw, shape.channels), (shape.height, shape.width))

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the raw scores of prepared pixels.

        Args:
            pixels: shape (N, height, width, channels) uint8, N at least 1.

        Returns:
            Shape (N, classes) float32.

        Raises:
            ShapeError: pixels of another size.
            UsageError: the model is closed.
        """
        from hydistill_edge.targets.parity import run_in_batches

        if self._runner is None:
            raise UsageError(f"{self.path}: the model is closed; load it again")
        shape = self.manifest.input
        wanted = (shape.height, shape.width, shape.channels)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != wanted:
            raise ShapeError(
                f"pixels are {pixels.dtype} {pixels.shape}; expected uint8 (N, *{wanted})"
            )
        found = run_in_batches(self._runner.run, pixels, self.manifest.batch)
        if found.shape[1] != len(self.classes):
            raise BundleError(
                f"{self.path}: the model gives {found.shape[1]} logits for {len(self.classes)} "
                "classes; pack the bundle again"
            )
        return found.astype(np.float32, copy=False)

    def check(self) -> list[Gate]:
        """Run the golden images from their PNG files and judge the logits.

        The float student's logits are held against the limits of the parity ladder for this
        precision; decisions must be those of the artifact on the machine that built it. A handful
        of images proves no percentage, so agreement is counted, not bounded.

        Returns:
            Gates: passed is True, False, or None where the bundle has no golden images.
        """
        from hydistill_edge.device.golden_check import judge_golden, no_golden

        golden = read_golden(self.manifest, self._read)
        if golden is None:
            return [no_golden(self.manifest.golden.note)]
        found = self.logits(np.stack([self.pixels(data) for data in golden.files]))
        return judge_golden(golden, found, self.manifest)

    def _read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def _open_runner(self, threads: int | None) -> Runner:
        from hydistill_edge.targets.adapters import open_runner

        return self._stack.enter_context(
            open_runner(
                self.manifest.target,
                self._folder / self.manifest.entry,
                threads=threads or self.manifest.threads,
                precision=cast("Precision", self.manifest.precision),
            )
        )

    def _results(self, logits: NDArray[np.float32]) -> list[Result]:
        if not np.isfinite(logits).all():
            raise BundleError(
                f"{self.path}: the model gave NaN or infinity; it does not work on this device. "
                "check() tells more"
            )
        probabilities, accepted = apply_reject(logits, self.manifest.reject)
        return [
            self._result(logits[row], probabilities[row], accepted, row)
            for row in range(len(logits))
        ]

    def _result(
        self,
        logits: NDArray[np.float32],
        probabilities: NDArray[np.float32],
        accepted: NDArray[np.bool_] | None,
        row: int,
    ) -> Result:
        index = int(logits.argmax())
        return Result(
            label=self.classes[index],
            index=index,
            probability=float(probabilities[index]),
            accepted=None if accepted is None else bool(accepted[row]),
            probabilities=probabilities,
            logits=logits,
        )


def _resize_rule(
    manifest: Manifest, path: Path
) -> Callable[[NDArray[np.uint8], tuple[int, int]], NDArray[np.uint8]]:
    from hydistill_edge.images.resize import RULES

    if manifest.input.resize not in RULES:
        raise BundleError(
            f"{path}: made for the resize rule {manifest.input.resize!r}; this program knows "
            f"{', '.join(RULES)}. Update hydistill-edge, or pack the bundle again"
        )
    return RULES[manifest.input.resize]


def _raw_pixels(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ShapeError(
            f"image is {image.dtype} {image.shape}; expected uint8 (height, width) or (height, "
            "width, 1 or 3), RGB, 0 to 255"
        )
    return image[:, :, None] if image.ndim == 2 else image


def _pillow(image: object) -> PillowImage:
    from PIL.Image import Image

    if not isinstance(image, Image):
        raise UsageError(
            f"image is a {type(image).__name__}; expected a path, the bytes of an image file, a "
            "Pillow image, or a uint8 array"
        )
    return image
