"""The student: a small classifier of pixels, with the input normalisation (pixel - 128) / 64."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from hydistill_edge.atomic import write_bytes
from hydistill_edge.errors import MissingFileError, TeacherError, UsageError
from hydistill_edge.models.anatomy import (
    Anatomy,
    Features,
    check_logits,
    find_anatomy,
    probe_input,
    read_features,
)
from hydistill_edge.models.architectures import build_network, is_code
from hydistill_edge.models.counting import Size, count
from hydistill_edge.models.folding import PIXEL_CENTRE, PIXEL_SCALE, InputPlan, arrange, take_over
from hydistill_edge.models.pixels import InputSpec, adapt_pixels
from hydistill_edge.models.taps import eval_mode
from hydistill_edge.models.weights import digest_weights, load_into, read_weights
from hydistill_edge.naming import split_forms
from hydistill_edge.seeding import seeded

SCHEMA_VERSION = 1
WEIGHTS_FILE = "student.safetensors"
DESCRIPTION_FILE = "student.json"
ONNX_FILE = "network.onnx"

Start = Literal["fresh", "slimmed", "factored"]
"""What a student was before its training."""


class Student(nn.Module):
    """A classifier of pixels; made by `create`, `adopt` or `load`.

    Attributes:
        network: takes z = (pixel - 128) / 64, shape (N, channels, height, width).
        architecture: as it was named, e.g. "zoo:resnet8"; empty if it cannot be named.
        width: multiplier of the channels, for networks of the zoo.
        options: keyword arguments of the architecture's factory.
        classes: names, one per logit.
        channels: of the pixels, 1 (grey) or 3 (RGB).
        size: height and width of the pixels.
        plan: how the network takes z.
        input_note: what taking over other statistics did, with the border error measured.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        architecture: str,
        classes: Sequence[str],
        channels: int,
        size: tuple[int, int],
        width: float = 1.0,
        options: Mapping[str, Any] | None = None,
        plan: InputPlan | None = None,
        input_note: str = "",
    ) -> None:
        super().__init__()
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise UsageError(f"class list {list(classes)!r}: expected at least two different names")
        self.network = network
        self.architecture = architecture
        self.width = width
        self.options = dict(options or {})
        self.classes = tuple(classes)
        self.channels = channels
        self.size = (int(size[0]), int(size[1]))
        self.plan = plan or InputPlan("own", channels)
        self.input_note = input_note
        self._anatomy: Anatomy | None = None
        self._holds_statistics = False
        with eval_mode(network):
            example = probe_input(network, channels=channels, size=self.size)
            check_logits(network, example, classes=len(self.classes))

    @staticmethod
    def create(
        architecture: str,
        *,
        classes: Sequence[str],
        channels: int,
        size: tuple[int, int],
        width: float = 1.0,
        seed: int = 0,
    ) -> Student:
        """Return an untrained student of the zoo, in training mode.

        Args:
            architecture: a name of the zoo, e.g. "resnet8" or "zoo:resnet8".
            classes: names, one per logit.
            channels: of the pixels.
            size: height and width of the pixels.
            width: multiplier of the network's channels.
            seed: of the weights; torch's global generator is left as it was.

        Raises:
            UsageError: an unknown name, or a value out of range.
        """
        name = architecture if ":" in architecture else f"zoo:{architecture}"
        if not name.startswith("zoo:"):
            raise UsageError(f'student "{architecture}": expected a network of the zoo, "zoo:NAME"')
        with seeded(seed):
            network = build_network(
                name, classes=len(classes), channels=channels, size=size, options={"width": width}
            )
        return Student(
            network, architecture=name, classes=classes, channels=channels, size=size, width=width
        )

    @staticmethod
    def adopt(
        network: nn.Module,
        *,
        spec: InputSpec,
        classes: Sequence[str],
        architecture: str = "",
        options: Mapping[str, Any] | None = None,
        width: float = 1.0,
        channels: int | None = None,
        fold: bool = True,
        seed: int = 0,
    ) -> Student:
        """Return a student around a trained network that expects other pixel statistics.

        Args:
            network: takes (pixel / 255 - mean) / std; it is copied, not changed.
            spec: its mean, std, channels and size.
            classes: names, one per logit.
            architecture: what builds the network again, needed by `save`; an ONNX network needs
                none.
            options: keyword arguments of the architecture's factory.
            width: multiplier of the network's channels, for the record.
            channels: of the pixels; 1 for a network that sees grey as several equal channels.
            fold: put mean and std into the first convolution where it is a plain one; otherwise
                they stay as a layer in front.
            seed: of the random pixels that the border error is measured on.

        Raises:
            TeacherError: the output is not finite logits, one per class.
            UsageError: channels that the network cannot be given.
        """
        pixel_channels = spec.channels if channels is None else channels
        if pixel_channels not in (1, spec.channels):
            raise UsageError(
                f"{pixel_channels} pixel channels for a network with {spec.channels}: "
                f"expected {spec.channels}, or 1 where it sees grey repeated"
            )
        with eval_mode(network):
            example = probe_input(network, channels=spec.channels, size=spec.size)
            check_logits(network, example, classes=len(classes))
        taken, plan, note = take_over(network, spec, channels=pixel_channels, fold=fold, seed=seed)
        taken.requires_grad_(True)
        return Student(
            taken,
            architecture=architecture or _onnx_name(network),
            classes=classes,
            channels=pixel_channels,
            size=spec.size,
            width=width,
            options=options,
            plan=plan,
            input_note=note,
        )

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return z = (pixel - 128) / 64, shape (N, channels, *size).

        Args:
            pixels: shape (N, C, H, W), uint8 or floats in [0, 1]; channels and size are adapted.
        """
        fits = pixels.dim() == 4 and tuple(pixels.shape[1:]) == (self.channels, *self.size)
        if pixels.dtype == torch.uint8 and fits:
            return (pixels.float() - PIXEL_CENTRE) / PIXEL_SCALE  # exact, as on the device
        adapted = adapt_pixels(pixels, channels=self.channels, size=self.size)
        return (adapted * 255.0 - PIXEL_CENTRE) / PIXEL_SCALE

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits, shape (N, classes), of pixels as in `normalize`."""
        return self.forward_normalized(self.normalize(pixels))

    def forward_normalized(self, z: Tensor) -> Tensor:
        """Return the logits, shape (N, classes).

        Args:
            z: (pixel - 128) / 64, shape (N, channels, *size).
        """
        logits: Tensor = self.network(z)
        return logits

    def features(self, pixels: Tensor, taps: Sequence[str] = ()) -> Features:
        """Return logits, penultimate vector, final map and the tapped features; gradients flow.

        Args:
            pixels: as in `normalize`.
            taps: names from `taps()`.

        Raises:
            UsageError: an unknown tap.
        """
        return read_features(self.network, self.normalize(pixels), self.anatomy(), taps)

    def layer_of_teacher(self, name: str) -> str:
        """Return the name that a layer of the network it was made of has here."""
        return f"network.{name}" if self.plan.kind == "explicit" else name

    @contextmanager
    def held_statistics(self) -> Iterator[None]:
        """Keep the batch norms' means and variances, also in training, inside the block."""
        before, self._holds_statistics = self._holds_statistics, True
        try:
            yield
        finally:
            self._holds_statistics = before

    def train(self, mode: bool = True) -> Student:
        """Go into training, or out of it; batch norms stay out while their statistics are held."""
        super().train(mode)
        if self._holds_statistics:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train(False)
        return self

    def anatomy(self) -> Anatomy:
        """Return where the network's features are; found once, by a run in eval mode."""
        if self._anatomy is None:
            with eval_mode(self.network):
                example = probe_input(self.network, channels=self.channels, size=self.size)
                self._anatomy = find_anatomy(self.network, example)
        return self._anatomy

    def taps(self) -> list[str]:
        """Return the names of all modules that can be tapped, in order of execution."""
        return [tap.name for tap in self.anatomy().taps]

    def tap_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tap's output, without the batch dimension."""
        return {tap.name: tap.shape for tap in self.anatomy().taps}

    @property
    def start(self) -> Start:
        """What it was before its training: a teacher made smaller must not be made to forget."""
        if "ranks" in self.options:
            return "factored"
        return "slimmed" if "layers" in self.options else "fresh"

    @property
    def digest(self) -> str:
        """The sha256 (hex) of the weights as they are now."""
        return digest_weights(self.network)

    def count(self) -> Size:
        """Return parameters, and MACs for one image."""
        return count(self.network, channels=self.channels, size=self.size)

    def save(self, folder: Path) -> None:
        """Write the student into a folder: safetensors and JSON, no pickle.

        Each file is replaced in one step, the description last; it holds the weights' sha256, so
        a half-written pair is found out on loading.

        Args:
            folder: made if it does not exist.

        Raises:
            UsageError: an adopted network without the name of its architecture.
        """
        if not self.architecture:
            raise UsageError(
                "this student's architecture has no name, so it could not be loaded again: give "
                '`architecture=` to Student.adopt, e.g. "torchvision:resnet18"'
            )
        folder.mkdir(parents=True, exist_ok=True)
        weights = save_safetensors(
            {
                # Training leaves channels_last tensors behind; the format wants plain ones.
                name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
                for name, tensor in self.network.state_dict().items()
            }
        )
        model = _onnx_bytes(self.network)
        if model is not None:
            write_bytes(folder / ONNX_FILE, model)
        write_bytes(folder / WEIGHTS_FILE, weights)
        description = {
            "schema_version": SCHEMA_VERSION,
            "architecture": self.architecture,
            "options": self.options,
            "width": self.width,
            "classes": list(self.classes),
            "input": {
                "height": self.size[0],
                "width": self.size[1],
                "channels": self.channels,
                "normalization": "(pixel - 128) / 64",
                "plan": asdict(self.plan),
                "note": self.input_note,
            },
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }
        text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        write_bytes(folder / DESCRIPTION_FILE, text.encode())

    @staticmethod
    def load(folder: Path, *, architecture: str | None = None, base: Path | None = None) -> Student:
        """Read a student that `save` wrote, in eval mode.

        Args:
            folder: with `student.safetensors` and `student.json`.
            architecture: needed, and only used, where it is a Python file's factory: a student's
                folder never decides by itself which code runs.
            base: folder that the relative path of a Python file starts from.

        Raises:
            MissingFileError: a file is missing.
            TeacherError: a file is damaged, or the two do not belong together.
            UsageError: the architecture is a Python file and was not named.
        """
        description = _read_description(folder / DESCRIPTION_FILE)
        weights = folder / WEIGHTS_FILE
        tensors = read_weights(weights)
        if hashlib.sha256(weights.read_bytes()).hexdigest() != description["weights_sha256"]:
            raise TeacherError(
                f"{weights}: not the weights that {DESCRIPTION_FILE} describes (another sha256): a "
                "write was cut short or a file was exchanged; save the student again"
            )
        try:
            return _rebuild(folder, description, tensors, architecture=architecture, base=base)
        except (KeyError, TypeError, ValueError) as error:
            raise TeacherError(
                f"{folder / DESCRIPTION_FILE}: {type(error).__name__}: {error}; expected what "
                f"Student.save writes, schema version {SCHEMA_VERSION}"
            ) from error


def _rebuild(
    folder: Path,
    description: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    architecture: str | None,
    base: Path | None,
) -> Student:
    name, image = str(description["architecture"]), description["input"]
    given = image["plan"]
    plan = InputPlan(
        given["kind"],
        int(given["network_channels"]),
        layer=str(given["layer"]),
        scale=tuple(float(value) for value in given["scale"]),
        shift=tuple(float(value) for value in given["shift"]),
    )
    size = (int(image["height"]), int(image["width"]))
    options = dict(description["options"])
    if name.startswith("onnx:"):
        network = _load_onnx(folder / ONNX_FILE)
    else:
        if is_code(name) and architecture is None:
            raise UsageError(
                f'{folder}: this student is built by "{name}", and a folder may not decide which '
                "code "
                f'runs: name it, Student.load(..., architecture="{name}")'
            )
        network = build_network(
            _with_code(name, architecture),
            classes=len(description["classes"]),
            channels=plan.network_channels,
            size=size,
            options={
                **({"width": description["width"]} if name.startswith("zoo:") else {}),
                **options,
            },
            base=base,
        )
    network = arrange(network, plan, channels=int(image["channels"]))
    load_into(network, tensors, source=str(folder / WEIGHTS_FILE))
    student = Student(
        network,
        architecture=name,
        classes=description["classes"],
        channels=int(image["channels"]),
        size=size,
        width=float(description["width"]),
        options=options,
        plan=plan,
        input_note=str(image["note"]),
    )
    student.eval()
    return student


def _with_code(name: str, given: str | None) -> str:
    """Return the stored name with the Python file that the caller gave in place of the stored."""
    if given is None or not is_code(name):
        return name
    stored, _ = split_forms(name)
    named, _ = split_forms(given)
    return given if named else "".join(stored) + given


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected a folder that Student.save wrote")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TeacherError(f"{path}: not JSON ({error}); save the student again") from error
    version = description.get("schema_version") if isinstance(description, dict) else None
    if version != SCHEMA_VERSION:
        raise TeacherError(
            f"{path}: schema version {version!r}, and this release reads {SCHEMA_VERSION}; "
            "save the student again"
        )
    return dict(description)


def _onnx_name(network: nn.Module) -> str:
    return "onnx:network" if isinstance(getattr(network, "model", None), bytes) else ""


def _onnx_bytes(network: nn.Module) -> bytes | None:
    """Return the graph of an ONNX network, which stands for its architecture."""
    for module in network.modules():
        model = getattr(module, "model", None)
        if isinstance(model, bytes):
            return model
    return None


def _load_onnx(path: Path) -> nn.Module:
    # Imported here: only a student that came as ONNX needs onnx.
    from hydistill_edge.models.onnx_network import load_onnx

    return load_onnx(path)
