"""A factored student's layers, fitted to what the teacher's give for images.

Truncated factors are near to the weights, not to what a layer makes of an image, and what one layer
loses goes on into the next. Here the last factor of every chain is solved for by least squares,
layer after layer in the order in which they run: from what the student's own layers before it give,
to what the teacher's layer gives. So each also mends what those before it lost. It takes seconds,
no gradient and no label; images from formulas will do.

Source: Zhang, Zou, He and Sun 2016, "Accelerating Very Deep Convolutional Networks for
Classification and Detection", arXiv:1505.06798: its asymmetric reconstruction, without the solver
for what follows a ReLU.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hydistill_edge.models.low_rank import as_maps
from hydistill_edge.models.student import Student
from hydistill_edge.models.taps import eval_mode
from hydistill_edge.models.teacher import Teacher

MOST_IMAGES, LEAST_IMAGES = 1024, 64
PIXELS = 2**21
"""Of all images together: they run as one batch."""

COLUMNS = 2**14
"""Places of all maps together that a layer is fitted to; those beside each other are alike."""

RIDGE = 1e-4
"""Pull to the truncated factor, over the mean square of what it sees: where no image leads, it
stays."""


def images_wanted(size: tuple[int, int]) -> int:
    """Return how many images of a size (height, width) are enough."""
    return min(MOST_IMAGES, max(LEAST_IMAGES, PIXELS // (size[0] * size[1])))


@torch.no_grad()
def reconstruct(student: Student, teacher: Teacher, images: Tensor) -> None:
    """Fit the factors of a student, in place.

    A layer that runs more than once is fitted to its first run.

    Args:
        student: factored, not trained yet; on the same device as the teacher.
        teacher: what it was made of.
        images: pixels, shape (N, C, H, W) uint8 or float in [0, 1]; see `images_wanted`.
    """
    wanted: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(layer: nn.Module, _inputs: object, output: Tensor) -> None:
            # A copy: what follows may write over it.
            wanted.setdefault(name, _columns(output, layer).clone())

        return hook

    def solve(name: str) -> Callable[[nn.Sequential, tuple[Tensor, ...]], None]:
        def hook(chain: nn.Sequential, inputs: tuple[Tensor, ...]) -> None:
            if name in wanted:
                reduce, expand = chain
                _refit(expand, _seen(expand, reduce(inputs[0])), wanted.pop(name))

        return hook

    with ExitStack() as stack, eval_mode(student):
        for name in student.options["ranks"]:
            layer = teacher.network.get_submodule(name)
            stack.callback(layer.register_forward_hook(keep(name)).remove)
            # In front of its run, so that the layers after it see what it gives once fitted.
            chain = student.network.get_submodule(student.layer_of_teacher(name))
            stack.callback(chain.register_forward_pre_hook(solve(name)).remove)
        teacher(images)
        student(images)


def _columns(output: Tensor, layer: nn.Module) -> Tensor:
    """Return what a layer gives at some places of all images, shape (channels, places)."""
    maps = as_maps(output, layer)
    places = maps.shape[2]
    # The same ones for teacher and student, and all over the map.
    order = torch.randperm(places, generator=torch.Generator().manual_seed(0))
    some = order[: max(1, COLUMNS // len(maps))].to(maps.device)
    return maps[:, :, some].transpose(0, 1).flatten(1)


def _seen(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Return all that a layer sees at those places, shape (kernel columns x channels, places)."""
    if not isinstance(layer, nn.Conv2d):
        return _columns(inputs, layer)
    channels, width = layer.in_channels, layer.kernel_size[1]
    bias = {} if layer.bias is None else {"bias": inputs.new_zeros(channels)}
    columns = []
    for column in range(width):
        # The layer itself picks them: it knows its border, its stride and its dilation.
        weight = inputs.new_zeros(channels, channels, 1, width)
        weight[:, :, 0, column].fill_diagonal_(1)
        columns.append(_columns(functional_call(layer, {"weight": weight, **bias}, inputs), layer))
    return torch.cat(columns)


def _refit(layer: nn.Module, seen: Tensor, wanted: Tensor) -> None:
    """Set a layer's weights, and its bias, to those that make `wanted` of `seen`.

    Args:
        layer: linear, or a convolution of one row.
        seen: shape (kernel columns x channels, places).
        wanted: shape (outputs, places).
    """
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    weight = layer.weight
    if isinstance(layer, nn.Conv2d):
        weight = weight[:, :, 0].transpose(1, 2)  # columns first, as they are seen
    old = weight.flatten(1).double()
    if layer.bias is not None:
        seen = torch.cat([seen, torch.ones_like(seen[:1])])
        old = torch.cat([old, layer.bias[:, None].double()], dim=1)
    products = (seen @ seen.t()).double()
    pull = RIDGE * products.diagonal().mean()
    products.diagonal().add_(pull)
    answer = (wanted @ seen.t()).double() + pull * old
    new = torch.linalg.solve(products, answer, left=False)
    if not torch.isfinite(new).all():  # every image leaves this layer without any input
        return
    if layer.bias is not None:
        layer.bias.copy_(new[:, -1])
        new = new[:, :-1]
    weight.copy_(new.reshape(weight.shape))
