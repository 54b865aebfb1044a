"""Which items a training step sees: endless shuffled passes that need no memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import UsageError


class Passes:
    """Shuffled passes over `count` items; what a step sees depends on seed and step only.

    So a resumed run sees what the interrupted one would have seen, with nothing saved.

    Args:
        count: items, at least 1.
        batch: items per step; may exceed `count`.
        seed: of the order.
    """

    def __init__(self, count: int, *, batch: int, seed: int) -> None:
        if count < 1 or batch < 1:
            raise UsageError(f"{count} items in batches of {batch}; expected at least one of each")
        self.count = count
        self.batch = batch
        self._seed = seed
        self._kept: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def at(self, step: int) -> NDArray[np.int64]:
        """Return the items of a step, shape (batch,), each in [0, count)."""
        first, stop = step * self.batch, (step + 1) * self.batch
        parts = []
        while first < stop:
            number, offset = divmod(first, self.count)
            taken = self._order(number)[offset : offset + stop - first]
            parts.append(taken)
            first += len(taken)
        return np.concatenate(parts)

    def _order(self, number: int) -> NDArray[np.int64]:
        if self._kept[0] != number:
            order = np.random.default_rng([self._seed, number]).permutation(self.count)
            self._kept = (number, order)
        return self._kept[1]
