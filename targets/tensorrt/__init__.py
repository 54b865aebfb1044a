"""TensorRT as a target."""
