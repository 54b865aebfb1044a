"""Gates: a number, its limit, and one of three answers: passed, failed, not judged here.

An expected "no" is a value (`passed=False`), never an exception; what could not be judged here is
`passed=None` and says why. Neither is silent: a gate without an answer always has a `why`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from hydistill_edge.errors import InputError
from hydistill_edge.targets.binomial import binomial_cdf, proportion_lower_bound

Direction = Literal["at_least", "at_most", "exactly"]

CONFIDENCE = 0.95

# Beyond this nobody collects images to prove an agreement; the search for a number stops here.
_MOST_IMAGES = 100_000_000


class Judged(Protocol):
    """Anything with an answer: a gate, a rung, a report."""

    @property
    def passed(self) -> bool | None:
        """True, False, or None where it was not judged."""
        ...


@dataclass(frozen=True, slots=True)
class Gate:
    """One judged number.

    Attributes:
        name: what was measured, in the words of a report.
        passed: True, False, or None for "not judged here" (then `why` is given).
        value: the number that is held against the limit; None where there is none.
        limit: the limit in the same unit.
        direction: how value and limit compare when the gate passes.
        unit: "fraction", "dB", "ms", "nats", "of scale"...
        why: reason of a None, and what a reader of a True or False should know besides.
        worst: id of the sample that did worst.
    """

    name: str
    passed: bool | None
    value: float | None
    limit: float | None
    direction: Direction = "at_least"
    unit: str = ""
    why: str = ""
    worst: str | None = None

    def __post_init__(self) -> None:
        assert self.passed is not None or self.why, f'gate "{self.name}" is not judged: say why'
        assert self.value is None or math.isfinite(self.value), "JSON knows no NaN"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> Gate:
        """Read what `to_dict` wrote.

        Raises:
            InputError: a field is missing or unknown.
        """
        try:
            return Gate(**fields)
        except (TypeError, AssertionError) as error:
            message = f"not a gate: {dict(fields)}; expected the fields of Gate.to_dict ({error})"
            raise InputError(message) from error


def at_least(
    name: str,
    value: float | None,
    limit: float,
    *,
    unit: str = "",
    why: str = "",
    worst: str | None = None,
) -> Gate:
    """Return a gate that passes where value ≥ limit; NaN and infinity fail, None is not judged."""
    return _compare(name, value, limit, "at_least", unit, why, worst)


def at_most(
    name: str,
    value: float | None,
    limit: float,
    *,
    unit: str = "",
    why: str = "",
    worst: str | None = None,
) -> Gate:
    """Return a gate that passes where value ≤ limit; NaN and infinity fail, None is not judged."""
    return _compare(name, value, limit, "at_most", unit, why, worst)


def exactly(
    name: str,
    value: float | None,
    limit: float,
    *,
    unit: str = "",
    why: str = "",
    worst: str | None = None,
) -> Gate:
    """Return a gate that passes where value = limit; NaN and infinity fail, None is not judged."""
    return _compare(name, value, limit, "exactly", unit, why, worst)


def agreement_lower_bound(agree: int, n: int, confidence: float = CONFIDENCE) -> float:
    """Return the one-sided Clopper-Pearson lower bound of an agreement, a fraction in [0, 1].

    299 images without a miss prove 99 % at 95 % confidence; no image proves nothing (0).

    Raises:
        InputError: counts that cannot be, such as more agreeing images than images.
    """
    if not 0 <= agree <= n:
        raise InputError(f"{agree} of {n} images agree; expected 0 <= agree <= n, count again")
    return proportion_lower_bound(agree, n, confidence) if n else 0.0


def images_needed(misses: int, limit: float, confidence: float = CONFIDENCE) -> int | None:
    """Return the smallest n that proves an agreement ≥ limit with this many misses among the n.

    None where no number of images would do (a limit of 1, or beyond 10^8 images).
    """
    low, high = misses, max(1, 2 * misses)
    while binomial_cdf(misses, high, 1.0 - limit) > 1.0 - confidence:
        low, high = high, 2 * high
        if high > _MOST_IMAGES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_cdf(misses, middle, 1.0 - limit) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high


def agreement_gate(
    agree: int,
    n: int,
    limit: float,
    *,
    name: str = "top-1 agreement",
    worst: str | None = None,
    confidence: float = CONFIDENCE,
) -> Gate:
    """Judge an agreement of `agree` of n images against a limit, a fraction.

    The burden of proof is the artifact's, and the three answers are:

    - True only where it is proven: the one-sided lower bound reaches the limit.
    - False where the share that was seen is below the limit, however few the images: a "no" needs
      no significance, because a second look costs images and a bad artifact costs a line.
    - None where the share is fine and the images are too few to prove it; `why` says how many
      would be enough if no further image missed.

    The gate's value is the lower bound, the number that is held against the limit.
    """
    bound = agreement_lower_bound(agree, n, confidence)
    seen = f"{agree} of {n} images agree"
    passed: bool | None
    if n == 0:
        passed, seen = None, "no images to judge it on"
    elif bound >= limit:
        passed = True
    elif agree < limit * n - 1e-9:  # limit * n is rounded: 0.07 * 100 is 7.000000000000001
        passed = False
    else:
        passed = None
        needed = images_needed(n - agree, limit, confidence)
        seen += f", too few to prove {limit:.4g} at {confidence:.0%} confidence; " + (
            f"{needed} images would, if no further one missed"
            if needed
            else "no number of images proves it: lower the limit"
        )
    return Gate(
        name=f"{name}, {confidence:.0%} lower bound",
        passed=passed,
        value=bound if n else None,
        limit=limit,
        direction="at_least",
        unit="fraction",
        why=seen,
        worst=worst,
    )


def combine(judged: Iterable[Judged]) -> bool | None:
    """Return False where any failed, else None where any was not judged, else True.

    Nothing at all gives None: nothing was judged.
    """
    answers = [item.passed for item in judged]
    if False in answers:
        return False
    return None if None in answers or not answers else True


def exit_code(passed: bool | None) -> int:
    """Return the process exit code of an answer: 1 where a gate said no, else 0.

    "Not judged here" does not fail a build; publishing to a stable channel asks for more.
    """
    return 1 if passed is False else 0


def _compare(
    name: str,
    value: float | None,
    limit: float,
    direction: Direction,
    unit: str,
    why: str,
    worst: str | None,
) -> Gate:
    passed: bool | None
    if value is None:
        passed, why = None, why or "there is no number to judge"
    elif not math.isfinite(value):
        passed, value, why = False, None, f"the value is {value}, not a finite number"
    elif direction == "at_least":
        passed = value >= limit
    elif direction == "at_most":
        passed = value <= limit
    else:
        passed = value == limit
    return Gate(name, passed, value, limit, direction, unit, why, worst)
