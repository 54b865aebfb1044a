"""The teacher: a trained classifier, frozen, that takes pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hydistill_edge.errors import TeacherError, UsageError
from hydistill_edge.models.anatomy import (
    Features,
    check_logits,
    find_anatomy,
    probe_input,
    read_features,
)
from hydistill_edge.models.architectures import FORMS, build_network
from hydistill_edge.models.pixels import InputSpec, PixelInput
from hydistill_edge.models.weights import digest_weights, load_into, read_weights

__all__ = ["Features", "Teacher"]


class Teacher(nn.Module):
    """A frozen classifier of pixels; made by `Teacher.load` or `Teacher.wrap`.

    It stays in eval mode for good and its weights take no gradient, while gradients with respect
    to the pixels flow.

    Attributes:
        network: takes normalised images.
        input: brings pixels to the network.
        spec: what the network expects.
        classes: names, one per logit.
        architecture: as it was named.
        options: keyword arguments of the architecture's factory.
        digest: sha256 (hex) of the weights.
        shares_classifier: whether classifier(gap(final_map)) equals the logits; methods that
            share the classifier need it.
        shares_classifier_note: why, in a sentence.
        note: what else a reader should know, e.g. that batch norm was folded away.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        classes: Sequence[str],
        spec: InputSpec,
        architecture: str,
        options: Mapping[str, Any] | None = None,
        note: str = "",
    ) -> None:
        super().__init__()
        if len(set(classes)) != len(classes) or len(classes) < 2:
            raise UsageError(f"class list {list(classes)!r}: expected at least two different names")
        self.network = network
        self.input = PixelInput(spec)
        self.spec = spec
        self.classes = tuple(classes)
        self.architecture = architecture
        self.options = dict(options or {})
        self.note = note
        self.requires_grad_(False)
        self.train(False)
        example = probe_input(network, channels=spec.channels, size=spec.size)
        check_logits(network, example, classes=len(self.classes))
        self._anatomy = find_anatomy(network, example)
        self.shares_classifier = self._anatomy.shares_classifier
        self.shares_classifier_note = self._anatomy.note
        self.digest = digest_weights(network)

    @staticmethod
    def wrap(
        network: nn.Module, *, classes: Sequence[str], spec: InputSpec, name: str = "wrapped"
    ) -> Teacher:
        """Return a teacher around a network in memory, which is frozen in place.

        Args:
            network: takes normalised images (N, spec.channels, spec.height, spec.width), returns
                logits (N, classes).
            classes: names, one per logit.
            spec: the network's input.
            name: stands for the architecture in reports.

        Raises:
            TeacherError: the output is not finite logits, one per class.
        """
        return Teacher(network, classes=classes, spec=spec, architecture=name)

    @staticmethod
    def load(
        weights: Path,
        *,
        architecture: str | None,
        classes: Sequence[str],
        spec: InputSpec,
        options: Mapping[str, Any] | None = None,
        base: Path | None = None,
    ) -> Teacher:
        """Load a teacher: weights for a named architecture, or an ONNX file.

        Args:
            weights: safetensors, `.pt` with weights only, or `.onnx`.
            architecture: `zoo:NAME`, `torchvision:NAME`, `my_net.py:FACTORY`; None for ONNX.
            classes: names, one per logit.
            spec: the network's input.
            options: keyword arguments of the architecture's factory; for ONNX, `output` names
                the tensor with the logits.
            base: folder that the relative path of a Python file starts from.

        Raises:
            MissingFileError: a file does not exist.
            TeacherError: a file that cannot be used, weights that do not fit, wrong outputs.
            UsageError: an unknown architecture.
        """
        if weights.suffix.lower() == ".onnx":
            if architecture is not None:
                raise UsageError(
                    f'{weights}: an ONNX file brings its own architecture; leave "{architecture}" '
                    "out"
                )
            return _load_onnx(weights, classes=classes, spec=spec, options=dict(options or {}))
        tensors = read_weights(weights)
        if architecture is None:
            raise UsageError(
                f"{weights}: holds weights, and the architecture is missing: give {FORMS}, "
                "or export the model to ONNX"
            )
        network = build_network(
            architecture,
            classes=len(classes),
            channels=spec.channels,
            size=spec.size,
            options=options,
            base=base,
        )
        load_into(network, tensors, source=str(weights))
        return Teacher(
            network, classes=classes, spec=spec, architecture=architecture, options=options
        )

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode, whatever is asked: a teacher never trains."""
        del mode
        super().train(False)
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits, shape (N, classes).

        Args:
            pixels: shape (N, C, H, W), uint8 or floats in [0, 1]; another size, or grey for RGB
                and the reverse, is adapted.
        """
        logits: Tensor = self.network(self.input(pixels))
        return logits

    def features(self, pixels: Tensor, taps: Sequence[str] = ()) -> Features:
        """Return logits, penultimate vector, final map and the tapped features.

        Args:
            pixels: as in `forward`.
            taps: names from `taps()`.

        Raises:
            UsageError: an unknown tap.
        """
        return read_features(self.network, self.input(pixels), self._anatomy, taps)

    def taps(self) -> list[str]:
        """Return the names of all modules that can be tapped, in order of execution."""
        return [tap.name for tap in self._anatomy.taps]

    def tap_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tap's output, without the batch dimension."""
        return {tap.name: tap.shape for tap in self._anatomy.taps}

    @property
    def classifier(self) -> nn.Linear | None:
        """The linear layer that makes the logits, None where there is none."""
        name = self._anatomy.classifier
        layer = None if name is None else self.network.get_submodule(name)
        return layer if isinstance(layer, nn.Linear) else None

    def batch_norms(self) -> list[tuple[str, nn.BatchNorm2d]]:
        """Return the batch norms with running statistics, with their names in the network."""
        return [
            (name, module)
            for name, module in self.network.named_modules()
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        ]


def _load_onnx(
    path: Path, *, classes: Sequence[str], spec: InputSpec, options: dict[str, Any]
) -> Teacher:
    # Imported here: whoever has a torch teacher needs no onnx.
    from hydistill_edge.models.onnx_network import load_onnx

    output = options.pop("output", None)
    if options:
        raise UsageError(
            f'{path}: unknown options {", ".join(options)}; an ONNX file knows only "output"'
        )
    network = load_onnx(path, output=output)
    graph = network.input
    for name, wanted, found in (
        ("channels", spec.channels, graph.channels),
        ("height", spec.height, graph.height),
        ("width", spec.width, graph.width),
    ):
        if found is not None and found != wanted:
            raise TeacherError(
                f"{path}: the graph's input has {name} {found}, and {wanted} is declared; declare "
                f"{found}"
            )
    notes = [network.note] if network.note else []
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        notes.append("no batch norm: an ONNX export folds it into the convolutions")
    return Teacher(
        network, classes=classes, spec=spec, architecture=f"onnx:{path.name}", note="; ".join(notes)
    )
