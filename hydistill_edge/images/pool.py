"""Pools: images to be scored, read batch by batch whatever their number.

A `TransferPool` reads images with the teacher's logits from a transfer set; a `SourcePool` reads
any image source and asks the teacher on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from hydistill_edge.images.packed_strings import PackedStrings
from hydistill_edge.images.selection import LogitsOf, PoolBatch, Rows
from hydistill_edge.images.sources import Skipped, SourceSpec, iterate_source
from hydistill_edge.images.transfer_set import TransferSet

BATCH = 1024


class TransferPool:
    """The images of a transfer set, or some of them, with the stored logits.

    Args:
        transfer: rows are the places in it.
        rows: read these only; all where None.
        batch: images per batch.
        device: where batches are put.
    """

    def __init__(
        self,
        transfer: TransferSet,
        *,
        rows: Rows | None = None,
        batch: int = BATCH,
        device: torch.device | str = "cpu",
    ) -> None:
        self.transfer = transfer
        self.rows = np.arange(len(transfer)) if rows is None else rows
        self._batch = batch
        self._device = device

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[PoolBatch]:
        for start in range(0, len(self.rows), self._batch):
            rows = self.rows[start : start + self._batch]
            pixels = self.transfer.images(rows)
            images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).contiguous()
            logits = torch.from_numpy(self.transfer.logits(rows)).to(self._device)
            yield PoolBatch(rows, images, logits)

    def ids(self, rows: Rows) -> list[str]:
        """Return the ids of some images."""
        return self.transfer.ids.take(rows)


class SourcePool:
    """The images of a source in the order of its rows; the teacher is asked in every pass.

    Args:
        spec: the source.
        teacher: its logits of pixels.
        size: (height, width) of the images.
        channels: 1 or 3.
        adapt: convert and resize images that differ.
        batch: images per batch.
        device: where batches are put.

    Attributes:
        skipped: images that could not be read in the last pass.
    """

    def __init__(
        self,
        spec: SourceSpec,
        teacher: LogitsOf,
        *,
        size: tuple[int, int],
        channels: int,
        adapt: bool = True,
        batch: int = BATCH,
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec = spec
        self.skipped: list[Skipped] = []
        self._teacher = teacher
        self._size = size
        self._channels = channels
        self._adapt = adapt
        self._batch = batch
        self._device = device
        self._ids: list[PackedStrings] = []

    @torch.no_grad()
    def __iter__(self) -> Iterator[PoolBatch]:
        self._ids, self.skipped = [], []
        done = 0
        for loaded in iterate_source(
            self.spec,
            batch=self._batch,
            size=self._size,
            channels=self._channels,
            adapt=self._adapt,
        ):
            self.skipped += loaded.skipped
            if not len(loaded):
                continue
            self._ids.append(PackedStrings.pack(loaded.ids))
            images = torch.from_numpy(loaded.images).to(self._device).permute(0, 3, 1, 2)
            rows = np.arange(done, done + len(loaded))
            done += len(loaded)
            images = images.contiguous()
            yield PoolBatch(rows, images, self._teacher(images))

    def ids(self, rows: Rows) -> Sequence[str]:
        """Return the ids of some images of the last pass."""
        return PackedStrings.join(self._ids).take(rows)
