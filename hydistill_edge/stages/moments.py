"""What the layers of a network saw of images, as the calibration's score takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hydistill_edge.calibration.layer_quality import LayerMoments
from hydistill_edge.calibration.quality import judge_quality

if TYPE_CHECKING:
    from hydistill_edge.objectives.bn_statistics import LayerStatistics


def layer_moments(
    layers: Sequence[LayerStatistics],
) -> tuple[list[LayerMoments], dict[str, float]]:
    """Return moments layer by layer, and by layer name the distance in nats (mean over channels).

    Args:
        layers: what was read in one pass, without gradients.
    """
    from hydistill_edge.objectives.bn_statistics import bn_distance

    moments = [
        LayerMoments(
            layer.name,
            layer.mean.cpu().numpy(),
            layer.variance.cpu().numpy(),
            layer.running_mean.cpu().numpy(),
            layer.running_variance.cpu().numpy(),
        )
        for layer in layers
    ]
    return moments, {layer.name: float(bn_distance([layer])) for layer in layers}


def moment_score(layers: Sequence[LayerStatistics]) -> float:
    """Return the calibration's score of images, in [0, 1], taking their classes as balanced.

    Args:
        layers: as in `layer_moments`; at least one.
    """
    return score_of(*layer_moments(layers))


def score_of(moments: Sequence[LayerMoments], distances: Mapping[str, float]) -> float:
    """Return the score of what `layer_moments` returned."""
    score = judge_quality({"all": 1}, moments=moments, bn_distances=distances).score
    return 0.0 if score is None else score
