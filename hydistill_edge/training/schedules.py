"""Learning-rate schedules: pure functions from a step to a rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from hydistill_edge.errors import UsageError


def cosine(
    step: float, *, total: float, peak: float, warmup: float = 0.0, floor: float = 0.0
) -> float:
    """Return a rate that rises along a line for `warmup` steps, then falls along half a cosine.

    Args:
        step: steps done, from 0; need not be whole. Past `total` the rate stays at the floor.
        total: steps in all, at least 1.
        peak: highest rate.
        warmup: steps until the peak; the first step already moves.
        floor: rate at the end.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5 without restarts.
    """
    _check(total, peak)
    if step < warmup:
        return peak * (step + 1.0) / (warmup + 1.0)
    done = min(1.0, (step - warmup) / max(total - warmup, 1e-9))
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * done))


def one_cycle(
    step: float, *, total: float, peak: float, rise: float = 0.25, start: float = 0.05
) -> float:
    """Return a rate that rises along a line from `start · peak` to the peak, then falls to zero.

    Args:
        step: steps done, from 0; need not be whole. Past `total` the rate stays at zero.
        total: steps in all, at least 1.
        peak: highest rate.
        rise: share of all steps until the peak, in (0, 1).
        start: first rate as a share of the peak.

    Source: Smith and Topin 2018, arXiv:1708.07120, section 4 (one triangle, ending at zero).
    """
    _check(total, peak)
    if not 0.0 < rise < 1.0:
        raise UsageError(f"rise is {rise}; expected a share of all steps between 0 and 1")
    done = min(1.0, step / total)
    if done < rise:
        return peak * (start + (1.0 - start) * done / rise)
    return peak * (1.0 - done) / (1.0 - rise)


def multi_step(
    step: float,
    *,
    total: float,
    peak: float,
    milestones: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
) -> float:
    """Return a rate that is multiplied by `factor` at each milestone.

    Args:
        step: steps done, from 0.
        total: steps in all, at least 1.
        peak: first rate.
        milestones: shares of all steps.
        factor: what the rate is multiplied with.
    """
    _check(total, peak)
    return peak * float(factor ** sum(step >= milestone * total for milestone in milestones))


SCHEDULES: dict[str, Callable[..., float]] = {
    "cosine": cosine,
    "one_cycle": one_cycle,
    "multi_step": multi_step,
    # 240 epochs with a tenth of the rate from 150, 180 and 210 on: Ji et al. 2021.
    "three_step": partial(multi_step, milestones=(0.625, 0.75, 0.875)),
}


def _check(total: float, peak: float) -> None:
    if total < 1 or peak < 0:
        raise UsageError(
            f"schedule over {total} steps with peak {peak}; expected at least 1 step and a peak of "
            "at least 0"
        )
