"""Names of architectures, for people."""

from __future__ import annotations

import pytest

from hydistill_edge.naming import network_name


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("zoo:resnet8", "resnet8"),
        ("torchvision:regnet_y_400mf", "regnet_y_400mf"),
        ("projected:zoo:resnet20", "resnet20, projected"),
        ("projected:slimmed:/customer/secret/net.py:build", "net.py:build, projected, slimmed"),
        ("onnx:the teacher (2).onnx", "onnx:the teacher (2).onnx"),
        ("", ""),
    ],
)
def test_name_is_short_and_tells_no_folder(architecture: str, name: str) -> None:
    assert network_name(architecture) == name
