"""Images from a network alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.bn_statistics import LayerStatistics
from hydistill_edge.synthesis.inversion import (
    NO_BATCH_NORM_NOTE,
    InversionSettings,
    Inverted,
    invert,
)
from hydistill_edge.synthesis.stopping import DECLINE
from hydistill_edge.synthesis.witness import REAL_STATISTICS_NOTE, ZERO_VARIANCE_NOTE

CLASSES = ("rows", "columns", "nothing")
SPEC = InputSpec(8, 8, 1, (0.3,), (0.25,))
QUICK = InversionSettings(iterations=20, batch=12, precision="float32")


def stripes(generator: torch.Generator, channels: int) -> tuple[Tensor, Tensor]:
    """Return noisy images of horizontal stripes, vertical stripes and nothing, with classes."""
    targets = torch.randint(0, 3, (48,), generator=generator)
    line = (torch.arange(8) % 4 < 2).float()
    patterns = torch.stack([line[:, None].expand(8, 8), line.expand(8, 8), torch.zeros(8, 8)])
    noise = torch.rand(48, channels, 8, 8, generator=generator)
    return (0.7 * patterns[targets][:, None] + 0.3 * noise - 0.3) / 0.25, targets


@cache
def weights(norm: bool, channels: int) -> dict[str, Tensor]:
    """Return the weights of a tiny network that tells the three patterns apart."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = untrained(norm, channels)
    optimizer = torch.optim.Adam(layers.parameters(), lr=0.02)
    for _ in range(60):
        images, targets = stripes(generator, channels)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(layers(images), targets))
        optimizer.step()
    return layers.state_dict()


def untrained(norm: bool, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def network(norm: bool = True, channels: int = 1) -> nn.Sequential:
    layers = untrained(norm, channels)
    layers.load_state_dict(weights(norm, channels))
    return layers


def teacher(norm: bool = True, channels: int = 1) -> Teacher:
    spec = replace(SPEC, channels=channels, mean=(0.3,) * channels, std=(0.25,) * channels)
    return Teacher.wrap(network(norm, channels), classes=CLASSES, spec=spec)


@pytest.fixture(scope="module")
def inverted() -> Inverted:
    return invert(teacher(), count=24, settings=replace(QUICK, iterations=40), seed=1)


def test_images_are_valid_pixels_of_the_input_size(inverted: Inverted) -> None:
    assert inverted.images.shape == (24, 8, 8, 1)
    assert inverted.images.dtype == np.uint8
    assert inverted.images.std() > 20


def test_classes_are_balanced_and_hit(inverted: Inverted) -> None:
    assert np.bincount(inverted.targets).tolist() == [8, 8, 8]
    assert inverted.hit > 0.9


def test_statistics_come_closer_when_images_are_optimized(inverted: Inverted) -> None:
    first, last = inverted.history[0], inverted.history[3]
    assert (first["batch"], last["iteration"]) == (0, 40)
    assert last["bn"] < first["bn"]
    assert inverted.bn_distance is not None
    assert inverted.bn_distance < 2 * last["bn"] + 0.01  # rounding to uint8 costs little


def test_history_has_every_term(inverted: Inverted) -> None:
    terms = {"bn", "class_prior", "diversity", "total_variation", "l2", "loss", "hit"}
    assert terms <= set(inverted.history[0])
    assert inverted.images_per_second > 0


def test_images_are_the_same_when_seed_is_the_same() -> None:
    first, second, other = (invert(teacher(), count=6, settings=QUICK, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.images, second.images)
    assert (first.images != other.images).any()


def test_last_batch_is_as_large_as_the_others_when_count_does_not_divide() -> None:
    result = invert(teacher(), count=13, settings=replace(QUICK, iterations=2))
    assert len(result.images) == 13
    assert np.bincount(result.targets).tolist() == [5, 4, 4]


def test_source_is_as_it_was_when_images_are_made() -> None:
    student = Student(network(), architecture="", classes=CLASSES, channels=1, size=(8, 8)).train()
    before = student.digest
    invert(student, count=3, settings=replace(QUICK, iterations=2))
    assert student.training
    assert all(p.requires_grad and p.grad is None for p in student.parameters())
    assert student.digest == before


def test_grey_images_are_made_for_a_color_network() -> None:
    result = invert(teacher(channels=3), count=3, channels=1, settings=replace(QUICK, iterations=2))
    assert result.images.shape == (3, 8, 8, 1)


def test_note_says_so_when_network_has_no_batch_norm() -> None:
    result = invert(teacher(norm=False), count=6, settings=QUICK)
    assert (result.note, result.bn_distance) == (NO_BATCH_NORM_NOTE, None)
    assert result.hit > 0.8


def test_images_are_finite_when_a_running_variance_is_zero() -> None:
    source = teacher()
    norm = source.batch_norms()[0][1]
    assert norm.running_var is not None
    norm.running_var[0] = 0.0
    result = invert(source, count=6, settings=QUICK)
    assert np.isfinite(result.history[-1]["loss"])
    assert result.note == ZERO_VARIANCE_NOTE.format(dead=1, channels=14)


def test_layer_weight_moves_the_effort_to_its_layer() -> None:
    settings = replace(QUICK, layer_weights={"1": 0.0, "4": 0.0})
    plain = invert(teacher(), count=12, settings=QUICK)
    without = invert(teacher(), count=12, settings=settings)
    assert without.history[-1]["bn"] == 0.0
    assert plain.bn_distance is not None
    assert without.bn_distance is not None
    assert plain.bn_distance < without.bn_distance


def test_real_images_stand_in_when_network_has_no_batch_norm() -> None:
    patterns, _ = stripes(torch.Generator().manual_seed(5), 1)
    pixels = ((patterns * 0.25 + 0.3) * 255).round().clamp(0, 255).to(torch.uint8)
    real = pixels.permute(0, 2, 3, 1).numpy()
    result = invert(teacher(norm=False), count=12, settings=QUICK, real=real)
    assert result.note == REAL_STATISTICS_NOTE.format(count=48, layers=2)
    assert result.history[-1]["bn"] < 0.8 * result.history[0]["bn"]
    assert result.bn_distance is not None


def test_real_images_change_nothing_when_network_has_batch_norm() -> None:
    real = np.zeros((4, 8, 8, 1), np.uint8)
    settings = replace(QUICK, iterations=2)
    plain = invert(teacher(), count=3, settings=settings)
    given = invert(teacher(), count=3, settings=settings, real=real)
    np.testing.assert_array_equal(plain.images, given.images)


def test_boundary_images_lie_between_their_classes() -> None:
    settings = replace(QUICK, iterations=60, boundary=0.5, confidence=(0.99, 0.999))
    result = invert(teacher(), count=12, settings=settings)
    mixed = result.mixed_with >= 0
    assert (mixed.sum(), np.bincount(result.targets).tolist()) == (6, [4, 4, 4])
    pixels = torch.from_numpy(result.images).permute(0, 3, 1, 2)
    found = teacher()(pixels).softmax(dim=1).amax(dim=1).numpy()
    assert found[mixed].mean() < 0.8 < found[~mixed].mean()


def test_images_start_small_when_asked_to_and_end_large() -> None:
    settings = replace(QUICK, iterations=40, coarse=0.5)
    result = invert(teacher(), count=12, settings=settings)
    assert [entry["side"] for entry in result.history] == [4, 4, 8, 8]
    assert result.images.shape == (12, 8, 8, 1)
    assert result.saved_seconds != 0.0
    assert result.hit > 0.8


def test_generator_paints_images_that_fit_their_classes() -> None:
    settings = replace(QUICK, iterations=60, generator=True)
    first, again = (invert(teacher(), count=24, settings=settings) for _ in range(2))
    assert first.history[5]["bn"] < first.history[0]["bn"]
    assert first.hit > 0.8
    assert first.iterations == (60, 60)
    np.testing.assert_array_equal(first.images, again.images)


def test_batch_ends_early_when_the_distance_stalls() -> None:
    settings = replace(QUICK, iterations=200, stop_window=5, stop_tolerance=0.2)
    results = [invert(teacher(), count=24, settings=settings) for _ in range(2)]
    assert results[0].iterations == results[1].iterations
    assert all(done < 200 for done in results[0].iterations)
    assert results[0].history[-1]["iteration"] == results[0].iterations[-1]
    np.testing.assert_array_equal(results[0].images, results[1].images)


class Judge:
    """Gives the scores of a list, one after another, and remembers the layers that it was shown."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)
        self.layers: list[str] = []

    def __call__(self, layers: Sequence[LayerStatistics]) -> float:
        assert not any(layer.mean.requires_grad for layer in layers)
        self.layers = [layer.name for layer in layers]
        return self.scores.pop(0)


def test_batch_ends_early_when_its_score_is_reached() -> None:
    judge = Judge(0.5, 0.8)
    settings = replace(QUICK, iterations=100, stop_quality=0.7)
    result = invert(teacher(), count=12, settings=settings, score=judge)
    assert result.iterations == (20 + DECLINE,)
    assert [entry.get("quality") for entry in result.history] == [0.5, 0.8, None]
    assert judge.layers == ["1", "4"]


def test_worst_network_counts_when_several_are_judged() -> None:
    pair: list[Teacher | Student] = [
        teacher(),
        Student(network(), architecture="", classes=CLASSES, channels=1, size=(8, 8)),
    ]
    judge = Judge(0.9, 0.6, 0.7, 0.9)
    settings = replace(QUICK, iterations=40, stop_quality=0.7)
    result = invert(pair, count=12, settings=settings, score=judge)
    assert result.iterations == (20 + DECLINE,)


def test_score_is_not_asked_when_it_stops_nothing() -> None:
    assert invert(teacher(), count=3, settings=QUICK, score=Judge()).iterations == (20,)


def test_batch_goes_to_the_end_when_the_network_remembers_nothing() -> None:
    settings = replace(QUICK, stop_quality=0.1)
    result = invert(teacher(norm=False), count=3, settings=settings, score=Judge())
    assert result.iterations == (20,)


def test_score_to_stop_at_is_refused_when_nothing_judges() -> None:
    with pytest.raises(UsageError, match=r"stop_quality is 0\.7 and no score"):
        invert(teacher(), count=3, settings=replace(QUICK, stop_quality=0.7))


def test_output_term_shapes_features_when_no_batch_norm_sees_them() -> None:
    with_term, without = (
        invert(teacher(norm=False), count=12, settings=replace(QUICK, output=weight))
        for weight in (1.0, 0.0)
    )
    assert "output" not in without.history[0]
    assert with_term.history[-1]["output"] < with_term.history[0]["output"]
    assert (with_term.images != without.images).any()


def test_images_fit_all_networks_when_several_are_given() -> None:
    pair: list[Teacher | Student] = [
        teacher(),
        Student(network(), architecture="", classes=CLASSES, channels=1, size=(8, 8)),
    ]
    both = invert(pair, count=24, settings=replace(QUICK, iterations=60, batch=24))
    assert both.history[-1]["bn"] < 0.8 * both.history[0]["bn"]
    assert both.hit > 0.6


def test_list_of_one_network_gives_the_images_of_that_one() -> None:
    settings = replace(QUICK, iterations=3)
    one = invert(teacher(), count=3, settings=settings)
    mean = invert([teacher()], count=3, settings=settings)
    np.testing.assert_array_equal(one.images, mean.images)


def test_batch_is_smaller_when_memory_is_short() -> None:
    settings = InversionSettings(memory_mib=1)
    assert settings.batch_for((32, 32), 64 * 1024) == 16
    assert settings.batch_for((32, 32), 64 * 1024**2) == 1
    assert [InversionSettings().batch_for((side, side)) for side in (32, 64, 224)] == [512, 128, 32]
    assert (
        invert(teacher(), count=30, settings=replace(QUICK, batch=None, iterations=1)).batch == 30
    )


def test_flip_and_jitter_change_the_images() -> None:
    base = replace(QUICK, iterations=4)
    plain = invert(teacher(), count=3, settings=base).images
    moved = invert(teacher(), count=3, settings=replace(base, flip=True, jitter=2)).images
    assert (plain != moved).any()


def test_images_end_further_apart_in_brightness_when_they_start_apart() -> None:
    alike, apart = (
        invert(teacher(), count=24, settings=replace(QUICK, spread=spread)).images
        for spread in (0.0, 0.7)
    )
    spread_of = [images.mean(axis=(1, 2, 3)).std() for images in (alike, apart)]
    assert spread_of[1] > 1.5 * spread_of[0]


def test_bf16_images_are_nearly_as_close() -> None:
    result = invert(teacher(), count=12, settings=replace(QUICK, precision="bf16"))
    exact = invert(teacher(), count=12, settings=QUICK)
    assert result.bn_distance is not None
    assert exact.bn_distance is not None
    assert result.bn_distance < exact.bn_distance + 0.05


def test_progress_ends_with_the_total() -> None:
    seen: list[tuple[int, int]] = []

    def note(done: int, total: int, terms: Mapping[str, float]) -> None:
        seen.append((done, total))

    invert(teacher(), count=24, settings=QUICK, progress=note)
    assert seen == [(10, 40), (20, 40), (30, 40), (40, 40)]


def test_inversion_is_refused_when_network_is_constant() -> None:
    constant = network()
    nn.init.zeros_(list(constant.parameters())[-2])
    with pytest.raises(MethodError, match="same logits"):
        invert(Teacher.wrap(constant, classes=CLASSES, spec=SPEC), count=6)


def test_inversion_is_refused_when_weights_turn_nan() -> None:
    source = teacher()
    with torch.no_grad():
        next(source.parameters()).fill_(float("nan"))
    with pytest.raises(MethodError, match="NaN"):
        invert(source, count=6)


def test_fewer_images_than_classes_are_made_of_the_classes_that_are_named() -> None:
    made = invert(teacher(), count=2, settings=QUICK, among=[2, 0])
    assert made.targets.tolist() == [2, 0]
    made = invert(teacher(), count=3, settings=QUICK, among=[1])
    assert made.targets.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("among", "says"),
    [([], "0 classes"), ([0, 1, 2], "3 classes"), ([3], r"places from 0 to 2"), ([-1], "0 to 2")],
)
def test_classes_that_cannot_be_asked_for_are_refused(among: list[int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        invert(teacher(), count=2, among=among)


def test_inversion_is_refused_when_there_are_fewer_images_than_classes() -> None:
    with pytest.raises(UsageError, match=r"2 images.*3 classes"):
        invert(teacher(), count=2)


def test_teacher_is_refused_when_it_knows_one_class() -> None:
    single = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(UsageError, match="at least two different names"):
        Teacher.wrap(single, classes=("bolt",), spec=SPEC)


def test_inversion_is_refused_when_classes_of_networks_differ() -> None:
    other = Teacher.wrap(network(), classes=CLASSES[::-1], spec=SPEC)
    with pytest.raises(UsageError, match=r"network 2 knows the classes nothing, columns, rows"):
        invert([teacher(), other], count=6)
    with pytest.raises(UsageError, match="at least one"):
        invert([], count=6)


@pytest.mark.parametrize(
    "real",
    [np.zeros((2, 8, 8, 1), np.float32), np.zeros((8, 8, 1), np.uint8)],
    ids=["float", "one-image"],
)
def test_inversion_is_refused_when_real_images_are_not_images(real: np.ndarray) -> None:
    with pytest.raises(UsageError, match=r"expected uint8 of shape \(N, H, W, C\)"):
        invert(teacher(norm=False), count=6, real=real)


def test_inversion_is_refused_when_a_layer_is_unknown() -> None:
    with pytest.raises(UsageError, match=r"names bn9; the BatchNorm layers are 1, 4"):
        invert(teacher(), count=3, settings=replace(QUICK, layer_weights={"bn9": 1.0}))


def test_settings_list_every_problem_when_values_are_out_of_range() -> None:
    with pytest.raises(
        UsageError, match=r"(?s)iterations is 0.*bn is -1.*spread is 1.*boundary is 2.*jitter"
    ):
        InversionSettings(
            iterations=0, bn=-1.0, confidence=(0.9, 0.5), boundary=2.0, jitter=-1, spread=1.0
        )
