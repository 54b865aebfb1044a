"""What a linear classifier's weights tell about the features that it was trained on."""

from __future__ import annotations

from torch import Tensor

from hydistill_edge.errors import ShapeError
from hydistill_edge.objectives.widening import widened


def output_prior(features: Tensor, wanted: Tensor, confidence: Tensor, *, weight: Tensor) -> Tensor:
    """Return how far penultimate features are from those that the classifier's weights imply.

    Late in training the centered class means of the features point along the centered rows of the
    classifier, all of the same length (Papyan et al. 2020). Then the feature that gives class c the
    probability p has a closed form: with u_c the centered row, centered logit
    m = (C - 1) / C · ln(p (C - 1) / (1 - p)) and h_c = m u_c / |u_c|². A normal prior with that
    mean and an isotropic deviation of the mean's own length costs |h - h_c|² / |h_c|². It holds
    from both sides: the class prior alone lets features grow without end. Nothing else does where
    no BatchNorm sees the last layers.

    Args:
        features: shape (N, D), what the classifier sees; gradients flow here.
        wanted: shape (N, C), target probabilities; a mixture of classes gives a mixture of means.
        confidence: shape (N,), probability p of the target, in (1 / C, 1).
        weight: shape (C, D), of the classifier.

    Returns:
        Scalar, shape (), float32 at least: zero where features equal their means up to a common
        offset, about one where all features are alike.

    Raises:
        ShapeError: shapes that do not fit.

    Source: the directions from Papyan, Han, Donoho 2020, "Prevalence of Neural Collapse during the
    terminal phase of deep learning training", arXiv:2008.08186, properties NC2 and NC3.
    """
    classes, width = weight.shape
    if (
        features.dim() != 2
        or features.shape[1] != width
        or wanted.shape != (len(features), classes)
        or confidence.shape != (len(features),)
    ):
        raise ShapeError(
            f"features {tuple(features.shape)}, wanted {tuple(wanted.shape)}, confidence "
            f"{tuple(confidence.shape)} and weight {tuple(weight.shape)} do not fit; expected "
            "(N, D), (N, C), (N,) and (C, D)"
        )
    wide = widened(features)
    rows = (weight - weight.mean(dim=0)).to(wide.dtype)
    directions = rows / rows.square().sum(dim=1, keepdim=True).clamp(min=1e-12)
    odds = (confidence / (1.0 - confidence) * (classes - 1)).clamp(min=1.0)
    reach = odds.log() * (classes - 1) / classes
    implied = (wanted @ directions * reach[:, None]).to(wide.dtype)
    implied = implied - implied.mean(dim=0)
    centered = wide - wide.mean(dim=0)
    return (centered - implied).square().sum() / implied.square().sum().clamp(min=1e-12)
