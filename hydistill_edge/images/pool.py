"""A pool of images to be scored, read batch by batch whatever their number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from hydistill_edge.images.selection import PoolBatch, Rows
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
