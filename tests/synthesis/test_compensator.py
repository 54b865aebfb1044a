"""Optimizing compensators on a network of two BatchNorm layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.ensemble import Ensemble
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.bn_statistics import BatchStatistics
from hydistill_edge.synthesis import compensator as room
from hydistill_edge.synthesis.compensator import (
    Compensators,
    check_networks,
    compensator_terms,
    make_compensators,
    optimize_compensator,
)
from hydistill_edge.synthesis.infer_draw import Natural
from hydistill_edge.synthesis.infer_settings import CompensatorSettings

CLASSES = ("a", "b", "c", "d")
MEAN, STD = 0.4, 0.2
QUICK = CompensatorSettings(iterations=6, precision="float32", depth_free=False, jitter=1)


class Killed(BaseException):
    """Stands for kill -9."""


def new_teacher(seed: int = 0, *, norm: bool = True) -> Teacher:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [
            *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
            *(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 4)),
        ]
        if not norm:
            layers = [layer for layer in layers if not isinstance(layer, nn.BatchNorm2d)]
        network = nn.Sequential(*layers)
        with torch.no_grad():
            for _ in range(20):
                network(torch.randn(64, 1, 8, 8))
    return Teacher.wrap(network, classes=CLASSES, spec=InputSpec(8, 8, 1, (MEAN,), (STD,)))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    return new_teacher()


def natural(slots: int = 1) -> Natural:
    places = np.arange(4 * slots)
    return Natural(places, places % 4, places // 4)


def bytes_of(count: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (count, 8, 8, 1), np.uint8)


def images() -> torch.Tensor:
    return torch.from_numpy(bytes_of(4)).permute(0, 3, 1, 2).float() / 255


def make(networks: list[Any], settings: CompensatorSettings = QUICK, **more: Any) -> Compensators:
    return make_compensators(Ensemble(networks), bytes_of(8), natural(2), settings, **more)


def reference_terms(teacher: Teacher, batch: torch.Tensor, first: float) -> tuple[float, float]:
    """Cross entropy and statistics' distance in NumPy, float64, layer by layer."""
    inputs: list[np.ndarray] = []
    norms = [module for module in teacher.network if isinstance(module, nn.BatchNorm2d)]
    handles = [
        norm.register_forward_pre_hook(lambda _m, x: inputs.append(x[0].double().numpy()))
        for norm in norms
    ]
    with torch.no_grad():
        logits = teacher(batch).double().numpy()
    for handle in handles:
        handle.remove()
    shifted = logits - logits.max(1, keepdims=True)
    entropy = (np.log(np.exp(shifted).sum(1)) - shifted[np.arange(4), np.arange(4)]).mean()
    distance = 0.0
    for factor, norm, seen in zip((first, 1.0), norms, inputs, strict=True):
        mean, variance = seen.mean((0, 2, 3)), seen.var((0, 2, 3))
        assert norm.running_mean is not None
        assert norm.running_var is not None
        distance += factor * np.linalg.norm(mean - norm.running_mean.double().numpy())
        distance += factor * np.linalg.norm(variance - norm.running_var.double().numpy())
    return entropy, distance


def test_terms_are_those_of_the_formula(teacher: Teacher) -> None:
    with BatchStatistics(teacher.network) as reader:
        found = compensator_terms(teacher, reader, images(), torch.arange(4), QUICK)
    entropy, distance = reference_terms(teacher, images(), first=10.0)
    assert found["cross_entropy"].item() == pytest.approx(entropy, rel=1e-4)
    assert found["bn"].item() == pytest.approx(distance, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "factor"),
    [({"depth_free": True}, 10.0), ({"first_layer": 1.0}, None), ({"skip_layers": ("1",)}, None)],
    ids=["depth-free", "first-layer", "skipped"],
)
def test_layers_are_weighed_as_asked(
    teacher: Teacher, change: dict[str, Any], factor: float | None
) -> None:
    with BatchStatistics(teacher.network) as reader:
        found = compensator_terms(
            teacher, reader, images(), torch.arange(4), replace(QUICK, **change)
        )["bn"].item()
    _, whole = reference_terms(teacher, images(), first=10.0)
    first = 0.0 if "skip_layers" in change else 1.0
    _, expected = reference_terms(teacher, images(), first=first)
    assert found == pytest.approx(whole * factor if factor else expected, rel=1e-4)


def first_step(teacher: Teacher, settings: CompensatorSettings) -> torch.Tensor:
    """Return the gradient that the one tensor gets in the first step, shape (1, 1, 8, 8)."""
    seen: list[torch.Tensor] = []

    class Spy(torch.optim.Adam):
        def step(self, closure: Any = None) -> None:
            seen.append(self.param_groups[0]["params"][0].grad.clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room.torch.optim, "Adam", Spy)
        optimize_compensator(
            teacher, images(), torch.arange(4), replace(settings, iterations=1), seed=[0]
        )
    return seen[0]


def test_one_tensor_gets_the_sum_of_the_gradients_of_all_classes(teacher: Teacher) -> None:
    settings = replace(QUICK, bn=0.0, jitter=0)
    expected = torch.zeros(1, 1, 8, 8)
    for place in range(4):
        image = images()[place : place + 1].requires_grad_()
        loss = nn.functional.cross_entropy(teacher(image), torch.tensor([place])) / 4
        (gradient,) = torch.autograd.grad(loss, image)
        expected += STD * gradient  # of pixels, brought to normalized units
    assert torch.allclose(first_step(teacher, settings), expected, rtol=1e-4, atol=1e-7)


def test_blocks_of_classes_add_up_to_the_same_gradient(teacher: Teacher) -> None:
    alone = replace(QUICK, bn=0.0)
    whole, parts = (first_step(teacher, replace(alone, block=block)) for block in (4, 1))
    assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-7)
    separate = first_step(teacher, replace(QUICK, block=1))
    assert not torch.allclose(first_step(teacher, QUICK), separate, rtol=1e-2)


def test_compensator_starts_at_zero_and_first_step_is_the_rate_in_pixels(teacher: Teacher) -> None:
    found, _ = optimize_compensator(
        teacher, images(), torch.arange(4), replace(QUICK, iterations=1), seed=[0]
    )
    assert tuple(found.shape) == (1, 1, 8, 8)
    assert found.abs().numpy() == pytest.approx(np.full((1, 1, 8, 8), 0.25 * STD), rel=1e-3)


def test_compensator_lowers_the_loss_and_leaves_the_network_as_it_was(teacher: Teacher) -> None:
    before = teacher.digest, {k: v.clone() for k, v in teacher.state_dict().items()}
    settings = replace(QUICK, iterations=60, learning_rate=0.05, jitter=0)
    found, record = optimize_compensator(teacher, images(), torch.arange(4), settings, seed=[0])
    start_entropy, start_distance = reference_terms(teacher, images(), first=10.0)
    assert record["cross_entropy"] + record["bn"] < 0.7 * (start_entropy + start_distance)
    assert record["largest"] == pytest.approx(found.abs().max().item())
    assert all(torch.equal(v, before[1][k]) for k, v in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())


def test_each_network_and_slot_has_a_compensator_of_its_own(teacher: Teacher) -> None:
    student = Student.create("resnet8", classes=CLASSES, channels=1, size=(8, 8), width=0.25)
    made = make([teacher, student])
    assert made.values.shape == (4, 8, 8, 1)
    assert made.slots.tolist() == [0, 0, 1, 1]
    assert made.networks.tolist() == [0, 1, 0, 1]
    assert len({value.tobytes() for value in made.values}) == 4
    assert [record["network"] for record in made.records] == [0, 1, 0, 1]


def test_compensators_are_the_same_when_killed_and_resumed(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(QUICK, checkpoint_seconds=0.0, iterations=3)
    whole = make([teacher], settings, seed=5)
    real = room.optimize_compensator
    calls: list[int] = []

    def dying(*args: Any, **kwargs: Any) -> Any:
        if calls:
            raise Killed
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(room, "optimize_compensator", dying)
    with pytest.raises(Killed):
        make([teacher], settings, workdir=tmp_path, seed=5)
    monkeypatch.undo()
    resumed = make([teacher], settings, workdir=tmp_path, seed=5)
    assert resumed.resumed_at == 1
    assert (resumed.values == whole.values).all()
    assert resumed.records == whole.records
    assert make([teacher], settings, workdir=tmp_path, seed=6).resumed_at == 0


def test_progress_rises_to_all_steps(teacher: Teacher) -> None:
    told: list[tuple[int, int]] = []
    make([teacher], progress=lambda done, total, _: told.append((done, total)))
    assert told[-1] == (12, 12)
    assert told == sorted(told)


def test_crops_and_mirrors_are_drawn_and_do_not_clamp(teacher: Teacher) -> None:
    far = torch.full((4, 1, 8, 8), 3.0)
    view = room._View(replace(QUICK, resized_crop=0.5, mirror=0.5), (8, 8), [0])
    assert view(far, (1, 2)).numpy() == pytest.approx(far.numpy(), abs=1e-4)
    plain, changed = (
        first_step(teacher, replace(QUICK, resized_crop=share)) for share in (0.0, 0.5)
    )
    assert not torch.allclose(plain, changed, rtol=1e-2)


def test_penalty_pulls_the_compensator_towards_zero(teacher: Teacher) -> None:
    sizes = [
        optimize_compensator(
            teacher,
            images(),
            torch.arange(4),
            replace(QUICK, iterations=40, penalty=penalty),
            seed=[0],
        )[0]
        .square()
        .mean()
        .item()
        for penalty in (0.0, 100.0)
    ]
    assert sizes[1] < 0.5 * sizes[0]


def test_networks_are_refused_when_they_have_no_batch_norm(teacher: Teacher) -> None:
    with pytest.raises(MethodError, match=r"wrapped: has no BatchNorm.*resnet20"):
        make([teacher, new_teacher(norm=False)])
    with pytest.raises(UsageError, match="skip_layers names 7; the BatchNorm layers are"):
        check_networks([teacher], ["7"])


def test_exploded_values_are_told(teacher: Teacher) -> None:
    with pytest.raises(MethodError, match=r"no longer finite.*lower learning_rate"):
        optimize_compensator(
            teacher,
            images(),
            torch.arange(4),
            replace(QUICK, learning_rate=1e30),
            seed=[0],
        )
