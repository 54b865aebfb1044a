from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hydistill_edge.errors import UsageError
from hydistill_edge.targets.adapters import TARGETS, availability, builder, open_runner


@pytest.mark.parametrize("target", TARGETS)
def test_builder_has_the_name_it_was_asked_by(target: str) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")

    assert builder(target).target == target


@pytest.mark.parametrize(
    ("name", "closest"),
    [("openvno", "openvino"), ("onnx-runtime", "onnxruntime"), ("TensorRT", "tensorrt")],
)
def test_unknown_target_lists_known_names_and_the_closest(name: str, closest: str) -> None:
    with pytest.raises(UsageError, match=f'expected one of .*did you mean "{closest}"'):
        builder(name)
    with pytest.raises(UsageError, match=f'unknown target "{name}"'):
        open_runner(name, Path("model.onnx"))


def test_availability_covers_every_target_with_a_remedy_where_needed() -> None:
    entries = availability()

    assert [entry.target for entry in entries] == list(TARGETS)
    assert all(entry.remedy for entry in entries if not (entry.can_build and entry.can_run))


def test_availability_answers_when_nothing_is_installed() -> None:
    script = (
        "import sys\n"
        "for name in ('onnx', 'onnxruntime', 'openvino', 'nncf', 'tensorrt', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "from hydistill_edge.targets.adapters import availability\n"
        "for entry in availability():\n"
        "    print(entry.target, entry.can_build, entry.can_run, bool(entry.why and entry.remedy))"
    )

    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert out.stdout.splitlines() == [f"{name} False False True" for name in TARGETS]


def test_availability_loads_no_runtime() -> None:
    script = (
        "import sys\n"
        "from hydistill_edge.targets.adapters import availability\n"
        "availability()\n"
        "print({'onnxruntime', 'openvino', 'nncf', 'torch'} & set(sys.modules))"
    )

    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert out.stdout == "set()\n"
