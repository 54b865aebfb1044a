"""A projector from a student's last feature map to its teacher's linear classifier.

Source: Chen et al. 2022, "Knowledge Distillation with the Reused Teacher Classifier" (SimKD),
arXiv:2203.14001. A small network, the projector, brings the student's last feature map to the
teacher's channels; the mean of the projected map goes into the teacher's linear classifier, which
stays as it is. The student's own last layers are dropped. Projector and classifier are part of what
is deployed, so they are saved, counted and exported with the backbone, as one network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.anatomy import find_anatomy, probe_input
from hydistill_edge.models.sizing import initialise
from hydistill_edge.models.taps import eval_mode, list_taps, reading
from hydistill_edge.seeding import seeded

Kind = Literal["full", "depthwise", "pointwise"]


@dataclass(frozen=True)
class ProjectorForm:
    """How heavy a projector is.

    Attributes:
        factor: the inner layers have the teacher's channels over this; 2 is published.
        kind: `full` has a 3x3 convolution between two 1x1 ones, as published; `depthwise` makes
            it one filter per channel; `pointwise` is a single 1x1 convolution, without inner
            layers.

    Raises:
        UsageError: a value out of range.
    """

    factor: int = 2
    kind: Kind = "full"

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise UsageError(f"projector factor is {self.factor}; expected at least 1")
        if self.kind not in get_args(Kind):
            raise UsageError(
                f'projector kind "{self.kind}" is unknown; expected {", ".join(get_args(Kind))}'
            )


class Projector(nn.Module):
    """Brings a feature map to the teacher's channels; convolutions without bias, each with a norm.

    Args:
        channels_in: of the student's map.
        channels: of the teacher's map.
        form: how heavy it is.
        signed: leave the last ReLU out, for a teacher whose map has negative values.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        *,
        form: ProjectorForm | None = None,
        signed: bool = False,
    ) -> None:
        super().__init__()
        form = form or ProjectorForm()
        inner = max(1, channels // form.factor)
        groups = inner if form.kind == "depthwise" else 1
        if form.kind == "pointwise":
            layers = _layer(channels_in, channels, 1)
        else:
            layers = [
                *_layer(channels_in, inner, 1),
                *_layer(inner, inner, 3, groups=groups),
                *_layer(inner, channels, 1),
            ]
        self.layers = nn.Sequential(*(layers[:-1] if signed else layers))
        initialise(self)

    def forward(self, features: Tensor) -> Tensor:
        """Return the projected map (N, channels, h, w) of a map (N, channels_in, h, w)."""
        projected: Tensor = self.layers(features)
        return projected


def pool_to(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a map (N, C, h, w) averaged down to at most `size`; a smaller side stays as it is."""
    height, width = features.shape[2:]
    target = (min(height, size[0]), min(width, size[1]))
    if target == (height, width):
        return features
    if height % target[0] == 0 and width % target[1] == 0:
        # The same numbers as adaptive pooling, and every runtime has a kernel for it.
        return F.avg_pool2d(features, (height // target[0], width // target[1]))
    return F.adaptive_avg_pool2d(features, target)


def match_maps(student_map: Tensor, teacher_map: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps at the same size: the larger one is averaged down, side by side.

    Args:
        student_map: shape (N, C, h, w); its gradient flows.
        teacher_map: shape (N, D, H, W).
    """
    return (
        pool_to(student_map, (teacher_map.shape[2], teacher_map.shape[3])),
        pool_to(teacher_map, (student_map.shape[2], student_map.shape[3])),
    )


class Parts(NamedTuple):
    """What one pass of a projected network gives to a method.

    Attributes:
        backbone_map: the student's last map as its backbone makes it, shape (N, c, h, w).
        projected: at the teacher's channels and at most its size, shape (N, C, h', w').
        logits: the teacher's classifier of the projected map's mean, shape (N, classes).
    """

    backbone_map: Tensor
    projected: Tensor
    logits: Tensor

    @property
    def vector(self) -> Tensor:
        """The mean of the backbone's map, shape (N, c)."""
        return self.backbone_map.mean(dim=(2, 3))


class ProjectedNetwork(nn.Module):
    """Backbone, projector and a frozen linear classifier as one network.

    Args:
        backbone: returns the student's last map (N, c, h, w).
        projector: brings it to the classifier's channels.
        classifier: frozen here.
        map_size: height and width of the teacher's map; a larger student's map is pooled to it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        projector: Projector,
        classifier: nn.Linear,
        *,
        map_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.classifier = classifier.requires_grad_(False)
        self.map_size = map_size

    def parts(self, images: Tensor) -> Parts:
        """Return maps and logits of normalised images (N, C, H, W)."""
        backbone_map: Tensor = self.backbone(images)
        projected: Tensor = self.projector(pool_to(backbone_map, self.map_size))
        logits: Tensor = self.classifier(projected.mean(dim=(2, 3)))
        return Parts(backbone_map, projected, logits)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of normalised images (N, C, H, W)."""
        return self.parts(images).logits


class _Trunk(nn.Module):
    """A network up to its final map, for networks that cannot be cut at a module."""

    def __init__(self, network: nn.Module, final_map: str, copy: bool) -> None:
        super().__init__()
        self.network = network
        self.final_map = final_map
        self.copy = (final_map,) if copy else ()

    def forward(self, images: Tensor) -> Tensor:
        """Return the final map (N, C, h, w) of normalised images."""
        with reading(self.network, outputs=[self.final_map], copy=self.copy) as found:
            self.network(images)
        return found.outputs[self.final_map]


def build_projected(
    network: nn.Module,
    options: Mapping[str, Any],
    *,
    classes: int,
    channels: int,
    size: tuple[int, int],
) -> ProjectedNetwork:
    """Return an unfilled projected network; its weights are loaded afterwards.

    Args:
        network: the backbone with its own last layers, as its architecture makes it.
        options: what `project` noted about the projector.
        classes: number of logits.
        channels: of the network's input.
        size: height and width of the network's input in pixels.
    """
    cut = cut_network(network, probe_input(network, channels=channels, size=size))
    return assemble(cut, options, classes=classes, seed=0)


@dataclass(frozen=True)
class Cut:
    """A backbone without its own classifier.

    Attributes:
        module: from normalised images to the last map.
        prefix: what the names inside `module` lack, or have too much, against the network's.
        channels: of the map.
    """

    module: nn.Module
    channels: int

    def name_of(self, layer: str) -> str:
        """Return where a layer of the network stands inside the module."""
        if isinstance(self.module, _Trunk):
            return f"network.{layer}"
        return layer.removeprefix("features.")


def backbone_state(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the state of a cut backbone under the names that it had in the whole network."""
    if isinstance(backbone, _Trunk):
        return backbone.network.state_dict()
    return {f"features.{name}": tensor for name, tensor in backbone.state_dict().items()}


def cut_network(network: nn.Module, example: Tensor) -> Cut:
    """Cut a network behind its final map: what follows is dropped."""
    with eval_mode(network):
        anatomy = find_anatomy(network, example)
        name = anatomy.final_map
        if name is None:
            raise MethodError(
                "the student has no feature map, so no projector fits onto it; expected a "
                "convolutional network, e.g. zoo:resnet8"
            )
        shape = next(tap.shape for tap in anatomy.taps if tap.name == name)
        features = getattr(network, "features", None)
        if isinstance(features, nn.Module) and _makes(features, network, name, example):
            return Cut(features, int(shape[0]))
        trunk = _Trunk(network, name, copy=name in anatomy.overwritten)
        _drop_behind(network, name, example)
    return Cut(trunk, int(shape[0]))


def _makes(part: nn.Module, network: nn.Module, name: str, example: Tensor) -> bool:
    """Return whether a part of a network makes the output of a module of it."""
    with torch.no_grad(), reading(network, outputs=[name], copy=[name]) as found:
        network(example)
    wanted = found.outputs[name]
    try:
        with torch.no_grad():
            made = part(example)
    except (RuntimeError, TypeError, ValueError):  # a list of layers, or one with other inputs
        return False
    return isinstance(made, Tensor) and made.shape == wanted.shape and torch.equal(made, wanted)


def _drop_behind(network: nn.Module, name: str, example: Tensor) -> None:
    """Replace layers with weights behind a module by nothing, where the network still runs."""
    names = [tap.name for tap in list_taps(network, example)]
    behind = [
        layer
        for layer in names[names.index(name) + 1 :]
        if not list(network.get_submodule(layer).children())
        and list(network.get_submodule(layer).parameters())
        and not name.startswith(f"{layer}.")
    ]
    kept = {layer: network.get_submodule(layer) for layer in behind}
    for layer in behind:
        network.set_submodule(layer, nn.Identity())
    try:
        with torch.no_grad():
            network(example)
    except (RuntimeError, TypeError, ValueError):  # something behind needs their shapes
        for layer, module in kept.items():
            network.set_submodule(layer, module.requires_grad_(False))


def assemble(cut: Cut, facts: Mapping[str, Any], *, classes: int, seed: int) -> ProjectedNetwork:
    """Return a backbone with a fresh projector and an unfilled classifier.

    Args:
        cut: the backbone.
        facts: factor, kind, signed, teacher_channels, map_size.
        classes: number of logits.
        seed: of the projector's weights; torch's global generator is left as it was.
    """
    channels = int(facts["teacher_channels"])
    height, width = facts["map_size"]
    with seeded(seed):
        projector = Projector(
            cut.channels,
            channels,
            form=ProjectorForm(int(facts["factor"]), facts["kind"]),
            signed=bool(facts["signed"]),
        )
        classifier = nn.Linear(channels, classes)
    return ProjectedNetwork(cut.module, projector, classifier, map_size=(int(height), int(width)))


def _layer(channels_in: int, channels: int, kernel: int, *, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]
