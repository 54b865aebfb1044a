"""The size of a network: parameters and multiply-accumulates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hydistill_edge.models.taps import eval_mode


@dataclass(frozen=True)
class Size:
    """How big a network is.

    Attributes:
        params: learned values, frozen ones included; buffers are not counted.
        macs: multiply-accumulates of convolutions and linear layers for one image.
    """

    params: int
    macs: int


def count(module: nn.Module, *, channels: int, size: tuple[int, int]) -> Size:
    """Return parameters, and MACs for one image, counted by torch's own counter.

    Args:
        module: takes images of shape (N, channels, *size); its mode is put back afterwards.
        channels: of the module's input.
        size: height and width in pixels.
    """
    parameters = list(module.parameters())
    like = parameters[0] if parameters else torch.zeros(())
    images = torch.zeros((1, channels, *size), dtype=like.dtype, device=like.device)
    with eval_mode(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(images)
    # The counter counts a multiply-accumulate as two operations.
    return Size(sum(parameter.numel() for parameter in parameters), counter.get_total_flops() // 2)
