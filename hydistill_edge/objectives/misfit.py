"""How little an image is like those that a network was trained on, by its BatchNorm memory.

A BatchNorm layer remembers, per channel, mean m and variance v of its input over the training
images. An image's own mean over its pixels lies around m, with a variance over the images that is
part of v (law of total variance). So over the training images (mean - m)^2 / v has an expectation
of at most 1, in every channel. Images of another kind may have hundreds.

Source: the statistics are those of Yin et al. 2020, arXiv:1912.08795, section 3.2, taken for each
image alone; the bound is the law of total variance.
"""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from hydistill_edge.objectives.bn_statistics import bn_layers


class MisfitReader:
    """Reads the misfit of every image that passes a network; a context manager.

        with MisfitReader(network) as reader:
            network(images)
            misfit = reader.take()

    The network stays as it is: it gains readers, and loses them at the end.

    Args:
        network: its BatchNorm layers that keep running statistics are read; it may have none.
    """

    def __init__(self, network: nn.Module) -> None:
        self._norms = [norm for _, norm in bn_layers(network)]
        self._seen: list[Tensor] = []
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> MisfitReader:
        self._handles += [norm.register_forward_pre_hook(self._read) for norm in self._norms]
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

    def __bool__(self) -> bool:
        """Return whether there is a layer to read."""
        return bool(self._norms)

    def take(self) -> Tensor:
        """Return the misfit of each image since the last call, shape (N,): the layers' mean.

        Raises:
            RuntimeError: the network has no layer to read, or has not been run.
        """
        if not self._seen:
            raise RuntimeError("no BatchNorm layer was run since the last reading")
        seen, self._seen = self._seen, []
        return torch.stack(seen).mean(dim=0)

    def _read(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        means = inputs[0].flatten(2).mean(dim=2).float() if inputs[0].dim() > 2 else inputs[0]
        # A channel that the training images never moved has no scale to be measured in.
        moved = norm.running_var > norm.eps
        offset = (means - norm.running_mean).square() / (norm.running_var + norm.eps)
        self._seen.append((offset * moved).sum(dim=1) / moved.sum().clamp(min=1))
