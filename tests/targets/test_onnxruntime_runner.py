from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from hydistill_edge.errors import (
    GraphError,
    MissingFileError,
    ShapeError,
    TargetUnavailableError,
    UsageError,
)
from hydistill_edge.targets.graph import load_model, save_model
from hydistill_edge.targets.onnxruntime.activations import make_activation_reader
from hydistill_edge.targets.onnxruntime.runner import OnnxRuntimeRunner

ort = pytest.importorskip("onnxruntime")


def test_runner_tells_what_it_opened(tiny_graph: Any) -> None:
    with OnnxRuntimeRunner(tiny_graph("residual", 4).path) as runner:
        conditions = runner.conditions()

    assert (runner.batch, runner.input_shape, runner.precision) == (4, (16, 16, 3), "fp32")
    assert conditions["version"] == ort.__version__
    assert conditions["threads"] == 1


@pytest.mark.parametrize("batch", [1, 4, None])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_runner_takes_any_number_of_images(
    batch: int | None, count: int, tiny_graph: Any, pixels: Any
) -> None:
    images = pixels(count)
    with OnnxRuntimeRunner(tiny_graph("residual").path) as one:
        expected = np.concatenate([one.run(image[None]) for image in images])

    with OnnxRuntimeRunner(tiny_graph("residual", batch).path) as runner:
        logits = runner.run(images)

    assert logits.shape == (count, 3)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 16, 16, 3), np.float32),
        np.zeros((1, 3, 16, 16), np.uint8),
        np.zeros((16, 16, 3), np.uint8),
        np.zeros((0, 16, 16, 3), np.uint8),
        [[0]],
    ],
    ids=["float", "channels first", "no batch", "empty", "list"],
)
def test_runner_raises_shape_error_when_images_do_not_fit(images: Any, tiny_graph: Any) -> None:
    with (
        OnnxRuntimeRunner(tiny_graph("residual").path) as runner,
        pytest.raises(ShapeError, match=r"expected uint8 \(N, 16, 16, 3\)"),
    ):
        runner.run(images)


def test_runner_raises_usage_error_when_closed(tiny_graph: Any, pixels: Any) -> None:
    with OnnxRuntimeRunner(tiny_graph("residual").path) as runner:
        pass

    with pytest.raises(UsageError, match="closed"):
        runner.run(pixels(1))


def test_runner_raises_usage_error_when_threads_are_none_at_all(tiny_graph: Any) -> None:
    with pytest.raises(UsageError, match="threads is 0"):
        OnnxRuntimeRunner(tiny_graph("residual").path, threads=0)


def test_runner_raises_graph_error_when_precision_is_another(tiny_graph: Any) -> None:
    with pytest.raises(GraphError, match='says precision "fp32"; expected int8'):
        OnnxRuntimeRunner(tiny_graph("residual").path, precision="int8")


def test_runner_raises_graph_error_when_file_is_garbage(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"garbage")

    with pytest.raises(GraphError, match="cannot load"):
        OnnxRuntimeRunner(tmp_path / "model.onnx")


def test_runner_raises_graph_error_when_model_is_not_ours(tiny_graph: Any, tmp_path: Path) -> None:
    model = load_model(tiny_graph("residual"))
    model.graph.input[0].name = model.graph.node[0].input[0] = "pixels"
    save_model(model, tmp_path / "foreign.onnx")

    with pytest.raises(GraphError, match="is it an artifact of hydistill-edge"):
        OnnxRuntimeRunner(tmp_path / "foreign.onnx")


def test_runner_raises_missing_file_error_when_file_is_absent(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="does not exist"):
        OnnxRuntimeRunner(tmp_path / "absent.onnx")


def test_runner_raises_target_unavailable_when_runtime_is_missing(
    tiny_graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_graph("residual").path
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(TargetUnavailableError, match=r"hydistill-edge\[onnxruntime\]"):
        OnnxRuntimeRunner(path)


@pytest.mark.parametrize("batch", [1, 4, None])
def test_activation_reader_yields_named_tensors_of_every_image(
    batch: int | None, tiny_graph: Any, pixels: Any
) -> None:
    images = pixels(6)
    read = make_activation_reader()

    batches = list(read(tiny_graph("residual", batch).path, ["normalized", "logits"], images))

    normalized = np.concatenate([values["normalized"] for values in batches])
    expected = (images.astype(np.float32).transpose(0, 3, 1, 2) - 128) / 64
    np.testing.assert_array_equal(normalized, expected)
    assert sum(len(values["logits"]) for values in batches) == 6


def test_activation_reader_names_closest_tensor_when_unknown(tiny_graph: Any, pixels: Any) -> None:
    read = make_activation_reader()

    with pytest.raises(GraphError, match=r'no tensor "normalised".* is "normalized"'):
        list(read(tiny_graph("residual").path, ["normalised"], pixels(1)))


def test_activation_reader_leaves_file_untouched(
    tiny_graph: Callable[..., Any], pixels: Any
) -> None:
    path = tiny_graph("residual").path
    before = path.read_bytes()

    list(make_activation_reader()(path, ["normalized"], pixels(1)))

    assert path.read_bytes() == before
    assert [value.name for value in onnx.load(path).graph.output] == ["logits"]
