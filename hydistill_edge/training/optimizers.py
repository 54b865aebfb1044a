"""Optimizers by name, with weight decay on weights only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hydistill_edge.errors import UsageError

OptimizerName = Literal["sgd", "adamw"]


def create_optimizer(
    name: OptimizerName,
    network: nn.Module,
    *,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> torch.optim.Optimizer:
    """Return an optimizer over the network's trainable parameters.

    Weight decay leaves out vectors and scalars: biases and the scales of normalization layers.

    Args:
        name: `sgd` (Nesterov) or `adamw`.
        network: its parameters that require gradients are optimized.
        learning_rate: first rate; schedules overwrite it.
        momentum: of SGD, and first decay rate of AdamW.
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
    if name == "sgd":
        return torch.optim.SGD(
            groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0, fused=True
        )
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(momentum, 0.999), fused=True)
    raise UsageError(f'optimizer "{name}" is unknown; expected "sgd" or "adamw"')


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
