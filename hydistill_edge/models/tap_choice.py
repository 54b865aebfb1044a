"""Which places of a network to read when nobody names any: after every residual block."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from hydistill_edge.errors import MethodError

MAX_TAPS = 27
"""As published for the deepest networks: of ResNet-110's 54 blocks every second one is read."""

BLOCKS = frozenset(
    {
        *("BasicBlock", "Bottleneck", "PlainResidual", "ResBottleneckBlock"),
        *("InvertedResidual", "MBConv", "FusedMBConv"),
    }
)
"""Residual blocks of the zoo and of torchvision whose output is read as it is, by class name."""

PRE_ACTIVATION_BLOCKS = frozenset({"PreActBlock"})
"""Blocks that end in a bare sum: the ReLU behind them is read, as published."""

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Mish)


def default_taps(
    network: nn.Module, shapes: Mapping[str, tuple[int, ...]], *, limit: int = MAX_TAPS
) -> tuple[str, ...]:
    """Return the names of the taps to read, in order of execution.

    After every residual block; where there is none, after every activation; where there is none
    either, the last map of each size. Maps of a single pixel are left out: they have no place in
    them. Beyond the limit, every n-th is taken, counted from the last.

    Args:
        network: whose modules they are.
        shapes: of all that can be read, in order of execution, without the batch dimension.
        limit: most taps, at least 1.

    Raises:
        MethodError: the network has no feature map.

    Source: Ji, Heo and Park 2021, arXiv:2102.02973, section 4 and its released settings.
    """
    modules = dict(network.named_modules())
    maps = [name for name, shape in shapes.items() if len(shape) == 3 and shape[1] * shape[2] > 1]
    found = _after_blocks(modules, maps)
    if not found:
        found = [name for name in maps if isinstance(modules[name], ACTIVATIONS)]
    if not found:
        found = list({shapes[name][1:]: name for name in maps}.values())
    if not found:
        raise MethodError(
            "the network has no feature map wider than one pixel, so there is no layer to learn "
            "from or with; use method kd, which needs the logits only"
        )
    step = -(-len(found) // limit)
    return tuple(found[::-1][::step][::-1])


def _after_blocks(modules: Mapping[str, nn.Module], maps: list[str]) -> list[str]:
    """Return the outputs of residual blocks, or of the ReLU behind those that end in a sum."""
    found: list[str] = []
    for place, name in enumerate(maps):
        kind = type(modules[name]).__name__
        if kind in BLOCKS:
            found.append(name)
        elif kind in PRE_ACTIVATION_BLOCKS:
            later = [
                other for other in maps[place + 1 :] if isinstance(modules[other], ACTIVATIONS)
            ]
            found += later[:1]
    return found
