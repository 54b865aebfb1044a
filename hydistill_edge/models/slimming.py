"""A student that is the teacher with fewer channels: it starts from what the teacher knows.

Whole channels are taken out, the least of each group of layers first, so that what is left is a
plain dense network: every runtime runs it, and its own training takes far fewer images than one
from fresh weights. Which layers must lose the same channels is found by Torch-Pruning's dependency
graph (Fang et al. 2023, arXiv:2301.12900); the score of a channel is the root mean square of all
weights that belong to it, which needs no image (Li et al. 2017, arXiv:1608.08710).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.counting import count
from hydistill_edge.models.reduced import REMEDY, adopt, check_share, last_layer, taken_apart
from hydistill_edge.models.student import Student
from hydistill_edge.models.taps import eval_mode
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.models.thinning import LayerTable, layer_table, thin
from hydistill_edge.naming import SLIMMED_FORM

STEPS, FINE = 32, 8
"""Ratios of channels that go are tried in steps of 1/32, and within the last one in eighths of it.
The first that fits is taken, not one found by halving: a grouped convolution with too few channels
per group for a ratio keeps all of them, so a larger ratio does not always leave less."""


def slim(teacher: Teacher, *, macs_share: float, channels: int | None = None) -> Student:
    """Return a student that is the teacher with the same share of channels out of every layer.

    It knows less than the teacher until it is trained: the channels that are left were never alone.

    Args:
        teacher: a PyTorch network of convolutions, linear layers and batch norms; it is copied.
        macs_share: multiply-accumulates of the student over those of the teacher, at most;
            above 0 and below 1.
        channels: of the student's pixels; 1 for a network that sees grey as several equal channels.

    Raises:
        UsageError: a share out of range, or too small for this network.
        MethodError: the network is of an ONNX file, or has layers that cannot lose channels.
    """
    check_share(macs_share)
    whole, example = taken_apart(teacher)
    network = _within(whole, example, macs_share)
    table = _checked_table(whole, network, example)
    return adopt(network, teacher, form=SLIMMED_FORM, facts={"layers": table}, channels=channels)


def why_not_slim(teacher: Teacher) -> str:
    """Return why no channels can be taken out of a teacher; empty where they can."""
    try:
        whole, example = taken_apart(teacher)
        slimmed = _slimmed(whole, example, 0.5, last=last_layer(whole, example))
        _checked_table(whole, slimmed, example)
    except MethodError as error:
        return str(error)
    return ""


def _within(network: nn.Module, example: Tensor, share: float) -> nn.Module:
    """Return the copy that loses the fewest channels to come within a share of the MACs.

    Raises:
        UsageError: the share is too small for this network.
    """
    channels, size = example.shape[1], (example.shape[2], example.shape[3])
    whole = count(network, channels=channels, size=size).macs
    last = last_layer(network, example)
    smallest = 1.0

    def first(ratios: Iterable[float]) -> tuple[nn.Module, float] | None:
        nonlocal smallest
        for ratio in ratios:
            slimmed = _slimmed(network, example, ratio, last=last)
            found = count(slimmed, channels=channels, size=size).macs / whole
            if found <= share:
                return slimmed, ratio
            smallest = min(smallest, found)
        return None

    coarse = first(step / STEPS for step in range(1, STEPS))
    if coarse is not None:
        slimmed, ratio = coarse
        fine = first(ratio - step / (STEPS * FINE) for step in range(FINE - 1, 0, -1))
        return slimmed if fine is None else fine[0]
    raise UsageError(
        f"macs_share {share}: by losing channels this teacher comes down to {smallest:.2f} of its "
        f"multiply-accumulates at best; expected a larger share; or {REMEDY}"
    )


def _slimmed(network: nn.Module, example: Tensor, ratio: float, *, last: str) -> nn.Module:
    """Return a copy with a ratio of the channels taken out of all groups of layers but the last."""
    # Imported here: only who slims needs it.
    import torch_pruning

    trial = copy.deepcopy(network).requires_grad_(True)
    try:
        with eval_mode(trial), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = torch_pruning.pruner.BasePruner(
                trial,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio,
                ignored_layers=[trial.get_submodule(last)],
            )
            pruner.step()
            trial(example)
    except Exception as error:
        raise MethodError(
            f"no channels can be taken out of this teacher ({type(error).__name__}: {error}): "
            f"{REMEDY}"
        ) from error
    return trial


def _checked_table(whole: nn.Module, network: nn.Module, example: Tensor) -> LayerTable:
    """Return the sizes of a slimmed network's layers; `whole` is made into it on the way.

    Raises:
        MethodError: what could not be built again by the table, naming the first weight.
    """
    table = layer_table(whole, network)
    rebuilt = thin(whole, table)
    wanted: Mapping[str, Any] = network.state_dict()
    for name, tensor in rebuilt.state_dict().items():
        if tensor.shape != wanted[name].shape:
            raise MethodError(
                f'the weight "{name}" of this teacher belongs to a kind of layer that cannot lose '
                f"channels (expected convolutions, linear layers and batch norms): {REMEDY}"
            )
    rebuilt.load_state_dict(wanted)
    with eval_mode(rebuilt), eval_mode(network), torch.no_grad():
        same = torch.equal(rebuilt(example), network(example))
    if not same:
        raise MethodError(
            "this teacher answers differently after it was taken apart, so its forward does not "
            f"go by its layers' sizes alone: {REMEDY}"
        )
    return table
