"""The zoo: edge networks by name, each for any channels, size and width."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import get_args

from torch import nn

from hydistill_edge.errors import UsageError
from hydistill_edge.models.mobile_nets import (
    build_efficientnet_b0,
    build_mobilenet_v2,
    build_mobilenet_v3_small,
    build_shufflenet_v2,
)
from hydistill_edge.models.plain_nets import CONVNET_BN_CHANNELS, AlexNet, ConvNet, build_vgg
from hydistill_edge.models.resnets import (
    Bottleneck,
    Shortcut,
    build_resnet,
    build_resnet9,
    build_wide_resnet,
)

MIN_SIDE_PX = 8

VGG8 = ((64,), (128,), (256,), (512,), (512,))
VGG11 = ((64,), (128,), (256, 256), (512, 512), (512, 512))

ZOO: dict[str, Callable[..., nn.Module]] = {
    # CIFAR-style ResNets: 6 n + 2 layers, three stages of 16, 32, 64 channels.
    "resnet8": partial(build_resnet, (1, 1, 1), 16),
    "resnet20": partial(build_resnet, (3, 3, 3), 16),
    "resnet56": partial(build_resnet, (9, 9, 9), 16),
    # ResNets of four stages, 64 to 512 channels, with a 3x3 stem.
    "resnet18": partial(build_resnet, (2, 2, 2, 2), 64),
    "resnet34": partial(build_resnet, (3, 4, 6, 3), 64),
    "resnet50": partial(build_resnet, (3, 4, 6, 3), 64, block=Bottleneck),
    "resnet9": build_resnet9,
    "wrn16_2": partial(build_wide_resnet, 16, 2),
    "wrn28_2": partial(build_wide_resnet, 28, 2),
    "wrn40_2": partial(build_wide_resnet, 40, 2),
    "vgg8": partial(build_vgg, VGG8, norm=False),
    "vgg8_bn": partial(build_vgg, VGG8, norm=True),
    "vgg11": partial(build_vgg, VGG11, norm=False),
    "vgg11_bn": partial(build_vgg, VGG11, norm=True),
    "alexnet": AlexNet,
    "convnet3": ConvNet,
    "convnet3_bn": partial(ConvNet, CONVNET_BN_CHANNELS, batch_norm=True),
    "mobilenet_v2": build_mobilenet_v2,
    "mobilenet_v3_small": build_mobilenet_v3_small,
    "efficientnet_b0": build_efficientnet_b0,
    "shufflenet_v2": build_shufflenet_v2,
}
"""Factories; each takes `classes`, `channels`, `size` and `width` by keyword."""

HAVE_SHORTCUTS = (
    *("resnet8", "resnet20", "resnet56", "resnet18", "resnet34", "resnet50"),
    *("wrn16_2", "wrn28_2", "wrn40_2"),
)
"""Networks with shortcuts where shapes change; these also take `shortcut`."""


def create_network(
    name: str,
    *,
    classes: int,
    channels: int,
    size: tuple[int, int],
    width: float = 1.0,
    shortcut: Shortcut = "conv",
) -> nn.Module:
    """Return a network of the zoo with fresh weights, in training mode.

    Weights come from torch's global generator; `Student.create` seeds it without leaving a trace.

    Args:
        name: a key of `ZOO`.
        classes: number of logits, at least 2.
        channels: of the input, 1 or 3 in practice.
        size: height and width of the input in pixels, each at least 8.
        width: multiplier of the channels, above 0 and at most 8.
        shortcut: `conv`, or `pool` for a network of `HAVE_SHORTCUTS`: its shortcuts pool where the
            map shrinks.

    Raises:
        UsageError: an unknown name (the message has the closest and all known), or a value out
            of range.
    """
    if name not in ZOO:
        close = difflib.get_close_matches(name, ZOO, n=1, cutoff=0.4)
        hint = f'closest: "{close[0]}"; ' if close else ""
        raise UsageError(f'no network "{name}" in the zoo; {hint}known: {", ".join(ZOO)}')
    problems = []
    if classes < 2:
        problems.append(f"classes {classes}: expected at least 2")
    if channels < 1:
        problems.append(f"channels {channels}: expected 1 (grey) or 3 (RGB)")
    if len(size) != 2 or min(size) < MIN_SIDE_PX:
        problems.append(f"size {size}: expected height and width of at least {MIN_SIDE_PX} px")
    if not 0.0 < width <= 8.0:
        problems.append(f"width {width}: expected a multiplier above 0 and at most 8")
    if shortcut not in get_args(Shortcut):
        problems.append(f'shortcut "{shortcut}": expected "conv" or "pool"')
    elif shortcut == "pool" and name not in HAVE_SHORTCUTS:
        problems.append(f"shortcut pool: expected one of {', '.join(HAVE_SHORTCUTS)}")
    if problems:
        raise UsageError(f'network "{name}": ' + "; ".join(problems))
    more = {"shortcut": shortcut} if shortcut != "conv" else {}
    return ZOO[name](
        classes=classes, channels=channels, size=(size[0], size[1]), width=width, **more
    )
