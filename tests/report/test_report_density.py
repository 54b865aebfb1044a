"""Densities of points on the report's map."""

from __future__ import annotations

import numpy as np
import pytest

from hydistill_edge.report.density import density

WINDOW = (-4.0, 4.0, -3.0, 5.0)


def points(count: int) -> list[tuple[float, float]]:
    choice = np.random.default_rng(0)
    return [(float(x), float(y)) for x, y in choice.normal(0, [1, 0.5], (count, 2))]


def test_density_is_a_mean_of_gaussians_as_wide_as_the_rule_says() -> None:
    at = points(12)
    found = density(at, WINDOW)
    assert found is not None
    xy = np.array(at)
    width = np.sqrt((xy[:, 0].var(ddof=1) + xy[:, 1].var(ddof=1)) / 2) * 12 ** (-1 / 6)
    row, column = 20, 41
    squares = (xy[:, 0] - found.x[column]) ** 2 + (xy[:, 1] - found.y[row]) ** 2
    cell = (found.x[1] - found.x[0]) * (found.y[1] - found.y[0])
    expected = np.exp(-squares / (2 * width**2)).mean() / (2 * np.pi * width**2) * cell
    assert found.values.sum() == pytest.approx(1)
    assert found.values[row, column] == pytest.approx(expected, rel=0.02)  # what is cut off


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_level_holds_its_share(share: float) -> None:
    found = density(points(30), WINDOW)
    assert found is not None
    inside = found.values[found.values >= found.level(share)].sum()
    assert share <= inside < share + 0.01


def test_few_points_have_no_density_and_equal_ones_a_narrow_one() -> None:
    assert density(points(2), WINDOW) is None
    found = density([(1.0, 1.0)] * 3, WINDOW)
    assert found is not None
    assert np.isfinite(found.values).all()
    top = np.unravel_index(found.values.argmax(), found.values.shape)
    assert (found.x[top[1]], found.y[top[0]]) == (
        pytest.approx(1, abs=0.1), pytest.approx(1, abs=0.1),
    )  # fmt: skip
