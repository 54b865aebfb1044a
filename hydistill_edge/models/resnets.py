"""Residual networks of the zoo: ResNet, wide ResNet, ResNet-9."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.models.sizing import ConvClassifier, initialise, plan_strides, scaled

Shortcut = Literal["conv", "pool"]
"""What stands in a shortcut where shapes change: a 1x1 convolution with the block's stride; or max
pooling by the stride and a 1x1 convolution, which sees all positions and not a quarter of them.

Source: Zhong and Liu 2025, arXiv:2309.04195, for blocks whose branches are dropped."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; the block's output is after the last ReLU.

    Args:
        channels_in: of the input.
        channels: of both convolutions.
        stride: of the first one.
        shortcut: what stands there where shapes change.

    Source: He et al. 2015, arXiv:1512.03385; the shortcut is a 1x1 convolution where shapes change.
    """

    expansion = 1

    def __init__(
        self, channels_in: int, channels: int, stride: int, shortcut: Shortcut = "conv"
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                *_bring(channels_in, channels, stride, shortcut), nn.BatchNorm2d(channels)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the block's output (N, channels, H / stride, W / stride)."""
        hidden = self.relu1(self.bn1(self.conv1(inputs)))
        output: Tensor = self.relu2(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))
        return output


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; four times as many channels come out.

    Args:
        channels_in: of the input.
        channels: of the first two convolutions.
        stride: of the 3x3 one.
        shortcut: what stands there where shapes change.

    Source: He et al. 2015, arXiv:1512.03385, figure 5.
    """

    expansion = 4

    def __init__(
        self, channels_in: int, channels: int, stride: int, shortcut: Shortcut = "conv"
    ) -> None:
        super().__init__()
        wide = channels * self.expansion
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.relu3 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != wide:
            self.shortcut = nn.Sequential(
                *_bring(channels_in, wide, stride, shortcut), nn.BatchNorm2d(wide)
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the block's output (N, 4 channels, H / stride, W / stride)."""
        hidden = self.relu1(self.bn1(self.conv1(inputs)))
        hidden = self.relu2(self.bn2(self.conv2(hidden)))
        output: Tensor = self.relu3(self.bn3(self.conv3(hidden)) + self.shortcut(inputs))
        return output


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after norm and ReLU, around a shortcut.

    Args:
        channels_in: of the input.
        channels: of both convolutions.
        stride: of the first one.
        shortcut: what stands there where shapes change.

    Source: He et al. 2016, arXiv:1603.05027, as used by Zagoruyko and Komodakis, arXiv:1605.07146.
    """

    def __init__(
        self, channels_in: int, channels: int, stride: int, shortcut: Shortcut = "conv"
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or channels_in != channels:
            layers = _bring(channels_in, channels, stride, shortcut)
            self.shortcut = layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the block's output (N, channels, H / stride, W / stride)."""
        active = self.relu1(self.bn1(inputs))
        hidden: Tensor = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        shortcut: Tensor = inputs if self.shortcut is None else self.shortcut(active)
        return hidden + shortcut


class PlainResidual(nn.Module):
    """Two convolution-norm-ReLU layers added to their input, without a ReLU after the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn_relu(channels, channels)
        self.second = conv_bn_relu(channels, channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return a map of the input's shape."""
        output: Tensor = inputs + self.second(self.first(inputs))
        return output


class Pool(nn.Module):
    """Max pooling by `stride` with windows of the same size; stride 1 passes."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the map at 1 / stride of the size, rounded up."""
        if self.stride == 1:
            return inputs
        return F.max_pool2d(inputs, self.stride, self.stride, ceil_mode=True)


def _bring(
    channels_in: int, channels: int, stride: int, shortcut: Shortcut
) -> tuple[nn.Module, ...]:
    """Return the layers that bring a block's input to the shape of its output, without a norm."""
    if shortcut == "pool" and stride > 1:
        return Pool(stride), nn.Conv2d(channels_in, channels, 1, bias=False)
    return (nn.Conv2d(channels_in, channels, 1, stride, bias=False),)


def conv_bn_relu(channels_in: int, channels: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def build_resnet(
    blocks: Sequence[int],
    base: int,
    *,
    classes: int,
    channels: int,
    size: tuple[int, int],
    width: float,
    shortcut: Shortcut = "conv",
    block: type[BasicBlock | Bottleneck] = BasicBlock,
) -> nn.Module:
    """Return a ResNet behind a 3x3 stem; channels double per stage.

    Args:
        blocks: number of blocks per stage.
        base: channels of the first stage at width 1.
        classes: number of logits.
        channels: of the input.
        size: height and width of the input in pixels.
        width: multiplier of the channels.
        shortcut: what stands in the shortcuts where shapes change.
        block: what the stages are made of.
    """
    # Steps: stem, pooling behind it, then the stages; the first two grow with the input.
    strides = plan_strides(size, [1, 1, 1, *[2] * (len(blocks) - 1)], optional=2)
    planes = scaled(base, width)
    stages: dict[str, nn.Module] = {"stem": conv_bn_relu(channels, planes, strides[0])}
    if strides[1] > 1:
        stages["pool"] = Pool(strides[1])
    for index, count in enumerate(blocks):
        inside = scaled(base * 2**index, width)
        outside = inside * block.expansion
        stage: list[nn.Module] = [block(planes, inside, strides[2 + index], shortcut)]
        stage += [block(outside, inside, 1) for _ in range(count - 1)]
        stages[f"stage{index + 1}"] = nn.Sequential(*stage)
        planes = outside
    network = ConvClassifier(stages, channels=planes, classes=classes)
    initialise(network)
    return network


def build_wide_resnet(
    depth: int,
    widen: int,
    *,
    classes: int,
    channels: int,
    size: tuple[int, int],
    width: float,
    shortcut: Shortcut = "conv",
) -> nn.Module:
    """Return a wide ResNet: three stages of pre-activation blocks behind a 3x3 stem.

    Args:
        depth: 6 n + 4 for n blocks per stage.
        widen: published factor of the stages' channels over 16, 32, 64.
        classes: number of logits.
        channels: of the input.
        size: height and width of the input in pixels.
        width: multiplier of the channels on top.
        shortcut: what stands in the shortcuts where shapes change.
    """
    strides = plan_strides(size, [1, 1, 1, 2, 2], optional=2)
    planes = scaled(16, width)
    stem = nn.Conv2d(channels, planes, 3, strides[0], 1, bias=False)
    stages: dict[str, nn.Module] = {"stem": stem}
    if strides[1] > 1:
        stages["pool"] = Pool(strides[1])
    for index in range(3):
        inside = scaled(16 * 2**index * widen, width)
        stage = [PreActBlock(planes, inside, strides[2 + index], shortcut)]
        stage += [PreActBlock(inside, inside, 1) for _ in range((depth - 4) // 6 - 1)]
        stages[f"stage{index + 1}"] = nn.Sequential(*stage)
        planes = inside
    stages["last"] = nn.Sequential(nn.BatchNorm2d(planes), nn.ReLU())
    network = ConvClassifier(stages, channels=planes, classes=classes)
    initialise(network)
    return network


def build_resnet9(*, classes: int, channels: int, size: tuple[int, int], width: float) -> nn.Module:
    """Return the nine-layer residual network of fast CIFAR training.

    Source: Page 2019, https://github.com/davidcpage/cifar10-fast; the mean of the final map takes
    the place of its maximum, so that the classifier sees what methods align.

    Args:
        classes: number of logits.
        channels: of the input.
        size: height and width of the input in pixels.
        width: multiplier of the channels.
    """
    w1, w2, w3, w4 = (scaled(planes, width) for planes in (64, 128, 256, 512))
    strides = plan_strides(size, [1, 1, 2, 2, 2], optional=2)
    stages: dict[str, nn.Module] = {"stem": conv_bn_relu(channels, w1, strides[0])}
    if strides[1] > 1:
        stages["pool"] = Pool(strides[1])
    stages["stage1"] = nn.Sequential(conv_bn_relu(w1, w2), Pool(strides[2]), PlainResidual(w2))
    stages["stage2"] = nn.Sequential(conv_bn_relu(w2, w3), Pool(strides[3]))
    stages["stage3"] = nn.Sequential(conv_bn_relu(w3, w4), Pool(strides[4]), PlainResidual(w4))
    network = ConvClassifier(stages, channels=w4, classes=classes)
    initialise(network)
    return network
