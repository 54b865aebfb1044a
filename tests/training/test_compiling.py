"""Compiled functions, with the compiler's own plain backend: what a GPU does is not tested here."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hydistill_edge.training.compiling import Compiled, compiled, quick_convolutions


def double(values: Tensor) -> Tensor:
    return 2 * values


def test_function_is_left_alone_when_it_runs_on_a_cpu() -> None:
    assert compiled(double, torch.device("cpu"), graphs=True) is double


def test_other_shapes_run_as_they_are_when_one_is_compiled() -> None:
    seen = []

    def watched(values: Tensor) -> Tensor:
        seen.append(torch.compiler.is_compiling())
        return 2 * values

    function = Compiled(watched, backend="eager")
    for count in (4, 3, 4):
        assert function(torch.ones(count)).tolist() == [2.0] * count
    assert seen.count(False) == 1


class Both(NamedTuple):
    one: Tensor
    other: Tensor


def test_results_are_copies_when_kernels_are_replayed() -> None:
    kept = torch.zeros(3)
    function = Compiled(lambda values: Both(kept.add_(values), kept), graphs=True, backend="eager")
    first = function(torch.ones(3))
    function(torch.ones(3))
    assert isinstance(first, Both)
    assert first.one.tolist() == first.other.tolist() == [1.0] * 3


def test_convolutions_are_tried_out_only_when_on_a_gpu() -> None:
    before = torch.backends.cudnn.benchmark
    for kind, wanted in (("cuda", True), ("cpu", before)):
        with quick_convolutions(torch.device(kind)):
            assert torch.backends.cudnn.benchmark is wanted
        assert torch.backends.cudnn.benchmark is before


def test_convolutions_setting_is_restored_when_the_block_fails() -> None:
    before = torch.backends.cudnn.benchmark
    with pytest.raises(ValueError, match="x"), quick_convolutions(torch.device("cuda")):
        raise ValueError("x")
    assert torch.backends.cudnn.benchmark is before
