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
        self._following = Following(self.network, network)

    def update(self) -> None:
        """Move the average one step towards the network."""
        self.updates += 1
        self._following.move(keep=min(self.decay, (1.0 + self.updates) / (10.0 + self.updates)))


class Following:
    """Weights and buffers of an average beside those that it follows, found once.

    Args:
        average: changed in place.
        network: of the same shape; what it follows.
    """

    def __init__(self, average: nn.Module, network: nn.Module) -> None:
        self._averaged: list[Tensor] = []
        self._counters: list[Tensor] = []
        self._live: list[tuple[nn.Module, str]] = []
        self._live_counters: list[tuple[nn.Module, str]] = []
        for path, tensor in average.state_dict().items():
            owner, _, name = path.rpartition(".")
            place = (network.get_submodule(owner), name)
            # Counters are whole numbers, such as num_batches_tracked.
            floats = tensor.is_floating_point()
            (self._averaged if floats else self._counters).append(tensor)
            (self._live if floats else self._live_counters).append(place)

    @torch.no_grad()
    def move(self, *, keep: float) -> None:
        """Move one step towards the network; counters are copied.

        Args:
            keep: share of the average that stays, in [0, 1]; 0 makes it a copy.
        """
        # Asked by name each time: a layer may put a new tensor in the place of a buffer.
        current = [getattr(owner, name) for owner, name in self._live]
        torch._foreach_lerp_(self._averaged, current, 1.0 - keep)
        if self._counters:
            counted = [getattr(owner, name) for owner, name in self._live_counters]
            torch._foreach_copy_(self._counters, counted)


def decay_for(*, steps: int, share: float) -> float:
    """Return the decay whose average reaches back over a share of all steps.

    Args:
        steps: steps of the whole training.
        share: of them, in [0, 1); 0 gives decay 0, which is no averaging.
    """
    window = steps * share
    return 1.0 - 1.0 / window if window > 1.0 else 0.0
