"""Which tensors of a float graph its layers read: those are what int8 has to represent well."""

from __future__ import annotations

from pathlib import Path

import onnx

LAYERS = ("Conv", "Gemm", "MatMul")


def layer_inputs(path: Path, *, leave_out: tuple[str, ...] = ()) -> list[str]:
    """Return the activations that the layers with weights read, in order, each once.

    Args:
        path: a float ONNX file.
        leave_out: names to skip, such as the normalized pixels, whose range is fixed.
    """
    graph = onnx.load(str(path), load_external_data=False).graph
    made = {name for node in graph.node for name in node.output}
    read = [name for node in graph.node if node.op_type in LAYERS for name in node.input]
    return [name for name in dict.fromkeys(read) if name in made and name not in leave_out]
