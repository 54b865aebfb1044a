"""Compiling what a training calls again and again, where that pays: on a GPU.

Compiling takes a minute, and pays back where small layers follow each other quickly. On a CPU and
for shapes that come once, functions run as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class Compiled(Generic[P, R]):
    """A function of tensors, compiled for the shapes of its first call.

    Calls with other shapes, such as a last batch, run as they are.

    Args:
        function: takes tensors by position; returns a tensor or a tuple of tensors, named or not.
        graphs: record kernels once and replay them (CUDA graphs), which saves the time of starting
            each. What is returned is then copied, since the next replay writes over it.
        backend: of `torch.compile`.
    """

    def __init__(
        self, function: Callable[P, R], *, graphs: bool = False, backend: str = "inductor"
    ) -> None:
        self._plain = function
        self._graphs = graphs
        mode = "reduce-overhead" if graphs and backend == "inductor" else None
        self._fast = torch.compile(function, dynamic=False, mode=mode, backend=backend)
        self._shapes: list[torch.Size] | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the function returns."""
        shapes = [value.shape for value in args if isinstance(value, Tensor)]
        if self._shapes is None:
            self._shapes = shapes
        if shapes != self._shapes:
            return self._plain(*args, **kwargs)
        if not self._graphs:
            return self._fast(*args, **kwargs)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        copies: R = _copied(self._fast(*args, **kwargs))
        return copies


def _copied(found: Any) -> Any:
    if isinstance(found, Tensor):
        return found.clone()
    copies = [part.clone() for part in found]
    return found._make(copies) if hasattr(found, "_make") else tuple(copies)


def compiled(
    function: Callable[P, R], device: torch.device, *, graphs: bool = False
) -> Callable[P, R]:
    """Return a function compiled where it pays, and as it is elsewhere; see `Compiled`.

    Args:
        function: takes tensors by position; returns a tensor or a tuple of tensors, named or not.
        device: where the tensors are.
        graphs: replay its kernels.
    """
    return Compiled(function, graphs=graphs) if device.type == "cuda" else function


@contextmanager
def quick_convolutions(device: torch.device) -> Iterator[None]:
    """Let a GPU try its convolutions once per shape, and take the quickest, inside the block."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
