"""Batch statistics of what enters a network's BatchNorm layers.

A BatchNorm layer remembers mean and variance of its input over the training images. Images whose
statistics match them look, to the network, like the images that are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from hydistill_edge.errors import MethodError, ShapeError

Distance = Literal["kl", "l2"]


@dataclass(frozen=True)
class LayerStatistics:
    """What one BatchNorm layer saw in one forward pass, beside what it remembers.

    Attributes:
        name: the layer's name in its network.
        mean: shape (C,), mean of the layer's input over batch and space; gradients flow here.
        variance: shape (C,), biased variance of the same.
        running_mean: shape (C,), the layer's running mean.
        running_variance: shape (C,), the layer's running variance.
        eps: what the layer adds to the variance.
    """

    name: str
    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor
    eps: float


class BatchStatistics:
    """Reads the batch statistics of the input of every BatchNorm layer; a context manager.

    The network stays as it is, eval mode included: it gains readers, and loses them at the end.

        with BatchStatistics(network) as reader:
            logits = network(images)
            loss = bn_distance(reader.take())

    Args:
        network: its BatchNorm layers that keep running statistics are read; others remember
            nothing to compare with.

    Source: Yin et al. 2020, arXiv:1912.08795, section 3.2.
    """

    def __init__(self, network: nn.Module) -> None:
        self._norms = bn_layers(network)
        self._seen: list[LayerStatistics] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> BatchStatistics:
        for name, norm in self._norms:
            self._handles.append(norm.register_forward_pre_hook(partial(self._read, name)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._seen.clear()

    def __len__(self) -> int:
        """Return how many layers are read."""
        return len(self._norms)

    def take(self) -> list[LayerStatistics]:
        """Return what the layers saw since the last call, in the order of execution."""
        seen, self._seen = self._seen, []
        return seen

    def _read(self, name: str, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean, variance = channel_moments(inputs[0])
        self._seen.append(
            LayerStatistics(name, mean, variance, norm.running_mean, norm.running_var, norm.eps)
        )


def bn_layers(network: nn.Module) -> list[tuple[str, _BatchNorm]]:
    """Return name and module of every BatchNorm layer that keeps running statistics, in order."""
    return [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and module.running_var is not None
    ]


def channel_moments(activations: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance per channel over batch and space, each of shape (C,).

    Args:
        activations: shape (N, C, ...), any float dtype; gradients flow here.

    Returns:
        float32 for half types (a mean in bfloat16 would carry two digits), else the own dtype.

    Raises:
        ShapeError: fewer than two dimensions, or no element.
    """
    if activations.dim() < 2 or activations.numel() == 0:
        raise ShapeError(
            f"activations have shape {tuple(activations.shape)}; expected (N, C, ...) with N >= 1"
        )
    moments: tuple[Tensor, Tensor] = _ChannelMoments.apply(activations)
    return moments


def bn_distance(
    layers: Sequence[LayerStatistics],
    *,
    weights: Sequence[float] | None = None,
    distance: Distance = "kl",
) -> Tensor:
    """Return how far batch statistics are from the remembered ones, summed over weighted layers.

    `kl` is the divergence of two normal distributions per channel, N(batch) from N(remembered),
    averaged over the layer's channels: free of units, so that no layer outweighs another by its
    scale or width. A channel that the training images never moved (running variance below the
    layer's eps) has no scale to be measured in; it is left out. `l2` is the published form,
    ‖mean - mean'‖₂ + ‖variance - variance'‖₂, not squared.

    Args:
        layers: from `BatchStatistics.take`; gradients flow into their `mean` and `variance`.
        weights: one per layer; default 1 / number of layers each, which gives the mean.
        distance: `kl` or `l2`.

    Returns:
        Scalar, shape (), zero when all statistics agree.

    Raises:
        MethodError: there is no layer.
        ShapeError: the number of weights is not the number of layers.

    Source: `l2` Yin et al. 2020, arXiv:1912.08795, equation 4.
    """
    if not layers:
        raise MethodError(
            "no BatchNorm statistics were read; the network has no BatchNorm layer with running "
            "statistics, or it has not been run since the last reading"
        )
    if weights is None:
        weights = [1.0 / len(layers)] * len(layers)
    if len(weights) != len(layers):
        raise ShapeError(f"{len(weights)} weights for {len(layers)} layers; expected one each")
    measure = _gaussian_kl if distance == "kl" else _l2
    terms = [measure(layer) * weight for layer, weight in zip(layers, weights, strict=True)]
    return torch.stack(terms).sum()


def _gaussian_kl(layer: LayerStatistics) -> Tensor:
    moved = layer.running_variance > layer.eps
    scale = layer.running_variance + layer.eps
    ratio = (layer.variance + layer.eps) / scale
    offset = (layer.mean - layer.running_mean).square() / scale
    per_channel = 0.5 * (ratio + offset - 1.0 - ratio.log())
    return (per_channel * moved).sum() / moved.sum().clamp(min=1)


def _l2(layer: LayerStatistics) -> Tensor:
    mean = (layer.mean - layer.running_mean).norm()
    variance = (layer.variance - layer.running_variance).norm()
    return torch.add(mean, variance)


class _ChannelMoments(torch.autograd.Function):
    """Mean and biased variance by BatchNorm's own kernel, and their exact gradient in one pass.

    On a CPU with channels-last memory, `torch.var_mean` over (N, H, W) takes five times as long
    forward and three times backward, which is as much as the convolutions around it.
    """

    @staticmethod
    def forward(ctx: Any, activations: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = _moments(activations)
        ctx.save_for_backward(activations, mean)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        activations, mean = ctx.saved_tensors
        count = activations.numel() // activations.shape[1]
        slope = grad_variance * (2.0 / count)
        offset = grad_mean / count - slope * mean
        shape = (1, -1) + (1,) * (activations.dim() - 2)
        dtype = activations.dtype
        return torch.addcmul(offset.to(dtype).view(shape), activations, slope.to(dtype).view(shape))


def _moments(activations: Tensor) -> tuple[Tensor, Tensor]:
    half = activations.dtype in (torch.bfloat16, torch.float16)
    if activations.device.type not in ("cpu", "cuda"):  # the kernel exists for these two
        wide = activations.float() if half else activations
        dims = [dim for dim in range(activations.dim()) if dim != 1]
        variance, mean = torch.var_mean(wide, dims, correction=0)
        return mean, variance
    if not half:
        mean, variance = torch.batch_norm_update_stats(activations, None, None, 0.0)
        return mean, variance
    # With float32 buffers beside a half input the kernel answers in float32; momentum 0 leaves
    # the buffers as they are.
    buffers = activations.new_ones((2, activations.shape[1]), dtype=torch.float32)
    mean, variance = torch.batch_norm_update_stats(activations, buffers[0], buffers[1], 0.0)
    return mean, variance
