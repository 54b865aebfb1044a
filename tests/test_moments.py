"""What layers saw of images, as the calibration's score takes it."""

from __future__ import annotations

import pytest
import torch

from hydistill_edge.objectives.bn_statistics import LayerStatistics
from hydistill_edge.stages.moments import layer_moments, moment_score

REMEMBERED = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 4.0])


def layer(shift: float = 0.0, factor: float = 1.0) -> LayerStatistics:
    """Return a layer that saw images of another mean and variance than it remembers."""
    mean, variance = REMEMBERED
    return LayerStatistics("bn", mean + shift, variance * factor, mean, variance, 1e-5)


def test_moments_are_those_of_the_layer() -> None:
    (moments,), distances = layer_moments([layer(shift=1.0)])
    assert moments.mean.tolist() == [1.0, 2.0]
    assert moments.running_variance.tolist() == [1.0, 4.0]
    assert distances == {"bn": pytest.approx((0.5 + 0.125) / 2, rel=1e-3)}  # shift^2 / 2 variance


def test_score_is_one_when_images_are_as_remembered() -> None:
    assert moment_score([layer()]) == pytest.approx(1.0)


@pytest.mark.parametrize("change", [{"shift": 2.0}, {"factor": 9.0}, {"factor": 0.1}], ids=str)
def test_score_falls_when_images_are_others(change: dict[str, float]) -> None:
    assert moment_score([layer(), layer(**change)]) < 0.85
