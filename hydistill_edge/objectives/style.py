"""Independence of style: images with exchanged color statistics, and contrast between them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hydistill_edge.errors import ShapeError, UsageError
from hydistill_edge.objectives.shapes import check_images, check_same_shape
from hydistill_edge.objectives.widening import widened

STD_FLOOR = 1e-6
"""Added to a variance before its root, so that an image of one color has a finite inverse."""


def mix_distribution(images: Tensor, *, partners: Tensor, shares: Tensor) -> Tensor:
    """Return images whose mean and deviation per channel are mixed with a partner's.

    Content stays, style moves. The result may leave the range of valid pixels, by intent.

    Args:
        images: normalised, shape (N, C, H, W), at least two pixels each; gradients flow, but not
            through the statistics.
        partners: shape (N,) int64, which image lends its statistics.
        shares: shape (N,), of an image's own statistics, in [0, 1]; 1 returns the image.

    Returns:
        Shape (N, C, H, W), the images' type.

    Raises:
        ShapeError: no image batch, single pixels, or not one partner and share per image.

    Source: Tang et al. 2023, arXiv:2307.11469; Zhou et al. 2021 (MixStyle), arXiv:2104.02008.
    """
    check_images(images)
    count, _, height, width = images.shape
    if partners.shape != (count,) or shares.shape != (count,) or height * width < 2:
        raise ShapeError(
            f"images {tuple(images.shape)}, partners {tuple(partners.shape)}, shares "
            f"{tuple(shares.shape)}; expected (N, C, H, W) of at least two pixels, (N,) and (N,)"
        )
    wide = widened(images)
    variance, mean = torch.var_mean(wide.detach(), dim=(2, 3), keepdim=True)
    deviation = (variance + STD_FLOOR).sqrt()
    share = shares.to(wide.dtype).view(-1, 1, 1, 1)
    new_mean = share * mean + (1.0 - share) * mean[partners]
    new_deviation = share * deviation + (1.0 - share) * deviation[partners]
    return ((wide - mean) / deviation * new_deviation + new_mean).to(images.dtype)


def draw_partners(
    count: int, *, beta: float = 0.1, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return partners and shares for `mix_distribution`.

    Args:
        count: images.
        beta: both parameters of the Beta distribution of the shares; at 0.1 most are close to 0
            or to 1.
        generator: on the device where the images are.

    Returns:
        A random permutation, shape (count,) int64, and shares, shape (count,) float32.

    Raises:
        UsageError: `beta` is not above 0.
    """
    if not beta > 0:
        raise UsageError(f"beta is {beta}; expected more than 0")
    device = generator.device
    partners = torch.randperm(count, generator=generator, device=device)
    concentration = torch.full((count, 2), beta, device=device, dtype=torch.float64)
    # A Beta variable is one of two Gamma variables over their sum. At small parameters float32
    # draws of both may be 0.
    drawn = torch._standard_gamma(concentration, generator=generator)
    total = drawn.sum(dim=1)
    shares = torch.where(total > 0, drawn[:, 0] / total.clamp_min(1e-300), 0.5)
    return partners, shares.float()


def nt_xent(first: Tensor, second: Tensor, *, temperature: float = 0.3) -> Tensor:
    """Return the normalised-temperature cross entropy between two views, mean over 2 N rows.

    Row i's positive is its partner in the other view; the other 2 N - 2 rows are negatives. The
    similarity with itself is masked. The sum of exponentials stays in the log domain.

    Args:
        first: shape (N, D), embeddings of length 1; gradients flow here.
        second: shape (N, D), embeddings of the other view; gradients flow here.
        temperature: above 0.

    Returns:
        Scalar, shape (), in nats, computed in float32; at least 0.

    Raises:
        ShapeError: the two shapes differ.
        UsageError: the temperature is not above 0.

    Source: Chen et al. 2020 (SimCLR), arXiv:2002.05709, equation 1.
    """
    check_same_shape(first, second)
    if not temperature > 0:
        raise UsageError(f"temperature is {temperature}; expected more than 0")
    rows = widened(torch.cat([first, second]))
    # Autocast would take the product in a half type, whose steps are large at this temperature.
    with torch.autocast(rows.device.type, enabled=False):
        similarity = rows @ rows.T / temperature
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    similarity = similarity.masked_fill(own, float("-inf"))
    partner = torch.arange(len(rows), device=rows.device).roll(len(first))
    return F.cross_entropy(similarity, partner)
