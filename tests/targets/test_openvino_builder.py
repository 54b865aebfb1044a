from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hydistill_edge.errors import InputError, TargetUnavailableError
from hydistill_edge.targets.openvino.builder import OpenVinoBuilder
from hydistill_edge.targets.openvino.runner import OpenVinoRunner
from hydistill_edge.targets.profiles import load_profile

pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytest.importorskip("nncf", reason="NNCF is not installed")

VNNI = load_profile("x86-vnni")


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_artifact_is_a_pair_that_says_its_precision(
    precision: Any,
    tiny_graph: Any,
    calibration: Callable[..., Any],
    folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    chosen = calibration("openvino")

    artifact = OpenVinoBuilder().build(tiny_graph("residual"), precision, VNNI, chosen, folder)

    assert [path.name for path in artifact.files] == ["model.xml", "model.bin"]
    assert sorted(folder.iterdir()) == sorted(artifact.files)
    assert (artifact.scheme == chosen.scheme) is (precision == "int8")
    with OpenVinoRunner(artifact.file) as runner:
        assert runner.precision == precision
    assert capfd.readouterr() == ("", "")


def test_fp16_halves_the_weights(tiny_graph: Any, tmp_path: Path) -> None:
    sizes = []
    for precision in ("fp32", "fp16"):
        out = tmp_path / precision
        out.mkdir()
        builder = OpenVinoBuilder()
        artifact = builder.build(tiny_graph("residual"), precision, VNNI, None, out)  # type: ignore[arg-type]
        sizes.append(artifact.files[1].stat().st_size)

    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_build_gives_equal_bytes_when_repeated(
    precision: Any, tiny_graph: Any, calibration: Callable[..., Any], tmp_path: Path
) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        artifact = OpenVinoBuilder().build(
            tiny_graph("squeeze"), precision, VNNI, calibration("openvino"), tmp_path / name
        )
        contents.append([path.read_bytes() for path in artifact.files])

    assert contents[0] == contents[1]
    assert str(tmp_path).encode() not in contents[0][0]


def test_build_raises_input_error_when_calibration_is_missing(
    tiny_graph: Any, folder: Path
) -> None:
    with pytest.raises(InputError, match='int8 for "openvino" on "x86-vnni" came without'):
        OpenVinoBuilder().build(tiny_graph("residual"), "int8", VNNI, None, folder)


def test_build_raises_input_error_when_device_forbids_precision(
    tiny_graph: Any, calibration: Callable[..., Any], folder: Path
) -> None:
    only_float = tuple(
        replace(entry, precisions=("fp32",)) if entry.target == "openvino" else entry
        for entry in VNNI.targets
    )
    device = replace(VNNI, targets=only_float)

    with pytest.raises(InputError, match="expected fp32, or another device profile"):
        OpenVinoBuilder().build(
            tiny_graph("residual"), "int8", device, calibration("openvino"), folder
        )


def test_build_raises_target_unavailable_when_package_is_missing(
    tiny_graph: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = tiny_graph("residual")
    monkeypatch.setitem(sys.modules, "nncf", None)

    with pytest.raises(TargetUnavailableError, match="nncf not installed; pip install"):
        OpenVinoBuilder().build(graph, "fp32", VNNI, None, folder)


def test_no_socket_is_opened_and_no_home_is_touched(tiny_graph: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    script = textwrap.dedent(
        """
        import os, sys
        from pathlib import Path

        def refuse(event, arguments):
            if event.startswith("socket."):
                os.write(1, f"{event} {arguments}".encode())
                os._exit(7)

        sys.addaudithook(refuse)
        import numpy as np
        from hydistill_edge.calibration.scheme import choose_scheme
        from hydistill_edge.targets.base import Calibration
        from hydistill_edge.targets.graph import read_graph
        from hydistill_edge.targets.openvino.builder import OpenVinoBuilder
        from hydistill_edge.targets.openvino.runner import OpenVinoRunner
        from hydistill_edge.targets.profiles import load_profile

        device, out = load_profile("x86-vnni"), Path(sys.argv[2])
        images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
        chosen = Calibration(images, tuple("abcd"), "0", choose_scheme("openvino", device))
        graph = read_graph(Path(sys.argv[1]))
        artifact = OpenVinoBuilder().build(graph, "int8", device, chosen, out)
        with OpenVinoRunner(artifact.file) as runner:
            print(runner.run(images).shape)
        """
    )
    out = tmp_path / "out"
    out.mkdir()

    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_graph("residual").path), str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"HOME": str(home), "PATH": "", "OMP_NUM_THREADS": "1"},
        check=False,
    )

    assert (done.stdout, done.stderr, done.returncode) == ("(4, 3)\n", "", 0)
    assert [path.name for path in home.iterdir() if "intel" in path.name.lower()] == []


def test_telemetry_is_emptied_when_another_program_loaded_it_first() -> None:
    script = textwrap.dedent(
        """
        import openvino_telemetry
        from hydistill_edge.targets.openvino.libraries import load_openvino
        load_openvino()
        from openvino_telemetry.utils.sender import TelemetrySender
        print(TelemetrySender.send.__module__)
        """
    )

    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert out.stdout == "hydistill_edge.targets.openvino.libraries\n"
