"""What runs on the device: neither torch nor onnx."""
