"""Stage parity: what its int8 rung says of the machine that it was climbed on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hydistill_edge.recipe import Gates
from hydistill_edge.stages import parity
from hydistill_edge.targets.base import Images, Logits
from hydistill_edge.targets.profiles import HostFacts, load_profile, read_host, saturates_int8


@pytest.mark.parametrize(
    ("flags", "told"), [({"avx2", "fma"}, True), ({"avx2", "fma", "avx_vnni"}, False)]
)
def test_int8_rung_tells_where_sums_saturate_that_would_not_on_the_device(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], told: bool
) -> None:
    host = HostFacts("x86_64", frozenset(flags), cores=4, memory_mib=4096)
    monkeypatch.setattr(parity, "saturates_int8", lambda profile: saturates_int8(profile, host))

    class Ladder(parity.Ladder):
        def float_logits(self, rows: np.ndarray) -> Logits:
            return np.eye(2, dtype=np.float32)[rows % 2] * 5

        def run(self, images: Images) -> Logits:
            return self.float_logits(np.arange(len(images)))

    work: Any = SimpleNamespace(
        recipe=SimpleNamespace(class_names=lambda: ("a", "b"), gates=Gates()),
        partition=SimpleNamespace(parity=np.arange(8)),
        transfer=SimpleNamespace(
            origins=np.array(["synthetic"] * 8),
            ids=[f"made:{row}" for row in range(8)],
            images=lambda rows: np.zeros((len(rows), 4, 4, 1), np.uint8),
        ),
    )
    planned = SimpleNamespace(profile=load_profile("x86-vnni"))
    built: Any = SimpleNamespace(planned=planned)
    rung = Ladder(work, built, built).r4("synthetic")
    assert rung.n == 8
    assert ("x86-avx2" in rung.note) is told


def test_this_machine_is_asked_by_default() -> None:
    profile = load_profile("x86-vnni")
    assert saturates_int8(profile) is saturates_int8(profile, read_host())
