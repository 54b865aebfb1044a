from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydistill_edge.errors import (
    GraphError,
    MissingFileError,
    ShapeError,
    TargetUnavailableError,
    UsageError,
)
from hydistill_edge.targets.graph import load_model, save_model
from hydistill_edge.targets.openvino import runner as openvino_runner
from hydistill_edge.targets.openvino.builder import OpenVinoBuilder
from hydistill_edge.targets.openvino.libraries import load_openvino
from hydistill_edge.targets.openvino.runner import OpenVinoRunner
from hydistill_edge.targets.profiles import load_profile

pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("nncf", reason="NNCF is not installed")

ov = load_openvino()
CAPABILITIES = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")

# R2 of the parity ladder: float32 in two runtimes, as a share of the largest logit.
RUNTIME_TOLERANCE = 1e-3


def build(graph: Any, precision: Any, folder: Path) -> Path:
    return OpenVinoBuilder().build(graph, precision, load_profile("x86-vnni"), None, folder).file


def test_runner_tells_what_it_opened(tiny_graph: Any, folder: Path) -> None:
    with OpenVinoRunner(build(tiny_graph("residual"), "fp32", folder)) as runner:
        conditions = runner.conditions()

    assert (runner.batch, runner.input_shape, runner.precision) == (1, (16, 16, 3), "fp32")
    assert conditions["version"] == ov.__version__
    assert (conditions["threads"], conditions["computed_in"]) == (1, "f32")


@pytest.mark.parametrize("batch", [1, 4, None])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_runner_takes_any_number_of_images_of_an_exported_graph(
    batch: int | None, count: int, tiny_graph: Any, pixels: Any
) -> None:
    from hydistill_edge.targets.onnxruntime.runner import OnnxRuntimeRunner

    images = pixels(count)
    with OnnxRuntimeRunner(tiny_graph("residual").path) as reference:
        expected = reference.run(images)

    with OpenVinoRunner(tiny_graph("residual", batch).path) as runner:
        logits = runner.run(images)

    np.testing.assert_allclose(logits, expected, atol=RUNTIME_TOLERANCE * np.abs(expected).max())


def test_logits_of_one_run_survive_the_next(tiny_graph: Any, pixels: Any) -> None:
    images = pixels(2)
    with OpenVinoRunner(tiny_graph("residual").path) as runner:
        first = runner.run(images[:1])
        before = first.copy()
        second = runner.run(images[1:])

    np.testing.assert_array_equal(first, before)
    assert not np.array_equal(first, second)


@pytest.mark.skipif("BF16" not in CAPABILITIES, reason="this CPU has no bfloat16")
def test_bfloat16_is_used_only_when_built_so(tiny_graph: Any, pixels: Any, tmp_path: Path) -> None:
    logits = {}
    for precision in ("fp32", "bf16"):
        (tmp_path / precision).mkdir()
        with OpenVinoRunner(build(tiny_graph("residual"), precision, tmp_path / precision)) as r:
            assert r.computed_in == {"fp32": "f32", "bf16": "bf16"}[precision]
            logits[precision] = r.run(pixels(8))

    gap = np.abs(logits["bf16"] - logits["fp32"]).max() / np.abs(logits["fp32"]).max()
    assert 1e-4 < gap < 5e-2


def test_bfloat16_is_refused_when_cpu_lacks_it(
    tiny_graph: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = build(tiny_graph("residual"), "bf16", folder)
    monkeypatch.setattr(ov.Core, "get_property", lambda *_: ["FP32", "INT8"])

    with pytest.raises(TargetUnavailableError, match="no bfloat16 for OpenVINO"):
        OpenVinoRunner(file)


def test_float_type_is_refused_when_openvino_takes_another(
    tiny_graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What OpenVINO 2026.4 does with f16 on a CPU that has bfloat16 only: it takes that, silently.
    if "FP16" in CAPABILITIES or "BF16" not in CAPABILITIES:
        pytest.skip("this CPU does not tempt OpenVINO to another type")
    monkeypatch.setattr(openvino_runner, "_float_type", lambda *_: "f16")

    with pytest.raises(TargetUnavailableError, match="in bf16 on this CPU where f16 was asked"):
        OpenVinoRunner(tiny_graph("residual").path)


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 8, 8, 3), np.uint8)],
    ids=["float", "size"],
)
def test_runner_raises_shape_error_when_images_do_not_fit(images: Any, tiny_graph: Any) -> None:
    with (
        OpenVinoRunner(tiny_graph("residual").path) as runner,
        pytest.raises(ShapeError, match=r"expected uint8 \(N, 16, 16, 3\)"),
    ):
        runner.run(images)


def test_runner_raises_usage_error_when_closed(tiny_graph: Any, pixels: Any) -> None:
    with OpenVinoRunner(tiny_graph("residual").path) as runner:
        pass

    with pytest.raises(UsageError, match="closed"):
        runner.run(pixels(1))


def test_runner_raises_graph_error_when_precision_is_another(tiny_graph: Any) -> None:
    with pytest.raises(GraphError, match='says precision "fp32"; expected int8'):
        OpenVinoRunner(tiny_graph("residual").path, precision="int8")


def test_runner_raises_missing_file_error_when_weights_are_absent(
    tiny_graph: Any, folder: Path
) -> None:
    file = build(tiny_graph("residual"), "fp32", folder)
    (folder / "model.bin").unlink()

    with pytest.raises(MissingFileError, match=r"model\.bin does not exist"):
        OpenVinoRunner(file)


def test_runner_raises_graph_error_when_file_is_garbage(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("garbage")
    (tmp_path / "model.bin").write_bytes(b"")

    with pytest.raises(GraphError, match="cannot read"):
        OpenVinoRunner(tmp_path / "model.xml")


def test_runner_raises_graph_error_when_model_is_not_ours(tiny_graph: Any, tmp_path: Path) -> None:
    model = load_model(tiny_graph("residual"))
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"
    save_model(model, tmp_path / "foreign.onnx")

    with pytest.raises(GraphError, match="is it an artifact of hydistill-edge"):
        OpenVinoRunner(tmp_path / "foreign.onnx")


def test_runner_raises_target_unavailable_when_runtime_is_missing(
    tiny_graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_graph("residual").path
    monkeypatch.setitem(sys.modules, "openvino", None)

    with pytest.raises(TargetUnavailableError, match=r"hydistill-edge\[openvino\]"):
        OpenVinoRunner(path)
