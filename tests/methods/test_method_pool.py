from __future__ import annotations

import pytest
import torch

from hydistill_edge.methods.pool import RESIDENT_BYTES, resident_bytes


def test_device_holds_a_quarter_of_its_memory_when_it_is_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * 2**30, 9 * 2**30))
    assert resident_bytes(torch.device("cuda")) == 2 * 2**30
    assert resident_bytes(torch.device("cpu")) == RESIDENT_BYTES
