"""Optimizers by name, with weight decay on weights only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hydistill_edge.errors import UsageError

OptimizerName = Literal["sgd", "adamw", "lion"]

LION_BETAS = (0.95, 0.98)
"""Zhong and Liu 2025, arXiv:2309.04195; Lion's own paper has 0.9 and 0.99."""


class Lion(torch.optim.Optimizer):
    """Every weight moves by the rate, up or down: the sign of a blend of momentum and gradient.

    With weight w, gradient g and momentum m, which starts at 0, one step is

        w <- w (1 - rate · decay);  w <- w - rate · sign(b1 m + (1 - b1) g);  m <- b2 m + (1 - b2) g

    All steps being of one size, the rate is about a tenth of AdamW's, and the decay ten times its.

    Args:
        params: as of any optimizer of torch.
        lr: the rate, at least 0.
        betas: b1, for the step, and b2, for the momentum that is kept; both in [0, 1).
        weight_decay: per step, times the rate; apart from the gradient, at least 0.

    Raises:
        UsageError: a value is out of range.

    Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = LION_BETAS,
        weight_decay: float = 5e-3,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise UsageError(
                f"Lion with rate {lr}, betas {betas} and weight decay {weight_decay}; expected a "
                "rate and a decay of at least 0, and betas in [0, 1)"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move all weights that have a gradient one step; return what the closure gave.

        Args:
            closure: evaluates the loss with its gradients, as for any optimizer of torch.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if "momentum" not in self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            gradients = [weight.grad for weight in weights]
            momenta = [self.state[weight]["momentum"] for weight in weights]
            first, second = group["betas"]
            moves = torch._foreach_mul(momenta, first)
            torch._foreach_add_(moves, gradients, alpha=1 - first)
            torch._foreach_sign_(moves)
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, moves, alpha=-group["lr"])
            torch._foreach_mul_(momenta, second)
            torch._foreach_add_(momenta, gradients, alpha=1 - second)
        return loss


def create_optimizer(
    name: OptimizerName,
    network: nn.Module,
    *,
    learning_rate: float,
    momentum: float | None = None,
    weight_decay: float = 5e-4,
) -> torch.optim.Optimizer:
    """Return an optimizer over the network's trainable parameters.

    Weight decay leaves out vectors and scalars: biases and the scales of normalization layers.

    Args:
        name: `sgd` (Nesterov), `adamw` or `lion`.
        network: its parameters that require gradients are optimized.
        learning_rate: first rate; schedules overwrite it.
        momentum: of SGD, and the first beta of AdamW and Lion; None for 0.9, and 0.95 for Lion.
        weight_decay: per step, times the rate.

    Raises:
        UsageError: an unknown name, or nothing to train.
    """
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not trainable:
        raise UsageError("the network has no trainable parameter; all are frozen")
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "lion":
        first = LION_BETAS[0] if momentum is None else momentum
        return Lion(groups, lr=learning_rate, betas=(first, LION_BETAS[1]))
    momentum = 0.9 if momentum is None else momentum
    if name == "sgd":
        return torch.optim.SGD(
            groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True
        )
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(momentum, 0.999), fused=True)
    raise UsageError(f'optimizer "{name}" is unknown; expected "sgd", "adamw" or "lion"')


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state, by parameter number and name, for a checkpoint."""
    return {
        f"{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take over what `optimizer_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = tensor
    groups: list[dict[str, Any]] = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    # A fused optimizer walks weights and momenta in memory order, so both must be laid out alike.
    for parameter, entry in optimizer.state.items():
        for name, tensor in entry.items():
            if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                entry[name] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
