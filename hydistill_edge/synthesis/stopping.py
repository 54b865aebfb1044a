"""How large the steps of a batch are, and when it has had enough of them."""

from __future__ import annotations

from collections.abc import Sequence

from hydistill_edge.training.schedules import cosine


def has_stalled(values: Sequence[float], *, window: int, tolerance: float) -> bool:
    """Return whether a value has stopped to fall.

    The means of the last two windows are compared: single values jump with the jitter.

    Args:
        values: one per iteration, the last one at the end.
        window: iterations in each of the two means, at least 1.
        tolerance: smallest relative fall that counts as progress.
    """
    if len(values) < 2 * window:
        return False
    before = sum(values[-2 * window : -window]) / window
    last = sum(values[-window:]) / window
    return before - last < tolerance * before


DECLINE = 10
"""Iterations of the decline where no window says how many."""


class Schedule:
    """Step sizes of one batch: half a cosine, cut short once the batch has had enough.

    That is where the watched distance stalls, or where whoever judges the images says so. A batch
    that stalls at large steps still gains from small ones, so it does not end at once: the step
    size falls to zero within one window more. The same values give the same end.

    Args:
        iterations: at most so many.
        peak: first step size.
        window: as in `has_stalled`; 0 goes through all iterations.
        tolerance: as in `has_stalled`.

    Attributes:
        done: iterations so far.
        stalled: it was cut short.
    """

    def __init__(
        self, iterations: int, peak: float, *, window: int = 0, tolerance: float = 0.0
    ) -> None:
        self._peak, self._start, self._end = peak, 0, iterations
        self._window, self._tolerance = window, tolerance
        self._seen: list[float] = []
        self.done = 0
        self.stalled = False

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.done >= self._end

    @property
    def watches(self) -> bool:
        """Whether `advance` still wants to know the distance."""
        return self._window > 0 and not self.stalled

    def rate(self) -> float:
        """Return the step size of the iteration that comes next."""
        return cosine(self.done - self._start, total=self._end - self._start, peak=self._peak)

    def advance(self, distance: float | None = None, *, enough: bool = False) -> None:
        """Count an iteration.

        Args:
            distance: what it left to gain; None where there is none, or where it is not yet
                comparable, as at a lower resolution.
            enough: the images are as good as they need to be.
        """
        self.done += 1
        if distance is not None and self.watches:
            self._seen.append(distance)
            enough = enough or has_stalled(
                self._seen, window=self._window, tolerance=self._tolerance
            )
        decline = self._window or DECLINE
        if enough and not self.stalled and self._end - self.done > decline:
            self._peak = self.rate()
            self._start, self._end = self.done, self.done + decline
            self.stalled = True
