"""Networks of the zoo without shortcuts: VGG, AlexNet, ConvNet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from hydistill_edge.models.resnets import Pool
from hydistill_edge.models.sizing import ConvClassifier, initialise, plan_strides, scaled

CONVNET_CHANNELS = (128, 128, 128)
CONVNET_BN_CHANNELS = (128, 256, 512)

ALEXNET = ((5, 128, True), (5, 192, True), (3, 256, False), (3, 192, False), (3, 192, True))
"""Kernel of each convolution, its channels at width 1, and whether a pooling follows."""


def build_vgg(
    blocks: Sequence[Sequence[int]],
    *,
    norm: bool,
    classes: int,
    channels: int,
    size: tuple[int, int],
    width: float,
) -> nn.Module:
    """Return a VGG: blocks of 3x3 convolutions with max pooling between, and one linear layer.

    Source: Simonyan and Zisserman 2014, arXiv:1409.1556; the hidden linear layers are left out, as
    in the small-image form that distillation papers use.

    Args:
        blocks: channels of the convolutions of each block at width 1.
        norm: with batch norm after each convolution, or without any.
        classes: number of logits.
        channels: of the input.
        size: height and width of the input in pixels.
        width: multiplier of the channels.
    """
    # The last poolings go first: the early maps are what a VGG costs.
    strides = plan_strides(size, [2] * len(blocks), drop="last")
    stages: dict[str, nn.Module] = {}
    planes = channels
    for index, (block, stride) in enumerate(zip(blocks, strides, strict=True)):
        layers: list[nn.Module] = []
        for published in block:
            inside = scaled(published, width)
            layers.append(nn.Conv2d(planes, inside, 3, 1, 1, bias=not norm))
            layers += [nn.BatchNorm2d(inside)] if norm else []
            layers.append(nn.ReLU())
            planes = inside
        stages[f"stage{index + 1}"] = nn.Sequential(*layers, Pool(stride))
    network = ConvClassifier(stages, channels=planes, classes=classes)
    initialise(network)
    return network


class ConvNet(nn.Module):
    """Three convolutions with norm, ReLU and average pooling; the map is flattened.

    The small network of data-set distillation. Its linear layer sees every pixel of the final
    map, so it shares no classifier with other networks.

    Args:
        planes: channels of the convolutions at width 1.
        batch_norm: batch norm instead of instance norm.
        classes: number of logits.
        channels: of the input.
        size: height and width of the input in pixels.
        width: multiplier of the channels.

    Source: Cazenavette et al. 2022, arXiv:2203.11932; with batch norm and doubling channels,
    Zhou et al. 2022, arXiv:2206.00719.
    """

    def __init__(
        self,
        planes: Sequence[int] = CONVNET_CHANNELS,
        *,
        batch_norm: bool = False,
        classes: int,
        channels: int,
        size: tuple[int, int],
        width: float,
    ) -> None:
        super().__init__()
        stem_stride, _, *pools = plan_strides(size, [1, 1, 2, 2, 2], optional=1)
        layers: list[nn.Module] = []
        height, width_px = (-(-side // stem_stride) for side in size)
        inside = channels
        for index, (published, pool) in enumerate(zip(planes, pools, strict=True)):
            outside = scaled(published, width)
            # One channel per group is instance norm.
            norm = nn.BatchNorm2d(outside) if batch_norm else nn.GroupNorm(outside, outside)
            layers += [
                nn.Conv2d(inside, outside, 3, 1 if index else stem_stride, 1),
                norm,
                nn.ReLU(),
            ]
            if pool > 1:
                layers.append(nn.AvgPool2d(pool, pool))
                height, width_px = height // pool, width_px // pool
            inside = outside
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inside * height * width_px, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of normalised images (N, C, H, W)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class AlexNet(nn.Module):
    """Five convolutions with batch norm and ReLU, three poolings; the map is flattened.

    Args:
        classes: number of logits.
        channels: of the input.
        size: height and width of the input in pixels.
        width: multiplier of the channels.

    Source: Krizhevsky et al. 2012, in the small-image form of Zhong and Liu 2025, arXiv:2309.04195.
    """

    def __init__(self, *, classes: int, channels: int, size: tuple[int, int], width: float) -> None:
        super().__init__()
        stem_stride, *pools = plan_strides(size, [1, 2, 2, 2], optional=1)
        layers: list[nn.Module] = []
        height, width_px = (-(-side // stem_stride) for side in size)
        inside = channels
        for index, (kernel, published, is_pooled) in enumerate(ALEXNET):
            outside = scaled(published, width)
            stride = 1 if index else stem_stride
            layers += [
                nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(outside),
                nn.ReLU(),
            ]
            if is_pooled and (pool := pools.pop(0)) > 1:
                layers.append(Pool(pool))
                height, width_px = -(-height // pool), -(-width_px // pool)
            inside = outside
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inside * height * width_px, classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, classes) of normalised images (N, C, H, W)."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
