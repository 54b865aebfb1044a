"""The GAN's losses, as a compiler takes them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.plain_features import plain_features
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.models.zoo import create_network
from hydistill_edge.objectives.coverage import class_statistics
from hydistill_edge.synthesis.gan_networks import Discriminator, GanGenerator
from hydistill_edge.synthesis.gan_settings import GanSettings
from hydistill_edge.synthesis.gan_steps import GanLosses, quick_losses

SPEC = InputSpec(8, 8, 1, (0.5,), (0.25,))
SHAPE = {"classes": 2, "channels": 1, "size": (8, 8), "base": 8}


@pytest.fixture
def losses() -> GanLosses:
    network = create_network("resnet8", classes=2, channels=1, size=(8, 8), width=0.25)
    teacher = Teacher.wrap(network, classes=("a", "b"), spec=SPEC)
    plain = plain_features(teacher)
    assert plain is not None
    features = plain(torch.rand(4, 1, 8, 8)).penultimate
    return GanLosses(
        GanGenerator(**SHAPE).train(),
        Discriminator(**SHAPE, features=features.shape[1], seed=1).train(),
        plain,
        GanSettings(),
        class_statistics(features, torch.tensor([0, 1, 0, 1]), count=2),
    )


BACKENDS = pytest.mark.parametrize(
    # The first one only reads the function, the other takes its gradient apart too.
    "backend",
    ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)],
)


def inputs(losses: GanLosses) -> tuple[Tensor, ...]:
    draws = torch.Generator().manual_seed(0)
    real = torch.randint(256, (4, 1, 8, 8), generator=draws, dtype=torch.uint8)
    classes = torch.tensor([0, 1, 1, 0])
    features = losses.ask(real.float() / 255).penultimate.detach()
    return torch.randn(4, 128, generator=draws), classes, real, features, classes


@BACKENDS
def test_discriminators_loss_is_compiled_whole_when_the_teacher_has_no_hooks(
    losses: GanLosses, backend: str
) -> None:
    given, twin = inputs(losses), copy.deepcopy(losses)
    plain, terms = losses.of_discriminator(*given)
    fast = torch.compile(twin.of_discriminator, fullgraph=True, backend=backend)
    loss, fast_terms = fast(*given)
    for found in (plain, loss):
        found.backward()
    torch.testing.assert_close((loss, fast_terms), (plain, terms))
    for one, other in zip(
        losses.discriminator.state_dict().values(),
        twin.discriminator.state_dict().values(),
        strict=True,
    ):
        torch.testing.assert_close(one, other)  # the power iteration among them
    gradients = [network.discriminator.map[0].bias.grad for network in (losses, twin)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


@BACKENDS
def test_generators_loss_is_compiled_whole_when_the_teacher_has_no_hooks(
    losses: GanLosses, backend: str
) -> None:
    noise, asked, *_ = inputs(losses)
    twin, weights = copy.deepcopy(losses), torch.tensor([1.5, 0.5])
    plain, terms, top = losses.of_generator(noise, asked, weights)
    fast = torch.compile(twin.of_generator, fullgraph=True, backend=backend)
    loss, fast_terms, fast_top = fast(noise, asked, weights)
    for found in (plain, loss):
        found.backward()
    torch.testing.assert_close((loss, fast_terms, fast_top), (plain, terms, top))
    gradients = [network.generator.last.bias.grad for network in (losses, twin)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_nothing_is_compiled_when_the_steps_run_on_a_cpu(losses: GanLosses) -> None:
    network = create_network("resnet8", classes=2, channels=1, size=(8, 8), width=0.25)
    found = quick_losses(
        losses.generator,
        losses.discriminator,
        Teacher.wrap(network, classes=("a", "b"), spec=SPEC),
        GanSettings(),
        statistics=losses.statistics,
        device=torch.device("cpu"),
    )
    assert [function.__name__ for function in found] == ["of_discriminator", "of_generator"]
