"""Schedules of the learning rate, and of DropPath's keep rate: pure functions of the step."""

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


def periodic(
    step: float,
    *,
    total: float,
    peak: float,
    period: float = 1 / 8,
    warmup: float = 1 / 40,
    final: float = 1 / 4,
    decay: float = 1.0,
    final_decay: float = 1.0,
) -> float:
    """Return a rate that starts again and again from zero, and only the last time runs down to it.

    All periods follow one curve: along a line from 0 to the peak, then along half a cosine that
    would reach 0 after `final`. The periods before the last phase are cut off after `period`, at
    0.587 of the peak with the defaults.

    Args:
        step: steps done, from 0; need not be whole. Past `total` the rate stays at zero.
        total: steps in all, at least 1.
        peak: highest rate.
        period: share of all steps after which the curve starts anew.
        warmup: share of all steps until the peak of each period.
        final: share of all steps of the last phase, which runs the whole curve; 1 for no period
            before it.
        decay: what the peak is multiplied with from period to period.
        final_decay: what it is multiplied with in the last phase instead.

    Source: Zhong and Liu 2025, arXiv:2309.04195, and its code: 4,000 epochs with periods of 500, a
    warm-up of 100 and a curve of 1,000. The code intends to decay the peak by 0.8, and by 0.1 at
    last, but overwrites it: a constant peak is what was measured.
    """
    _check(total, peak)
    done = min(1.0, step / total)
    if done < 1.0 - final:
        number, place = divmod(done + 1e-12, period)  # a step at the border starts a period
        height = peak * float(decay**number)
    else:
        place, height = done - (1.0 - final), peak * final_decay
    if place < warmup:
        return height * max(0.0, place) / warmup
    fallen = min(1.0, (place - warmup) / (final - warmup))
    return height * 0.5 * (1.0 + math.cos(math.pi * fallen))


def keep_rate(
    step: float,
    *,
    total: float,
    floor: float = 0.5,
    last: float = 0.8,
    period: float = 1 / 8,
    final: float = 1 / 4,
) -> float:
    """Return the share of branches that DropPath keeps: all, then fewer each period, then many.

    Three phases: 1 for the first period; then lower by the same amount from period to period, down
    to the floor in the last one before the final phase; there, `last`.

    Args:
        step: steps done, from 0; need not be whole.
        total: steps in all, at least 1.
        floor: lowest rate, in (0, 1].
        last: rate of the final phase, in (0, 1].
        period: share of all steps between changes; as that of `periodic`.
        final: share of all steps of the final phase.

    Source: Zhong and Liu 2025, arXiv:2309.04195: 1.0, 0.9, ..., 0.5, then 0.8 for the last quarter.
    """
    _check(total, 0.0)
    if not (0.0 < floor <= 1.0 and 0.0 < last <= 1.0):
        raise UsageError(f"keep rates {floor} and {last}; expected shares in (0, 1]")
    done = min(1.0, step / total) + 1e-12  # a step at the border is in the next period
    if done >= 1.0 - final:
        return last
    shrinks = round((1.0 - final) / period) - 1
    number = math.floor(done / period)
    return 1.0 - (1.0 - floor) * number / shrinks if shrinks else 1.0


SCHEDULES: dict[str, Callable[..., float]] = {
    "cosine": cosine,
    "one_cycle": one_cycle,
    "multi_step": multi_step,
    # 240 epochs with a tenth of the rate from 150, 180 and 210 on: Ji et al. 2021.
    "three_step": partial(multi_step, milestones=(0.625, 0.75, 0.875)),
    "one_step": partial(multi_step, milestones=(0.5,)),
    "periodic": periodic,
    "periodic_decay": partial(periodic, decay=0.8, final_decay=0.1),
    # One warm-up of a tenth, then half a cosine: one period of the curve above.
    "warm_cosine": partial(periodic, warmup=0.1, final=1.0),
}


def _check(total: float, peak: float) -> None:
    if total < 1 or peak < 0:
        raise UsageError(
            f"schedule over {total} steps with peak {peak}; expected at least 1 step and a peak of "
            "at least 0"
        )
