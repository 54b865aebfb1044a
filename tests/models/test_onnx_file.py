from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hydistill_edge.errors import MissingFileError, TeacherError
from hydistill_edge.models.onnx_file import OnnxInput, read_input, read_model


def make_model(
    shape: tuple[object, ...] = ("n", 3, 4, 5), kind: int = TensorProto.FLOAT, opset: int = 18
) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.arange(5, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def save_external(path: Path, location: str) -> Path:
    model = make_model()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    return path


def write_weights(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(np.arange(5, dtype=np.float32).tobytes())
    return path


@pytest.mark.parametrize("location", ["w.bin", "parts/w.bin"])
def test_weights_beside_the_model_are_read(tmp_path: Path, location: str) -> None:
    write_weights(tmp_path / location)
    model = read_model(save_external(tmp_path / "m.onnx", location))
    assert numpy_helper.to_array(model.graph.initializer[0]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "location",
    ["../secret.bin", "a/../../secret.bin", "/etc/passwd", "C:/secret.bin", "..\\secret", ""],
)
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    write_weights(tmp_path / "secret.bin")
    (tmp_path / "model").mkdir()
    with pytest.raises(TeacherError, match="leads outside"):
        read_model(save_external(tmp_path / "model" / "m.onnx", location))


def test_weights_behind_a_link_are_refused(tmp_path: Path) -> None:
    secret = write_weights(tmp_path / "secret.bin")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "w.bin").symlink_to(secret)
    with pytest.raises(TeacherError, match="leads outside"):
        read_model(save_external(folder / "m.onnx", "w.bin"))
    os.link(secret, folder / "h.bin")
    with pytest.raises(TeacherError, match="hard link"):
        read_model(save_external(folder / "m.onnx", "h.bin"))


def test_missing_weight_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r'"w\.bin", which is missing'):
        read_model(save_external(tmp_path / "m.onnx", "w.bin"))


def test_too_short_weight_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0\0")
    with pytest.raises(TeacherError, match="damaged ONNX"):
        read_model(save_external(tmp_path / "m.onnx", "w.bin"))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY random bytes", bytes(range(256))])
def test_other_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(TeacherError, match="not an ONNX model"):
        read_model(tmp_path / "m.onnx")


def test_truncated_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(make_model().SerializeToString()[:-30])
    with pytest.raises(TeacherError, match="ONNX model"):
        read_model(tmp_path / "m.onnx")


def test_old_opset_is_refused(tmp_path: Path) -> None:
    onnx.save(make_model(opset=7), tmp_path / "m.onnx")
    with pytest.raises(TeacherError, match="opset 7, and 9 is the oldest"):
        read_model(tmp_path / "m.onnx")


def test_missing_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.onnx"):
        read_model(tmp_path / "none.onnx")


def test_input_layout_is_read_from_the_graph() -> None:
    assert read_input(make_model(), "m") == OnnxInput("x", None, 3, 4, 5)
    assert read_input(make_model((2, 1, "h", "w")), "m") == OnnxInput("x", 2, 1, None, None)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param(make_model(("n", 4, 5)), "expected float images", id="rank"),
        pytest.param(make_model((1, 32, 32, 3)), "channels last", id="channels-last"),
        pytest.param(make_model(kind=TensorProto.UINT8), "type UINT8", id="raw-pixels"),
    ],
)
def test_input_that_is_no_float_image_is_refused(model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        read_input(model, "m")
