"""A student that is the teacher with every layer as a product of thinner ones.

All channels stay, so that it starts far nearer to the teacher than one that lost channels: of a
CIFAR-10 ResNet-9, at a quarter of the multiply-accumulates and before any training, it decided
86 % of 3,000 unlabelled images alike (10 % with fewer channels), and 95 % once its layers were
fitted to the teacher's (`models.reconstruction`).

It pays for kernels that see neighbours among many channels: of k x k, what rows and columns have in
common goes with what channels have; a 1 x 1 convolution must get by with a fraction of its rank.
Narrow networks, and those of mostly 1 x 1 and depthwise convolutions, keep more with fewer channels
(`models.slimming`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from hydistill_edge.errors import HydistillError, MethodError, UsageError
from hydistill_edge.models.counting import count
from hydistill_edge.models.low_rank import Layer, RankTable, factorize, strengths
from hydistill_edge.models.reduced import REMEDY, adopt, check_share, last_layer, taken_apart
from hydistill_edge.models.student import Student
from hydistill_edge.models.taps import eval_mode
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.naming import FACTORED_FORM

LEAST_CHANNELS = 8
"""Layers with fewer inputs or outputs stay whole: they cost little, and a rank of 1 or 2 is no
layer."""

PAYS_FROM = 32
"""Channels from which filters are alike enough. A ResNet-20 of 8 to 32 channels lost more by
factoring than by losing channels."""

_TRIES = 100  # layers of unusual networks may cost more than was reckoned
_NOTHING = 1e-30  # energy of a layer whose weights are all 0


@dataclass(frozen=True)
class _Work:
    """A layer that can be factored, and its multiply-accumulates for one image.

    Attributes:
        layer: a plain convolution, or a linear layer.
        whole: of the layer as it is.
        each: of its two factors, per channel between them.
    """

    layer: Layer
    whole: int
    each: int

    @cached_property
    def energies(self) -> list[float]:
        """The squared singular values of the layer's weights, falling; they are costly to find."""
        found: list[float] = strengths(self.layer).tolist()
        return found


def factor(teacher: Teacher, *, macs_share: float, channels: int | None = None) -> Student:
    """Return a student that is the teacher with its layers as products of thinner ones.

    Args:
        teacher: a PyTorch network; it is copied.
        macs_share: multiply-accumulates of the student over those of the teacher, at most;
            above 0 and below 1.
        channels: of the student's pixels; 1 for a network that sees grey as several equal channels.

    Raises:
        UsageError: a share out of range, or too small for this network.
        MethodError: the network is of an ONNX file, or has no layer that can be factored.
    """
    check_share(macs_share)
    whole, example = taken_apart(teacher)
    try:
        network, ranks = _within(whole, example, macs_share)
        return adopt(
            network, teacher, form=FACTORED_FORM, facts={"ranks": ranks}, channels=channels
        )
    except HydistillError:
        raise
    except Exception as error:  # a forward of its own may look into the layers
        raise MethodError(
            f"this teacher cannot be factored ({type(error).__name__}: {error}): {REMEDY}"
        ) from error


def neighbour_share(teacher: Teacher) -> float:
    """Return the share of a teacher's work in layers that factoring pays for; 0 for an ONNX file.

    These are plain convolutions that see neighbours, of `PAYS_FROM` channels and more.
    """
    try:
        whole, example = taken_apart(teacher)
    except MethodError:
        return 0.0
    work = _work(whole, example)
    pays = sum(
        found.whole
        for found in work.values()
        if found.layer.weight[0, 0].numel() > 1 and min(found.layer.weight.shape[:2]) >= PAYS_FROM
    )
    return pays / _macs(whole, example)


def _within(network: nn.Module, example: Tensor, share: float) -> tuple[nn.Module, RankTable]:
    """Return the factored copy that comes within a share of a network's work, and its widths.

    Raises:
        UsageError: the share is too small for this network.
        MethodError: there is no layer that can be factored.
    """
    work = _work(network, example)
    if not work:
        raise MethodError(
            "this teacher has no convolution or linear layer that can be factored (expected plain "
            f"ones of at least {LEAST_CHANNELS} channels): {REMEDY}"
        )
    macs = _macs(network, example)
    fixed = macs - sum(found.whole for found in work.values())
    budget = share * macs - fixed
    for _ in range(_TRIES):
        ranks = _ranks(work, budget)
        if not ranks:
            break
        factored = factorize(copy.deepcopy(network), ranks)
        if _macs(factored, example) <= share * macs:
            return factored, ranks
        budget *= 0.98
    raise UsageError(
        f"macs_share {share}: {fixed / macs:.2f} of this teacher's multiply-accumulates are in "
        "layers that cannot be factored, and the others must keep a rank of 1; expected a larger "
        f"share; or {REMEDY}"
    )


def _ranks(work: Mapping[str, _Work], budget: float) -> RankTable:
    """Return the ranks within a budget whose layers together keep most of their energy.

    Energy is the share of the squared singular values; what is made large is its product over the
    layers, so that none is starved. A rank is worth less than the one before, so the best for its
    cost is taken again and again. Empty where not every layer can have a rank of 1.
    Source: Zhang et al. 2016, arXiv:1505.06798, its rank selection for a whole network, by the
    weights' energies instead of the responses'.
    """
    ranks = dict.fromkeys(work, 1)
    left = budget - sum(found.each for found in work.values())
    if left < 0:
        return {}
    kept = {name: max(found.energies[0], _NOTHING) for name, found in work.items()}

    def worth(name: str) -> float:
        return math.log1p(work[name].energies[ranks[name]] / kept[name]) / work[name].each

    while True:
        growing = [
            name
            for name, found in work.items()
            # From there on the layer as it was would cost less.
            if ranks[name] < min(len(found.energies), found.whole // found.each)
            and found.each <= left
        ]
        if not growing:
            return ranks
        best = max(growing, key=worth)
        kept[best] += work[best].energies[ranks[best]]
        ranks[best] += 1
        left -= work[best].each


def _work(network: nn.Module, example: Tensor) -> dict[str, _Work]:
    """Return the work of every layer that can be factored, by name; not of that of the logits."""
    last = last_layer(network, example)
    names = {
        layer: name
        for name, layer in network.named_modules()
        # Not of a class made from these: such a one is used for more than its output.
        if type(layer) in (nn.Conv2d, nn.Linear) and name != last and _is_thick(layer)
    }
    found: dict[str, _Work] = {}

    def read(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        outputs, inputs = layer.weight.shape[:2]
        places = output.numel() // outputs
        height, width = layer.kernel_size if isinstance(layer, nn.Conv2d) else (1, 1)
        # In front of a second factor that leaves columns out, the first one still sees them all.
        seen = places if width == 1 else output.shape[-2] * given[0].shape[-1]
        found[names[layer]] = _Work(
            layer=layer,
            whole=height * width * inputs * outputs * places,
            each=height * inputs * seen + width * outputs * places,
        )

    hooks = [layer.register_forward_hook(read) for layer in names]
    try:
        with eval_mode(network), torch.no_grad():
            network(example)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _is_thick(layer: nn.Module) -> bool:
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    plain = not isinstance(layer, nn.Conv2d) or layer.groups == 1
    return plain and min(layer.weight.shape[:2]) >= LEAST_CHANNELS


def _macs(network: nn.Module, example: Tensor) -> int:
    _, channels, height, width = example.shape
    return count(network, channels=channels, size=(height, width)).macs
