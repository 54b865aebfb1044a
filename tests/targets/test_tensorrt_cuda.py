"""The CUDA driver's functions are declared as its own header declares them."""

from __future__ import annotations

import ctypes
import re
import sysconfig
from pathlib import Path

import pytest

from hydistill_edge.errors import TargetUnavailableError
from hydistill_edge.targets.tensorrt import cuda

# How many bytes a parameter of the header takes; every pointer takes 8, as do handles.
SIZES = {"int": 4, "unsigned int": 4, "CUdevice": 4, "CUdevice_attribute": 4, "CUresult": 4}


def header() -> str:
    """Return cuda.h, which comes with torch's CUDA packages or a CUDA toolkit."""
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    found = [*packages.glob("*/include/cuda.h"), Path("/usr/local/cuda/include/cuda.h")]
    for path in found:
        if path.is_file():
            return path.read_text(encoding="utf-8", errors="replace")
    pytest.skip("no cuda.h on this machine")


@pytest.mark.parametrize("name", cuda.SIGNATURES)
def test_function_is_declared_as_in_the_header(name: str) -> None:
    text, plain = header(), name.removesuffix("_v2")
    if plain != name:
        assert re.search(rf"#define {plain}\b.*\b{name}\b", text), "the header maps another name"

    found = re.search(rf"^CUresult CUDAAPI {plain}\((.*?)\);", text, flags=re.MULTILINE)

    assert found is not None
    parameters = [re.sub(r"\w+$", "", part).strip() for part in found[1].split(",")]
    assert [ctypes.sizeof(kind) for kind in cuda.SIGNATURES[name]] == [
        8 if part.endswith("*") else SIZES.get(part, 8) for part in parameters
    ]


def test_attributes_have_the_numbers_of_the_header() -> None:
    text = header()

    for name, value in (("MAJOR", 75), ("MINOR", 76)):
        assert re.search(rf"CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{name} = {value}\b", text)
        assert getattr(cuda, f"COMPUTE_CAPABILITY_{name}") == value


def test_gpu_says_what_is_missing_when_there_is_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-that-is-nowhere.so.1")

    with pytest.raises(TargetUnavailableError, match="no NVIDIA driver here"):
        cuda.Gpu()
