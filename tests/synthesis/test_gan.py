"""Training of the GAN."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.frequency import (
    category_weights,
    refreshed_counts,
    weighted_negative_entropy,
)
from hydistill_edge.objectives.gan_losses import feature_integration
from hydistill_edge.synthesis import gan
from hydistill_edge.synthesis.gan import (
    GanSettings,
    GanTraining,
    TrainedGan,
    sample_gan,
    train_gan,
)
from hydistill_edge.synthesis.gan_health import Health
from hydistill_edge.synthesis.gan_images import to_bytes, to_pixels, to_signed
from hydistill_edge.synthesis.gan_report import class_entropy, report_gan

CLASSES = ("left", "right", "even")
TINY = GanSettings(iterations=6, batch=6, width=8, records=2, ema_start=3, ema=0.5)
CPU = torch.device("cpu")


def make_teacher(classes: tuple[str, ...] = CLASSES) -> Teacher:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, len(classes)),
    )
    return Teacher.wrap(network, classes=classes, spec=InputSpec(8, 8, 1, (0.3,), (0.2,)))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return make_teacher()


def collected(count: int = 18) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def start(teacher: Teacher, settings: GanSettings = TINY) -> GanTraining:
    return GanTraining(teacher, collected(), settings, seed=3, device=CPU)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def test_defaults_are_the_published_ones() -> None:
    settings = GanSettings()
    assert (settings.epochs, settings.batch, settings.learning_rate) == (400, 100, 2e-4)
    assert (settings.adc, settings.transfer, settings.blend, settings.frequency) == (
        1,
        0.1,
        0.1,
        0.1,
    )
    assert (settings.ema, settings.ema_start, settings.beta) == (0.9999, 1000, 0.99)
    assert settings.refresh_every(classes=10, batch=100) == 10


def test_published_run_has_20000_iterations(teacher: Teacher) -> None:
    training = GanTraining(
        teacher, np.zeros((5000, 8, 8, 1), np.uint8), GanSettings(width=8), seed=0, device=CPU
    )
    assert training.iterations == 20_000


def test_settings_are_refused_with_all_problems_when_out_of_range() -> None:
    with pytest.raises(UsageError) as caught:
        GanSettings(batch=1, ema=1.0, blend=-1.0, records=0, trunk="both")  # type: ignore[arg-type]
    for part in ("batch is 1", "ema is 1.0", "blend is -1.0", "records is 0"):
        assert part in str(caught.value)


def test_teacher_sees_pixels_under_its_own_normalisation() -> None:
    images = torch.tensor([0, 64, 255], dtype=torch.uint8)
    torch.testing.assert_close(to_pixels(to_signed(images)), images / 255)
    assert torch.equal(to_bytes(to_signed(images)), images)


def test_stored_pixels_do_not_depend_on_the_other_pixels_of_an_image() -> None:
    faint = torch.full((1, 1, 2, 2), 0.1)
    faint[0, 0, 0, 0] = 0.12
    assert to_bytes(faint).flatten().tolist() == [143, 140, 140, 140]  # not stretched to 0 and 255


def test_teachers_features_of_generated_images_come_from_pixels(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []
    features = teacher.features

    def watching(pixels: Tensor, *rest: object) -> object:
        if pixels.is_floating_point():
            seen.append((pixels.min().item(), pixels.max().item()))
        return features(pixels, *rest)  # type: ignore[arg-type]

    training = start(teacher)
    monkeypatch.setattr(teacher, "features", watching)
    training.step()
    assert len(seen) == 2
    assert all(0.0 <= low < 0.5 < high <= 1.0 for low, high in seen)


@pytest.mark.parametrize("term", ["transfer", "blend"])
def test_feature_integration_trains_map_head_and_trunk_and_not_the_teacher(
    teacher: Teacher, term: str
) -> None:
    training = start(teacher)
    real = to_signed(training.real[:6])
    generated = training.generator(*training._draw()).detach()
    found = feature_integration(
        training.discriminator(real).mapped,
        training.real_features[:6],
        training.discriminator(generated).mapped,
        teacher.features(to_pixels(generated)).penultimate,
    )
    torch.autograd.backward(getattr(found, term))
    for part in (training.discriminator.map, training.discriminator.trunk):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert all(p.grad is None for p in training.discriminator.adv.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("weight", ["transfer", "blend"])
def test_discriminator_step_depends_on_the_weight_of_feature_integration(
    teacher: Teacher, weight: str
) -> None:
    with_it, without = start(teacher), start(teacher, replace(TINY, **{weight: 0.0}))  # type: ignore[arg-type]
    rows = torch.arange(6)
    for training in (with_it, without):
        training.discriminator_step(rows)
    assert not equal(with_it.discriminator.map, without.discriminator.map)
    assert not equal(with_it.discriminator.trunk, without.discriminator.trunk)


def test_frequency_term_trains_the_generator(teacher: Teacher) -> None:
    training = start(teacher)
    generated = training.generator(*training._draw())
    logits = teacher(to_pixels(generated))
    torch.autograd.backward(weighted_negative_entropy(logits, weights=training.weights))
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for name, p in training.generator.named_parameters()
        if not name.endswith("bias")  # a bias before a norm has no effect
    )


@pytest.mark.parametrize("weight", ["frequency", "statistics"])
def test_generator_step_depends_on_the_weight_of_the_teachers_terms(
    teacher: Teacher, weight: str
) -> None:
    trainings = [
        start(teacher, replace(TINY, **{weight: value}))  # type: ignore[arg-type]
        for value in (0.0, 1.0)
    ]
    for training in trainings:
        training.generator_step()
    assert not equal(trainings[0].generator, trainings[1].generator)


def test_generator_step_leaves_the_discriminators_weights_alone(teacher: Teacher) -> None:
    training = start(teacher)
    before = [p.clone() for p in training.discriminator.parameters()]
    training.generator_step()
    after = list(training.discriminator.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert all(p.requires_grad for p in after)


def test_category_weights_are_refreshed_while_training(teacher: Teacher) -> None:
    training = start(teacher, replace(TINY, refresh=2))
    training.step()
    assert training.weights.tolist() == [1.0] * 3
    seen_before = training.seen.clone()
    training.step()
    assert seen_before.sum() == 6
    assert not training.seen.any()
    assert training.counts.sum() == pytest.approx((3 * 50 + 12) / 2)
    wanted = category_weights(training.counts)
    torch.testing.assert_close(training.weights, wanted)
    assert training.weights.sum().item() == pytest.approx(3.0)
    assert training.weights.std() > 0


def test_counts_tell_what_the_teacher_saw(teacher: Teacher) -> None:
    training = start(teacher, replace(TINY, refresh=1))
    before = training.counts
    training.step()
    seen = 2 * training.counts - before
    assert seen.sum().item() == pytest.approx(6)
    torch.testing.assert_close(training.counts, refreshed_counts(before, seen))


def test_average_is_a_copy_at_first_and_then_follows_weights_and_buffers(teacher: Teacher) -> None:
    training = start(teacher)
    for _ in range(3):
        training.step()
    assert equal(training.ema, training.generator)
    before = state(training.ema)
    training.step()
    live = training.generator.state_dict()
    for name in ("last.parametrizations.weight.original", "norm.running_var", "last.bias"):
        wanted = 0.5 * before[name] + 0.5 * live[name]
        torch.testing.assert_close(training.ema.state_dict()[name], wanted)


def test_averaged_power_vectors_have_length_one(teacher: Teacher) -> None:
    training = start(teacher)
    for _ in range(5):
        training.step()
    vectors = [
        buffer for name, buffer in training.averaged().named_buffers() if name.endswith("_u")
    ]
    norms = torch.stack([vector.norm() for vector in vectors])
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_teacher_stays_as_it_is(teacher: Teacher) -> None:
    before = teacher.digest, state(teacher)
    training = start(teacher)
    teacher.train()
    training.step()
    assert not teacher.training
    assert all(torch.equal(value, state(teacher)[name]) for name, value in before[1].items())
    assert all(p.grad is None for p in teacher.parameters())


def test_teacher_as_trunk_is_read_but_neither_trained_nor_saved(teacher: Teacher) -> None:
    before = state(teacher)
    training = start(teacher, replace(TINY, trunk="teacher"))
    discriminator = state(training.discriminator)
    assert not any("_teacher" in name or "network" in name for name in discriminator)
    assert discriminator["trunk.linear.parametrizations.weight.original"].shape[1] == 5

    training.step()

    after = state(training.discriminator)
    trained = [name for name in after if name.endswith("original") or name == "trunk.linear.bias"]
    assert len(trained) == 6
    assert all(not torch.equal(after[name], discriminator[name]) for name in trained)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(teacher).items())


def test_images_are_sampled_from_the_averaged_generator_by_class(teacher: Teacher) -> None:
    trained = train_gan(teacher, collected(), settings=TINY, seed=1)
    sampled = sample_gan(trained, teacher, count=7, seed=4)
    assert sampled.images.shape == (7, 8, 8, 1)
    assert sampled.images.dtype == np.uint8
    assert sampled.targets.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert not equal(trained.generator, trained.raw)
    wanted = teacher(torch.from_numpy(sampled.images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(sampled.logits, wanted, rtol=1e-4, atol=1e-5)
    assert sum(sampled.class_counts) == 7
    again = sample_gan(trained, teacher, count=7, seed=4)
    assert np.array_equal(again.images, sampled.images)


def test_duplicates_are_dropped_and_counted(teacher: Teacher) -> None:
    trained = train_gan(teacher, collected(), settings=TINY, seed=1)
    with torch.no_grad():
        for parameter in trained.generator.last.parameters():
            parameter.zero_()
    sampled = sample_gan(trained, teacher, count=5)
    assert len(sampled.images) == 1
    assert sampled.duplicates == 4


def test_history_holds_every_term_and_the_health(teacher: Teacher) -> None:
    trained = train_gan(teacher, collected(), settings=TINY)
    assert [entry["iteration"] for entry in trained.history] == [3, 6]
    assert {*gan.TERMS, "pixel_diversity", "hit", "classes_made"} <= set(trained.history[0])
    assert trained.iterations == 6


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.mark.parametrize("step", [1, 4])
def test_networks_are_the_same_when_training_is_killed_and_resumed(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    settings = replace(TINY, checkpoint_seconds=0.0, refresh=2)
    average = GanTraining._average

    def dying(training: GanTraining) -> None:
        if training.iteration > step:
            raise Killed
        average(training)

    def run(folder: Path) -> TrainedGan:
        return train_gan(teacher, collected(), settings=settings, workdir=folder, seed=1)

    monkeypatch.setattr(GanTraining, "_average", dying)
    with pytest.raises(Killed):
        run(tmp_path / "cut")
    monkeypatch.undo()
    resumed, whole = run(tmp_path / "cut"), run(tmp_path / "whole")
    assert resumed.resumed_at == step
    assert equal(resumed.generator, whole.generator)
    assert equal(resumed.discriminator, whole.discriminator)
    assert resumed.history == whole.history
    assert resumed.weights.tolist() == whole.weights.tolist()


def test_finished_training_is_taken_from_its_checkpoint(teacher: Teacher, tmp_path: Path) -> None:
    first = train_gan(teacher, collected(), settings=TINY, workdir=tmp_path)
    second = train_gan(teacher, collected(), settings=TINY, workdir=tmp_path)
    assert second.resumed_at == 6
    assert equal(first.generator, second.generator)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (lambda: collected(2), "2 collected images for 3 classes"),
        (lambda: collected()[..., 0], "expected \\(N, H, W, C\\)"),
    ],
    ids=["fewer-than-classes", "shape"],
)
def test_collected_images_are_refused_when_they_cannot_do(
    teacher: Teacher, images: Callable[[], NDArray[np.uint8]], message: str
) -> None:
    with pytest.raises(MethodError, match=message):
        train_gan(teacher, images(), settings=TINY)


def test_absent_class_is_told(teacher: Teacher) -> None:
    top = int(teacher(torch.from_numpy(collected(1)).permute(0, 3, 1, 2)).argmax())
    trained = train_gan(
        teacher,
        collected(1).repeat(6, 0) + np.arange(6, dtype=np.uint8)[:, None, None, None],
        settings=TINY,
    )
    others = [name for place, name in enumerate(CLASSES) if place != top]
    assert f"no collected image is of class {', '.join(others)}" in trained.note


def test_collapse_onto_one_image_is_an_error(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def constant(generator: nn.Module, count: int, **_rest: object) -> tuple[Tensor, Tensor]:
        return torch.zeros((count, 1, 8, 8), dtype=torch.uint8), torch.arange(count) % 3

    monkeypatch.setattr(gan, "_generate", constant)
    with pytest.raises(MethodError, match=r"the GAN collapsed: .* nearly alike"):
        train_gan(teacher, collected(), settings=TINY)


@pytest.mark.parametrize(
    ("health", "words"),
    [
        (Health(0.9, 0.8, 0.5, 3, 3), ""),
        (Health(0.2, 0.8, 0.5, 3, 3), "nearly alike"),
        (Health(0.9, 0.1, 0.5, 3, 3), "10% in the teacher's features"),
        (Health(0.9, 0.9, 0.5, 2, 3), "2 of 3 classes"),
    ],
    ids=["well", "pixels", "features", "classes"],
)
def test_health_says_what_is_wrong(health: Health, words: str) -> None:
    assert words in health.problem
    assert bool(health.problem) == bool(words)


def test_loss_that_is_not_finite_is_an_error(teacher: Teacher) -> None:
    training = start(teacher)
    training.step()
    training._sums[0] = float("nan")
    with pytest.raises(MethodError, match=r"diverged.*iteration 1"):
        training.record()


def test_report_tells_classes_coverage_and_leaks(teacher: Teacher) -> None:
    trained = train_gan(teacher, collected(), settings=TINY, seed=1)
    sampled = sample_gan(trained, teacher, count=9)
    leaking = replace(sampled, images=np.concatenate([collected(1), sampled.images[1:]]))
    report = report_gan(teacher, collected(), trained, leaking)
    assert report["leak"]["exact_copies"] == 1
    assert sum(report["class_counts"].values()) == 9
    assert 0 <= report["class_entropy"] <= 1
    assert {"density", "coverage", "flagged", "per_class"} <= set(report["coverage"])
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize(
    ("counts", "entropy"), [([5, 5, 5, 5], 1.0), ([9, 0, 0], 0.0), ([8, 8, 0, 0], 0.5)], ids=str
)
def test_class_entropy_is_one_for_equal_counts_and_zero_for_one_class(
    counts: list[int], entropy: float
) -> None:
    assert class_entropy(counts) == pytest.approx(entropy)
