"""What a teacher says of images: its logits, and how little each is like its training images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.objectives.misfit import reading_misfit
from hydistill_edge.stages.logits import network_answer, network_logits
from hydistill_edge.synthesis.procedural import draw

SPEC = InputSpec(8, 8, 1, (0.4,), (0.2,))


def teacher(norm: nn.Module) -> Teacher:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    return Teacher(layers.eval(), classes=("a", "b", "c"), spec=SPEC, architecture="tiny")


def test_an_answer_is_the_same_in_batches_as_at_once() -> None:
    asked = teacher(nn.BatchNorm2d(4))
    images = draw(0, 10, size=(8, 8), channels=1)
    logits, misfit = network_answer(asked, images, batch=4)
    np.testing.assert_allclose(logits, network_logits(asked, images), atol=1e-5)
    with reading_misfit(asked) as reader, torch.no_grad():
        asked(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
        np.testing.assert_allclose(misfit, reader.take().numpy(), rtol=1e-4)
    assert misfit.std() > 0


@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 4), nn.Identity()])
def test_without_batchnorm_every_image_fits(norm: nn.Module) -> None:
    answer = network_answer(teacher(norm), draw(0, 5, size=(8, 8), channels=1))
    assert answer.logits.shape == (5, 3)
    assert (answer.misfit == 0).all()
