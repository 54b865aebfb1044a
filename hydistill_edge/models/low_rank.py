"""Layers as products of thinner ones: how a factored network is made, and made again.

A convolution of k x k is a chain of three: fewer channels (1 x 1), the k x k among these, and all
output channels again (1 x 1); the factors are those of the Tucker-2 decomposition by its higher-
order SVD. A 1 x 1 convolution or a linear layer is a chain of two, by its truncated SVD. Both are
the nearest such chain to the weights, or near to it, and need no image.

Source: Kim et al. 2016, "Compression of Deep Convolutional Neural Networks for Fast and Low Power
Mobile Applications", arXiv:1511.06530, section 3.1; De Lathauwer et al. 2000 for the SVD.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn

from hydistill_edge.errors import TeacherError

RankTable = dict[str, list[int]]
"""Layer name -> its ranks: inputs and outputs of the middle of three factors, or of two factors the
one width between them."""

Layer = nn.Conv2d | nn.Linear


def factorize(network: nn.Module, ranks: Mapping[str, Sequence[int]]) -> nn.Module:
    """Replace layers by their factors, in place.

    Args:
        network: its layers have the weights to take apart; any, where others are loaded afterwards.
        ranks: of every layer that is replaced.

    Raises:
        TeacherError: a layer that is not in the network, of another kind, or ranks that it cannot
            have.
    """
    for name, sizes in ranks.items():
        try:
            layer = network.get_submodule(name)
            parts = factors(layer, [int(size) for size in sizes])  # type: ignore[arg-type]
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise TeacherError(
                f'layer "{name}" of a factored network cannot have the ranks {sizes} ({error}); '
                "expected the architecture that it was factored from"
            ) from error
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, parts)
    return network


def factors(layer: Layer, ranks: Sequence[int]) -> nn.Sequential:
    """Return a layer as a chain of thinner ones.

    Args:
        layer: a convolution of one group, or a linear layer.
        ranks: inputs and outputs of the middle one for a k x k convolution, else one width.

    Raises:
        ValueError: ranks that the layer cannot have, or a layer of another kind.
    """
    if not (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)):
        raise ValueError(f"a {type(layer).__name__} is no linear layer, nor a plain convolution")
    outputs, inputs = layer.weight.shape[:2]
    most = [inputs, outputs] if is_wide(layer) else [min(inputs, outputs)]
    if len(ranks) != len(most) or any(not 0 < r <= m for r, m in zip(ranks, most, strict=True)):
        raise ValueError(f"expected {len(most)} numbers from 1 to {most}")
    with torch.no_grad():
        return _three(layer, *ranks) if is_wide(layer) else _two(layer, ranks[0])


def is_wide(layer: Layer) -> TypeGuard[nn.Conv2d]:
    """Return whether a layer sees neighbours, and is a chain of three."""
    return isinstance(layer, nn.Conv2d) and tuple(layer.kernel_size) != (1, 1)


def _three(layer: nn.Conv2d, inputs: int, outputs: int) -> nn.Sequential:
    weight = layer.weight.double()
    left = _directions(weight, outputs)
    right = _directions(weight.transpose(0, 1), inputs)
    core = torch.einsum("oikl,or,is->rskl", weight, left, right)
    reduce = nn.Conv2d(layer.in_channels, inputs, 1, bias=False)
    middle = _like(layer, inputs, outputs)
    expand = nn.Conv2d(outputs, layer.out_channels, 1, bias=layer.bias is not None)
    return _chain(
        layer, {"reduce": (reduce, right.t()), "core": (middle, core), "expand": (expand, left)}
    )


def _two(layer: Layer, width: int) -> nn.Sequential:
    weight = layer.weight.double().flatten(1)
    turned = len(weight) > weight.shape[1]  # the shorter side is cheaper to look at
    directions = _directions(weight.t() if turned else weight, width)
    first = directions.t() if turned else directions.t() @ weight
    second = weight @ directions if turned else directions
    # Both factors alike in size: neither has to learn faster than the other.
    root = (first.norm(dim=1) * second.norm(dim=0)).sqrt().clamp(min=1e-12)
    first = first * (root / first.norm(dim=1).clamp(min=1e-12))[:, None]
    second = second * (root / second.norm(dim=0).clamp(min=1e-12))
    biased = layer.bias is not None
    parts: tuple[Layer, Layer]
    if isinstance(layer, nn.Conv2d):
        parts = (
            _like(layer, layer.in_channels, width),
            nn.Conv2d(width, layer.out_channels, 1, bias=biased),
        )
    else:
        parts = (
            nn.Linear(layer.in_features, width, bias=False),
            nn.Linear(width, layer.out_features, bias=biased),
        )
    return _chain(layer, {"reduce": (parts[0], first), "expand": (parts[1], second)})


def _like(layer: nn.Conv2d, inputs: int, outputs: int) -> nn.Conv2d:
    """Return a convolution that moves over the image as the layer does, without bias."""
    return nn.Conv2d(
        inputs,
        outputs,
        layer.kernel_size,  # type: ignore[arg-type]
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        padding_mode=layer.padding_mode,
        bias=False,
    )


def _directions(weight: Tensor, count: int) -> Tensor:
    """Return the strongest directions of a tensor's first axis, shape (axis, count).

    These are the left singular vectors; of a short and wide matrix the products of its rows give
    them in a fraction of the time.
    """
    rows = weight.flatten(1)
    rising: Tensor = torch.linalg.eigh(rows @ rows.t())[1]
    return rising.flip(1)[:, :count]


def _chain(layer: Layer, parts: Mapping[str, tuple[Layer, Tensor]]) -> nn.Sequential:
    """Return the parts with their weights; the last has the layer's bias."""
    like = layer.weight
    for part, weight in parts.values():
        part.weight = nn.Parameter(weight.reshape(part.weight.shape).to(like).contiguous())
    last = parts["expand"][0]
    if layer.bias is not None:
        last.bias = nn.Parameter(layer.bias.detach().clone())
    return nn.Sequential(OrderedDict((name, part) for name, (part, _) in parts.items()))
