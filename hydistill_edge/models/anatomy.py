"""Where a classifier keeps its final feature map, its penultimate vector and its last layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hydistill_edge.errors import HydistillError, TeacherError
from hydistill_edge.models.taps import Tap, check_taps, list_taps, reading

SHARING_TOLERANCE = 1e-4
"""Largest |classifier(gap(final_map)) - logits| over the largest |logit|: float32 rounding of two
orders of summation stays far below, another architecture far above."""

PROBE_IMAGES = 2
PROBE_SEED = 20


@dataclass(frozen=True)
class Features:
    """What one forward pass of a classifier gives to a method.

    Attributes:
        logits: shape (N, classes).
        penultimate: what the last linear layer sees, shape (N, D).
        final_map: the last feature map, shape (N, C, H, W).
        taps: outputs of the modules that were asked for, by name.
    """

    logits: Tensor
    penultimate: Tensor
    final_map: Tensor
    taps: Mapping[str, Tensor]


@dataclass(frozen=True)
class Anatomy:
    """What was found in a network by running it once.

    Attributes:
        classifier: name of the linear layer that makes the logits, None if there is none.
        final_map: name of the module whose output is the final map, None if there is no map.
        shares_classifier: whether classifier(gap(final_map)) equals the logits.
        note: why, in a sentence.
        taps: all that can be read, in order of execution.
        outputs: number of logits.
    """

    classifier: str | None
    final_map: str | None
    shares_classifier: bool
    note: str
    taps: tuple[Tap, ...]
    outputs: int

    @property
    def overwritten(self) -> frozenset[str]:
        """Names of taps that a later operation writes into."""
        return frozenset(tap.name for tap in self.taps if tap.overwritten)


def probe_input(network: nn.Module, *, channels: int, size: tuple[int, int]) -> Tensor:
    """Return a few random normalised images on the network's device, the same every time."""
    generator = torch.Generator().manual_seed(PROBE_SEED)
    images = torch.randn((PROBE_IMAGES, channels, *size), generator=generator)
    parameter = next(network.parameters(), None)
    return images if parameter is None else images.to(parameter.device)


def check_logits(network: nn.Module, example: Tensor, *, classes: int) -> Tensor:
    """Run a network once and refuse what is not finite logits of shape (N, classes).

    Args:
        network: in eval mode.
        example: normalised images, shape (N, C, H, W).
        classes: length of the class list.

    Raises:
        TeacherError: the network fails, or its output is not one logit per class.
    """
    try:
        with torch.no_grad():
            output: Any = network(example)
    except HydistillError:
        raise
    except Exception as error:
        raise TeacherError(
            f"the network fails on an input of shape {tuple(example.shape)}: {error}; check the "
            "input's "
            "height, width and channels (channels are the network's: 3 for one that sees grey as "
            "RGB)"
        ) from error
    if not isinstance(output, Tensor):
        raise TeacherError(
            f"the network returns {type(output).__name__}: expected one tensor of logits (N, "
            "classes); "
            "wrap it in a module whose forward returns the logits only"
        )
    if output.dim() != 2:
        raise TeacherError(
            f"the network's output has shape {tuple(output.shape)}: expected logits (N, "
            f"{classes}); "
            "only classifiers of whole images can be distilled"
        )
    if output.shape[1] != classes:
        raise TeacherError(
            f"the network has {output.shape[1]} outputs and the class list {classes} names: "
            "give one name per output, in the order of the outputs"
        )
    if not bool(torch.isfinite(output).all()):
        raise TeacherError(
            "the network's logits are not finite on random images: the weights are broken (NaN, "
            "infinity, or a negative variance); take an earlier checkpoint"
        )
    sums = output.sum(dim=1)
    if classes > 1 and bool((output >= 0).all()) and bool(((sums - 1).abs() < 1e-4).all()):
        raise TeacherError(
            "the network returns probabilities (each row sums to 1): distillation needs the scores "
            "before softmax; drop the softmax at the end of its forward"
        )
    return output


def find_anatomy(network: nn.Module, example: Tensor) -> Anatomy:
    """Find the classifier layer and the final map, and check that one follows from the other.

    Args:
        network: in eval mode, returning logits (N, classes).
        example: normalised images, shape (N, C, H, W).
    """
    taps = list_taps(network, example)
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    copy = {tap.name for tap in taps if tap.overwritten}
    names = [tap.name for tap in taps]
    with torch.no_grad(), reading(network, outputs=names, inputs=linears, copy=copy) as found:
        logits = network(example)
    outputs = int(logits.shape[1])
    classifier = next(
        (
            tap.name
            for tap in reversed(taps)
            if tap.name in found.inputs
            and found.inputs[tap.name].dim() == 2
            and _equal(found.outputs[tap.name], logits)
        ),
        None,
    )
    maps = [tap for tap in taps if len(tap.shape) == 3]
    last_map = _last_map(maps)
    if classifier is None:
        note = (
            "no linear layer makes the logits, so the classifier cannot be shared; "
            "the mean of the last feature map stands for the penultimate vector"
        )
        return Anatomy(
            None, last_map, shares_classifier=False, note=note, taps=taps, outputs=outputs
        )
    vector = found.inputs[classifier]
    sharing = [
        tap
        for tap in maps
        if tap.shape[0] == vector.shape[1]
        and _equal(found.outputs[tap.name].mean(dim=(2, 3)), vector)
    ]
    if sharing:
        # Of the maps whose mean is the vector, the largest: a pooled 1x1 map is one of them too.
        area = max(tap.shape[1] * tap.shape[2] for tap in sharing)
        final_map = [tap for tap in sharing if tap.shape[1] * tap.shape[2] == area][-1].name
        pooled = found.outputs[final_map].mean(dim=(2, 3))
        layer = network.get_submodule(classifier)
        with torch.no_grad():
            shared = _equal(layer(pooled), logits)
        note = f'"{classifier}" of the mean of "{final_map}" gives the logits'
        return Anatomy(
            classifier, final_map, shares_classifier=shared, note=note, taps=taps, outputs=outputs
        )
    if last_map is None:
        note = "the network has no feature map; its penultimate vector stands for one of 1x1 px"
        return Anatomy(
            classifier, None, shares_classifier=True, note=note, taps=taps, outputs=outputs
        )
    note = (
        f'"{classifier}" does not see the mean of the last feature map "{last_map}" '
        f"(it sees {vector.shape[1]} values that other layers make of it), so a method that shares "
        "the classifier cannot work on this network"
    )
    return Anatomy(
        classifier, last_map, shares_classifier=False, note=note, taps=taps, outputs=outputs
    )


def read_features(
    network: nn.Module, inputs: Tensor, anatomy: Anatomy, taps: Sequence[str] = ()
) -> Features:
    """Run a network and return its logits with the features that methods use; gradients flow.

    Args:
        network: the network that the anatomy was found in.
        inputs: normalised images, shape (N, C, H, W).
        anatomy: where the features are.
        taps: names of further modules to read.

    Raises:
        UsageError: a tap that is not known.
    """
    check_taps(taps, [tap.name for tap in anatomy.taps])
    wanted: Collection[str] = {*taps, *([anatomy.final_map] if anatomy.final_map else [])}
    layers = [anatomy.classifier] if anatomy.classifier else []
    with reading(network, outputs=wanted, inputs=layers, copy=anatomy.overwritten) as found:
        logits: Tensor = network(inputs)
    final_map = found.outputs[anatomy.final_map] if anatomy.final_map else None
    if anatomy.classifier is not None:
        penultimate = found.inputs[anatomy.classifier]
    else:
        penultimate = logits if final_map is None else final_map.mean(dim=(2, 3))
    if final_map is None:
        final_map = penultimate[:, :, None, None]
    return Features(logits, penultimate, final_map, {name: found.outputs[name] for name in taps})


def _last_map(maps: Sequence[Tap]) -> str | None:
    """Return the last map wider than one pixel, or else the last map."""
    wide = [tap for tap in maps if tap.shape[1] * tap.shape[2] > 1]
    return (wide or maps)[-1].name if maps else None


def _equal(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    scale = float(second.abs().max().clamp_min(1e-12))
    return float((first - second).abs().max()) <= SHARING_TOLERANCE * scale
