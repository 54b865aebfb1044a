"""A frozen teacher asked in every training step: compiled and replayed on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hydistill_edge.models.plain_features import Answer, asking, plain_features
from hydistill_edge.models.teacher import Teacher
from hydistill_edge.training.compiling import compiled


def quick_answers(teacher: Teacher, device: torch.device) -> Callable[[Tensor], Answer]:
    """Return what asks a teacher about a batch of pixels, without gradients.

    Views differ in every step, so that answers cannot be kept; but weights stay as they are, and
    batches are all of one shape. A teacher that only hooks can read is asked layer by layer.

    Args:
        teacher: on the device.
        device: where the pixels are.
    """
    plain = plain_features(teacher) if device.type == "cuda" else None
    ask = asking(teacher) if plain is None else compiled(plain, device, graphs=True)

    def answer(pixels: Tensor) -> Answer:
        with torch.no_grad():
            return ask(pixels)

    return answer
