from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from hydistill_edge.errors import TeacherError, UsageError
from hydistill_edge.models.onnx_network import load_onnx
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher

PARITY = 1e-4
"""Of the largest value: float32 in another order of summation."""


def export(
    network: nn.Module, path: Path, *, side: int = 8, batch: int = 1, **options: Any
) -> Path:
    images = torch.rand(batch, 3, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its dependencies
        torch.onnx.export(
            network.eval(), (images,), str(path), external_data=False, verbose=False, **options
        )
    return path


def run_onnxruntime(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: images.detach().numpy()}
    return torch.from_numpy(session.run(None, feeds)[0])


def worst(found: Tensor, wanted: Tensor) -> float:
    return float(((found - wanted).abs().max() / wanted.abs().max()).detach())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A tiny network (RGB, 8x8 px, 4 classes) and its export for one image: exporting is slow."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    return network, export(random_statistics(network), path)


def random_statistics(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
    return network


@pytest.mark.parametrize(
    ("name", "opset"), [("mobilenet_v3_small", 20), ("shufflenet_v2_x0_5", 18)]
)
def test_network_equals_onnxruntime_and_the_original_gradient(
    name: str, opset: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = random_statistics(torchvision.models.get_model(name, weights=None, num_classes=5))
    path = export(network, tmp_path / "n.onnx", side=32, batch=2, opset_version=opset)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    found, original = load_onnx(path)(images), network(images)
    assert worst(found, run_onnxruntime(path, images)) <= PARITY
    wanted_gradient = torch.autograd.grad(original[:, 0].sum(), images)[0]
    gradient = torch.autograd.grad(found[:, 0].sum(), images)[0]
    assert float(gradient.abs().max()) > 0
    # By norm: a ReLU input within rounding of zero may fall to the other side.
    assert float((gradient - wanted_gradient).norm() / wanted_gradient.norm()) <= 1e-3


def test_network_of_the_old_exporter_keeps_its_names(network: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "n.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says itself that this exporter is over
        torch.onnx.export(
            network,
            (torch.rand(1, 3, 8, 8),),
            str(path),
            dynamo=False,
            opset_version=13,
            input_names=["x"],
            dynamic_axes={"x": {0: "n"}},
        )
    images = torch.rand(3, 3, 8, 8)
    loaded = load_onnx(path)
    assert worst(loaded(images), network(images)) <= PARITY
    assert loaded.input.batch is None
    assert any("Gemm" in name for name in loaded.layers)


def test_graph_of_one_image_takes_any_batch(exported: tuple[nn.Module, Path]) -> None:
    network, path = exported
    loaded = load_onnx(path)
    images = torch.rand(5, 3, 8, 8)
    assert (loaded.input.batch, loaded.one_by_one) == (1, False)
    assert worst(loaded(images), network(images)) <= PARITY


def test_batch_norm_that_was_not_folded_is_found(network: nn.Module, tmp_path: Path) -> None:
    path = export(network, tmp_path / "n.onnx", optimize=False)
    teacher = Teacher.load(
        path,
        architecture=None,
        classes="abcd",
        spec=InputSpec(8, 8, 3, (0.5,) * 3, (0.5,) * 3),
    )
    assert [module.num_features for _, module in teacher.batch_norms()] == [6]


def test_onnx_teacher_is_a_teacher_without_batch_norm(exported: tuple[nn.Module, Path]) -> None:
    network, path = exported
    spec = InputSpec(8, 8, 3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    teacher = Teacher.load(path, architecture=None, classes="abcd", spec=spec)
    wanted = Teacher.wrap(network, classes="abcd", spec=spec)
    pixels = torch.rand(3, 3, 8, 8)
    assert worst(teacher(pixels), wanted(pixels)) <= PARITY
    assert (teacher.batch_norms(), teacher.shares_classifier) == ([], True)
    assert "no batch norm" in teacher.note
    assert teacher.features(pixels).final_map.shape == (3, 8, 4, 4)


def test_onnx_student_comes_back_when_saved(
    exported: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    spec = InputSpec(8, 8, 3, (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    loaded = load_onnx(exported[1])
    student = Student.adopt(loaded, spec=spec, classes="abcd").eval()
    student.save(tmp_path / "student")
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert student.plan.kind == "folded"
    assert torch.equal(Student.load(tmp_path / "student")(pixels), student(pixels))


def test_declared_size_must_be_the_graphs(exported: tuple[nn.Module, Path]) -> None:
    path = exported[1]
    with pytest.raises(TeacherError, match="height 8, and 16 is declared"):
        Teacher.load(
            path,
            architecture=None,
            classes="abcd",
            spec=InputSpec(16, 8, 3, (0.5,) * 3, (0.5,) * 3),
        )


def test_unknown_option_of_an_onnx_teacher_is_refused(exported: tuple[nn.Module, Path]) -> None:
    path = exported[1]
    with pytest.raises(UsageError, match='knows only "output"'):
        Teacher.load(
            path,
            architecture=None,
            classes="abcd",
            spec=InputSpec(8, 8, 3, (0.5,) * 3, (0.5,) * 3),
            options={"width": 1},
        )


def write_graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    weights: dict[str, Any],
    *,
    shape: tuple[Any, ...] = ("n", 1, 2, 2),
    outputs: tuple[str, ...] = ("y",),
    kind: int = TensorProto.FLOAT,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(name, kind, ("n", "c")) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    domains = {node.domain for node in nodes}
    opsets = [helper.make_opsetid("", 18), *(helper.make_opsetid(d, 1) for d in domains if d)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


FLATTEN = helper.make_node("Flatten", ["x"], ["f"])
WEIGHTS = {"w": np.arange(8, dtype=np.float32).reshape(4, 2), "b": np.float32([1, -1])}


def test_matmul_and_add_become_a_linear_layer(tmp_path: Path) -> None:
    nodes = [
        FLATTEN,
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    loaded = load_onnx(write_graph(tmp_path / "n.onnx", nodes, WEIGHTS))
    images = torch.rand(3, 1, 2, 2)
    wanted = images.flatten(1) @ torch.tensor(WEIGHTS["w"]) + torch.tensor(WEIGHTS["b"])
    torch.testing.assert_close(loaded(images), wanted)
    assert [type(layer).__name__ for layer in loaded.layers.values()] == ["OpLayer", "Linear"]


def test_weights_computed_from_constants_are_folded(tmp_path: Path) -> None:
    nodes = [
        FLATTEN,
        helper.make_node("DequantizeLinear", ["q", "s"], ["v"]),
        helper.make_node("Transpose", ["v"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["f", "t"], ["y"]),
    ]
    weights = {"q": np.arange(8, dtype=np.int8).reshape(2, 4), "s": np.float32(0.5)}
    loaded = load_onnx(write_graph(tmp_path / "n.onnx", nodes, weights))
    found = loaded(torch.ones(1, 1, 2, 2))
    assert found.tolist() == [[3.0, 11.0]]
    assert len(loaded.plan) == 2


def test_shapes_are_computed_while_running(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Concat", ["n", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    weights = {"zero": np.int64([0]), "minus": np.int64([-1])}
    loaded = load_onnx(write_graph(tmp_path / "n.onnx", nodes, weights))
    assert loaded(torch.rand(5, 1, 2, 2)).shape == (5, 4)


def test_softmax_at_the_end_is_left_out_and_told(tmp_path: Path) -> None:
    nodes = [FLATTEN, helper.make_node("Softmax", ["f"], ["y"], axis=-1)]
    loaded = load_onnx(write_graph(tmp_path / "n.onnx", nodes, {}))
    images = torch.rand(2, 1, 2, 2)
    assert torch.equal(loaded(images), images.flatten(1))
    assert "Softmax" in loaded.note


def test_uneven_padding_of_a_convolution_is_kept(tmp_path: Path) -> None:
    kernel = np.ones((2, 1, 2, 2), np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], auto_pad="SAME_LOWER"),
        helper.make_node("GlobalAveragePool", ["c"], ["g"]),
        helper.make_node("Flatten", ["g"], ["y"]),
    ]
    path = write_graph(tmp_path / "n.onnx", nodes, {"k": kernel})
    images = torch.rand(2, 1, 2, 2)
    torch.testing.assert_close(load_onnx(path)(images), run_onnxruntime(path, images))


def test_graph_that_mixes_its_fixed_batch_runs_in_pieces(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2, 3]),
        helper.make_node("Reshape", ["t", "two"], ["y"]),
    ]
    path = write_graph(tmp_path / "n.onnx", nodes, {"two": np.int64([2, 4])}, shape=(2, 1, 2, 2))
    loaded = load_onnx(path)
    assert loaded.one_by_one
    assert "in pieces" in loaded.note
    images = torch.rand(5, 1, 2, 2)
    assert torch.equal(loaded(images), images.flatten(1))


def test_half_precision_graph_runs_in_float32(tmp_path: Path) -> None:
    half = {name: value.astype(np.float16) for name, value in WEIGHTS.items()}
    nodes = [FLATTEN, helper.make_node("Gemm", ["f", "w", "b"], ["y"])]
    path = write_graph(tmp_path / "n.onnx", nodes, half, kind=TensorProto.FLOAT16)
    loaded = load_onnx(path)
    assert loaded(torch.ones(1, 1, 2, 2)).tolist() == [[13.0, 15.0]]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        pytest.param(
            [helper.make_node("NonZero", ["x"], ["y"], name="odd")],
            r'NonZero \(node "odd"\)',
            id="operator",
        ),
        pytest.param(
            [helper.make_node("FusedConv", ["x"], ["y"], name="odd", domain="com.microsoft")],
            r'com\.microsoft\.FusedConv \(node "odd"\)',
            id="domain",
        ),
        pytest.param(
            [
                helper.make_node("QuantizeLinear", ["x", "s"], ["q"], name="quantize"),
                helper.make_node("DequantizeLinear", ["q", "s"], ["y"], name="back"),
            ],
            r'QuantizeLinear \(node "quantize"\), DequantizeLinear',
            id="quantized",
        ),
    ],
)
def test_unknown_operators_are_told_together_with_their_nodes(
    tmp_path: Path, nodes: list[onnx.NodeProto], message: str
) -> None:
    path = write_graph(tmp_path / "n.onnx", nodes, {"s": np.float32(0.1)})
    with pytest.raises(TeacherError, match=message):
        load_onnx(path)


def test_several_outputs_need_the_name_of_the_logits(tmp_path: Path) -> None:
    nodes = [FLATTEN, helper.make_node("Relu", ["f"], ["y"])]
    path = write_graph(tmp_path / "n.onnx", nodes, {}, outputs=("y", "f"))
    with pytest.raises(TeacherError, match=r"2 outputs \(y, f\): name the logits"):
        load_onnx(path)
    images = torch.randn(1, 1, 2, 2)
    assert torch.equal(load_onnx(path, output="f")(images), images.flatten(1))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = {**WEIGHTS, "b": np.float32([1, np.nan])}
    nodes = [FLATTEN, helper.make_node("Gemm", ["f", "w", "b"], ["y"])]
    with pytest.raises(TeacherError, match="NaN or infinity"):
        load_onnx(write_graph(tmp_path / "n.onnx", nodes, broken))
