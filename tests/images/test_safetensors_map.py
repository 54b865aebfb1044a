from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hydistill_edge.images.safetensors_map import (
    BrokenSafetensorsError,
    SafetensorsMap,
    write_safetensors,
)

TENSORS: dict[str, Any] = {
    "pixels": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "logits": np.array([[1.5, -2], [0, 3]], np.float32),
    "offsets": np.array([0, 5, 9], np.int64),
    "empty": np.zeros((0, 4), np.float16),
}


def test_tensors_come_back_when_mapped(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", TENSORS, {"made": "here"})
    tensors = SafetensorsMap(tmp_path / "x")
    assert tensors.metadata == {"made": "here"}
    assert set(tensors) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert (tensors[name] == tensor).all()


def test_size_and_digest_are_the_files_when_written(tmp_path: Path) -> None:
    import hashlib

    written = write_safetensors(tmp_path / "x", TENSORS)
    content = (tmp_path / "x").read_bytes()
    assert written == (len(content), hashlib.sha256(content).hexdigest())


def test_tensors_are_read_only_when_mapped(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x", TENSORS)
    with pytest.raises(ValueError, match="read-only"):
        SafetensorsMap(tmp_path / "x")["pixels"][0] = 1


def test_files_of_the_safetensors_package_are_read_when_it_is_there(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.numpy")
    package.save_file(TENSORS, tmp_path / "x", {"made": "there"})
    tensors = SafetensorsMap(tmp_path / "x")
    assert tensors.metadata == {"made": "there"}
    assert all((tensors[name] == tensor).all() for name, tensor in TENSORS.items())


def entry(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}}


@pytest.mark.parametrize(
    "header",
    [
        entry(dtype="X9"), entry(shape=[5]), entry(shape=[-4]), entry(shape=["4"]),
        entry(data_offsets=[1, 5]), entry(data_offsets=[0, 2**60]), entry(data_offsets=None),
        entry(shape=[2**40, 2**40]), {"a": 3}, [], {"__metadata__": 3, **entry()}, {},
        {**entry(), "b": entry()["a"]},
    ],
)  # fmt: skip
def test_file_is_refused_when_its_header_lies(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(BrokenSafetensorsError):
        SafetensorsMap(tmp_path / "x")


@given(place=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 400))
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_file_is_whole_or_refused_when_bytes_are_altered(
    tmp_path: Path, place: int, value: int, cut: int
) -> None:
    write_safetensors(tmp_path / "x", TENSORS)
    content = bytearray((tmp_path / "x").read_bytes())
    content[place % len(content)] = value
    (tmp_path / "x").write_bytes(content[: len(content) - cut // 20])
    try:
        tensors = SafetensorsMap(tmp_path / "x")
    except BrokenSafetensorsError:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) <= len(content)
