"""Feature taps: intermediate outputs of a network, by the name of the module that makes them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hydistill_edge.errors import UsageError


@dataclass(frozen=True)
class Tap:
    """One place of a network that can be read.

    Attributes:
        name: of the module, as in `named_modules`.
        layer: class name of the module.
        shape: of its output, without the batch dimension.
        overwritten: a later operation works in place on the output, so reading needs a copy.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    overwritten: bool


@dataclass
class Reading:
    """What one forward pass left at the tapped modules, by module name."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def reading(
    network: nn.Module,
    *,
    outputs: Collection[str] = (),
    inputs: Collection[str] = (),
    copy: Collection[str] = (),
) -> Iterator[Reading]:
    """Read modules during the forward passes inside the block.

    A module that runs several times leaves its last value. Gradients flow through what is read.

    Args:
        network: the network to watch.
        outputs: names of modules whose output is wanted.
        inputs: names of modules whose first input is wanted.
        copy: names whose output is cloned, because something later writes into it.
    """
    modules = dict(network.named_modules())
    found = Reading()

    def keep_output(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found.outputs[name] = output.clone() if name in copy else output

        return hook

    def keep_input(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, args: Any) -> None:
            if args and isinstance(args[0], Tensor):
                found.inputs[name] = args[0]

        return hook

    with ExitStack() as stack:
        for name in outputs:
            stack.enter_context(_removing(modules[name].register_forward_hook(keep_output(name))))
        for name in inputs:
            stack.enter_context(
                _removing(modules[name].register_forward_pre_hook(keep_input(name)))
            )
        yield found


@contextmanager
def _removing(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode inside the block, and each part back afterwards."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def list_taps(network: nn.Module, example: Tensor) -> tuple[Tap, ...]:
    """Return what can be tapped, in order of execution (by when a module finishes).

    Args:
        network: run once, without gradients, in the mode it is in.
        example: an input of the network, shape (N, C, H, W).
    """
    names = {module: name for name, module in network.named_modules() if name}
    seen: dict[str, tuple[str, Tensor, int]] = {}

    def hook(module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() >= 2:
            # Dropped first so that a module that runs twice stands where it ran last.
            seen.pop(names[module], None)
            # Autograd's version counter goes up with every write in place, views included.
            seen[names[module]] = (type(module).__name__, output, output._version)

    with ExitStack() as stack, torch.no_grad():
        for module in names:
            stack.enter_context(_removing(module.register_forward_hook(hook)))
        network(example)
    return tuple(
        Tap(name, layer, tuple(output.shape[1:]), overwritten=output._version != version)
        for name, (layer, output, version) in seen.items()
    )


def check_taps(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names that cannot be tapped.

    Raises:
        UsageError: naming the closest known ones.
    """
    for name in wanted:
        if name in known:
            continue
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"closest: {', '.join(close)}; " if close else ""
        shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        raise UsageError(f'no module "{name}" to tap; {hint}known, in order: {shown}')
