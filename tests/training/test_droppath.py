"""Branches that are left out in training, and a network that knows nothing of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.zoo import ZOO, create_network
from hydistill_edge.training.blocks import Bypass
from hydistill_edge.training.droppath import DropPath, DroppedPaths, VirtualShortcut

SAME = Bypass("in", "out", (3, 2, 2), (3, 2, 2))
SMALLER = Bypass("in", "out", (2, 4, 4), (3, 2, 2))
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _own_randomness() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def network(name: str) -> nn.Module:
    return create_network(name, classes=3, channels=3, size=(16, 16), width=0.25).eval()


def dropping(name: str) -> tuple[nn.Module, DroppedPaths]:
    made = network(name)
    return made, DroppedPaths(made, IMAGES)


def test_branch_of_an_image_is_zero_or_scaled_when_it_trains() -> None:
    layer, branch = DropPath(), torch.rand(1000, 2, 3, 3) + 0.5
    layer.keep = 0.8
    share = (layer(branch) / branch).amax(dim=(1, 2, 3))
    assert torch.equal((layer(branch) / branch).std(dim=(1, 2, 3)) < 1e-6, torch.ones(1000) > 0)
    assert set(share.round(decimals=4).tolist()) == {0.0, 1.25}


@pytest.mark.parametrize("keep", [0.35, 0.5, 0.9])
def test_mean_over_many_masks_is_the_branch(keep: float) -> None:
    layer, branch = DropPath(), torch.rand(1, 2, 3, 3).expand(40_000, -1, -1, -1)
    layer.keep = keep
    # Four standard errors of m / p over 40,000 draws.
    error = 4 * ((1 - keep) / keep / 40_000) ** 0.5
    torch.testing.assert_close(layer(branch).mean(0), branch[0], rtol=error, atol=0)


@pytest.mark.parametrize(("keep", "training"), [(1.0, True), (0.5, False), (1.0, False)])
def test_branch_passes_untouched_when_all_are_kept_or_it_judges(
    keep: float, training: bool
) -> None:
    layer, branch = DropPath().train(training), torch.randn(2, 3, 4, 4)
    layer.keep = keep
    assert layer(branch) is branch


def test_unit_gives_main_or_what_entered_and_nothing_is_scaled() -> None:
    unit, main, entering = (
        VirtualShortcut(SAME),
        torch.ones(1000, 3, 2, 2),
        torch.zeros(1000, 3, 2, 2),
    )
    unit.keep = 0.7
    out = unit(main, entering)
    assert set(out.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(out.amin(dim=(1, 2, 3)), out.amax(dim=(1, 2, 3)))
    assert out.mean().item() == pytest.approx(0.7, abs=0.06)


def test_what_goes_around_is_pooled_and_brought_to_the_channels_when_shapes_differ() -> None:
    unit, entering = VirtualShortcut(SMALLER), torch.randn(64, 2, 4, 4)
    unit.keep = 1e-6
    expected = unit.bring(F.max_pool2d(entering, 2, 2))
    assert torch.equal(unit(torch.zeros(64, 3, 2, 2), entering), expected)


@pytest.mark.parametrize(("keep", "training"), [(1.0, True), (0.5, False)])
def test_nothing_goes_around_when_all_is_kept_or_it_judges(keep: float, training: bool) -> None:
    unit, main = VirtualShortcut(SMALLER).train(training), torch.randn(2, 3, 2, 2)
    unit.keep = keep
    before = copy.deepcopy(unit.state_dict())
    assert unit(main, torch.randn(2, 2, 4, 4)) is main
    assert all(torch.equal(value, before[name]) for name, value in unit.state_dict().items())


BRANCHES = {
    "resnet8": 3, "resnet20": 9, "resnet56": 27, "resnet18": 8, "resnet34": 16, "resnet50": 16,
    "resnet9": 2, "wrn16_2": 6, "wrn28_2": 12, "wrn40_2": 18, "mobilenet_v2": 13,
    "mobilenet_v3_small": 9, "efficientnet_b0": 11,
}  # fmt: skip
UNITS = {
    "vgg8": 2, "vgg8_bn": 2, "vgg11": 3, "vgg11_bn": 3, "alexnet": 2, "convnet3": 1,
    "convnet3_bn": 1, "shufflenet_v2": 13,
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_blocks_of_every_network_of_the_zoo_are_told(name: str) -> None:
    made, paths = dropping(name)
    found = (len(paths.blocks.branches), len(paths.blocks.bypasses))
    assert found == (BRANCHES.get(name, 0), UNITS.get(name, 0))
    assert paths.set_keep(0.5) == sum(found) == len(paths.units)
    assert all(unit.keep == 0.5 for unit in paths.units)
    made.train()
    images = IMAGES.repeat(8, 1, 1, 1)
    once, twice = paths(images), paths(images)
    assert not torch.equal(once, twice), "the keep rate changes nothing"


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("training", [True, False])
def test_output_is_that_of_the_plain_network_when_all_branches_are_kept(
    name: str, training: bool
) -> None:
    made, paths = dropping(name)
    made.train(training)
    paths.train(training)
    if not training:
        paths.set_keep(0.5)
    assert torch.equal(paths(IMAGES), made(IMAGES))


@pytest.mark.parametrize("name", ["resnet8", "vgg11_bn"])
def test_network_has_no_trace_of_its_training_form(name: str) -> None:
    plain = network(name)
    made, paths = dropping(name)
    paths.set_keep(0.5)
    assert list(made.state_dict()) == list(plain.state_dict())
    assert [type(part) for part in made.modules()] == [type(part) for part in plain.modules()]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in made.modules())
    inside = {id(parameter) for parameter in made.parameters()}
    assert not inside & {id(parameter) for parameter in paths.parameters()}


@pytest.mark.parametrize("name", ["resnet8", "vgg11_bn", "shufflenet_v2"])
def test_weights_get_gradients_through_the_training_form(name: str) -> None:
    made, paths = dropping(name)
    made.train()
    paths.set_keep(0.5)
    paths(IMAGES.repeat(8, 1, 1, 1)).square().sum().backward()
    for parameter in [*made.parameters(), *paths.parameters()]:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    assert sum(p.grad.abs().sum() for p in made.parameters() if p.grad is not None) > 0


def test_virtual_shortcuts_have_no_gradient_in_the_first_phase() -> None:
    made, paths = dropping("vgg11_bn")
    made.train()
    paths(IMAGES).square().sum().backward()
    assert all(parameter.grad is None for parameter in paths.parameters())


def test_units_are_the_published_ones_of_vgg_11() -> None:
    big = create_network("vgg11_bn", classes=10, channels=3, size=(64, 64)).eval()
    units = DroppedPaths(big, torch.randn(2, 3, 64, 64)).blocks.bypasses
    channels = [(unit.entering[0], unit.leaving[0]) for unit in units]
    assert channels == [(128, 256), (256, 512), (512, 512)]
    assert all(unit.entering[1:] == unit.leaving[1:] for unit in units), "poolings stay outside"


def test_units_are_the_published_ones_of_alexnet() -> None:
    units = DroppedPaths(
        create_network("alexnet", classes=10, channels=3, size=(32, 32)).eval(),
        torch.randn(2, 3, 32, 32),
    ).blocks.bypasses
    assert [(unit.entering, unit.leaving) for unit in units] == [
        ((128, 16, 16), (256, 8, 8)),  # with a pooling inside
        ((256, 8, 8), (192, 8, 8)),
    ]


@pytest.mark.parametrize(
    ("name", "depth"), [("resnet8", 8), ("resnet18", 18), ("resnet50", 50), ("vgg11", 9)]
)
def test_depth_is_that_of_the_longest_way(name: str, depth: int) -> None:
    assert dropping(name)[1].blocks.depth == depth


@pytest.mark.parametrize(
    ("name", "branches", "units"),
    [("resnet18", 8, 0), ("regnet_y_400mf", 16, 0), ("vgg11", 0, 3), ("alexnet", 0, 2)],
)
def test_blocks_of_a_network_of_torchvision_are_told(name: str, branches: int, units: int) -> None:
    # Its ResNet uses one ReLU twice in a block, and its activations work in place.
    made = torchvision.models.get_model(name, num_classes=3).eval()
    images = torch.randn(2, 3, 64, 64)
    paths = DroppedPaths(made, images)
    assert (len(paths.blocks.branches), len(paths.blocks.bypasses)) == (branches, units)
    made.train()
    paths.set_keep(0.5)
    paths(images).sum().backward()


class Choosing(nn.Module):
    """Decides on its input what to do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 2))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(images if images.mean() > 0 else -images)
        return logits


class Dicing(nn.Module):
    """Answers differently each time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 2))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layers(F.dropout(images, 0.5))
        return logits


class Forking(nn.Module):
    """Puts maps side by side, as a DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self.first(images), self.second(images)], 1)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (Choosing(), "cannot be written as a graph"),
        (Dicing(), "does not repeat itself"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 2)), "1 convolutions"),
        (nn.Sequential(Forking(), nn.Flatten(), nn.Linear(1024, 2)), "no residual block"),
    ],
    ids=["data-dependent", "random", "shallow", "dense"],
)
def test_network_is_refused_with_the_remedy_when_its_blocks_cannot_be_told(
    made: nn.Module, says: str
) -> None:
    with pytest.raises(MethodError, match=f"{says}.*drop_path: false"):
        DroppedPaths(made.eval(), torch.randn(2, 3, 16, 16))


def test_virtual_shortcuts_start_alike_when_the_seed_is_the_same() -> None:
    made = network("vgg11_bn")
    state = torch.get_rng_state()
    one, two, other = (DroppedPaths(made, IMAGES, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [next(iter(paths.parameters())) for paths in (one, two, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_compiled_network_is_not_compiled_anew_for_every_keep_rate() -> None:
    made, paths = dropping("resnet8")
    made.train()
    counter = CompileCounter()
    fast = torch.compile(paths, backend=counter)
    for rate in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.8):
        paths.set_keep(rate)
        fast(IMAGES)
    assert counter.frame_count == 2  # with and without dropping


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_keep_rate_is_refused_when_it_is_no_share(rate: float) -> None:
    with pytest.raises(UsageError, match=f"keep rate {rate}"):
        dropping("resnet8")[1].set_keep(rate)
