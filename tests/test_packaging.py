"""What a user gets from pip: the wheel's files, its metadata, and that it works anywhere."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hydistill_edge

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "hydistill_edge"
MOVED = {"targets": f"{PACKAGE}/targets", "calibration": f"{PACKAGE}/calibration"}
DATA = ("*.yaml", "*.md", "*.j2", "*.css", "*.js", "py.typed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel once, offline, as tools/check does."""
    spec = importlib.util.spec_from_file_location("build_wheel", ROOT / "tools/build_wheel.py")
    assert spec
    assert spec.loader
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    built: Path = tool.build_wheel(tmp_path_factory.mktemp("wheel"))
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith("METADATA"))
        return message_from_string(archive.read(name).decode())


def files_of_the_tree() -> Iterator[str]:
    """Yield the path in the wheel of every source and data file of the three folders."""
    for folder, place in {PACKAGE: PACKAGE, **MOVED}.items():
        for pattern in ("*.py", *DATA):
            for path in (ROOT / folder).rglob(pattern):
                yield f"{place}/{path.relative_to(ROOT / folder).as_posix()}"


def test_wheel_holds_every_file_of_the_tree(names: list[str]) -> None:
    assert sorted(set(files_of_the_tree()) - set(names)) == []


def test_wheel_holds_nothing_else(names: list[str]) -> None:
    foreign = {name for name in names if not name.startswith(f"{PACKAGE}-")}

    assert sorted(foreign - set(files_of_the_tree())) == []


@pytest.mark.parametrize(
    "name", ["py.typed", "report/templates/report.html.j2", "report/templates/style.css"]
)
def test_wheel_holds_package_data(names: list[str], name: str) -> None:
    assert f"{PACKAGE}/{name}" in names


@pytest.mark.parametrize("folder", ["recipes", "targets/devices"])
def test_wheel_holds_yaml_files(names: list[str], folder: str) -> None:
    assert [n for n in names if n.startswith(f"{PACKAGE}/{folder}/") and n.endswith(".yaml")]


def test_wheel_carries_version_license_and_python(metadata: Message) -> None:
    assert metadata["Version"] == hydistill_edge.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"


def test_base_install_needs_no_training_package(metadata: Message) -> None:
    needs = [Requirement(line) for line in metadata.get_all("Requires-Dist") or []]
    base = {need.name for need in needs if "extra" not in str(need.marker)}

    assert "numpy" in base
    assert not base & {"torch", "onnx", "onnxruntime", "openvino", "nncf", "matplotlib", "jinja2"}


def test_every_extra_is_offered(metadata: Message) -> None:
    extras = set(metadata.get_all("Provides-Extra") or [])

    assert {"build", "onnxruntime", "openvino", "tensorrt", "dev"} <= extras


def test_constraints_allow_what_the_project_asks_for(metadata: Message) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {
        pin.name.lower().replace("_", "-"): next(iter(pin.specifier)).version
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }
    for line in metadata.get_all("Requires-Dist") or []:
        need = Requirement(line)
        pinned = versions.get(need.name.lower().replace("_", "-"))
        if need.name != "tensorrt":  # built for the device's own release, never pinned here
            assert pinned is not None, f"constraints.txt does not pin {need.name}"
            assert need.specifier.contains(pinned), f"{line}: constraints.txt has {pinned}"


def test_wheel_works_away_from_the_tree(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import hydistill_edge, hydistill_edge.targets, hydistill_edge.calibration\n"
        "from hydistill_edge.targets.profiles import list_profiles\n"
        "print(hydistill_edge.targets.__file__, len(list_profiles()) > 0)"
    )

    command = [
        sys.executable,
        "-P",
        "-c",
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / PACKAGE / "targets/__init__.py"), "True"]
