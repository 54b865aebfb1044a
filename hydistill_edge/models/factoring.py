"""A student that is the teacher with every layer as a product of thinner ones.

All channels stay, so that it starts far nearer to the teacher than one that lost channels: of a
CIFAR-10 ResNet-9, at a quarter of the multiply-accumulates and before any training, it decided
85 % of 3,000 unlabelled images alike (10 % with fewer channels), and 95 % after 3,000 steps on
images from formulas and inversion (90 %). Each layer comes down to the same share of its own work.

It pays for kernels that see neighbours among many channels: k x k among r of them costs k^2 r^2,
where a 1 x 1 convolution must get by with a fraction of its rank. Narrow networks, and those of
mostly 1 x 1 and depthwise convolutions, keep more with fewer channels (`models.slimming`).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hydistill_edge.errors import HydistillError, MethodError, UsageError
from hydistill_edge.models.counting import count
from hydistill_edge.models.low_rank import Layer, RankTable, factorize, is_wide
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


@dataclass(frozen=True)
class _Work:
    """A layer that can be factored, and its multiply-accumulates for one image.

    Attributes:
        layer: a plain convolution, or a linear layer.
        whole: of the layer as it is.
        before: of the first factor, per unit of its width.
        between: of the middle one, per unit of both widths; 0 where there is none.
        after: of the last factor, per unit of its width.
    """

    layer: Layer
    whole: int
    before: int
    between: int
    after: int

    def ranks(self, share: float) -> list[int]:
        """Return the largest widths that keep within a share of the layer's work; may be 0."""
        outputs, inputs = self.layer.weight.shape[:2]
        budget = share * self.whole
        if not self.between:
            return [min(int(budget / (self.before + self.after)), inputs, outputs)]
        # Both widths are the same part f of their channels: square f^2 + linear f = budget.
        square = self.between * inputs * outputs
        linear = self.before * inputs + self.after * outputs
        part = ((linear**2 + 4 * square * budget) ** 0.5 - linear) / (2 * square)
        return [min(int(part * inputs), inputs), min(int(part * outputs), outputs)]


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
        if found.between and min(found.layer.weight.shape[:2]) >= PAYS_FROM
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
    own = (share * macs - fixed) / (macs - fixed)  # of each layer's own work
    for _ in range(_TRIES):
        ranks = {name: found.ranks(own) for name, found in work.items()} if own > 0 else {}
        if not ranks or min(min(sizes) for sizes in ranks.values()) < 1:
            break
        factored = factorize(copy.deepcopy(network), ranks)
        if _macs(factored, example) <= share * macs:
            return factored, ranks
        own *= 0.98
    raise UsageError(
        f"macs_share {share}: {fixed / macs:.2f} of this teacher's multiply-accumulates are in "
        "layers that cannot be factored, and the others must keep a rank of 1; expected a larger "
        f"share; or {REMEDY}"
    )


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

    def read(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        channels, places = layer.weight.shape[:2], output.numel() // layer.weight.shape[0]
        area = layer.weight[0, 0].numel()
        wide = is_wide(layer)
        found[names[layer]] = _Work(
            layer=layer,
            whole=area * channels[0] * channels[1] * places,
            # In front of a kernel that leaves places out, the first factor still sees all.
            before=channels[1] * (inputs[0].numel() // channels[1] if wide else places),
            between=area * places if wide else 0,
            after=channels[0] * places,
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
