"""The teacher with its layers as products of thinner ones."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, TeacherError, UsageError
from hydistill_edge.models.counting import count
from hydistill_edge.models.factoring import _ranks, _Work, factor, neighbour_share
from hydistill_edge.models.low_rank import factorize, factors, full_rank
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.slimming import slim
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.models.zoo import create_network
from hydistill_edge.seeding import seeded

SIZE = (16, 16)
# These are the student's own statistics, so that folding them in changes nothing at the border.
SPEC = InputSpec(height=16, width=16, channels=3, mean=(128 / 255,) * 3, std=(64 / 255,) * 3)
CLASSES = ("bolt", "nut", "washer")


def teacher_of(network: nn.Module, name: str = "wrapped", **options: object) -> Teacher:
    return Teacher(
        network.eval(), classes=CLASSES, spec=SPEC, architecture=name, options=dict(options)
    )


def zoo_teacher(name: str, **options: float) -> Teacher:
    with seeded(0):
        network = create_network(name, classes=3, channels=3, size=SIZE, **options)  # type: ignore[arg-type]
    return teacher_of(network, f"zoo:{name}", **options)


def pixels(count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *SIZE), generator=generator, dtype=torch.uint8)


LAYERS = {
    "plain": nn.Conv2d(6, 8, 3),
    "padded, strided": nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "no bias": nn.Conv2d(6, 8, 3, padding=1, bias=False),
    "oblong": nn.Conv2d(6, 8, (1, 5), padding=(0, 2)),
    "upright, strided": nn.Conv2d(6, 8, (5, 1), stride=2, padding=(2, 1)),
    "uneven": nn.Conv2d(6, 8, (3, 5), stride=(2, 1), padding=(1, 3), dilation=(1, 2)),
    "dilated": nn.Conv2d(6, 8, 3, padding=2, dilation=2),
    "same": nn.Conv2d(6, 8, 3, padding="same"),
    "upright, same": nn.Conv2d(6, 8, (3, 1), padding="same", padding_mode="circular"),
    "mirrored border": nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
    "pointwise": nn.Conv2d(6, 8, 1),
    "pointwise, strided": nn.Conv2d(6, 8, 1, stride=2),
    "linear": nn.Linear(6, 8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_factors_of_full_rank_compute_what_the_layer_computes(name: str) -> None:
    layer = LAYERS[name]
    shape = (2, 6) if isinstance(layer, nn.Linear) else (2, 6, 9, 9)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    chain = factors(layer, full_rank(layer))
    with torch.no_grad():
        torch.testing.assert_close(chain(inputs), layer(inputs), rtol=1e-4, atol=1e-5)


def product(chain: nn.Module) -> Tensor:
    """Return the kernel (outputs, inputs, rows, columns) that a chain stands for."""
    reduce, expand = chain.children()
    return torch.einsum("orl,rik->oikl", expand.weight[:, :, 0], reduce.weight[..., 0])  # type: ignore[index]


def test_a_linear_layer_becomes_the_nearest_product_of_its_rank() -> None:
    layer = LAYERS["linear"]
    assert isinstance(layer, nn.Linear)
    chain = factors(layer, 2)
    nearest = chain.expand.weight @ chain.reduce.weight  # type: ignore[operator]
    strengths = torch.linalg.svdvals(layer.weight.double())
    error = (nearest.double() - layer.weight.double()).square().sum()
    # Eckart and Young 1936: what is left are the squares of the other singular values.
    torch.testing.assert_close(error, strengths[2:].square().sum(), rtol=1e-4, atol=1e-7)


def test_a_kernel_becomes_the_nearest_pair_of_a_column_and_a_row() -> None:
    generator = torch.Generator().manual_seed(2)
    layer = nn.Conv2d(6, 8, (5, 3))
    chain = factors(layer, 4)
    assert chain.reduce.weight.shape == (4, 6, 5, 1)  # type: ignore[union-attr]
    assert chain.expand.weight.shape == (8, 4, 1, 3)  # type: ignore[union-attr]
    with torch.no_grad():
        least = (product(chain) - layer.weight).square().sum()
        # No column and row that were drawn and then fitted as well as can be come nearer.
        for _ in range(20):
            columns = torch.randn(4, 30, generator=generator)
            weights = layer.weight.permute(1, 2, 0, 3).reshape(30, 24)
            rows = torch.linalg.lstsq(columns.t(), weights).solution
            assert (columns.t() @ rows - weights).square().sum() > least


def test_a_kernel_of_low_rank_is_taken_apart_exactly() -> None:
    generator = torch.Generator().manual_seed(2)
    columns = torch.randn(3, 6, 3, generator=generator)
    rows = torch.randn(8, 3, 3, generator=generator)
    layer = nn.Conv2d(6, 8, 3)
    layer.weight = nn.Parameter(torch.einsum("orl,rik->oikl", rows, columns))
    inputs = torch.randn(1, 6, 7, 7, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(factors(layer, 3)(inputs), layer(inputs), rtol=1e-3, atol=1e-4)
        off = factors(layer, 2)(inputs) - layer(inputs)
    assert off.abs().max() > 0.01  # and with fewer it is not


@pytest.mark.parametrize("name", ["plain", "oblong", "pointwise", "linear"])
def test_more_rank_is_never_further_from_the_layer(name: str) -> None:
    layer = LAYERS[name]
    shape = (8, 6) if isinstance(layer, nn.Linear) else (8, 6, 9, 9)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ranks = sorted({1, 3, 5, full_rank(layer)})
    with torch.no_grad():
        errors = [float((factors(layer, r)(inputs) - layer(inputs)).square().mean()) for r in ranks]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("layer", "rank"),
    [
        (nn.Conv2d(6, 8, 3), 19),
        (nn.Conv2d(6, 8, 3), 0),
        (nn.Conv2d(6, 8, 3), [6, 8]),
        (nn.Conv2d(6, 8, 3), 2.5),
        (nn.Conv2d(6, 8, 1), 7),
        (nn.Conv2d(8, 8, 3, groups=2), 4),
        (nn.ReLU(), 1),
    ],
)
def test_ranks_that_a_layer_cannot_have_are_refused(layer: nn.Module, rank: object) -> None:
    with pytest.raises(TeacherError, match='layer "0" of a factored network'):
        factorize(nn.Sequential(layer), {"0": rank})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("name", "share"), [("resnet20", 0.6), ("resnet20", 0.4), ("resnet20", 0.25), ("vgg8", 0.25)]
)
def test_student_keeps_within_the_share_and_uses_most_of_it(name: str, share: float) -> None:
    teacher = zoo_teacher(name)
    student = factor(teacher, macs_share=share)
    whole = count(teacher.network, channels=3, size=SIZE).macs
    assert 0.85 * share <= student.count().macs / whole <= share
    assert student.start == "factored"


def kept(layer: nn.Linear, rank: int) -> float:
    """Return the share of the squared singular values that a rank keeps."""
    values = torch.linalg.svdvals(layer.weight.detach().double()).square()
    return float(values[:rank].sum() / values.sum())


def test_ranks_keep_the_largest_product_of_energies_that_the_budget_allows() -> None:
    strengths = ([9.0, 2, 1, 1, 1, 1, 1, 1], [3.0] * 8, [8.0, 7, 6, 5, 4, 3, 2, 1])
    layers = [nn.Linear(8, 8) for _ in strengths]
    with seeded(0), torch.no_grad():
        for layer, values in zip(layers, strengths, strict=True):
            turn = torch.linalg.qr(torch.randn(8, 8)).Q
            layer.weight.copy_(turn @ torch.diag(torch.tensor(values)))
    work = {str(i): _Work(layer, whole=8 * 16, each=16) for i, layer in enumerate(layers)}
    for units in (3, 7, 12, 24, 40):
        found = _ranks(work, units * 16)
        best = max(
            math.prod(kept(layer, rank) for layer, rank in zip(layers, ranks, strict=True))
            for ranks in itertools.product(range(1, 9), repeat=3)
            if sum(ranks) <= units
        )
        own = math.prod(kept(layer, found[str(i)]) for i, layer in enumerate(layers))
        assert own == pytest.approx(best)
    assert _ranks(work, 2.9 * 16) == {}


def test_a_layer_never_costs_more_than_it_did() -> None:
    layer = nn.Linear(8, 8)
    assert _ranks({"only": _Work(layer, whole=64, each=16)}, 1000) == {"only": 4}


def test_layers_without_any_weight_keep_a_rank() -> None:
    layer = nn.Linear(8, 8)
    nn.init.zeros_(layer.weight)
    other = nn.Linear(8, 8)
    work = {"empty": _Work(layer, 128, 16), "full": _Work(other, 128, 16)}
    assert _ranks(work, 5 * 16)["full"] == 4


def test_student_starts_nearer_to_its_teacher_than_with_fewer_channels() -> None:
    teacher = zoo_teacher("resnet20")
    images = pixels(32)
    for layer in teacher.network.modules():  # filters of trained networks are alike
        if isinstance(layer, nn.Conv2d) and layer.in_channels >= 16 and layer.kernel_size != (1, 1):
            core = product(factors(layer, layer.in_channels))
            layer.weight = nn.Parameter(0.9 * core.detach() + 0.1 * layer.weight.detach())
    students = [make(teacher, macs_share=0.4).eval() for make in (factor, slim)]
    with torch.no_grad():
        exact = teacher(images)
        off = [float((student(images) - exact).square().mean()) for student in students]
    assert off[0] < off[1]


def test_a_kernel_that_leaves_places_out_is_reckoned_with_all_that_its_first_factor_sees() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    student = factor(teacher_of(network), macs_share=0.6)
    assert student.count().macs <= 0.6 * count(network, channels=3, size=SIZE).macs


def test_networks_that_cannot_lose_channels_can_be_factored() -> None:
    import torchvision

    name = "torchvision:shufflenet_v2_x0_5"

    with seeded(0):
        network = torchvision.models.get_model(name.partition(":")[2], num_classes=3)
    spec = InputSpec(height=32, width=32, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    teacher = Teacher(network.eval(), classes=CLASSES, spec=spec, architecture=name)
    student = factor(teacher, macs_share=0.8)
    assert student.count().macs <= 0.8 * count(network, channels=3, size=(32, 32)).macs


def test_thin_layers_and_the_last_one_stay_whole() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1, groups=32),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    student = factor(teacher_of(network), macs_share=0.5)
    assert list(student.options["ranks"]) == ["2"]


def test_student_is_the_same_after_it_was_saved_and_loaded(tmp_path: Path) -> None:
    student = factor(zoo_teacher("resnet20", width=2.0), macs_share=0.3)
    student.save(tmp_path / "student")
    loaded = Student.load(tmp_path / "student")
    assert loaded.architecture == "factored:zoo:resnet20"
    assert loaded.start == "factored"
    assert loaded.digest == student.digest
    with torch.no_grad():
        assert torch.equal(loaded.eval()(pixels()), student.eval()(pixels()))


def test_teacher_is_left_alone() -> None:
    teacher = zoo_teacher("resnet20")
    before = teacher.digest
    factor(teacher, macs_share=0.3)
    assert teacher.digest == before
    assert not any("reduce" in name for name, _ in teacher.network.named_modules())


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 25.0])
def test_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="macs_share"):
        factor(zoo_teacher("resnet20"), macs_share=share)


def test_share_too_small_is_refused_with_what_is_fixed() -> None:
    with pytest.raises(UsageError, match=r"cannot be factored.*larger share"):
        factor(zoo_teacher("resnet20"), macs_share=0.001)


def test_teacher_without_a_layer_to_factor_is_refused() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    with pytest.raises(MethodError, match="zoo"):
        factor(teacher_of(network), macs_share=0.5)


def test_forward_that_looks_into_its_layers_is_refused() -> None:
    class Nosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (
                nn.Conv2d(3, 32, 3, padding=1),
                nn.Conv2d(32, 32, 3, padding=1),
            )
            self.last = nn.Linear(32, 3)

        def forward(self, images: Tensor) -> Tensor:
            scale = self.second.weight.abs().mean()
            return self.last((self.second(self.first(images)) / scale).mean(dim=(2, 3)))

    with pytest.raises(MethodError, match="zoo"):
        factor(teacher_of(Nosy()), macs_share=0.5)


@pytest.mark.parametrize(
    ("name", "width", "low", "high"),
    [("resnet20", 2.0, 0.9, 1.0), ("resnet20", 0.5, 0.0, 0.3), ("mobilenet_v2", 1.0, 0.0, 0.3)],
)
def test_neighbour_share_tells_what_factoring_pays_for(
    name: str, width: float, low: float, high: float
) -> None:
    assert low <= neighbour_share(zoo_teacher(name, width=width)) <= high
