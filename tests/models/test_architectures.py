from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from hydistill_edge.errors import MissingFileError, TeacherError, UsageError
from hydistill_edge.models.architectures import build_network, is_code


def build(architecture: str, **options: object) -> nn.Module:
    return build_network(architecture, classes=3, channels=3, size=(8, 8), options=options)


def test_zoo_network_has_the_declared_outputs() -> None:
    assert build("zoo:resnet8", width=0.5).classifier.out_features == 3


def test_options_win_over_the_class_list() -> None:
    assert build("torchvision:shufflenet_v2_x0_5", num_classes=7).fc.out_features == 7
    assert build("zoo:resnet8", num_classes=7).classifier.out_features == 7


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        pytest.param("resnet8", "no known form", id="bare-name"),
        pytest.param("my_net.py", "no known form", id="no-factory"),
        pytest.param("my_net.txt:build", "no known form", id="no-python"),
        pytest.param("torchvision:resnet_18", "closest: resnet18", id="torchvision-typo"),
        pytest.param("zoo:resnet_8", 'closest: "resnet8"', id="zoo-typo"),
    ],
)
def test_unknown_architecture_is_refused(architecture: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(architecture)


def test_torchvision_never_downloads() -> None:
    with pytest.raises(UsageError, match="would download"):
        build("torchvision:resnet18", weights="DEFAULT")


def test_unknown_option_is_told_with_the_architecture() -> None:
    with pytest.raises(TeacherError, match=r"torchvision:resnet18.*depth"):
        build("torchvision:resnet18", depth=3)


def test_factory_of_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_net.py").write_text("SIZE = 5\n")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build(outputs=3):\n"
        "    from neighbour_of_net import SIZE\n"
        "    return nn.Linear(SIZE, outputs)\n"
    )
    network = build_network(
        "net.py:build", classes=3, channels=3, size=(8, 8), options={"outputs": 2}, base=tmp_path
    )
    assert network.weight.shape == (2, 5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param("def other(): ...", 'no factory "build"; it defines: other', id="no-factory"),
        pytest.param("def build(): return 3", "returned int", id="no-module"),
        pytest.param("def build(): raise ValueError('boom')", "ValueError: boom", id="raises"),
        pytest.param("def build(:", "SyntaxError", id="syntax"),
        pytest.param("import no_such_package_here", "no_such_package_here", id="import"),
    ],
)
def test_broken_factory_is_told_with_its_reason(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "net.py"
    path.write_text(source)
    with pytest.raises(TeacherError, match=message):
        build(f"{path}:build")


def test_missing_python_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.py"):
        build(f"{tmp_path / 'none.py'}:build")


def test_only_python_files_count_as_code() -> None:
    assert is_code("a/b.py:build")
    assert not is_code("zoo:resnet8")
    assert not is_code("onnx:network")
