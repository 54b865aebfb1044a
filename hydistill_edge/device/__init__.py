"""What runs on the device: neither torch nor onnx."""

from __future__ import annotations

from hydistill_edge.device.runner import ImageLike, Model, Result, load

__all__ = ["ImageLike", "Model", "Result", "load"]
