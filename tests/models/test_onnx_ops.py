"""Every operator against onnx's own reference evaluator, gradients against differences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from hydistill_edge.models.onnx_ops import OPS, Batch, Node

GENERATOR = np.random.default_rng(0)


def floats(*shape: int, low: float = -3.0, high: float = 3.0) -> Any:
    return GENERATOR.uniform(low, high, shape).astype(np.float32)


def whole(*values: int) -> Any:
    return np.asarray(values, dtype=np.int64)


IMAGE = floats(2, 4, 5, 6)


@dataclass(frozen=True)
class Case:
    op: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 20
    outputs: int = 1
    label: str = ""
    by_runtime: bool = False  # the reference evaluator of onnx 1.23 is wrong here

    @property
    def id(self) -> str:
        return f"{self.op}-{self.label or self.opset}"


CASES = [
    *(
        Case(op, (IMAGE,))
        for op in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "HardSwish")
    ),
    *(Case(op, (IMAGE,)) for op in ("Exp", "Abs", "Neg", "Floor", "Ceil", "Erf", "Mish", "Selu")),
    *(Case(op, (floats(3, 4, low=0.5),)) for op in ("Sqrt", "Log", "Reciprocal")),
    *(Case(op, (IMAGE, floats(4, 1, 1, low=0.5))) for op in ("Add", "Sub", "Mul", "Div")),
    *(
        Case(op, (IMAGE, floats(4, 1, 1)))
        for op in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual")
    ),
    *(Case(op, (IMAGE, floats(6), floats(5, 1))) for op in ("Min", "Max", "Sum")),
    *(Case(op, (IMAGE > 0, IMAGE > 1)) for op in ("And", "Or")),
    Case("Not", (IMAGE > 0,)),
    Case("Equal", (IMAGE, IMAGE)),
    Case("Div", (whole(7, -7, 9), whole(2, 2, -4)), label="whole"),
    Case("Mod", (whole(7, -7, 9), whole(2, 2, 4))),
    Case("Pow", (floats(3, 4, low=0.5), np.float32(2.5))),
    Case("Where", (IMAGE > 0, IMAGE, np.float32(0.1))),
    Case("Identity", (IMAGE,)),
    Case("HardSigmoid", (IMAGE,), {"alpha": 0.3, "beta": 0.4}),
    Case("HardSigmoid", (IMAGE,), label="default"),
    Case("Elu", (IMAGE,), {"alpha": 0.7}),
    Case("LeakyRelu", (IMAGE,), {"alpha": 0.2}),
    Case("PRelu", (IMAGE, floats(4, 1, 1))),
    Case("Gelu", (IMAGE,)),
    Case("Gelu", (IMAGE,), {"approximate": "tanh"}, label="tanh"),
    Case("Clip", (IMAGE, np.float32(0), np.float32(2)), label="both"),
    Case("Clip", (IMAGE, None, np.float32(2)), label="high"),
    Case("Clip", (IMAGE,), {"min": 0.0, "max": 1.0}, opset=10),
    Case("Softmax", (IMAGE,), {"axis": 1}),
    Case("LogSoftmax", (IMAGE,), {"axis": 1}),
    Case("MatMul", (floats(2, 3, 4), floats(2, 4, 5))),
    Case("Gemm", (floats(2, 3), floats(4, 3), floats(4)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", (floats(3, 2), floats(3, 4)), {"transA": 1}, label="without-bias"),
    Case("Einsum", (floats(2, 3), floats(3, 4)), {"equation": "ij,jk->ik"}),
    Case("Conv", (IMAGE, floats(6, 2, 3, 3), floats(6)), {"group": 2, "pads": [1, 0, 2, 1]}),
    Case(
        "Conv",
        (IMAGE, floats(2, 4, 3, 2)),
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        label="same",
    ),
    Case("MaxPool", (IMAGE,), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case(
        "MaxPool",
        (IMAGE,),
        {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]},
        label="uneven",
        by_runtime=True,
    ),
    Case(
        "MaxPool",
        (IMAGE,),
        {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
        label="ceil",
    ),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", (IMAGE,), {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, label="uneven"),
    Case(
        "AveragePool",
        (IMAGE,),
        {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1},
        label="counting",
    ),
    Case("GlobalAveragePool", (IMAGE,)),
    Case("GlobalMaxPool", (IMAGE,)),
    *(
        Case(op, (IMAGE, whole(2, 3)), {"keepdims": 0})
        for op in (
            "ReduceMean",
            "ReduceSum",
            "ReduceMax",
            "ReduceMin",
            "ReduceL2",
            "ReduceSumSquare",
        )
    ),
    Case("ReduceMean", (IMAGE,), {"axes": [2, 3]}, opset=13),
    Case("ReduceMean", (IMAGE,), label="all"),
    Case("BatchNormalization", (IMAGE, floats(4), floats(4), floats(4), floats(4, low=0.1))),
    Case("LayerNormalization", (IMAGE, floats(6), floats(6)), {"epsilon": 1e-3}),
    Case("InstanceNormalization", (IMAGE, floats(4), floats(4))),
    Case("GroupNormalization", (IMAGE, floats(4), floats(4)), {"num_groups": 2}, opset=21),
    Case("LRN", (IMAGE,), {"size": 3, "alpha": 0.1}, by_runtime=True),
    Case("Flatten", (IMAGE,), {"axis": 2}),
    Case("Flatten", (IMAGE,), {"axis": -1}, label="negative"),
    Case("Reshape", (IMAGE, whole(0, -1, 3))),
    Case("Transpose", (IMAGE,), {"perm": [0, 2, 3, 1]}),
    Case("Transpose", (IMAGE,), label="reversed"),
    Case("Squeeze", (floats(2, 1, 3, 1), whole(1, -1))),
    Case("Unsqueeze", (floats(2, 3), whole(0, -1))),
    Case("Concat", (IMAGE, IMAGE[:, :1]), {"axis": 1}),
    Case("Split", (IMAGE, whole(1, 3)), {"axis": 1}, outputs=2),
    Case("Slice", (IMAGE, whole(1, -3), whole(4, 100), whole(1, 3))),
    Case("Slice", (IMAGE, whole(4), whole(-100), whole(2), whole(-2)), label="backwards"),
    Case("Pad", (IMAGE, whole(0, 0, 1, 2, 0, 1, 0, 1), np.float32(0.5))),
    Case("Pad", (IMAGE, whole(0, 0, 1, 2, 0, 0, 1, 1)), {"mode": "edge"}, label="edge"),
    Case("Pad", (IMAGE, whole(0, 0, 1, 2, 0, 0, 1, 1)), {"mode": "reflect"}, label="reflect"),
    Case("Gather", (IMAGE, np.asarray(1)), {"axis": 1}, label="scalar"),
    Case("Gather", (IMAGE, np.asarray([[0, -1], [2, 1]])), {"axis": 1}, label="matrix"),
    Case("GatherElements", (IMAGE, np.zeros((2, 4, 1, 6), np.int64)), {"axis": 2}),
    Case("GatherND", (IMAGE, np.asarray([[0, 1], [1, 3]]))),
    Case("GatherND", (IMAGE, np.asarray([[1], [3]])), {"batch_dims": 1}, label="batch"),
    Case("Expand", (floats(4, 1, 1), whole(2, 1, 3, 1))),
    Case("Tile", (floats(2, 3), whole(2, 1))),
    Case("Shape", (IMAGE,), {"start": 1}),
    Case("Size", (IMAGE,)),
    Case("DepthToSpace", (IMAGE,), {"blocksize": 2}),
    Case("DepthToSpace", (IMAGE,), {"blocksize": 2, "mode": "CRD"}, label="CRD"),
    Case("SpaceToDepth", (floats(1, 2, 4, 6),), {"blocksize": 2}),
    Case("Cast", (IMAGE,), {"to": TensorProto.INT64}),
    Case("Resize", (IMAGE, None, np.float32([1, 1, 2, 2])), {"mode": "linear"}, label="linear"),
    Case(
        "Resize",
        (IMAGE, None, None, whole(2, 4, 9, 9)),
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        label="aligned",
    ),
    Case(
        "Resize",
        (IMAGE, None, np.float32([1, 1, 2, 2])),
        {"nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"},
        label="nearest",
    ),
    *(
        Case(
            "Resize",
            (floats(1, 2, 8, 12), None, np.float32([1, 1, 0.5, 1.5])),
            {"nearest_mode": rounding, "coordinate_transformation_mode": where_from},
            label=f"{rounding}-{where_from}",
        )
        for rounding in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
        for where_from in ("asymmetric", "half_pixel")
    ),
    Case("Dropout", (IMAGE,)),
]


def reference(case: Case) -> list[Any]:
    names = ["" if value is None else f"x{index}" for index, value in enumerate(case.inputs)]
    outputs = [f"y{index}" for index in range(case.outputs)]
    node = helper.make_node(case.op, names, outputs, **case.attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
            )
            for name, value in zip(names, map(np.asarray, case.inputs), strict=True)
            if name
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
    )
    feeds = {
        name: np.asarray(value) for name, value in zip(names, case.inputs, strict=True) if name
    }
    if case.by_runtime:
        opsets = [helper.make_opsetid("", case.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        session = onnxruntime.InferenceSession(model.SerializeToString())
        return list(session.run(None, feeds))
    return ReferenceEvaluator(graph, opsets={"": case.opset}).run(None, feeds)


def ours(case: Case) -> list[Any]:
    attributes = {
        key: value.encode() if isinstance(value, str) else value
        for key, value in case.attributes.items()
    }
    assert attributes.keys() <= OPS[case.op].attributes
    first, *rest = case.inputs
    others = [None if value is None else np.asarray(value) for value in rest]
    found = OPS[case.op].function(
        Node(case.op, "test", attributes, case.opset), torch.from_numpy(np.asarray(first)), *others
    )
    return [np.asarray(part) for part in (found if isinstance(found, tuple) else (found,))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_operator_equals_the_reference(case: Case) -> None:
    for found, wanted in zip(ours(case), reference(case), strict=True):
        assert found.shape == np.asarray(wanted).shape
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_every_operator_of_the_table_has_a_case() -> None:
    assert OPS.keys() == {case.op for case in CASES}


def test_softmax_of_an_old_opset_spans_all_axes_from_its_own_on() -> None:
    x = torch.from_numpy(IMAGE)
    found = OPS["Softmax"].function(Node("Softmax", "test", {"axis": 1}, 11), x)
    torch.testing.assert_close(found.sum(dim=(1, 2, 3)), torch.ones(2))


def test_group_norm_of_an_old_opset_has_one_scale_per_group() -> None:
    x = torch.from_numpy(IMAGE)
    scale, bias = np.float32([2, 3]), np.float32([0, 1])
    node = Node("GroupNormalization", "test", {"num_groups": 2}, 18)
    found = OPS["GroupNormalization"].function(node, x, scale, bias)
    plain = torch.nn.functional.group_norm(x, 2)
    torch.testing.assert_close(found[:, 2:], plain[:, 2:] * 3 + 1)


def test_split_into_equal_parts_gives_the_last_one_the_rest() -> None:
    node = Node("Split", "test", {"axis": 1, "num_outputs": 2}, 18)
    assert [part.shape[1] for part in OPS["Split"].function(node, torch.zeros(1, 5))] == [3, 2]


def test_reshape_reads_the_exported_batch_anew_when_another_one_runs() -> None:
    node = Node("Reshape", "test", {"batch": Batch(exported=1, now=3)}, 20)
    assert OPS["Reshape"].function(node, torch.zeros(3, 2, 2), whole(1, 4)).shape == (3, 4)


@pytest.mark.parametrize(
    "op", ["Clip", "MaxPool", "GatherND", "Resize", "AveragePool", "HardSigmoid"]
)
def test_gradient_flows_back_to_the_input(op: str) -> None:
    case = next(case for case in CASES if case.op == op)
    x = torch.from_numpy(case.inputs[0].astype(np.float64)).requires_grad_()
    attributes = {
        key: value.encode() if isinstance(value, str) else value
        for key, value in case.attributes.items()
    }
    others = [None if value is None else np.asarray(value) for value in case.inputs[1:]]
    node = Node(op, "test", attributes, case.opset)
    assert torch.autograd.gradcheck(lambda images: OPS[op].function(node, images, *others), (x,))
