"""Several classifiers that answer as one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydistill_edge.errors import MethodError, UsageError
from hydistill_edge.models.student import Student
from hydistill_edge.models.teacher import Teacher

Average = Literal["logits", "probabilities"]
AVERAGES: tuple[Average, ...] = get_args(Average)

Classifier = Teacher | Student


class Ensemble(nn.Module):
    """Frozen classifiers of pixels; their answer is the mean of what each says.

    Args:
        networks: at least one, with the same classes; they are frozen in place.
        average: `logits`, or `probabilities` where the scales of the logits differ so much that one
            network would decide alone.

    Attributes:
        classes: names, one per logit.
        average: as given.

    Raises:
        UsageError: no network, or an unknown average.
        MethodError: their classes differ.
    """

    def __init__(self, networks: Sequence[Classifier], *, average: Average = "logits") -> None:
        super().__init__()
        if not networks:
            raise UsageError("an ensemble of no networks; expected at least one")
        if average not in AVERAGES:
            raise UsageError(f'average "{average}"; expected {" or ".join(AVERAGES)}')
        self.classes = networks[0].classes
        for place, network in enumerate(networks):
            if network.classes != self.classes:
                raise MethodError(
                    f"network {place} of the ensemble knows the classes "
                    f"{', '.join(network.classes)}, the first one {', '.join(self.classes)}; "
                    "expected the same in the same order"
                )
        self.average = average
        self._networks = nn.ModuleList(networks)
        self.requires_grad_(False)
        self.train(False)

    def __len__(self) -> int:
        return len(self._networks)

    @property
    def networks(self) -> list[Classifier]:
        """The networks, in the order given."""
        found: list[Classifier] = []
        for network in self._networks:
            assert isinstance(network, Classifier)
            found.append(network)
        return found

    def train(self, mode: bool = True) -> Ensemble:
        """Stay in eval mode, whatever is asked: nothing here is trained."""
        del mode
        super().train(False)
        return self

    def each(self, pixels: Tensor) -> Tensor:
        """Return the logits of every network, shape (M, N, classes) float32."""
        return torch.stack([network(pixels).float() for network in self._networks])

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the common logits, shape (N, classes) float32.

        Args:
            pixels: shape (N, C, H, W), uint8 or floats in [0, 1].
        """
        return self.combine(self.each(pixels))

    def combine(self, logits: Tensor) -> Tensor:
        """Return the mean over networks, shape (N, classes).

        Args:
            logits: shape (M, N, classes).

        Returns:
            The mean logits, or the logarithm of the mean probabilities, whose softmax they are.
        """
        if self.average == "logits":
            return logits.mean(dim=0)
        return F.log_softmax(logits, dim=-1).logsumexp(dim=0) - math.log(len(logits))
