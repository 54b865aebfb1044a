"""A teacher asked in every step answers as it always does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hydistill_edge.methods import quick_teacher
from hydistill_edge.methods.quick_teacher import quick_answers
from hydistill_edge.models.pixels import InputSpec
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.models.zoo import create_network

PIXELS = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def teacher() -> Teacher:
    spec = InputSpec(8, 8, 3, (0.5,) * 3, (0.25,) * 3)
    network = create_network("resnet8", classes=3, channels=3, size=(8, 8), width=0.25)
    return Teacher.wrap(network, classes=("a", "b", "c"), spec=spec)


def test_answers_are_the_teachers_without_gradient_when_on_a_cpu() -> None:
    asked = teacher()
    answer = quick_answers(asked, torch.device("cpu"))(PIXELS.clone().requires_grad_())
    features = asked.features(PIXELS)
    assert torch.equal(answer.logits, features.logits)
    assert torch.equal(answer.final_map, features.final_map)
    assert not answer.final_map.requires_grad


def test_answers_are_compiled_as_a_graph_when_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def compiled(function: object, device: torch.device, *, graphs: bool) -> object:
        seen.update(device=device.type, graphs=graphs)
        return function

    monkeypatch.setattr(quick_teacher, "compiled", compiled)
    asked = teacher()
    found: Tensor = quick_answers(asked, torch.device("cuda"))(PIXELS).final_map
    assert seen == {"device": "cuda", "graphs": True}
    assert torch.equal(found, asked.features(PIXELS).final_map)
