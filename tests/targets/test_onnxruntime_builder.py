from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from hydistill_edge.errors import GraphError, InputError, TargetUnavailableError
from hydistill_edge.targets.onnxruntime.builder import OnnxRuntimeBuilder
from hydistill_edge.targets.profiles import DeviceProfile, load_profile

pytest.importorskip("onnxruntime")

VNNI = load_profile("x86-vnni")


def allowing(precision: str) -> DeviceProfile:
    """Return a device that allows one precision in ONNX Runtime."""
    (entry,) = (entry for entry in VNNI.targets if entry.target == "onnxruntime")
    changed: Any = replace(entry, precisions=(precision,))
    return replace(VNNI, targets=(changed,), default_precisions=changed.precisions)


def test_fp32_is_the_exported_graph_byte_for_byte(tiny_graph: Any, folder: Path) -> None:
    graph = tiny_graph("residual")

    artifact = OnnxRuntimeBuilder().build(graph, "fp32", VNNI, None, folder)

    assert artifact.file.read_bytes() == graph.path.read_bytes()
    assert (artifact.target, artifact.device, artifact.scheme) == ("onnxruntime", "x86-vnni", None)


def test_int8_is_one_file_and_leaves_nothing_behind(
    tiny_graph: Any,
    calibration: Callable[..., Any],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)
    chosen = calibration("onnxruntime")

    artifact = OnnxRuntimeBuilder().build(tiny_graph("residual"), "int8", VNNI, chosen, folder)

    assert artifact.files == (folder / "model.onnx",)
    assert artifact.scheme == chosen.scheme
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "tmp"]
    assert list(temporary.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_int8_is_smaller_names_no_foreign_domain_and_keeps_metadata(
    tiny_graph: Any, calibration: Callable[..., Any], folder: Path
) -> None:
    graph = tiny_graph("residual")

    OnnxRuntimeBuilder().build(graph, "int8", VNNI, calibration("onnxruntime"), folder)

    model = onnx.load(folder / "model.onnx")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["hydistill.precision"] == "int8"
    assert properties["hydistill.classes"] == '["bolt", "nut", "washer"]'
    assert [entry.domain for entry in model.opset_import] == [""]
    assert model.ir_version <= VNNI.max_ir


def test_int8_gives_equal_bytes_when_repeated(
    tiny_graph: Any, calibration: Callable[..., Any], tmp_path: Path
) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        artifact = OnnxRuntimeBuilder().build(
            tiny_graph("squeeze"), "int8", VNNI, calibration("onnxruntime"), tmp_path / name
        )
        contents.append(artifact.file.read_bytes())

    assert contents[0] == contents[1]


def test_fp16_says_what_is_computed_in_float32(tiny_graph: Any, folder: Path) -> None:
    graph = tiny_graph("depthwise")

    artifact = OnnxRuntimeBuilder().build(graph, "fp16", allowing("fp16"), None, folder)

    assert "computes in float32" in artifact.note
    assert artifact.size_bytes < graph.path.stat().st_size


@pytest.mark.parametrize("empty", [False, True], ids=["none", "no images"])
def test_int8_raises_input_error_when_calibration_is_missing(
    empty: bool, tiny_graph: Any, calibration: Callable[..., Any], folder: Path
) -> None:
    chosen = calibration("onnxruntime")
    missing = replace(chosen, images=chosen.images[:0], ids=()) if empty else None

    with pytest.raises(InputError, match="without calibration images"):
        OnnxRuntimeBuilder().build(tiny_graph("residual"), "int8", VNNI, missing, folder)


def test_build_raises_input_error_when_device_forbids_precision(
    tiny_graph: Any, folder: Path
) -> None:
    with pytest.raises(InputError, match='"x86-vnni" does not allow fp16 in target "onnxruntime"'):
        OnnxRuntimeBuilder().build(tiny_graph("residual"), "fp16", VNNI, None, folder)


def test_build_raises_input_error_when_runtime_lacks_precision(
    tiny_graph: Any, folder: Path
) -> None:
    with pytest.raises(InputError, match="has no bf16; expected one of fp32, fp16, int8"):
        OnnxRuntimeBuilder().build(tiny_graph("residual"), "bf16", allowing("bf16"), None, folder)


def test_build_raises_graph_error_when_device_reads_older_opset(
    tiny_graph: Any, folder: Path
) -> None:
    old = replace(VNNI, max_opset=17)

    with pytest.raises(GraphError, match='device "x86-vnni" reads up to 17'):
        OnnxRuntimeBuilder().build(tiny_graph("residual"), "fp32", old, None, folder)


def test_build_raises_target_unavailable_when_package_is_missing(
    tiny_graph: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = tiny_graph("residual")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)

    with pytest.raises(TargetUnavailableError, match="onnxruntime not installed; pip install"):
        OnnxRuntimeBuilder().build(graph, "fp32", VNNI, None, folder)
