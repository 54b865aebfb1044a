"""The real images of several sources, read piece by piece, and again where they are needed again.

A few thousand stay in memory, so that they are read once. A pool of a million never does: every
pass reads its files anew, and memory holds one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ImageSourceError
from hydistill_edge.images.sources import LoadedImages, Skipped, SourceSpec

Read = Callable[[SourceSpec], Iterator[LoadedImages]]


class RealImages:
    """All images of some sources, or those of them that were chosen.

    Args:
        specs: the sources, in order.
        read: gives the pieces of one source, the same in every pass.
        kept_bytes: images up to this size together stay in memory.

    Attributes:
        specs: as given.
        skipped: images of the first pass that are broken.
        excluded: how many of it an exclusion list kept out.
    """

    def __init__(self, specs: Sequence[SourceSpec], read: Read, *, kept_bytes: int) -> None:
        self.specs = tuple(specs)
        self.skipped: list[Skipped] = []
        self.excluded = 0
        self._read = read
        self._kept_bytes = kept_bytes
        self._kept: list[LoadedImages] = []
        self._complete = False  # whether what is kept is everything
        self._total: int | None = None
        self._chosen: NDArray[np.bool_] | None = None

    def __iter__(self) -> Iterator[LoadedImages]:
        """Yield the pieces of all sources in order; an empty piece is left out.

        Raises:
            ImageSourceError: a source cannot be used, or has changed since the first pass.
        """
        chosen, start, held = self._chosen, 0, 0
        kept: list[LoadedImages] = []
        for piece in self._pieces():
            end = start + len(piece)
            if chosen is not None:
                rows = np.flatnonzero(chosen[start:end])
                start = end
                if not len(rows):
                    continue
                piece = _subset(piece, rows)
                held += piece.images.nbytes
                if held <= self._kept_bytes:
                    kept.append(piece)
            yield piece
        if chosen is not None and held <= self._kept_bytes:  # the chosen ones are few
            self._kept, self._complete, self._chosen = kept, True, None
            self._total = sum(len(piece) for piece in kept)

    def choose(self, rows: NDArray[np.int64]) -> None:
        """Keep some of the images from now on.

        Args:
            rows: shape (n,) places among all images, or, after another choice and a pass, among
                those that it left; in any order, theirs is kept.
        """
        assert self._total is not None, "there has to be a pass before a choice"
        places = rows if self._chosen is None else np.flatnonzero(self._chosen)[rows]
        self._chosen = np.zeros(self._total, np.bool_)
        self._chosen[places] = True

    def __len__(self) -> int:
        """How many there are; read once if that is not known yet."""
        if self._total is None:
            for _ in self._pieces():
                pass
        assert self._total is not None
        return self._total if self._chosen is None else int(self._chosen.sum())

    def images(self) -> NDArray[np.uint8]:
        """Return the pixels of all of them at once, shape (N, H, W, C); for few."""
        return np.concatenate([piece.images for piece in self])

    def some(self, most: int, *, least: int) -> NDArray[np.uint8] | None:
        """Return images of origin real from all over the sources, evenly spaced.

        Args:
            most: at most so many.
            least: None where there are fewer.
        """
        count = sum(len(piece) for piece in self if piece.spec.origin == "real")
        if count < least:
            return None
        rows = np.linspace(0, count - 1, min(most, count)).astype(np.int64)
        found, start = [], 0
        for piece in self:
            if piece.spec.origin == "real":
                here = rows[(rows >= start) & (rows < start + len(piece))] - start
                found.append(piece.images[here])
                start += len(piece)
        chosen: NDArray[np.uint8] = np.concatenate(found)
        return chosen

    def _pieces(self) -> Iterator[LoadedImages]:
        if self._complete:
            yield from self._kept
            return
        first, total, held = self._total is None, 0, 0
        self._kept = []
        if first:
            self.skipped, self.excluded = [], 0
        for spec in self.specs:
            for piece in self._read(spec):
                total += len(piece)
                held += piece.images.nbytes
                if first:
                    self.skipped += piece.skipped
                    self.excluded += len(piece.excluded)
                if held <= self._kept_bytes:
                    self._kept.append(piece)
                else:
                    self._kept = []
                if len(piece):
                    yield piece
        if not first and total != self._total:
            raise ImageSourceError(
                f"the image sources gave {self._total} images at first and {total} now; expected "
                "the same: leave their files alone while a build reads them, and build again"
            )
        self._total = total
        self._complete = held <= self._kept_bytes


def _subset(piece: LoadedImages, rows: NDArray[np.int64]) -> LoadedImages:
    def some(column: list[str] | None) -> list[str] | None:
        return None if column is None else [column[row] for row in rows.tolist()]

    return replace(
        piece,
        images=piece.images[rows],
        labels=None if piece.labels is None else piece.labels[rows],
        ids=[piece.ids[row] for row in rows.tolist()],
        hashes=piece.hashes[rows],
        addresses=some(piece.addresses),
        licences=some(piece.licences),
    )
