"""Every published rule: one good graph, and for each rule a change that breaks it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hydistill_edge.errors import GraphError, MissingFileError
from hydistill_edge.targets.tensorrt.rules import RULES, Violation, check_rules

GOOD = """
<ir_version: 8, opset_import: ["" : 18]>
student (uint8[1,4,4,2] image) => (float[1,3] logits)
<
  float center = {128}, float pixel = {0.015625}, int8 zp = {0},
  int8[2,2,1,1] w = {1,2,3,4}, float[2] ws = {0.1,0.2}, int8[2] wz = {0,0}, float[2] b = {0,0},
  int8[3,2] g = {1,2,3,4,5,6}, float[3] gs = {0.1,0.2,0.3}, int8[3] gz = {0,0,0},
  float[3] gb = {0,0,0}, float ys = {0.1}, float fs = {0.2}
>
{
  image_float = Cast <to = 1> (image)
  nchw = Transpose <perm = [0,3,1,2]> (image_float)
  centered = Sub (nchw, center)
  x = Mul (centered, pixel)
  xq = QuantizeLinear (x, pixel, zp)
  xd = DequantizeLinear (xq, pixel, zp)
  wd = DequantizeLinear <axis = 0> (w, ws, wz)
  c = Conv (xd, wd, b)
  total = Add (c, xd)
  y = Relu (total)
  yq = QuantizeLinear (y, ys, zp)
  yd = DequantizeLinear (yq, ys, zp)
  pooled = GlobalAveragePool (yd)
  flat = Flatten (pooled)
  fq = QuantizeLinear (flat, fs, zp)
  fd = DequantizeLinear (fq, fs, zp)
  gd = DequantizeLinear <axis = 0> (g, gs, gz)
  logits = Gemm <transB = 1> (fd, gd, gb)
}
"""


def violations(folder: Path, text: str, *, generation: int = 10) -> list[Violation]:
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return check_rules(path, generation)


def changed(*changes: tuple[str, str]) -> str:
    text = GOOD
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


@dataclass
class Broken:
    rule: str
    node: str
    changes: tuple[tuple[str, str], ...]


BROKEN = {
    "opset-too-new": Broken("opset", "graph", (('"" : 18', '"" : 21'),)),
    "ir-too-new": Broken("opset", "graph", (("ir_version: 8", "ir_version: 11"),)),
    "unsupported-operator": Broken("operators", "Det -> y", (("Relu (total)", "Det (total)"),)),
    "dilated-pool": Broken(
        "restrictions",
        "MaxPool -> y",
        (("Relu (total)", "MaxPool <kernel_shape = [1,1], dilations = [2,2]> (total)"),),
    ),
    "pool-indices": Broken(
        "restrictions",
        "MaxPool -> y",
        (("y = Relu (total)", "y, where = MaxPool <kernel_shape = [1,1]> (total)"),),
    ),
    "types-disagree": Broken("types", "graph", (("float[2] b =", "float16[2] b ="),)),
    "uint8-inside": Broken(
        "uint8",
        "image_nchw",
        (
            (
                "image_float = Cast <to = 1> (image)",
                "image_nchw = Transpose <perm = [0,3,1,2]> (image)",
            ),
            (
                "nchw = Transpose <perm = [0,3,1,2]> (image_float)",
                "nchw = Cast <to = 1> (image_nchw)",
            ),
        ),
    ),
    "float64": Broken(
        "float64",
        "wide",
        (
            (
                "y = Relu (total)",
                "wide = Cast <to = 11> (total) narrow = Cast <to = 1> (wide) y = Relu (narrow)",
            ),
        ),
    ),
    "int64-arithmetic": Broken(
        "int64",
        "Add -> more",
        (
            ("float ys =", "int64 one = {1}, float ys ="),
            (
                "y = Relu (total)",
                "n = Cast <to = 7> (total) more = Add (n, one) r = Cast <to = 1> (more) "
                "y = Relu (r)",
            ),
        ),
    ),
    "two-float-types": Broken(
        "one-float-type",
        "Conv -> h",
        (
            (
                "float ys =",
                "float16[2,2,1,1] hw = {1,2,3,4}, float16[2,2,1,1] iw = {1,2,3,4}, float ys =",
            ),
            (
                "y = Relu (total)",
                "p = Cast <to = 10> (total) h = Conv (p, hw) r = Cast <to = 1> (h) y = Relu (r)",
            ),
        ),
    ),
    "uint8-quantized": Broken(
        "int8",
        "QuantizeLinear -> xq",
        (
            ("int8 zp =", "uint8 uzp = {0}, int8 zp ="),
            ("(x, pixel, zp)", "(x, pixel, uzp)"),
            ("(xq, pixel, zp)", "(xq, pixel, uzp)"),
        ),
    ),
    "zero-point-missing": Broken(
        "int8",
        "QuantizeLinear -> fq",
        (("(flat, fs, zp)", "(flat, fs)"), ("(fq, fs, zp)", "(fq, fs)")),
    ),
    "asymmetric": Broken("zero-point", "QuantizeLinear -> xq", (("zp = {0}", "zp = {-128}"),)),
    "zero-point-count": Broken(
        "zero-point", "DequantizeLinear -> wd", (("(w, ws, wz)", "(w, ws, zp)"),)
    ),
    "scale-zero": Broken("scale", "DequantizeLinear -> wd", (("ws = {0.1,0.2}", "ws = {0.1,0}"),)),
    "scale-negative": Broken("scale", "QuantizeLinear -> yq", (("ys = {0.1}", "ys = {-0.1}"),)),
    "scale-count": Broken(
        "scale-count",
        "DequantizeLinear -> gd",
        (("DequantizeLinear <axis = 0> (g,", "DequantizeLinear <axis = 1> (g,"),),
    ),
    "activation-per-channel": Broken(
        "per-tensor",
        "QuantizeLinear -> yq",
        (("(y, ys, zp)", "(y, ws, wz)"), ("(yq, ys, zp)", "(yq, ws, wz)")),
    ),
    "weights-per-tensor": Broken("per-channel", "Conv -> c", (("(w, ws, wz)", "(w, ys, zp)"),)),
    "weights-other-axis": Broken(
        "per-channel",
        "Conv -> c",
        (("DequantizeLinear <axis = 0> (w,", "DequantizeLinear <axis = 1> (w,"),),
    ),
    "weights-minus-128": Broken(
        "weight-range", "Conv -> c", (("w = {1,2,3,4}", "w = {1,2,3,-128}"),)
    ),
    "bias-quantized": Broken(
        "bias",
        "Conv -> c",
        (
            ("float[2] b = {0,0}", "int32[2] bq = {0,0}"),
            ("c = Conv", "b = DequantizeLinear <axis = 0> (bq, ws) c = Conv"),
        ),
    ),
    "pair-scales-differ": Broken(
        "pairs", "DequantizeLinear -> yd", (("(yq, ys, zp)", "(yq, fs, zp)"),)
    ),
    "quantized-read-directly": Broken(
        "pairs",
        "Relu -> seen",
        (("yd = Deq", "seen = Relu (yq) yd = Deq"),),
    ),
    "float-weights": Broken(
        "both-inputs",
        "Conv -> c",
        (
            ("int8[2,2,1,1] w =", "float[2,2,1,1] wf = {1,2,3,4}, int8[2,2,1,1] w ="),
            ("(xd, wd, b)", "(xd, wf, b)"),
        ),
    ),
    "pair-before-activation": Broken(
        "weighted-output",
        "QuantizeLinear -> cq",
        (
            (
                "total = Add (c, xd)",
                "cq = QuantizeLinear (c, ys, zp) cd = DequantizeLinear (cq, ys, zp)",
            ),
            ("Relu (total)", "Relu (cd)"),
        ),
    ),
    "float-skip": Broken("residual", "Add -> total", (("Add (c, xd)", "Add (c, x)"),)),
    "both-sides-of-sum": Broken(
        "residual",
        "Add -> total",
        (
            (
                "total = Add (c, xd)",
                "cq = QuantizeLinear (c, ys, zp) cd = DequantizeLinear (cq, ys, zp) "
                "total = Add (cd, xd)",
            ),
        ),
    ),
    "pool-ends-in-float": Broken(
        "int8-out",
        "GlobalAveragePool -> pooled",
        (
            ("(flat, fs, zp)", "(also, fs, zp)"),
            ("flat = Fl", "also = ReduceMean <keepdims = 0> (yd, axes) flat = Fl"),
            ("float ys =", "int64[2] axes = {2,3}, float ys ="),
        ),
    ),
    "moved-between-scales": Broken(
        "one-scale",
        "MaxPool -> m",
        (
            (
                "pooled = GlobalAveragePool (yd)",
                "m = MaxPool <kernel_shape = [2,2]> (yd) mq = QuantizeLinear (m, fs, zp) "
                "md = DequantizeLinear (mq, fs, zp) pooled = GlobalAveragePool (md)",
            ),
        ),
    ),
    "batch-norm": Broken(
        "batch-norm",
        "BatchNormalization -> n",
        (
            ("total = Add (c, xd)", "n = BatchNormalization (c, b, b, b, ws)"),
            ("Relu (total)", "Relu (n)"),
        ),
    ),
}


def test_good_graph_breaks_no_rule(tmp_path: Path) -> None:
    assert violations(tmp_path, GOOD, generation=10) == []
    assert violations(tmp_path, GOOD, generation=11) == []


@pytest.mark.parametrize("case", BROKEN.values(), ids=BROKEN.keys())
def test_rule_names_the_node_when_broken(case: Broken, tmp_path: Path) -> None:
    found = violations(tmp_path, changed(*case.changes))

    assert (case.rule, case.node) in [(one.rule, one.node) for one in found], found


def test_every_rule_has_a_case_and_a_source() -> None:
    assert {rule.id for rule in RULES} == {case.rule for case in BROKEN.values()} | {"single-file"}
    assert all(rule.source.startswith("https://") for rule in RULES)


def test_newer_generation_takes_newer_opset(tmp_path: Path) -> None:
    text = changed(('"" : 18', '"" : 25'), ("ir_version: 8", "ir_version: 13"))

    assert violations(tmp_path, text, generation=11) == []


def test_weights_in_another_file_are_a_violation(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(GOOD)
    for tensor in model.graph.initializer:  # only raw bytes can lie elsewhere
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    onnx.external_data_helper.convert_model_to_external_data(model, size_threshold=0)
    onnx.save(model, tmp_path / "model.onnx")

    found = check_rules(tmp_path / "model.onnx", 11)

    assert {one.rule for one in found} == {"single-file"}


@pytest.mark.parametrize(("transposed", "axis"), [(1, 0), (0, 1)], ids=["NK", "KN"])
def test_gemm_scales_lie_along_its_outputs(transposed: int, axis: int, tmp_path: Path) -> None:
    shape, wrong = ([3, 2], 1 - axis) if transposed else ([2, 3], 1 - axis)
    text = changed(
        ("int8[3,2] g", f"int8[{shape[0]},{shape[1]}] g"),
        ("transB = 1", f"transB = {transposed}"),
        ("DequantizeLinear <axis = 0> (g,", f"DequantizeLinear <axis = {axis}> (g,"),
    )
    assert violations(tmp_path, text) == []

    text = text.replace(f"<axis = {axis}> (g,", f"<axis = {wrong}> (g,")
    assert "per-channel" in [one.rule for one in violations(tmp_path, text)]


def test_transposed_convolution_scales_lie_along_axis_one(tmp_path: Path) -> None:
    text = changed(("Conv (", "ConvTranspose ("))
    assert [one.rule for one in violations(tmp_path, text)] == ["per-channel"]

    text = text.replace("<axis = 0> (w,", "<axis = 1> (w,")
    assert violations(tmp_path, text) == []


def test_check_rules_refuses_what_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a graph \xff\xff")

    with pytest.raises(GraphError, match="not an ONNX file"):
        check_rules(tmp_path / "model.onnx", 10)
    with pytest.raises(GraphError, match="generation is 8"):
        check_rules(tmp_path / "model.onnx", 8)
    with pytest.raises(MissingFileError, match="export the student"):
        check_rules(tmp_path / "other.onnx", 10)


def test_foreign_operators_are_a_violation(tmp_path: Path) -> None:
    node = helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "g", [value], [helper.make_empty_tensor_value_info("y")])
    onnx.save(helper.make_model(graph, ir_version=8), tmp_path / "model.onnx")

    found = check_rules(tmp_path / "model.onnx", 11)

    assert "com.microsoft.FusedConv is no standard operator" in str(found[1])
