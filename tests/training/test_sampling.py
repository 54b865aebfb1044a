"""Which items a step sees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hydistill_edge.errors import UsageError
from hydistill_edge.training.sampling import Passes


def test_every_item_is_seen_once_per_pass() -> None:
    passes = Passes(12, batch=4, seed=0)
    first = np.concatenate([passes.at(step) for step in range(3)])
    second = np.concatenate([passes.at(step) for step in range(3, 6)])
    assert sorted(first) == sorted(second) == list(range(12))
    assert first.tolist() != second.tolist()


@given(count=st.integers(1, 20), batch=st.integers(1, 30), step=st.integers(0, 50))
def test_step_is_the_same_when_it_is_asked_for_out_of_order(
    count: int, batch: int, step: int
) -> None:
    straight = Passes(count, batch=batch, seed=3)
    for earlier in range(step):
        straight.at(earlier)
    np.testing.assert_array_equal(straight.at(step), Passes(count, batch=batch, seed=3).at(step))


def test_order_changes_with_the_seed() -> None:
    assert (
        Passes(50, batch=50, seed=1).at(0).tolist() != Passes(50, batch=50, seed=2).at(0).tolist()
    )


@pytest.mark.parametrize(("count", "batch"), [(0, 1), (1, 0)])
def test_passes_are_refused_when_there_is_nothing_to_see(count: int, batch: int) -> None:
    with pytest.raises(UsageError, match="at least one"):
        Passes(count, batch=batch, seed=0)
