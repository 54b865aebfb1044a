"""What holds for every target: the same files in, the same verbs, the same kinds of no.

One test for all adapters. A runtime that is missing here skips with the reason that its builder
gives; a target that builds but cannot run here is still held to what concerns building.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hydistill_edge.calibration.scheme import choose_scheme
from hydistill_edge.errors import InputError, MissingFileError, ShapeError, UsageError
from hydistill_edge.targets.adapters import TARGETS, builder, open_runner
from hydistill_edge.targets.base import Artifact, Calibration
from hydistill_edge.targets.profiles import load_profile

# R2 and R4 of the parity ladder.
FLOAT_TOLERANCE = 1e-3
INT8_SNR_DB = 20

DEVICES = {"onnxruntime": "x86-vnni", "openvino": "x86-vnni", "tensorrt": "jetson-orin-nano"}


@dataclass(frozen=True)
class Bench:
    """One target on its device, with a student to build."""

    target: Any
    graph: Any
    network: Any
    images: Any

    @property
    def device(self) -> Any:
        """The profile that is built for."""
        return load_profile(DEVICES[self.target])

    def expected(self) -> Any:
        """Return the logits by PyTorch."""
        import torch

        z = (torch.from_numpy(self.images).permute(0, 3, 1, 2).float() - 128) / 64
        with torch.no_grad():
            return self.network(z).numpy()

    def calibration(self) -> Calibration:
        """Return calibration on the images themselves."""
        scheme = choose_scheme(self.target, self.device)
        ids = tuple(str(index) for index in range(len(self.images)))
        return Calibration(self.images, ids, "0" * 64, scheme, estimate=self._estimate)

    def _estimate(self, model: Path, names: Any) -> Any:
        from hydistill_edge.targets.onnxruntime.activations import make_activation_reader

        low: dict[str, float] = {}
        high: dict[str, float] = {}
        for values in make_activation_reader()(model, names, self.images):
            for name, value in values.items():
                low[name] = min(low.get(name, 0.0), float(value.min()))
                high[name] = max(high.get(name, 0.0), float(value.max()))
        return {name: (low[name], high[name]) for name in low}


@pytest.fixture(scope="module")
def student() -> Any:
    import torch
    from torch import nn

    torch_state = torch.random.get_rng_state()
    torch.manual_seed(3)  # default initialisation draws from the global generator; restored below
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 3),
    ).eval()
    torch.random.set_rng_state(torch_state)
    return SimpleNamespace(network=network, classes=("a", "b", "c"), channels=3, size=(16, 16))


@pytest.fixture(params=TARGETS, scope="module")
def bench(
    request: pytest.FixtureRequest, student: Any, tmp_path_factory: pytest.TempPathFactory
) -> Bench:
    can = builder(request.param).check()
    if not can.can_build:
        pytest.skip(f"{can.why}; {can.remedy}")
    from hydistill_edge.targets.graph import export_student

    path = tmp_path_factory.mktemp("graph") / "student.onnx"
    graph = export_student(student, path, resize="none")
    coarse = np.random.default_rng(2).integers(0, 256, (12, 4, 4, 3), np.uint8)
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)
    return Bench(request.param, graph, student.network, images)


@pytest.fixture(scope="module")
def built(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Artifact, Path]]:
    """Return a function from a precision to the artifact and the folder it was built into."""

    @functools.cache
    def make(precision: Any) -> tuple[Artifact, Path]:
        out = tmp_path_factory.mktemp(precision)
        calibration = bench.calibration() if precision == "int8" else None
        artifact = builder(bench.target).build(
            bench.graph, precision, bench.device, calibration, out
        )
        return artifact, out

    return make


@pytest.fixture
def opened(bench: Bench, built: Any) -> Callable[[str], Any]:
    """Return a function that opens a runner, or skips with the reason why it cannot."""

    def open_artifact(precision: Any) -> Any:
        can = builder(bench.target).check()
        if not can.can_run:
            pytest.skip(f"{can.why}; {can.remedy}")
        artifact, _ = built(precision)
        return open_runner(bench.target, artifact.file, threads=1, precision=precision)

    return open_artifact


def test_check_names_target_and_remedy(bench: Bench) -> None:
    can = builder(bench.target).check()

    assert can.target == bench.target
    assert bool(can.remedy) is not (can.can_build and can.can_run)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_build_fills_folder_with_exactly_its_files(
    bench: Bench, built: Any, precision: str
) -> None:
    artifact, out = built(precision)

    assert sorted(out.iterdir()) == sorted(artifact.files)
    assert (artifact.target, artifact.precision) == (bench.target, precision)
    assert artifact.device == DEVICES[bench.target]
    assert artifact.size_bytes == sum(path.stat().st_size for path in out.iterdir())


def test_int8_artifact_carries_its_scheme(bench: Bench, built: Any) -> None:
    assert built("int8")[0].scheme == bench.calibration().scheme
    assert built("fp32")[0].scheme is None


def test_build_gives_equal_bytes_when_repeated(bench: Bench, built: Any, tmp_path: Path) -> None:
    artifact, _ = built("int8")

    again = builder(bench.target).build(
        bench.graph, "int8", bench.device, bench.calibration(), tmp_path
    )

    first = [path.read_bytes() for path in artifact.files]
    assert [path.read_bytes() for path in again.files] == first


def test_build_raises_input_error_when_int8_has_no_calibration(
    bench: Bench, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="without calibration"):
        builder(bench.target).build(bench.graph, "int8", bench.device, None, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_build_raises_input_error_when_device_forbids_precision(
    bench: Bench, tmp_path: Path
) -> None:
    entries = tuple(replace(entry, precisions=("fp32",)) for entry in bench.device.targets)
    device = replace(bench.device, targets=entries, default_precisions=("fp32",))

    with pytest.raises(InputError, match="does not allow int8"):
        builder(bench.target).build(bench.graph, "int8", device, bench.calibration(), tmp_path)


def test_build_raises_input_error_when_device_reads_older_graphs(
    bench: Bench, tmp_path: Path
) -> None:
    device = replace(bench.device, max_opset=17)

    with pytest.raises(InputError, match="reads up to 17"):
        builder(bench.target).build(bench.graph, "fp32", device, None, tmp_path)


def test_float_runner_agrees_with_torch(bench: Bench, opened: Any) -> None:
    with opened("fp32") as runner:
        logits = runner.run(bench.images)

    expected = bench.expected()
    assert (logits.dtype, logits.shape) == (np.float32, expected.shape)
    assert np.abs(logits - expected).max() <= FLOAT_TOLERANCE * np.abs(expected).max()


def test_int8_runner_stays_near_torch(bench: Bench, opened: Any) -> None:
    with opened("int8") as runner:
        logits = runner.run(bench.images)

    expected = bench.expected()
    signal, noise = np.square(expected).mean(), np.square(logits - expected).mean()
    assert 10 * np.log10(signal / noise) >= INT8_SNR_DB


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_runner_repeats_itself_and_ignores_company(
    bench: Bench, opened: Any, precision: str
) -> None:
    with opened(precision) as runner:
        together = runner.run(bench.images)
        alone = np.concatenate([runner.run(image[None]) for image in bench.images])
        again = runner.run(np.ascontiguousarray(bench.images))

    np.testing.assert_array_equal(alone, together)
    np.testing.assert_array_equal(again, together)


def test_runner_takes_views_of_images(bench: Bench, opened: Any) -> None:
    wide = np.concatenate([bench.images, bench.images], axis=2)
    with opened("fp32") as runner:
        from_view = runner.run(wide[:, :, :16])
        expected = runner.run(bench.images)

    np.testing.assert_array_equal(from_view, expected)


@pytest.mark.parametrize(
    "harm",
    [lambda x: x.astype(np.float32), lambda x: x[:, :8], lambda x: x[0], lambda x: x[:0]],
    ids=["float", "size", "rank", "none"],
)
def test_runner_raises_shape_error_when_images_do_not_fit(
    bench: Bench, opened: Any, harm: Callable[[Any], Any]
) -> None:
    with opened("fp32") as runner, pytest.raises(ShapeError, match="expected uint8"):
        runner.run(harm(bench.images))


def test_runner_raises_usage_error_when_closed(bench: Bench, opened: Any) -> None:
    with opened("fp32") as runner:
        pass

    with pytest.raises(UsageError, match="closed"):
        runner.run(bench.images)


def test_runner_raises_missing_file_error_when_file_is_absent(bench: Bench, tmp_path: Path) -> None:
    can = builder(bench.target).check()
    if not can.can_run:
        pytest.skip(f"{can.why}; {can.remedy}")

    with pytest.raises(MissingFileError):
        open_runner(bench.target, tmp_path / "absent.onnx", precision="fp32")


def test_runner_tells_its_conditions_in_plain_values(bench: Bench, opened: Any) -> None:
    import json

    with opened("fp32") as runner:
        conditions = runner.conditions()

    assert json.loads(json.dumps(dict(conditions)))["runtime"] == bench.target
    assert (runner.batch, runner.input_shape) == (1, (16, 16, 3))
