"""Layers as products of two thinner ones: how a factored network is made, and made again.

A convolution of k x l becomes one of k x 1 to fewer channels and one of 1 x l to all of them again;
a 1 x 1 convolution, or a linear layer, becomes two of its kind. The factors are those of the
truncated SVD of the weights, with the kernel's rows on the side of the inputs and its columns on
that of the outputs: no other chain of this form is nearer to the layer. No image is needed.

Source: Jaderberg, Vedaldi and Zisserman 2014, "Speeding up Convolutional Neural Networks with Low
Rank Expansions", arXiv:1405.3866, scheme 2; Tai et al. 2016, "Convolutional Neural Networks with
Low-Rank Regularization", arXiv:1511.06067, for the closed form.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hydistill_edge.errors import TeacherError

RankTable = dict[str, int]
"""Layer name -> channels between its two factors."""

Layer = nn.Conv2d | nn.Linear


def factorize(network: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """Replace layers by their factors, in place.

    Args:
        network: its layers have the weights to take apart; any, where others are loaded afterwards.
        ranks: of every layer that is replaced.

    Raises:
        TeacherError: a layer that is not in the network, of another kind, or a rank that it cannot
            have.
    """
    for name, rank in ranks.items():
        try:
            parts = factors(network.get_submodule(name), rank)  # type: ignore[arg-type]
        except (AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise TeacherError(
                f'layer "{name}" of a factored network cannot have the rank {rank} ({error}); '
                "expected the architecture that it was factored from"
            ) from error
        parent, _, own = name.rpartition(".")
        setattr(network.get_submodule(parent), own, parts)
    return network


def factors(layer: Layer, rank: int) -> nn.Sequential:
    """Return a layer as a chain of two thinner ones, `reduce` and `expand`.

    Args:
        layer: a convolution of one group, or a linear layer.
        rank: channels between the two, at most `full_rank`.

    Raises:
        ValueError: a rank that the layer cannot have, or a layer of another kind.
    """
    if not (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)):
        raise ValueError(f"a {type(layer).__name__} is no linear layer, nor a plain convolution")
    most = full_rank(layer)
    if not isinstance(rank, int) or not 0 < rank <= most:
        raise ValueError(f"expected a whole number from 1 to {most}")
    with torch.no_grad():
        first, second = _product(_matrix(layer), rank)
        if isinstance(layer, nn.Conv2d):
            return _convolutions(layer, first, second)
        reduce = nn.Linear(layer.in_features, rank, bias=False)
        expand = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
        return _chain(layer, (reduce, first), (expand, second))


def full_rank(layer: Layer) -> int:
    """Return the rank from which on a layer's factors compute what the layer computes."""
    outputs, inputs, *kernel = layer.weight.shape
    height, width = kernel or (1, 1)
    return min(outputs * width, inputs * height)


def strengths(layer: Layer) -> Tensor:
    """Return the squared singular values, of which factors keep the first, shape (full rank,)."""
    matrix = _matrix(layer).double()
    rows = matrix.t() if len(matrix) > matrix.shape[1] else matrix
    rising: Tensor = torch.linalg.eigvalsh(rows @ rows.t())
    return rising.flip(0).clamp_min(0)


def as_maps(output: Tensor, layer: nn.Module) -> Tensor:
    """Return what a layer gives with its channels second, shape (N, channels, places).

    Those of a linear layer are the last axis, behind any number of tokens.
    """
    if isinstance(layer, nn.Linear):
        return output.flatten(1, -2).transpose(1, 2) if output.dim() > 2 else output[:, :, None]
    return output.flatten(2)


def _matrix(layer: Layer) -> Tensor:
    """Return the weights, shape (outputs x kernel columns, inputs x kernel rows)."""
    weight = layer.weight.detach()
    if weight.dim() == 2:
        return weight
    outputs, inputs, height, width = weight.shape
    return weight.permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)


def _product(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors (rank, columns) and (rows, rank) whose product is nearest to a matrix."""
    matrix = matrix.double()
    turned = len(matrix) > matrix.shape[1]  # the shorter side is cheaper to look at
    directions = _directions(matrix.t() if turned else matrix, rank)
    first = directions.t() if turned else directions.t() @ matrix
    second = matrix @ directions if turned else directions
    # Both factors alike in size: neither has to learn faster than the other.
    root = (first.norm(dim=1) * second.norm(dim=0)).sqrt().clamp(min=1e-12)
    first = first * (root / first.norm(dim=1).clamp(min=1e-12))[:, None]
    second = second * (root / second.norm(dim=0).clamp(min=1e-12))
    return first, second


def _directions(rows: Tensor, count: int) -> Tensor:
    """Return the strongest left singular vectors of a short and wide matrix, shape (rows, count).

    The products of its rows give them in a fraction of the time.
    """
    rising: Tensor = torch.linalg.eigh(rows @ rows.t())[1]
    return rising.flip(1)[:, :count]


def _convolutions(layer: nn.Conv2d, first: Tensor, second: Tensor) -> nn.Sequential:
    rank, (height, width) = len(first), layer.kernel_size

    def split(given: Any, none: int) -> tuple[Any, Any]:
        if isinstance(given, str):  # "same" and "valid" hold for either
            return given, given
        if width == 1:  # places that are left out need not be seen by the second factor
            return given, none
        return (given[0], none), (none, given[1])

    strides, paddings = split(layer.stride, 1), split(layer.padding, 0)
    dilations, mode = split(layer.dilation, 1), layer.padding_mode
    reduce = nn.Conv2d(
        layer.in_channels,
        rank,
        (height, 1),
        strides[0],
        paddings[0],
        dilations[0],
        bias=False,
        padding_mode=mode,
    )
    expand = nn.Conv2d(
        rank,
        layer.out_channels,
        (1, width),
        strides[1],
        paddings[1],
        dilations[1],
        bias=layer.bias is not None,
        padding_mode=mode,
    )
    columns = second.reshape(layer.out_channels, width, rank).transpose(1, 2)
    return _chain(layer, (reduce, first), (expand, columns))


def _chain(layer: Layer, *parts: tuple[Layer, Tensor]) -> nn.Sequential:
    """Return the parts with their weights; the last has the layer's bias."""
    like = layer.weight
    for part, weight in parts:
        part.weight = nn.Parameter(weight.reshape(part.weight.shape).to(like).contiguous())
    (reduce, _), (expand, _) = parts
    if layer.bias is not None:
        expand.bias = nn.Parameter(layer.bias.detach().clone())
    return nn.Sequential(OrderedDict(reduce=reduce, expand=expand))
