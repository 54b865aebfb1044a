"""Pools of images that are scored batch by batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hydistill_edge.images.pool import TransferPool
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
LOGITS = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def transfer(tmp_path_factory: pytest.TempPathFactory) -> TransferSet:
    folder = tmp_path_factory.mktemp("sets") / "transfer"
    with TransferSetWriter(
        folder, size=(4, 4), channels=3, classes=("a", "b"), teacher_digest="0" * 64,
        shard_bytes=500,
    ) as writer:  # fmt: skip
        writer.add(IMAGES, LOGITS, origin="web", ids=[f"web:{n}" for n in range(20)])
    return TransferSet.open(folder)


def brightness(images: Tensor) -> Tensor:
    level = images.float().mean((1, 2, 3)) / 255
    return torch.stack([-level, level], dim=1)


def test_transfer_pool_gives_pixels_and_stored_logits_of_its_rows(transfer: TransferSet) -> None:
    pool = TransferPool(transfer, rows=np.array([3, 1, 17]), batch=2)
    first, second = pool
    assert first.rows.tolist() == [3, 1]
    np.testing.assert_array_equal(first.images.numpy(), IMAGES[[3, 1]].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(second.teacher_logits.numpy(), LOGITS[[17]])
    assert pool.ids(np.array([17])) == ["web:17"]
