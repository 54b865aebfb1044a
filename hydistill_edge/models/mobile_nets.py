"""Mobile networks of the zoo: torchvision's, fitted to channels, size and width.

Each is torchvision's own class, so weights, names and converters fit. What is changed: the first
convolution takes the input's channels; strides follow the rule in `sizing.py`; activations work
out of place, so that every feature can be tapped; dropout and stochastic depth are off, since a
student learns from soft targets.
"""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn
from torchvision.models.efficientnet import MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig

from hydistill_edge.models.sizing import plan_strides, scaled

MOBILENET_V2_STAGES = (
    # expansion, channels, blocks, stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)

MOBILENET_V3_SMALL_BLOCKS = (
    # input, kernel, expanded, output, squeeze-excitation, activation, stride
    (16, 3, 16, 16, True, "RE", 2),
    (16, 3, 72, 24, False, "RE", 2),
    (24, 3, 88, 24, False, "RE", 1),
    (24, 5, 96, 40, True, "HS", 2),
    (40, 5, 240, 40, True, "HS", 1),
    (40, 5, 240, 40, True, "HS", 1),
    (40, 5, 120, 48, True, "HS", 1),
    (48, 5, 144, 48, True, "HS", 1),
    (48, 5, 288, 96, True, "HS", 2),
    (96, 5, 576, 96, True, "HS", 1),
    (96, 5, 576, 96, True, "HS", 1),
)

EFFICIENTNET_B0_STAGES = (
    # expansion, kernel, stride, input, output, blocks
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)

SHUFFLENET_V2_CHANNELS = (24, 116, 232, 464, 1024)


def build_mobilenet_v2(
    *, classes: int, channels: int, size: tuple[int, int], width: float
) -> nn.Module:
    """Return MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381).

    Args:
        classes: number of logits.
        channels: of the input.
        size: height and width of the input in pixels.
        width: multiplier of the channels.
    """
    strides = plan_strides(size, [2, *(stage[3] for stage in MOBILENET_V2_STAGES)])
    network: Any = torchvision.models.MobileNetV2(
        num_classes=classes,
        width_mult=width,
        dropout=0.0,
        inverted_residual_setting=[
            [t, c, n, stride]
            for (t, c, n, _), stride in zip(MOBILENET_V2_STAGES, strides[1:], strict=True)
        ],
    )
    network.features[0][0] = _first_conv(network.features[0][0], channels, strides[0])
    return _out_of_place(network)


def build_mobilenet_v3_small(
    *, classes: int, channels: int, size: tuple[int, int], width: float
) -> nn.Module:
    """Return MobileNetV3-Small (Howard et al. 2019, arXiv:1905.02244).

    Args:
        classes: number of logits.
        channels: of the input.
        size: height and width of the input in pixels.
        width: multiplier of the channels.
    """
    strides = plan_strides(size, [2, *(block[-1] for block in MOBILENET_V3_SMALL_BLOCKS)])
    blocks = [
        InvertedResidualConfig(*block[:-1], stride, 1, width)
        for block, stride in zip(MOBILENET_V3_SMALL_BLOCKS, strides[1:], strict=True)
    ]
    network: Any = torchvision.models.MobileNetV3(
        blocks, last_channel=scaled(1024, width), num_classes=classes, dropout=0.0
    )
    network.features[0][0] = _first_conv(network.features[0][0], channels, strides[0])
    return _out_of_place(network)


def build_efficientnet_b0(
    *, classes: int, channels: int, size: tuple[int, int], width: float
) -> nn.Module:
    """Return EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946).

    Args:
        classes: number of logits.
        channels: of the input.
        size: height and width of the input in pixels.
        width: multiplier of the channels.
    """
    strides = plan_strides(size, [2, *(stage[2] for stage in EFFICIENTNET_B0_STAGES)])
    stages = [
        MBConvConfig(expand, kernel, stride, inputs, outputs, blocks, width_mult=width)
        for (expand, kernel, _, inputs, outputs, blocks), stride in zip(
            EFFICIENTNET_B0_STAGES, strides[1:], strict=True
        )
    ]
    network: Any = torchvision.models.EfficientNet(
        stages, dropout=0.0, stochastic_depth_prob=0.0, num_classes=classes
    )
    network.features[0][0] = _first_conv(network.features[0][0], channels, strides[0])
    return _out_of_place(network)


def build_shufflenet_v2(
    *, classes: int, channels: int, size: tuple[int, int], width: float
) -> nn.Module:
    """Return ShuffleNetV2 1x (Ma et al. 2018, arXiv:1807.11164).

    Args:
        classes: number of logits.
        channels: of the input.
        size: height and width of the input in pixels.
        width: multiplier of the channels.
    """
    # Steps: first convolution, pooling, three stages.
    strides = plan_strides(size, [2] * 5)
    network: Any = torchvision.models.ShuffleNetV2(
        [4, 8, 4], [scaled(planes, width) for planes in SHUFFLENET_V2_CHANNELS], num_classes=classes
    )
    network.conv1[0] = _first_conv(network.conv1[0], channels, strides[0])
    if strides[1] == 1:
        network.maxpool = nn.Identity()
    for stage, stride in zip(
        (network.stage2, network.stage3, network.stage4), strides[2:], strict=True
    ):
        # Only the depthwise convolutions of a stage's first block have the stride.
        stage[0].branch1[0].stride = (stride, stride)
        stage[0].branch2[3].stride = (stride, stride)
    return _out_of_place(network)


def _first_conv(published: nn.Conv2d, channels: int, stride: int) -> nn.Conv2d:
    """Return the published first convolution for other input channels and another stride."""
    conv = nn.Conv2d(channels, published.out_channels, 3, stride, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv


def _out_of_place(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(getattr(module, "inplace", None), bool):
            module.inplace = False  # type: ignore[assignment]
    return network
