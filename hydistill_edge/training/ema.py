"""The running average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hydistill_edge.errors import UsageError


class Ema:
    """A copy of a network whose weights and buffers follow it as an exponential average.

    Args:
        network: what is followed; the copy starts equal.
        decay: share of the old average that each update keeps, in [0, 1). It is approached from
            below, min(decay, (1 + t) / (10 + t)), so that the random start is soon forgotten.

    Attributes:
        network: the averaged network, in eval mode, without gradients.
        updates: how often `update` was called.

    Source: Polyak and Juditsky 1992; warm-up as in Abadi et al. 2016 (TensorFlow's
    `ExponentialMovingAverage`, argument `num_updates`).
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise UsageError(f"EMA decay is {decay}; expected at least 0 and below 1")
        self.decay = decay
        self.updates = 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def update(self, network: nn.Module) -> None:
        """Move the average one step towards the network."""
        self.updates += 1
        keep = min(self.decay, (1.0 + self.updates) / (10.0 + self.updates))
        move_towards(self.network, network, keep=keep)


@torch.no_grad()
def move_towards(average: nn.Module, network: nn.Module, *, keep: float) -> None:
    """Move weights and buffers of an average one step towards a network of the same shape.

    Args:
        average: changed in place.
        network: what it follows.
        keep: share of the average that stays, in [0, 1]; 0 makes it a copy.
    """
    averaged: list[Tensor] = []
    current: list[Tensor] = []
    live = network.state_dict()
    for name, tensor in average.state_dict().items():
        if tensor.is_floating_point():
            averaged.append(tensor)
            current.append(live[name])
        else:
            tensor.copy_(live[name])  # counters, such as num_batches_tracked
    torch._foreach_lerp_(averaged, current, 1.0 - keep)


def decay_for(*, steps: int, share: float) -> float:
    """Return the decay whose average reaches back over a share of all steps.

    Args:
        steps: steps of the whole training.
        share: of them, in [0, 1); 0 gives decay 0, which is no averaging.
    """
    window = steps * share
    return 1.0 - 1.0 / window if window > 1.0 else 0.0
