"""Which number format a device computes a network in.

On a CPU with bfloat16, `auto` takes it layer by layer. Its library multiplies most convolutions in
bfloat16 twice as fast as in float32, but has no such kernel for the gradients of most convolutions
that see one channel, or very few, at a time: MobileNetV3 took twice as long as in float32. Those
compute in float32 between others that do not, which is quicker than either format for all of it.
A layer decides by its form alone, so that the same network computes the same in every run, and a
wide teacher keeps bfloat16 beside a depthwise student. See `tools/bench/precision.py`.

One form of convolution is computed another way on every CPU, since the library's kernel for its
weights' gradient writes past its memory: uxlfoundation/oneDNN issue 6035.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hydistill_edge.errors import UsageError

Precision = Literal["auto", "float32", "bf16"]

FEW_CHANNELS = 4
"""Channels per group from which on a CPU's bfloat16 is quicker in all forms: ratios to float32 were
0.5 to 0.8 with 8 and more, 0.3 to 1.2 with 4, 1.0 to 1.9 with 2, and up to 47 with 1."""

UNSAFE_BELOW = 16
"""Input channels below which a CPU's strided 1x1 convolution writes past its memory in training:
8 with AVX2, where it ended a training with 6; twice as many fit into a block with AVX-512."""

_SMALLEST_SIDE = 3  # of maps that the depthwise 3x3 kernel is quick on: 2 to 5 times slower below


def autocast(device: torch.device, precision: Precision = "auto") -> AbstractContextManager[None]:
    """Return the autocast context for a device; it does nothing where float32 is used.

    Args:
        device: where the network computes.
        precision: `auto` takes bfloat16 where the hardware multiplies it natively, on a CPU except
            for the layers that `is_slow_in_bf16` names, and float32 elsewhere; the other two
            insist, for every layer.

    Raises:
        UsageError: `precision` is none of the three.
    """
    if precision not in ("auto", "float32", "bf16"):
        raise UsageError(
            f'precision "{precision}" is unknown; expected "auto", "float32" or "bf16"'
        )
    use = precision == "bf16" or (precision == "auto" and has_native_bf16(device))
    return _autocast(device, use=use, by_layer=precision == "auto" and device.type == "cpu")


@contextmanager
def _autocast(device: torch.device, *, use: bool, by_layer: bool) -> Iterator[None]:
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=use):
        if device.type == "cpu":
            with _Convolutions(slow_in_float32=use and by_layer):
                yield
        else:
            yield


def has_native_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bfloat16 in hardware.

    Emulated bfloat16 (AVX2 machines, GPUs before compute capability 8.0) is slower than float32.
    On a CPU with AVX512-BF16, training a small ResNet took half the time of float32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def is_slow_in_bf16(
    kernel: Sequence[int], stride: Sequence[int], *, per_group: int, side: int
) -> bool:
    """Return whether a convolution with groups takes longer on a CPU in bfloat16 than in float32.

    Forward and backward together. Only 1x1 kernels, and depthwise 3x3 ones of stride 1, are quick.

    Args:
        kernel: height and width in pixels.
        stride: of both.
        per_group: channels that one group reads; 1 is depthwise.
        side: shorter side of the map that it reads, in pixels.
    """
    if per_group >= FEW_CHANNELS or max(kernel) == 1:
        return False
    has_kernel = per_group == 1 and tuple(kernel) == (3, 3) and max(stride) == 1
    return not (has_kernel and side >= _SMALLEST_SIDE)


class _Convolutions(TorchFunctionMode):
    """Computes a CPU's convolutions so that they are quick, and safe to train.

    Args:
        slow_in_float32: let those that `is_slow_in_bf16` names leave autocast.
    """

    def __init__(self, *, slow_in_float32: bool) -> None:
        super().__init__()
        self._slow_in_float32 = slow_in_float32

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.conv2d:
            return self._conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _conv2d(
        self,
        input: Tensor,  # noqa: A002  (torch's name: layers may pass it by keyword)
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        """Compute what `torch.conv2d` does, under autocast or not."""
        steps = (stride, stride) if isinstance(stride, int) else tuple(stride)
        if _is_unsafe(weight, steps, padding, groups):
            # The same without a stride: the places that it leaves out are left out before.
            input, stride = input[..., :: steps[0], :: steps[-1]], 1  # noqa: A001
        rest: Any = (stride, padding, dilation, groups)
        if (
            not self._slow_in_float32
            or groups == 1
            or not is_slow_in_bf16(
                weight.shape[2:], steps, per_group=weight.shape[1], side=min(input.shape[-2:])
            )
        ):
            return torch.conv2d(input, weight, bias, *rest)
        wide = None if bias is None else bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return torch.conv2d(input.float(), weight.float(), wide, *rest)


def _is_unsafe(
    weight: Tensor, stride: Sequence[int], padding: str | int | Sequence[int], groups: int
) -> bool:
    """Return whether the weights' gradient of a convolution is written past its memory."""
    whole = padding == "valid" or (not isinstance(padding, str) and not np.any(padding))
    pointwise = weight.shape[2:].numel() == 1
    few = groups == 1 and weight.shape[1] < UNSAFE_BELOW
    return pointwise and few and whole and max(stride) > 1
