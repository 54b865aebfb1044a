"""Taking over a network trained with other pixel statistics.

A student sees z = (pixel - 128) / 64. A network trained on x = (pixel / 255 - mean) / std needs
x = scale * z + shift, per channel. Where its first operation is a plain convolution, scale and
shift go into that convolution's weights and bias; otherwise an explicit layer stays in front.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.taps import eval_mode, reading

PIXEL_CENTRE = 128.0
PIXEL_SCALE = 64.0
"""A student normalises by (pixel - 128) / 64, so that uint8 pixels are a quantized tensor."""

FOLD_TOLERANCE = 1e-3
"""Largest difference, over the largest logit, between the folded network with exact borders and
the original: float32 rounding through a deep network stays below, a wrong fold far above."""

BORDER_IMAGES = 32


@dataclass(frozen=True)
class InputPlan:
    """How a student's network takes z.

    Attributes:
        kind: "own" (trained on z), "folded" (into the convolution `layer`) or "explicit" (a layer
            in front computes scale * z + shift).
        network_channels: input channels of the network as its architecture makes it.
        layer: name of the convolution that took the statistics over.
        scale: per network channel, for "explicit".
        shift: per network channel, for "explicit".
    """

    kind: Literal["own", "folded", "explicit"]
    network_channels: int
    layer: str = ""
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()


class Renormalise(nn.Module):
    """From z to the statistics that a network was trained with; grey is repeated on the way."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: tuple[float, ...], shift: tuple[float, ...]) -> None:
        super().__init__()
        # Not persistent: the plan in the student's description holds them.
        self.register_buffer("scale", torch.tensor(scale).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(1, -1, 1, 1), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        """Return scale * z + shift, shape (N, len(scale), H, W)."""
        return self.scale * z + self.shift


def renormalisation(spec: InputSpec) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return scale and shift per channel with (pixel / 255 - mean) / std = scale * z + shift."""
    scale = tuple(PIXEL_SCALE / 255.0 / std for std in spec.std)
    shift = tuple(
        (PIXEL_CENTRE / 255.0 - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True)
    )
    return scale, shift


def arrange(network: nn.Module, plan: InputPlan, *, channels: int) -> nn.Module:
    """Give a freshly built network the structure of a plan; a fold's weights are loaded later.

    Args:
        network: as its architecture makes it.
        plan: how the student's network takes z.
        channels: of the student's pixels.
    """
    if plan.kind == "explicit":
        layer = Renormalise(plan.scale, plan.shift)
        return nn.Sequential(OrderedDict(renormalise=layer, network=network))
    if plan.kind == "folded":
        conv = network.get_submodule(plan.layer)
        assert isinstance(conv, nn.Conv2d)
        _replace(network, plan.layer, _like(conv, channels=channels, bias=True))
    return network


def take_over(
    network: nn.Module, spec: InputSpec, *, channels: int, fold: bool, seed: int
) -> tuple[nn.Module, InputPlan, str]:
    """Return a network that takes z, the plan that describes it, and a note with the border error.

    Args:
        network: trained on (pixel / 255 - mean) / std; left as it is.
        spec: its statistics, channels and size.
        channels: of the student's pixels: those of the network, or 1 where it repeats grey.
        fold: try to fold; otherwise the explicit layer is used.
        seed: of the random pixels that the border error is measured on.
    """
    scale, shift = renormalisation(spec)
    explicit = InputPlan("explicit", spec.channels, scale=scale, shift=shift)
    original = arrange(copy.deepcopy(network), explicit, channels=channels)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (BORDER_IMAGES, channels, *spec.size), generator=generator)
    parameter = next(network.parameters(), torch.zeros(()))
    z = ((pixels - PIXEL_CENTRE) / PIXEL_SCALE).to(parameter.device)
    with eval_mode(original), torch.no_grad():
        wanted = original(z)
    if not fold:
        return (
            original,
            explicit,
            "the network's own mean and std stay as a layer in front, as asked",
        )
    name = _first_conv(original, z)
    if name is None:
        why = "the network's first operation is no plain convolution"
        return original, explicit, f"{why}, so its own mean and std stay as a layer in front of it"
    folded = copy.deepcopy(network)
    conv = folded.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    _replace(folded, name, _fold(conv, scale, shift))
    if not _exact_inside(folded, name, z, wanted, scale=scale, shift=shift):
        why = f'the network reads its input elsewhere than in "{name}"'
        return original, explicit, f"{why}, so its own mean and std stay as a layer in front of it"
    if channels != spec.channels:
        _replace(folded, name, _sum_inputs(folded.get_submodule(name)))
    with eval_mode(folded), torch.no_grad():
        found = folded(z)
    return folded, InputPlan("folded", spec.channels, layer=name), _border_note(name, found, wanted)


def _border_note(name: str, found: Tensor, wanted: Tensor) -> str:
    scale = float(wanted.abs().max().clamp_min(1e-12))
    error = float((found - wanted).abs().max()) / scale
    changed = int((found.argmax(1) != wanted.argmax(1)).sum())
    return (
        f'mean and std are folded into "{name}", whose zero padding now stands for pixel 128 '
        "instead of "
        f"the mean: on {len(wanted)} images of random pixels the logits move by at most "
        f"{error:.2%} of "
        f"their scale, and {changed} top-1 classes change; fine-tuning removes it"
    )


def _first_conv(network: nn.Module, z: Tensor) -> str | None:
    """Return the name (inside the wrapped network) of a plain convolution that sees the input."""
    convs = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and module.groups == 1
    ]
    with eval_mode(network), torch.no_grad(), reading(network, inputs=convs) as found:
        network(z[:1])
        image = network.get_submodule("renormalise")(z[:1])
    for name, given in found.inputs.items():
        if given.shape == image.shape and torch.equal(given, image):
            return name.removeprefix("network.")
    return None


def _fold(conv: nn.Conv2d, scale: tuple[float, ...], shift: tuple[float, ...]) -> nn.Conv2d:
    """Return conv(scale * z + shift) as one convolution of z, exact away from the border."""
    folded = _like(conv, channels=conv.in_channels, bias=True)
    assert folded.bias is not None
    weight = conv.weight.detach().double()
    factor = torch.tensor(scale, dtype=torch.float64, device=weight.device).view(1, -1, 1, 1)
    offset = torch.tensor(shift, dtype=torch.float64, device=weight.device).view(1, -1, 1, 1)
    with torch.no_grad():
        folded.weight.copy_(weight * factor)
        added = (weight * offset).sum(dim=(1, 2, 3))
        folded.bias.copy_(added if conv.bias is None else conv.bias.double() + added)
    return folded


def _sum_inputs(conv: nn.Module) -> nn.Conv2d:
    """Return a convolution of one channel that equals `conv` of that channel repeated."""
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    single = _like(conv, channels=1, bias=True)
    assert single.bias is not None
    with torch.no_grad():
        single.weight.copy_(conv.weight.double().sum(dim=1, keepdim=True))
        single.bias.copy_(conv.bias)
    return single


def _exact_inside(
    folded: nn.Module,
    name: str,
    z: Tensor,
    wanted: Tensor,
    *,
    scale: tuple[float, ...],
    shift: tuple[float, ...],
) -> bool:
    """Return whether the fold equals the original once the padding is what it was: x = 0."""
    trial = copy.deepcopy(folded)
    conv = trial.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    if isinstance(conv.padding, str):
        return False
    top, left = (int(side) for side in conv.padding)
    conv.padding = (0, 0)
    zero = -torch.tensor(shift, device=z.device) / torch.tensor(scale, device=z.device)
    zero = zero.view(1, -1, 1, 1)

    def pad(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (F.pad(args[0] - zero, (left, left, top, top)) + zero,)

    conv.register_forward_pre_hook(pad)
    with eval_mode(trial), torch.no_grad():
        found = trial(z.expand(-1, len(scale), -1, -1))
    limit = FOLD_TOLERANCE * float(wanted.abs().max().clamp_min(1e-12))
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= limit


def _like(conv: nn.Conv2d, *, channels: int, bias: bool) -> nn.Conv2d:
    """Return an unfilled convolution of the same geometry."""
    return nn.Conv2d(
        channels,
        conv.out_channels,
        (conv.kernel_size[0], conv.kernel_size[1]),
        stride=(conv.stride[0], conv.stride[1]),
        padding=conv.padding
        if isinstance(conv.padding, str)
        else (conv.padding[0], conv.padding[1]),
        dilation=(conv.dilation[0], conv.dilation[1]),
        groups=conv.groups,
        bias=bias,
        device=conv.weight.device,
    )


def _replace(network: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)
