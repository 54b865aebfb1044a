"""Fewer channels by a table: how a slimmed network is built again from its architecture's name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from hydistill_edge.errors import TeacherError

LayerTable = dict[str, list[int]]
"""Layer name -> its sizes: outputs, inputs and groups of a convolution, outputs and inputs of a
linear layer, channels of a batch norm."""


def layer_table(whole: nn.Module, slimmed: nn.Module) -> LayerTable:
    """Return the sizes of every layer of a slimmed network that differs from the whole one."""
    before = dict(whole.named_modules())
    return {
        name: sizes
        for name, module in slimmed.named_modules()
        if (sizes := _sizes(module)) and sizes != _sizes(before[name])
    }


def thin(network: nn.Module, layers: Mapping[str, Sequence[int]]) -> nn.Module:
    """Give layers the sizes of a table, in place; their weights are to be loaded afterwards.

    Args:
        network: as its architecture makes it.
        layers: as `layer_table` returned it.

    Raises:
        TeacherError: a layer that is not in the network, of another kind, or sizes that it cannot
            have.
    """
    try:
        for name, sizes in layers.items():
            _resize(network.get_submodule(name), [int(size) for size in sizes])
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise TeacherError(
            f'layer "{name}" of a slimmed network cannot have the sizes {sizes} ({error}); '
            "expected the architecture that it was slimmed from"
        ) from error
    return network


def _sizes(module: nn.Module) -> list[int]:
    if isinstance(module, nn.Conv2d):
        return [module.out_channels, module.in_channels, module.groups]
    if isinstance(module, nn.Linear):
        return [module.out_features, module.in_features]
    if isinstance(module, nn.BatchNorm2d):
        return [module.num_features]
    return []


def _resize(module: nn.Module, sizes: list[int]) -> None:
    if min(sizes) < 1 or len(sizes) != len(_sizes(module)):
        raise ValueError(f"a {type(module).__name__} has {len(_sizes(module))} sizes of at least 1")
    if isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels, module.groups = sizes
        if module.in_channels % module.groups or module.out_channels % module.groups:
            raise ValueError("channels are no multiple of the groups")
        inputs = module.in_channels // module.groups
        _empty(module, "weight", (module.out_channels, inputs, *module.kernel_size))
        _empty(module, "bias", (module.out_channels,))
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = sizes
        _empty(module, "weight", (module.out_features, module.in_features))
        _empty(module, "bias", (module.out_features,))
    elif isinstance(module, nn.BatchNorm2d):
        (module.num_features,) = sizes
        for name in ("weight", "bias", "running_mean", "running_var"):
            _empty(module, name, (module.num_features,))


def _empty(module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Replace a parameter or buffer, where there is one, by zeros of another shape."""
    old = getattr(module, name)
    if old is None:
        return
    new = torch.zeros(shape, dtype=old.dtype, device=old.device)
    setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
