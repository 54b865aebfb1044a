"""How little an image is like those that a network was trained on, by its BatchNorm memory.

A BatchNorm layer remembers, per channel, mean m and variance v of its input over the training
images. An image's own mean over its pixels lies around m, with a variance over the images that is
part of v (law of total variance). So over the training images (mean - m)^2 / v has an expectation
of at most 1, in every channel. Images of another kind may have hundreds.

Source: the statistics are those of Yin et al. 2020, arXiv:1912.08795, section 3.2, taken for each
image alone; the bound is the law of total variance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hydistill_edge.objectives.bn_statistics import bn_layers


class MisfitReader:
    """Holds the misfit of every image that passes a network; made by `reading_misfit`.

    Args:
        layers: BatchNorm layers that are read; there may be none.
    """

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._seen: list[Tensor] = []

    def __bool__(self) -> bool:
        """Return whether there is a layer to read."""
        return self._layers > 0

    def take(self) -> Tensor:
        """Return the misfit of each image since the last call, shape (N,): the layers' mean.

        Raises:
            RuntimeError: the network has no layer to read, or has not been run.
        """
        if not self._seen:
            raise RuntimeError("no BatchNorm layer was run since the last reading")
        seen, self._seen = self._seen, []
        return torch.stack(seen).mean(dim=0)

    def read(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Take in what one layer is given; a hook before its forward."""
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        means = inputs[0].flatten(2).mean(dim=2).float() if inputs[0].dim() > 2 else inputs[0]
        # A channel that the training images never moved has no scale to be measured in.
        moved = norm.running_var > norm.eps
        offset = (means - norm.running_mean).square() / (norm.running_var + norm.eps)
        self._seen.append((offset * moved).sum(dim=1) / moved.sum().clamp(min=1))


@contextmanager
def reading_misfit(network: nn.Module) -> Iterator[MisfitReader]:
    """Read the misfit of every image that passes a network.

        with reading_misfit(network) as reader:
            network(images)
            misfit = reader.take()

    The network stays as it is: it gains readers, and loses them at the end.

    Args:
        network: its BatchNorm layers that keep running statistics are read.
    """
    norms = bn_layers(network)
    reader = MisfitReader(len(norms))
    with ExitStack() as stack:
        for _, norm in norms:
            stack.enter_context(norm.register_forward_pre_hook(reader.read))
        yield reader
