"""Networks that images are made from, and what stands in for missing BatchNorm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.anatomy import find_anatomy
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.bn_statistics import bn_distance
from hydistill_edge.synthesis.canvas import canvas_of
from hydistill_edge.synthesis.real_statistics import RealStatistics
from hydistill_edge.synthesis.witness import ends_without_norm, witnesses

SPEC = InputSpec(8, 8, 1, (0.5,), (0.25,))
CPU = torch.device("cpu")


def head(width: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2)]


def plain(*middle: nn.Module, width: int = 4) -> nn.Sequential:
    torch.default_generator.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), *middle, *head(width)).eval()


def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 4, 1)


def norm() -> nn.BatchNorm2d:
    return nn.BatchNorm2d(4)


@pytest.mark.parametrize(
    ("middle", "bare"),
    [
        ([norm(), nn.ReLU()], False),
        ([norm(), nn.ReLU(), conv(), norm()], False),
        ([norm(), nn.ReLU(), conv(), nn.ReLU()], True),
        ([nn.ReLU(), conv()], True),
        ([nn.GroupNorm(2, 4), nn.ReLU()], True),
    ],
    ids=["norm-last", "norm-behind-each", "conv-last", "no-norm", "group-norm"],
)
def test_end_without_norm_is_seen(middle: list[nn.Module], bare: bool) -> None:
    network = plain(*middle)
    assert ends_without_norm(network, find_anatomy(network, torch.randn(2, 1, 8, 8))) is bare


def test_real_statistics_are_zero_apart_when_the_same_images_come_again() -> None:
    network = plain(nn.ReLU(inplace=True), conv())
    images = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with RealStatistics(network, leave_out=["5"], overwritten=frozenset({"0"})) as reader:
        reader.remember(network, list(torch.split(images, 3)))
        network(images)
        layers = reader.take()
        assert [layer.name for layer in layers] == ["0", "2"]
        assert bn_distance(layers).item() == pytest.approx(0.0, abs=1e-5)
        network(images * 2)
        assert bn_distance(reader.take()).item() > 0.1


def test_real_statistics_have_a_gradient_when_a_layer_is_overwritten() -> None:
    network = plain(nn.ReLU(inplace=True), conv()).requires_grad_(False)
    images = torch.rand(4, 1, 8, 8)
    with RealStatistics(network, leave_out=["5"], overwritten=frozenset({"0"})) as reader:
        reader.remember(network, [images])
        pixels = torch.rand(4, 1, 8, 8).requires_grad_()
        network(pixels)
        torch.autograd.backward(bn_distance(reader.take()))
    assert pixels.grad is not None
    assert pixels.grad.abs().max() > 0


class Tokens(nn.Module):
    """A classifier of patches, with LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 6)
        self.norm = nn.LayerNorm(6)
        self.last = nn.Linear(6, 2)

    def forward(self, images: Tensor) -> Tensor:
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(1, 3).flatten(2)
        logits: Tensor = self.last(self.norm(self.embed(patches)).mean(dim=1))
        return logits


def test_channels_of_tokens_are_their_last_dimension() -> None:
    network = Tokens().eval()
    with RealStatistics(network, leave_out=["last"], overwritten=frozenset()) as reader:
        reader.remember(network, [torch.rand(4, 1, 8, 8)])
        network(torch.rand(4, 1, 8, 8))
        assert [tuple(layer.mean.shape) for layer in reader.take()] == [(6,)]


def test_real_images_are_refused_when_no_layer_can_be_read() -> None:
    teacher = Teacher.wrap(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), classes=("a", "b"), spec=SPEC
    )
    real = torch.randint(0, 256, (3, 8, 8, 1), dtype=torch.uint8).numpy()
    with (
        pytest.raises(MethodError, match="no convolution or linear layer"),
        witnesses([teacher], real=real, layer_weights={}, output=None, device=CPU),
    ):
        pass


def test_memory_of_an_image_counts_every_layer_once() -> None:
    teacher = Teacher.wrap(plain(norm(), nn.ReLU()), classes=("a", "b"), spec=SPEC)
    with witnesses([teacher], real=None, layer_weights={}, output=None, device=CPU) as (witness,):
        found = witness.image_bytes(canvas_of(teacher, None, CPU))
    map_bytes = 4 * 6 * 6 * 4  # four channels of 6x6 floats: into BatchNorm and out of ReLU
    assert 2 * map_bytes <= found <= 4 * map_bytes


def test_other_sizes_are_taken_only_by_networks_that_pool() -> None:
    flat = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    answers = []
    for network in (plain(), flat):
        teacher = Teacher.wrap(network, classes=("a", "b"), spec=SPEC)
        with witnesses([teacher], real=None, layer_weights={}, output=None, device=CPU) as (one,):
            answers.append(one.takes(canvas_of(teacher, None, CPU), (4, 4)))
    assert answers == [True, False]


def test_output_term_is_on_by_itself_only_when_no_norm_sees_the_end() -> None:
    found = []
    for middle in ([norm(), nn.ReLU()], [norm(), conv()]):
        teacher = Teacher.wrap(plain(*middle), classes=("a", "b"), spec=SPEC)
        for output in (None, 0.0, 0.5):
            with witnesses(
                [teacher], real=None, layer_weights={}, output=output, device=CPU
            ) as panel:
                found.append(panel[0].output_weight)
    assert found == [0.0, 0.0, 0.5, 0.1, 0.0, 0.5]


def test_layer_weight_may_be_of_any_network() -> None:
    teachers = [
        Teacher.wrap(plain(*middle), classes=("a", "b"), spec=SPEC)
        for middle in ([norm()], [nn.ReLU(), norm()])
    ]
    with witnesses(teachers, real=None, layer_weights={"2": 0.0}, output=None, device=CPU):
        pass
    with (
        pytest.raises(UsageError, match="names 9; the BatchNorm layers are 1, 2"),
        witnesses(teachers, real=None, layer_weights={"9": 0.0}, output=None, device=CPU),
    ):
        pass
