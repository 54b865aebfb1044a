"""Which number format a device computes in."""

from __future__ import annotations

import pytest
import torch

from hydistill_edge.errors import UsageError
from hydistill_edge.training.precision import Precision, autocast, has_native_bf16

CPU = torch.device("cpu")


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
