from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter
from hydistill_edge.methods import pool as pool_module
from hydistill_edge.methods.pool import RESIDENT_BYTES, Pool, resident_bytes

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
LOGITS = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)


def test_device_holds_a_quarter_of_its_memory_when_it_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30, 9 * 2**30))
    assert resident_bytes(torch.device("cuda")) == 2 * 2**30
    assert resident_bytes(torch.device("cpu")) == RESIDENT_BYTES


@pytest.mark.parametrize("resident", [RESIDENT_BYTES, 0], ids=["resident", "mapped"])
def test_pool_gives_pixels_and_stored_logits_of_its_rows_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: int
) -> None:
    with TransferSetWriter(
        tmp_path / "set", size=(4, 4), channels=3, classes=("a", "b"), teacher_digest="0" * 64,
        shard_bytes=500,
    ) as writer:  # fmt: skip
        writer.add(IMAGES, LOGITS, origin="web", ids=[f"web:{n}" for n in range(20)])
    monkeypatch.setattr(pool_module, "RESIDENT_BYTES", resident)
    pool = Pool(TransferSet.open(tmp_path / "set"), torch.device("cpu"))
    first, second = pool.batches(np.array([3, 1, 17]), 2)
    assert (first.rows.tolist(), second.rows.tolist()) == ([3, 1], [17])
    np.testing.assert_array_equal(first.images.numpy(), IMAGES[[3, 1]].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(second.teacher_logits.numpy(), LOGITS[[17]])
