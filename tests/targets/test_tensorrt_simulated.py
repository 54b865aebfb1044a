"""Engine and runner against a simulated API of both generations: which calls, in which order.

Nothing here proves that TensorRT takes a graph or is fast; that is measured on a device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from hydistill_edge.device.cache import MADE_HERE
from hydistill_edge.errors import (
    GraphError,
    HydistillError,
    MissingFileError,
    ShapeError,
    TargetUnavailableError,
    UsageError,
)
from hydistill_edge.targets.tensorrt import cuda as cuda_module
from hydistill_edge.targets.tensorrt.builder import TensorRTBuilder
from hydistill_edge.targets.tensorrt.engine import import_tensorrt, running_here
from hydistill_edge.targets.tensorrt.runner import TensorRTRunner

VERSIONS = {"10": "10.3.0", "11": "11.4.0.106"}


def _load_simulation() -> ModuleType:
    import importlib.util

    path = Path(__file__).with_name("simulated_tensorrt.py")
    spec = importlib.util.spec_from_file_location("simulated_tensorrt", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


simulation = _load_simulation()


@dataclass
class Device:
    """A machine with a simulated TensorRT, and an ONNX file on it."""

    calls: Any
    cuda: Any
    trt: Any
    model: Path
    key_file: Path

    def open(self) -> TensorRTRunner:
        return TensorRTRunner(self.model, key_file=self.key_file, workspace_mib=64)

    @property
    def builds(self) -> int:
        return len(self.calls.of("build_serialized_network"))


@pytest.fixture(params=list(VERSIONS.values()), ids=list(VERSIONS))
def device(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Device]:
    calls = simulation.Calls()
    cuda = simulation.SimulatedCuda(calls)
    trt = simulation.simulated_tensorrt(request.param, calls, cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(cuda_module, "open_library", lambda: cuda)
    model = tmp_path / "bundle" / "model.onnx"
    model.parent.mkdir()
    model.write_bytes(b"onnx bytes")
    yield Device(calls, cuda, trt, model, tmp_path / "state" / "plan.key")
    assert cuda.memory.blocks == {}, "memory was not freed"
    assert cuda.streams == set()
    assert cuda.retained == 0


def images(count: int) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def expected(pixels: Any) -> Any:
    return pixels.sum(axis=(1, 2), dtype=np.float32)


def test_simulated_runner_returns_the_engines_logits(device: Device) -> None:
    pixels = images(1)

    with device.open() as runner:
        logits = runner.run(pixels)

    np.testing.assert_array_equal(logits, expected(pixels))
    assert logits.dtype == np.float32


def test_bundle_cache_knows_every_file_that_the_engine_leaves_beside_the_model(
    device: Device,
) -> None:
    with device.open():
        pass

    left = {file.name for file in device.model.parent.iterdir()} - {device.model.name}
    assert len(left) == 4, "plan and timings, each with its seal"
    assert all(name.endswith(MADE_HERE) for name in left)


def test_simulated_runner_keeps_earlier_logits_when_run_again(device: Device) -> None:
    first, second = images(2)[:1], images(2)[1:]

    with device.open() as runner:
        kept = runner.run(first)
        runner.run(second)

    np.testing.assert_array_equal(kept, expected(first))


def test_simulated_runner_splits_images_when_the_batch_is_fixed(device: Device) -> None:
    pixels = images(3)

    with device.open() as runner:
        np.testing.assert_array_equal(runner.run(pixels), expected(pixels))
        assert (runner.batch, runner.input_shape) == (1, (4, 4, 3))


def test_simulated_inference_calls_in_order(device: Device) -> None:
    with device.open() as runner:
        device.calls.clear()
        runner.run(images(1))

    assert device.calls.names()[:4] == [
        "cuCtxSetCurrent",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuStreamSynchronize",
    ]


def test_simulated_network_is_strongly_typed(device: Device) -> None:
    with device.open():
        pass

    generation = int(device.trt.__version__.split(".")[0])
    assert device.calls.of("create_network") == [1 << 1 if generation == 10 else 0]


def test_simulated_build_limits_workspace_and_keeps_full_float32(device: Device) -> None:
    with device.open():
        pass

    pool = device.trt.MemoryPoolType.WORKSPACE
    assert device.calls.of("set_memory_pool_limit") == [(pool, 64 << 20)]
    assert device.calls.of("clear_flag") == [device.trt.BuilderFlag.TF32]
    assert device.calls.of("parse") == [b"onnx bytes"]


def test_simulated_plan_is_kept_for_the_next_start(device: Device) -> None:
    with device.open() as first:
        assert first.build_s is not None
    with device.open() as second:
        assert second.build_s is None

    assert device.builds == 1


CHANGES: dict[str, Callable[[Device], Any]] = {
    "model": lambda device: device.model.write_bytes(b"other onnx bytes"),
    "driver": lambda device: setattr(
        type(device.cuda),
        "do_cuDriverGetVersion",
        lambda self, version: setattr(version._obj, "value", 13000),
    ),
    "gpu": lambda device: setattr(device.cuda, "name", "Thor"),
    "plan-altered": lambda device: [
        path.write_bytes(b"foreign code") for path in device.model.parent.glob("*.plan")
    ],
    "seal-gone": lambda device: [
        path.rename(path.with_suffix(".old")) for path in device.model.parent.glob("*.seal")
    ],
    "key-gone": lambda device: device.key_file.rename(device.key_file.with_name("old")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_simulated_plan_is_built_again_when_something_changed(
    change: Callable[[Device], Any], device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = type(device.cuda).do_cuDriverGetVersion
    monkeypatch.setattr(type(device.cuda), "do_cuDriverGetVersion", original)
    with device.open():
        change(device)
    with device.open() as again:
        assert again.build_s is not None

    assert b"foreign code" not in device.calls.of("deserialize_cuda_engine")


def test_simulated_plan_of_another_machine_is_never_loaded(device: Device, tmp_path: Path) -> None:
    with device.open():
        pass
    here = Device(device.calls, device.cuda, device.trt, device.model, tmp_path / "here" / "key")

    with here.open():
        pass

    assert device.builds == 2


def test_simulated_timings_are_used_again(device: Device) -> None:
    with device.open():
        pass
    device.model.write_bytes(b"other onnx bytes")
    with device.open():
        pass

    assert device.calls.of("create_timing_cache") == [b"", b"timings"]


def test_simulated_timings_are_dropped_when_tensorrt_refuses_them(device: Device) -> None:
    with device.open():
        pass
    device.model.write_bytes(b"other onnx bytes")
    device.trt.control.foreign_timings = True
    with device.open():
        pass

    assert device.calls.of("create_timing_cache") == [b"", b"timings", b""]


def test_simulated_runner_says_so_when_the_plan_cannot_be_kept(device: Device) -> None:
    device.key_file.parent.write_text("a file where a folder should be")

    with device.open() as runner:
        assert "cannot be kept" in runner.note


def test_simulated_open_batch_gets_a_profile_and_its_shape(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = simulation.simulated_tensorrt(
        device.trt.__version__, device.calls, device.cuda, shape=(-1, 4, 4, 3)
    )
    monkeypatch.setitem(sys.modules, "tensorrt", trt)

    with device.open() as runner:
        for count in (1, 5, 64, 70):
            pixels = images(count)
            np.testing.assert_array_equal(runner.run(pixels), expected(pixels))
        assert runner.batch is None

    one, many = (1, 4, 4, 3), (64, 4, 4, 3)
    assert device.calls.of("add_optimization_profile") == [{"image": (one, one, many)}]


def test_simulated_runner_tells_its_conditions(device: Device) -> None:
    with device.open() as runner:
        conditions = runner.conditions()

    assert conditions["gpu"] == "Orin"
    assert conditions["compute_capability"] == "8.7"
    assert conditions["version"] == device.trt.__version__


@pytest.mark.parametrize(
    "pixels",
    [images(1).astype(np.float32), images(1)[:, :3], images(1)[0]],
    ids=["float", "size", "rank"],
)
def test_simulated_runner_refuses_what_are_no_pixels(pixels: Any, device: Device) -> None:
    with device.open() as runner, pytest.raises(ShapeError, match="expected uint8"):
        runner.run(pixels)


def test_simulated_runner_refuses_to_run_when_closed(device: Device) -> None:
    with device.open() as runner:
        pass

    with pytest.raises(UsageError, match="closed"):
        runner.run(images(1))


def test_simulated_parser_errors_are_told(device: Device) -> None:
    device.trt.control.parse_errors = ["zero point must be 0", "bad node Conv_1"]

    with pytest.raises(GraphError, match="zero point must be 0; bad node Conv_1"):
        device.open()


def test_simulated_build_errors_are_told(device: Device) -> None:
    device.trt.control.build_fails = True

    with pytest.raises(HydistillError, match="no tactic for Conv_3"):
        device.open()


def test_simulated_memory_error_is_told_and_leaves_nothing(device: Device) -> None:
    device.cuda.failing["cuMemAlloc_v2"] = 2

    with pytest.raises(HydistillError, match="cuMemAlloc_v2 failed with status 2: out of memory"):
        device.open()


def test_simulated_missing_file_is_told(device: Device) -> None:
    device.model.unlink()

    with pytest.raises(MissingFileError, match="unpack the bundle"):
        device.open()


def test_simulated_check_says_yes_when_all_is_there(device: Device) -> None:
    found = TensorRTBuilder().check()

    assert (found.can_build, found.can_run, found.why) == (True, True, "")
    assert found.versions["gpu"] == "Orin"


def test_simulated_check_says_why_when_there_is_no_gpu(device: Device) -> None:
    device.cuda.gpus = 0

    found = TensorRTBuilder().check()

    assert not found.can_run
    assert "finds no GPU" in found.why
    assert "on the device itself" in found.remedy


@pytest.mark.parametrize("version", ["8.6.1", "12.0.0"])
def test_simulated_other_generations_are_refused(
    version: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.trt.__version__ = version

    with pytest.raises(TargetUnavailableError, match="expected 10 or 11"):
        import_tensorrt()


def test_running_here_says_why_when_tensorrt_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)

    found = running_here()

    assert "not installed" in found.why
    assert "pip install" in found.remedy
