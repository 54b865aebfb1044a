"""Which number format a device computes in, and which convolutions it computes another way."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hydistill_edge.errors import UsageError
from hydistill_edge.training.precision import (
    Precision,
    autocast,
    has_native_bf16,
    is_slow_in_bf16,
)

CPU = torch.device("cpu")


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies bfloat16, or says so: the arithmetic is there on every one."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


@pytest.mark.parametrize(
    ("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_product_has_the_dtype_that_was_asked_for(precision: Precision, dtype: torch.dtype) -> None:
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(("feature", "native"), [("avx512_bf16", True), ("avx2", False)])
def test_auto_takes_bf16_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, feature: str, native: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {feature: True})
    assert has_native_bf16(CPU) is native
    with autocast(CPU):
        assert torch.is_autocast_enabled("cpu") is native


def test_precision_is_refused_when_it_is_unknown() -> None:
    with pytest.raises(UsageError, match=r'"fp8".*"auto"'):
        autocast(CPU, "fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kernel", "stride", "per_group", "side", "slow"),
    [
        ((3, 3), (1, 1), 1, 8, False),
        ((3, 3), (1, 1), 1, 2, True),
        ((3, 3), (2, 2), 1, 8, True),
        ((5, 5), (1, 1), 1, 8, True),
        ((3, 1), (1, 1), 1, 8, True),
        ((1, 1), (2, 2), 1, 8, False),
        ((3, 3), (1, 1), 2, 8, True),
        ((3, 3), (2, 2), 4, 8, False),
    ],
)
def test_only_forms_without_a_bf16_kernel_are_slow(
    kernel: tuple[int, int], stride: tuple[int, int], per_group: int, side: int, slow: bool
) -> None:
    assert is_slow_in_bf16(kernel, stride, per_group=per_group, side=side) is slow


def dtypes(network: nn.Sequential, precision: Precision) -> list[torch.dtype]:
    """Return the dtype of what every layer makes."""
    value, found = torch.ones(2, 8, 6, 6), []
    with autocast(CPU, precision):
        for layer in network:
            value = layer(value)
            found.append(value.dtype)
    return found


LAYERS = nn.Sequential(
    nn.Conv2d(8, 8, 1),
    nn.Conv2d(8, 8, 5, padding=2, groups=8),
    nn.Conv2d(8, 8, 3, padding="same", groups=8),
    nn.Conv2d(8, 8, 3, stride=2, groups=8, bias=False),
    nn.Conv2d(8, 8, 1),
)
B, F = torch.bfloat16, torch.float32


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("precision", "expected"),
    [("auto", [B, F, B, F, B]), ("bf16", [B] * 5), ("float32", [F] * 5)],
)
def test_layers_compute_in_their_own_format_only_when_auto(
    precision: Precision, expected: list[torch.dtype]
) -> None:
    assert dtypes(LAYERS, precision) == expected


def test_layers_compute_in_float32_when_the_cpu_has_no_bf16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert dtypes(LAYERS, "auto") == [F] * 5


@pytest.mark.usefixtures("native")
def test_gradients_are_those_of_float32_when_auto_mixes_formats() -> None:
    gradients = {}
    images = torch.rand(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    for precision in ("auto", "float32"):
        LAYERS.zero_grad()
        with autocast(CPU, precision):
            loss = LAYERS(images).float().square().mean()
        torch.autograd.backward(loss)
        gradients[precision] = [weight.grad for weight in LAYERS.parameters()]
    for mixed, exact in zip(gradients["auto"], gradients["float32"], strict=True):
        assert mixed is not None
        assert exact is not None
        assert mixed.dtype == torch.float32
        assert exact.abs().max() > 0
        torch.testing.assert_close(mixed, exact, rtol=0.05, atol=0.02 * exact.abs().max().item())


@pytest.mark.usefixtures("native")
def test_every_layer_is_bf16_again_when_an_error_left_auto() -> None:
    with pytest.raises(ValueError, match="lost"), autocast(CPU):
        raise ValueError("lost")
    assert dtypes(LAYERS, "bf16") == [B] * 5


class _Strides(TorchDispatchMode):
    """Notes the stride of every convolution that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[int]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.found.append(list(args[3]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("layer", "computed"),
    [
        (nn.Conv2d(6, 9, 1, stride=2), 1),
        (nn.Conv2d(6, 9, 1, stride=(1, 2), padding="valid"), 1),
        (nn.Conv2d(16, 9, 1, stride=2), 2),
        (nn.Conv2d(6, 9, 1, stride=2, padding=1), 2),
        (nn.Conv2d(6, 9, 3, stride=2), 2),
        (nn.Conv2d(6, 6, 1, stride=2, groups=6), 2),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_strided_pointwise_convolutions_of_few_channels_are_trained_without_a_stride(
    layer: nn.Conv2d, computed: int, layout: torch.memory_format
) -> None:
    shape = (4, layer.in_channels, 8, 7)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    exact = copy.deepcopy(layer).double()
    wanted = exact(images.double())
    torch.autograd.backward(wanted.square().mean())
    tried = copy.deepcopy(layer).to(memory_format=layout)
    with _Strides() as strides, autocast(CPU, "float32"):
        found = tried(images)
    assert max(strides.found[0]) == computed
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    if computed == 1 or layer.in_channels == 16:  # others may not be safe to train
        torch.autograd.backward(found.square().mean())
        for weight, other in zip(tried.parameters(), exact.parameters(), strict=True):
            assert weight.grad is not None
            assert other.grad is not None
            torch.testing.assert_close(weight.grad.double(), other.grad, rtol=1e-3, atol=1e-5)
