"""Statistics of a few real images, for networks that remember none of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hydistill_edge.errors import MethodError
from hydistill_edge.objectives.bn_statistics import LayerStatistics, channel_moments

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_EPS = 1e-5  # of the layer's most restless channel: a channel below it never moved

Forward = Callable[[Tensor], object]


class RealStatistics:
    """Compares what convolutions and linear layers put out with what real images made them do.

    Stands in for `BatchStatistics` where BatchNorm is missing. A few real images know less than a
    training set, and what they do not show will not be in the made ones.

    Args:
        network: in eval mode.
        leave_out: names of layers that are not read: the classifier, whose output the class prior
            decides.
        overwritten: names of layers whose output a later operation writes into.
    """

    def __init__(
        self, network: nn.Module, *, leave_out: Sequence[str], overwritten: frozenset[str]
    ) -> None:
        self._layers = [
            (name, module)
            for name, module in network.named_modules()
            if isinstance(module, LAYERS) and name not in leave_out
        ]
        self._overwritten = overwritten
        self._remembered: dict[str, tuple[Tensor, Tensor]] = {}
        self._seen: list[tuple[str, Tensor, Tensor]] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> RealStatistics:
        for name, module in self._layers:
            self._handles.append(module.register_forward_hook(partial(self._read, name)))
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
        """Return how many layers there is something to compare with."""
        return len(self._remembered)

    @property
    def names(self) -> list[str]:
        """Names of the layers that are compared."""
        return list(self._remembered)

    @torch.no_grad()
    def remember(self, forward: Forward, batches: Sequence[Tensor]) -> None:
        """Run the network on real images and keep what its layers did.

        Args:
            forward: runs the network on one batch.
            batches: images in whatever form `forward` takes, shape (N, ...) each.

        Raises:
            MethodError: the network has no layer that could be read.
        """
        sums: dict[str, list[Tensor]] = {}
        total = sum(len(batch) for batch in batches)
        for batch in batches:
            self._seen.clear()
            forward(batch)
            for name, mean, variance in self._seen:
                share = len(batch) / total
                parts = (mean.double() * share, (variance + mean.square()).double() * share)
                known = sums.setdefault(name, [torch.zeros_like(part) for part in parts])
                for place, part in enumerate(parts):
                    known[place] += part
        self._seen.clear()
        if not sums:
            raise MethodError(
                "the network has no convolution or linear layer before its classifier, so real "
                "images have no statistics to stand in for BatchNorm; leave them out"
            )
        self._remembered = {
            name: (mean.float(), (square - mean.square()).clamp(min=0.0).float())
            for name, (mean, square) in sums.items()
        }

    def take(self) -> list[LayerStatistics]:
        """Return what the layers did since the last call beside what real images made them do."""
        seen, self._seen = self._seen, []
        return [
            LayerStatistics(
                name,
                mean,
                variance,
                self._remembered[name][0],
                self._remembered[name][1],
                _EPS * max(self._remembered[name][1].max().item(), 1e-30),
            )
            for name, mean, variance in seen
            if name in self._remembered
        ]

    def _read(self, name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        if not isinstance(output, Tensor) or output.dim() < 2:
            return
        values = output.clone() if name in self._overwritten else output
        if isinstance(module, nn.Linear) and values.dim() > 2:  # tokens: channels come last
            values = values.movedim(-1, 1)
        self._seen.append((name, *channel_moments(values)))
