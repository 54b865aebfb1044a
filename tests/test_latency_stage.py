"""How the stage latency asks for a measurement."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

from hydistill_edge.stages import latency
from hydistill_edge.targets.base import TargetName
from hydistill_edge.targets.profiles import load_profile


@pytest.mark.parametrize(
    ("target", "cov_limit"), [("onnxruntime", 0.05), ("openvino", 0.05), ("tensorrt", 0.025)]
)
def test_a_measurement_names_its_runtime_and_takes_its_processors_limit(
    target: TargetName, cov_limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(latency, "measure", lambda *_, **told: asked.update(told))
    images = np.zeros((1, 4, 4, 3), np.uint8)
    latency.measure_runner(
        lambda: pytest.fail("nothing is opened here"),
        images,
        target=target,
        profile=load_profile("x86-avx2"),
        mode="demo",
        threads=1,
    )

    assert asked["cov_limit"] == cov_limit
    assert list(asked["versions"]) == [target]
    if target == "onnxruntime":
        assert asked["versions"] == {"onnxruntime": version("onnxruntime")}
