"""ONNX operators in torch, one small function each, differentiable where the operator is.

A value is a tensor, or a numpy array where only shapes are computed. Each function takes the node
(attributes, opset) and the node's inputs in order; a missing optional input is None.

Source of all semantics: https://onnx.ai/onnx/operators/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]
Value = Tensor | Array


@dataclass(frozen=True)
class Node:
    """An operator of the graph, without its inputs.

    Attributes:
        op: the operator's name, e.g. "Conv".
        name: of the node, for messages.
        attributes: as plain values; tensors as numpy arrays.
        opset: of the graph.
    """

    op: str
    name: str
    attributes: Mapping[str, Any]
    opset: int

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute."""
        return self.attributes.get(key, default)


@dataclass
class Batch:
    """The batch of a graph that was exported for one size, which its shapes then name.

    Attributes:
        exported: the size in the graph.
        now: the size of the inputs that run at the moment.
    """

    exported: int
    now: int

    @property
    def differs(self) -> bool:
        """Whether shapes in the graph have to be read anew."""
        return self.exported != self.now


Function = Callable[..., Any]


@dataclass(frozen=True)
class Op:
    """A function with the attributes that it understands; any other attribute is refused."""

    function: Function
    attributes: frozenset[str]


def ints(value: Any) -> list[int]:
    """Return a list of whole numbers from an attribute, array or tensor."""
    if isinstance(value, Tensor):
        value = value.tolist()
    return [int(item) for item in np.asarray(value).reshape(-1)]


def number(value: Any) -> float:
    """Return a number from an attribute, array or tensor."""
    return float(value.item() if isinstance(value, Tensor | np.ndarray) else value)


def tensor_like(value: Value, like: Tensor) -> Tensor:
    """Return a value as a tensor on another's device; floats in the other's precision."""
    if not isinstance(value, Tensor) and value.ndim == 0 and value.dtype.kind == "f":
        # A scalar on the CPU mixes with tensors of every device, without a copy to it.
        return torch.tensor(value.item(), dtype=like.dtype if like.is_floating_point() else None)
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    if tensor.is_floating_point() and like.is_floating_point():
        return tensor.to(device=like.device, dtype=like.dtype)
    return tensor.to(device=like.device)


def together(*values: Value) -> list[Tensor]:
    """Return values as tensors on the device of the first tensor among them."""
    like = next(value for value in values if isinstance(value, Tensor))
    return [tensor_like(value, like) for value in values]


def elementwise(function: Callable[[Tensor], Tensor]) -> Function:
    """Return an operator of one input."""
    return lambda node, x: function(x)


def broadcast(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    """Return an operator of two inputs that broadcast."""
    return lambda node, a, b: function(*together(a, b))


def folded(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    """Return an operator of any number of inputs that broadcast."""

    def op(node: Node, *values: Value) -> Tensor:
        first, *others = together(*values)
        for other in others:
            first = function(first, other)
        return first

    return op


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Divide; whole numbers are truncated."""
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def clip(node: Node, x: Tensor, low: Value | None = None, high: Value | None = None) -> Tensor:
    """Clip to bounds, which are attributes before opset 11."""
    low, high = node.get("min", low), node.get("max", high)
    bounds = [None if bound is None else number(bound) for bound in (low, high)]
    return x if bounds == [None, None] else torch.clamp(x, bounds[0], bounds[1])


def hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    """Clip alpha x + beta to [0, 1]."""
    return torch.clamp(node.get("alpha", 0.2) * x + node.get("beta", 0.5), 0.0, 1.0)


def selu(node: Node, x: Tensor) -> Tensor:
    """Scaled exponential linear unit."""
    alpha: float = node.get("alpha", 1.6732632)
    gamma: float = node.get("gamma", 1.0507010)
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


def prelu(node: Node, x: Tensor, slope: Value) -> Tensor:
    """Leaky ReLU whose slope is an input."""
    return torch.where(x >= 0, x, x * tensor_like(slope, x))


def softmax(node: Node, x: Tensor) -> Tensor:
    """Softmax over one axis; before opset 13 over all axes from that one on."""
    return _over_axis(node, x, torch.softmax)


def log_softmax(node: Node, x: Tensor) -> Tensor:
    """Logarithm of the softmax."""
    return _over_axis(node, x, torch.log_softmax)


def _over_axis(node: Node, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
    if node.opset >= 13:
        return function(x, dim=node.get("axis", -1))
    axis = node.get("axis", 1) % x.dim()
    return function(x.flatten(axis), dim=axis).reshape(x.shape)


def matmul(node: Node, a: Value, b: Value) -> Tensor:
    """Multiply matrices, batched as numpy does."""
    return torch.matmul(*together(a, b))


def gemm(node: Node, a: Value, b: Value, c: Value | None = None) -> Tensor:
    """Multiply two matrices and add a third."""
    a, b = together(a, b)
    product = (a.T if node.get("transA", 0) else a) @ (b.T if node.get("transB", 0) else b)
    alpha: float = node.get("alpha", 1.0)
    beta: float = node.get("beta", 1.0)
    return alpha * product if c is None else alpha * product + beta * tensor_like(c, product)


def einsum(node: Node, *values: Value) -> Tensor:
    """Sum of products by Einstein's notation."""
    equation = node.get("equation")
    return torch.einsum(
        equation.decode() if isinstance(equation, bytes) else equation, *together(*values)
    )


def reduction(function: Callable[..., Tensor]) -> Function:
    """Return a reduction; its axes are an attribute in old opsets, an input in new ones."""

    def op(node: Node, x: Tensor, axes: Value | None = None) -> Tensor:
        axes = node.get("axes", axes)
        dims = [] if axes is None else ints(axes)
        if not dims:
            if node.get("noop_with_empty_axes", 0):
                return x
            dims = list(range(x.dim()))
        return function(x, dims, keepdim=bool(node.get("keepdims", 1)))

    return op


def _l2(x: Tensor, dims: list[int], *, keepdim: bool) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=keepdim)
    return norm


def _sum_square(x: Tensor, dims: list[int], *, keepdim: bool) -> Tensor:
    return x.square().sum(dims, keepdim=keepdim)


def global_average_pool(node: Node, x: Tensor) -> Tensor:
    """Mean over all spatial positions, kept as 1x1."""
    return x.mean(dim=list(range(2, x.dim())), keepdim=True)


def global_max_pool(node: Node, x: Tensor) -> Tensor:
    """Maximum over all spatial positions, kept as 1x1."""
    return x.amax(dim=list(range(2, x.dim())), keepdim=True)


def spatial_pads(node: Node, size: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Return [top, left, bottom, right] of a convolution or pooling, `auto_pad` resolved."""
    strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
    mode = node.get("auto_pad", b"NOTSET")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode == "VALID":
        return [0, 0, 0, 0]
    if mode == "NOTSET":
        return list(node.get("pads", [0, 0, 0, 0]))
    before, after = [], []
    for side, window, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(side / stride) - 1) * stride + (window - 1) * dilation + 1 - side)
        small, big = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else big)
        after.append(big if mode == "SAME_UPPER" else small)
    return before + after


def pad_spatial(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad height and width by [top, left, bottom, right]."""
    top, left, bottom, right = pads
    return F.pad(x, (left, right, top, bottom), value=value) if any(pads) else x


def conv(node: Node, x: Tensor, weight: Value, bias: Value | None = None) -> Tensor:
    """Convolve with weights that are computed, not stored."""
    weight = tensor_like(weight, x)
    padded = pad_spatial(x, spatial_pads(node, x.shape[2:], weight.shape[2:]))
    shift = None if bias is None else tensor_like(bias, x)
    strides, dilations = node.get("strides", [1, 1]), node.get("dilations", [1, 1])
    return F.conv2d(padded, weight, shift, strides, 0, dilations, node.get("group", 1))


def max_pool(node: Node, x: Tensor) -> Tensor:
    """Maximum over windows; only the values, not their indices."""
    kernel = node.get("kernel_shape")
    strides = node.get("strides", [1, 1])
    dilations, ceil = node.get("dilations", [1, 1]), bool(node.get("ceil_mode", 0))
    pads = spatial_pads(node, x.shape[2:], kernel)
    if pads[:2] == pads[2:] and all(
        2 * pad <= side for pad, side in zip(pads, kernel, strict=False)
    ):
        return F.max_pool2d(x, kernel, strides, pads[:2], dilations, ceil)
    return F.max_pool2d(pad_spatial(x, pads, -math.inf), kernel, strides, 0, dilations, ceil)


def average_pool(node: Node, x: Tensor) -> Tensor:
    """Mean over windows; the padding counts or not, as the attribute says."""
    kernel, strides = node.get("kernel_shape"), node.get("strides", [1, 1])
    ceil, count = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    pads = spatial_pads(node, x.shape[2:], kernel)
    if pads[:2] == pads[2:] and all(
        2 * pad <= side for pad, side in zip(pads, kernel, strict=False)
    ):
        return F.avg_pool2d(x, kernel, strides, pads[:2], ceil, count)
    if count:
        return F.avg_pool2d(pad_spatial(x, pads), kernel, strides, 0, ceil)
    # Both means divide by the whole window, so their quotient counts real pixels only.
    inside = pad_spatial(torch.ones_like(x[:1, :1]), pads)
    total = F.avg_pool2d(pad_spatial(x, pads), kernel, strides, 0, ceil)
    return total / F.avg_pool2d(inside, kernel, strides, 0, ceil)


def flatten(node: Node, x: Tensor) -> Tensor:
    """Flatten to a matrix whose rows are the axes before `axis`."""
    axis = node.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def reshape(node: Node, x: Tensor, shape: Value) -> Tensor:
    """Reshape; a zero keeps the input's dimension unless `allowzero`."""
    target = ints(shape)
    if not node.get("allowzero", 0):
        target = [x.shape[index] if side == 0 else side for index, side in enumerate(target)]
    batch: Batch | None = node.get("batch")
    # The loader has checked that such a graph still treats images one by one.
    if (
        batch is not None
        and batch.differs
        and target[:1] == [batch.exported]
        and x.shape[0] == batch.now
    ):
        target[0] = batch.now
    return x.reshape(target)


def transpose(node: Node, x: Tensor) -> Tensor:
    """Permute the axes; reverse them by default."""
    return x.permute(node.get("perm", list(range(x.dim()))[::-1]))


def squeeze(node: Node, x: Tensor, axes: Value | None = None) -> Tensor:
    """Drop axes of size one."""
    axes = node.get("axes", axes)
    dims = (
        [index for index, side in enumerate(x.shape) if side == 1] if axes is None else ints(axes)
    )
    return x.squeeze(tuple(dims))


def unsqueeze(node: Node, x: Tensor, axes: Value | None = None) -> Tensor:
    """Insert axes of size one."""
    dims = ints(node.get("axes", axes))
    rank = x.dim() + len(dims)
    for dim in sorted(dim % rank for dim in dims):
        x = x.unsqueeze(dim)
    return x


def concat(node: Node, *values: Value) -> Tensor:
    """Join along an axis."""
    return torch.cat(together(*values), dim=node.get("axis"))


def split(node: Node, x: Tensor, sizes: Value | None = None) -> tuple[Tensor, ...]:
    """Cut along an axis, into given or equal parts."""
    axis = node.get("axis", 0)
    sizes = node.get("split", sizes)
    if sizes is not None:
        return torch.split(x, ints(sizes), dim=axis)
    parts = node.get("num_outputs") or node.get("outputs")
    return torch.split(x, math.ceil(x.shape[axis] / parts), dim=axis)


def slice_(
    node: Node,
    x: Tensor,
    starts: Value | None = None,
    ends: Value | None = None,
    axes: Value | None = None,
    steps: Value | None = None,
) -> Tensor:
    """Cut ranges out, with steps; the ranges are attributes before opset 10."""
    first = ints(node.get("starts", starts))
    last = ints(node.get("ends", ends))
    axes = node.get("axes", axes)
    dims = list(range(len(first))) if axes is None else ints(axes)
    jumps = [1] * len(first) if steps is None else ints(steps)
    for begin, end, dim, jump in zip(first, last, dims, jumps, strict=True):
        positions = range(x.shape[dim])[slice(begin, _open_end(end, jump, x.shape[dim]), jump)]
        if jump == 1:
            x = x.narrow(dim, positions.start, len(positions))
        else:
            x = x.index_select(
                dim, torch.tensor(list(positions), dtype=torch.long, device=x.device)
            )
    return x


def _open_end(end: int, step: int, side: int) -> int | None:
    # Going backwards, an end before the first element means "up to and with the first".
    return None if step < 0 and end < -side else end


def pad(
    node: Node,
    x: Tensor,
    pads: Value | None = None,
    value: Value | None = None,
    axes: Value | None = None,
) -> Tensor:
    """Pad with a constant, the edge, a reflection or a wrap-around."""
    mode = node.get("mode", b"constant")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    amounts = ints(node.get("pads", pads))
    fill = node.get("value", value)
    dims = list(range(x.dim())) if axes is None else [dim % x.dim() for dim in ints(axes)]
    half = len(dims)
    pairs = {dim: (amounts[index], amounts[index + half]) for index, dim in enumerate(dims)}
    arguments = [side for dim in reversed(range(x.dim())) for side in pairs.get(dim, (0, 0))]
    if mode == "constant":
        return F.pad(x, arguments, value=0.0 if fill is None else number(fill))
    names = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}
    # Torch pads two spatial axes in these modes, which is what images need.
    return F.pad(x, arguments[:4], mode=names[mode])


def gather(node: Node, x: Value, indices: Value) -> Tensor:
    """Pick along an axis; the indices' shape takes the axis's place."""
    if not isinstance(x, Tensor):
        x, indices = together(x, indices)
    axis = node.get("axis", 0) % x.dim()
    if not isinstance(indices, Tensor) and indices.ndim == 0:
        return x.select(axis, int(indices))
    picks = tensor_like(indices, x).long()
    picks = torch.where(picks < 0, picks + x.shape[axis], picks)
    flat = x.index_select(axis, picks.reshape(-1))
    return flat.reshape(*x.shape[:axis], *picks.shape, *x.shape[axis + 1 :])


def gather_elements(node: Node, x: Tensor, indices: Value) -> Tensor:
    """Pick element by element along an axis."""
    axis = node.get("axis", 0) % x.dim()
    picks = tensor_like(indices, x).long()
    return torch.gather(x, axis, torch.where(picks < 0, picks + x.shape[axis], picks))


def gather_nd(node: Node, x: Value, indices: Value) -> Tensor:
    """Pick by index tuples, which stand in the last axis of the indices."""
    x, picks = together(x, indices)
    batch = node.get("batch_dims", 0)
    if batch == 0:
        return x[tuple(picks.long().unbind(-1))]
    leading = torch.meshgrid(
        *(torch.arange(side, device=x.device) for side in x.shape[:batch]), indexing="ij"
    )
    shape = [*x.shape[:batch], *([1] * (picks.dim() - 1 - batch))]
    places = [axis.reshape(shape) for axis in leading] + list(picks.long().unbind(-1))
    return x[tuple(places)]


def where(node: Node, condition: Value, a: Value, b: Value) -> Tensor:
    """Choose by a condition."""
    condition, a, b = together(condition, a, b)
    return torch.where(condition.bool(), a, b)


def expand(node: Node, x: Tensor, shape: Value) -> Tensor:
    """Broadcast to a shape; a dimension of one keeps the input's."""
    target = np.broadcast_shapes(tuple(x.shape), tuple(ints(shape)))
    return x.expand(target)


def tile(node: Node, x: Tensor, repeats: Value) -> Tensor:
    """Repeat along each axis."""
    return x.repeat(ints(repeats))


def shape_of(node: Node, x: Tensor) -> Array:
    """Return the shape as an array, so that what follows is computed without tensors."""
    return np.asarray(tuple(x.shape)[node.get("start", 0) : node.get("end")], dtype=np.int64)


def size_of(node: Node, x: Tensor) -> Array:
    """Return the number of elements."""
    return np.asarray(x.numel(), dtype=np.int64)


CASTS = {6: torch.int32, 7: torch.int64, 9: torch.bool, 3: torch.int8, 2: torch.uint8}
FLOAT_TYPES = (1, 10, 11, 16)


def cast(node: Node, x: Tensor) -> Tensor:
    """Change the type; every float type becomes float32, since a teacher runs in float32."""
    to = node.get("to")
    return x.float() if to in FLOAT_TYPES else x.to(CASTS[to])


def identity(node: Node, x: Value, *_: Value | None) -> Value:
    """Return the input; dropout does the same in inference."""
    return x


def layer_norm(node: Node, x: Tensor, scale: Value, bias: Value | None = None) -> Tensor:
    """Normalise over all axes from `axis` on."""
    axis = node.get("axis", -1) % x.dim()
    shift = None if bias is None else tensor_like(bias, x)
    return F.layer_norm(x, x.shape[axis:], tensor_like(scale, x), shift, node.get("epsilon", 1e-5))


def instance_norm(node: Node, x: Tensor, scale: Value, bias: Value) -> Tensor:
    """Normalise each channel of each image."""
    weight, shift = tensor_like(scale, x), tensor_like(bias, x)
    # Group norm, because torch's instance norm refuses a map of one pixel.
    return F.group_norm(x, x.shape[1], weight, shift, node.get("epsilon", 1e-5))


def group_norm(node: Node, x: Tensor, scale: Value, bias: Value) -> Tensor:
    """Normalise groups of channels; before opset 21 with one scale per group."""
    groups = node.get("num_groups")
    weight, shift = tensor_like(scale, x), tensor_like(bias, x)
    if node.opset < 21:
        weight = weight.repeat_interleave(x.shape[1] // groups)
        shift = shift.repeat_interleave(x.shape[1] // groups)
    return F.group_norm(x, groups, weight, shift, node.get("epsilon", 1e-5))


def lrn(node: Node, x: Tensor) -> Tensor:
    """Normalise by the energy of neighbouring channels."""
    return F.local_response_norm(
        x, node.get("size"), node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    )


def batch_norm(node: Node, x: Tensor, *statistics: Value) -> Tensor:
    """Normalise with stored statistics (for inputs that are no constants, or not images)."""
    scale, bias, mean, variance = (tensor_like(value, x) for value in statistics)
    return F.batch_norm(x, mean, variance, scale, bias, eps=node.get("epsilon", 1e-5))


def gelu(node: Node, x: Tensor) -> Tensor:
    """Gaussian error linear unit."""
    mode = node.get("approximate", b"none")
    return F.gelu(x, approximate=mode.decode() if isinstance(mode, bytes) else mode)


_OFFSETS = {"asymmetric": 0.0, "half_pixel": 0.5}
_ROUNDINGS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def resize(
    node: Node,
    x: Tensor,
    roi: Value | None = None,
    scales: Value | None = None,
    sizes: Value | None = None,
) -> Tensor:
    """Resize height and width: nearest, or linear in torch's conventions."""
    del roi
    text = {
        key: value.decode() if isinstance(value, bytes) else value
        for key, value in node.attributes.items()
    }
    if text.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ValueError("Resize that keeps the aspect ratio has no torch counterpart")
    if sizes is not None and len(ints(sizes)):
        size = ints(sizes)[-2:]
        factors = [to / side for to, side in zip(size, x.shape[-2:], strict=True)]
    else:
        given = np.asarray(scales.cpu() if isinstance(scales, Tensor) else scales).reshape(-1)
        factors = [float(factor) for factor in given[-2:]]
        size = [
            math.floor(side * factor) for side, factor in zip(x.shape[-2:], factors, strict=True)
        ]
    where_from = text.get("coordinate_transformation_mode", "half_pixel")
    mode = text.get("mode", "nearest")
    rounding = text.get("nearest_mode", "round_prefer_floor")
    if mode == "nearest" and where_from in _OFFSETS and rounding in _ROUNDINGS:
        offset = _OFFSETS[where_from]
        for axis, (to, factor) in enumerate(zip(size, factors, strict=True), start=2):
            centers = np.arange(to, dtype=np.float64)
            taken = _ROUNDINGS[rounding]((centers + offset) / factor - offset)
            taken = np.clip(taken, 0, x.shape[axis] - 1).astype(np.int64)
            x = x.index_select(axis, torch.from_numpy(taken).to(x.device))
        return x
    antialias = bool(text.get("antialias", 0))
    if mode == "linear" and where_from in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        return F.interpolate(
            x,
            size=size,
            mode="bilinear",
            align_corners=where_from == "align_corners",
            antialias=antialias,
        )
    raise ValueError(
        f'Resize with mode "{mode}" and coordinates "{where_from}" has no torch counterpart'
    )


def depth_to_space(node: Node, x: Tensor) -> Tensor:
    """Move channels into blocks of pixels."""
    block, mode = node.get("blocksize"), node.get("mode", b"DCR")
    if (mode.decode() if isinstance(mode, bytes) else mode) == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    cut = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return cut.reshape(n, c // block**2, h * block, w * block)


def space_to_depth(node: Node, x: Tensor) -> Tensor:
    """Move blocks of pixels into channels."""
    block = node.get("blocksize")
    n, c, h, w = x.shape
    cut = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return cut.reshape(n, c * block**2, h // block, w // block)


def _op(function: Function, *attributes: str) -> Op:
    return Op(function, frozenset(attributes))


_REDUCE = ("axes", "keepdims", "noop_with_empty_axes")
_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_WINDOW = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")

OPS: dict[str, Op] = {
    # arithmetic
    "Add": _op(broadcast(torch.add)),
    "Sub": _op(broadcast(torch.sub)),
    "Mul": _op(broadcast(torch.mul)),
    "Div": _op(broadcast(divide)),
    "Pow": _op(broadcast(torch.pow)),
    "Mod": _op(broadcast(torch.remainder)),
    "Min": _op(folded(torch.minimum)),
    "Max": _op(folded(torch.maximum)),
    "Sum": _op(folded(torch.add)),
    "Sqrt": _op(elementwise(torch.sqrt)),
    "Exp": _op(elementwise(torch.exp)),
    "Log": _op(elementwise(torch.log)),
    "Abs": _op(elementwise(torch.abs)),
    "Neg": _op(elementwise(torch.neg)),
    "Reciprocal": _op(elementwise(torch.reciprocal)),
    "Floor": _op(elementwise(torch.floor)),
    "Ceil": _op(elementwise(torch.ceil)),
    "Erf": _op(elementwise(torch.erf)),
    "Not": _op(elementwise(torch.logical_not)),
    "Equal": _op(broadcast(torch.eq)),
    "Less": _op(broadcast(torch.lt)),
    "Greater": _op(broadcast(torch.gt)),
    "LessOrEqual": _op(broadcast(torch.le)),
    "GreaterOrEqual": _op(broadcast(torch.ge)),
    "And": _op(broadcast(torch.logical_and)),
    "Or": _op(broadcast(torch.logical_or)),
    "Where": _op(where),
    # activations
    "Relu": _op(elementwise(F.relu)),
    "Sigmoid": _op(elementwise(torch.sigmoid)),
    "Tanh": _op(elementwise(torch.tanh)),
    "Softplus": _op(elementwise(F.softplus)),
    "Softsign": _op(elementwise(F.softsign)),
    "HardSwish": _op(elementwise(F.hardswish)),
    "Mish": _op(elementwise(F.mish)),
    "HardSigmoid": _op(hard_sigmoid, "alpha", "beta"),
    "Elu": _op(lambda node, x: F.elu(x, node.get("alpha", 1.0)), "alpha"),
    "Selu": _op(selu, "alpha", "gamma"),
    "LeakyRelu": _op(lambda node, x: F.leaky_relu(x, node.get("alpha", 0.01)), "alpha"),
    "PRelu": _op(prelu),
    "Gelu": _op(gelu, "approximate"),
    "Clip": _op(clip, "min", "max"),
    "Softmax": _op(softmax, "axis"),
    "LogSoftmax": _op(log_softmax, "axis"),
    # convolution and matrices
    "Conv": _op(conv, *_CONV),
    "MatMul": _op(matmul),
    "Gemm": _op(gemm, "alpha", "beta", "transA", "transB"),
    "Einsum": _op(einsum, "equation"),
    # reductions and pooling
    "ReduceMean": _op(reduction(torch.mean), *_REDUCE),
    "ReduceSum": _op(reduction(torch.sum), *_REDUCE),
    "ReduceMax": _op(reduction(torch.amax), *_REDUCE),
    "ReduceMin": _op(reduction(torch.amin), *_REDUCE),
    "ReduceL2": _op(reduction(_l2), *_REDUCE),
    "ReduceSumSquare": _op(reduction(_sum_square), *_REDUCE),
    "GlobalAveragePool": _op(global_average_pool),
    "GlobalMaxPool": _op(global_max_pool),
    "MaxPool": _op(max_pool, *_WINDOW, "storage_order"),
    "AveragePool": _op(average_pool, *_WINDOW, "count_include_pad"),
    # norms whose weights are no constants of the usual form
    "BatchNormalization": _op(batch_norm, "epsilon", "momentum", "spatial", "training_mode"),
    "LayerNormalization": _op(layer_norm, "axis", "epsilon", "stash_type"),
    "InstanceNormalization": _op(instance_norm, "epsilon"),
    "GroupNormalization": _op(group_norm, "epsilon", "num_groups", "stash_type"),
    "LRN": _op(lrn, "alpha", "beta", "bias", "size"),
    # shapes
    "Flatten": _op(flatten, "axis"),
    "Reshape": _op(reshape, "allowzero", "batch"),
    "Transpose": _op(transpose, "perm"),
    "Squeeze": _op(squeeze, "axes"),
    "Unsqueeze": _op(unsqueeze, "axes"),
    "Concat": _op(concat, "axis"),
    "Split": _op(split, "axis", "num_outputs", "outputs", "split"),
    "Slice": _op(slice_, "axes", "ends", "starts"),
    "Pad": _op(pad, "mode", "pads", "value"),
    "Gather": _op(gather, "axis"),
    "GatherElements": _op(gather_elements, "axis"),
    "GatherND": _op(gather_nd, "batch_dims"),
    "Expand": _op(expand),
    "Tile": _op(tile),
    "Shape": _op(shape_of, "start", "end"),
    "Size": _op(size_of),
    "Resize": _op(
        resize,
        "antialias",
        "coordinate_transformation_mode",
        "cubic_coeff_a",
        "exclude_outside",
        "extrapolation_value",
        "keep_aspect_ratio_policy",
        "mode",
        "nearest_mode",
    ),
    "DepthToSpace": _op(depth_to_space, "blocksize", "mode"),
    "SpaceToDepth": _op(space_to_depth, "blocksize"),
    # types
    "Cast": _op(cast, "to", "saturate"),
    "Identity": _op(identity),
    "Dropout": _op(identity, "ratio", "seed"),
}
"""Every operator that a graph may use on data; what only constants feed is evaluated by onnx."""
