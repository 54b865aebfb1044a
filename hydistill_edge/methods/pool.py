"""The transfer set as a method sees it: what is drawn each step, and what is held out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hydistill_edge.errors import MethodError
from hydistill_edge.images.selection import PoolBatch
from hydistill_edge.images.transfer_format import REAL_ORIGINS
from hydistill_edge.images.transfer_set import Indices, TransferSet
from hydistill_edge.objectives.logits import agreement, kd_kl
from hydistill_edge.training.loop import Judgement
from hydistill_edge.training.sampling import Passes

HOLDOUT_LIMIT = 2000
"""Images held out at most: the standard error of an agreement is then 1 point or less."""

RESIDENT_BYTES = 2 * 2**30
"""Larger sets stay on the disk, mapped, and are read batch by batch; a GPU holds what fits."""

RESIDENT_SHARE = 0.25
"""Of a GPU's free memory, for images; the rest is for training."""


class Pool:
    """Images and logits by place in the transfer set, on the device where they fit.

    Args:
        transfer: where they come from.
        device: where they go.
    """

    def __init__(self, transfer: TransferSet, device: torch.device) -> None:
        self._transfer = transfer
        self._device = device
        height, width = transfer.size
        places = np.arange(len(transfer))
        self._resident: tuple[Tensor, Tensor] | None = None
        if len(transfer) * height * width * transfer.channels <= resident_bytes(device):
            self._resident = (self._read_images(places), self._read_logits(places))

    def images(self, indices: Indices) -> Tensor:
        """Return pixels, shape (n, C, H, W) uint8."""
        if self._resident is None:
            return self._read_images(indices)
        return self._resident[0][torch.from_numpy(indices).to(self._device)]

    def logits(self, indices: Indices) -> Tensor:
        """Return the teacher's logits, shape (n, classes) float32."""
        if self._resident is None:
            return self._read_logits(indices)
        return self._resident[1][torch.from_numpy(indices).to(self._device)]

    def batches(self, indices: Indices, batch: int) -> Iterator[PoolBatch]:
        """Yield images and logits in order, so many at a time, for scoring."""
        for start in range(0, len(indices), batch):
            rows = indices[start : start + batch]
            yield PoolBatch(rows, self.images(rows), self.logits(rows))

    def _read_images(self, indices: Indices) -> Tensor:
        pixels = torch.from_numpy(self._transfer.images(indices)).to(self._device)
        return pixels.permute(0, 3, 1, 2).contiguous()

    def _read_logits(self, indices: Indices) -> Tensor:
        return torch.from_numpy(self._transfer.logits(indices)).to(self._device)


def resident_bytes(device: torch.device) -> int:
    """Return how many bytes of images a device may hold for good."""
    if device.type != "cuda":
        return RESIDENT_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(RESIDENT_SHARE * free)


class Draws:
    """Which images a step sees: fixed shares of real ones and of those from formulas.

    Args:
        transfer: the whole set.
        train_on: places in it that may be drawn.
        batch: images per step.
        real_share: share of real images in each batch, in [0, 1]; None for their share in the set.
            Without effect where all images are of one origin.
        procedural_share: of the others, share of those from formulas; None to draw from all alike.
            Without effect where none or all of them are.
        seed: of the order.
    """

    def __init__(
        self,
        transfer: TransferSet,
        train_on: Indices,
        *,
        batch: int,
        real_share: float | None,
        procedural_share: float | None = None,
        seed: int,
    ) -> None:
        real = is_real(transfer)[train_on]
        reals, made = train_on[real], train_on[~real]
        number = batch - _part(batch, reals, made, real_share)
        parts = [(reals, batch - number), (made, number)]
        if procedural_share is not None:
            drawn = transfer.origins[made] == "procedural"
            formulas = _part(number, made[drawn], made[~drawn], procedural_share)
            parts[1:] = [(made[drawn], formulas), (made[~drawn], number - formulas)]
        self._parts = [
            (places, Passes(len(places), batch=number, seed=seed + offset))
            for offset, (places, number) in enumerate(parts)
            if number
        ]

    def at(self, step: int) -> Indices:
        """Return places in the transfer set, shape (batch,)."""
        return np.concatenate([places[passes.at(step)] for places, passes in self._parts])


def _part(batch: int, these: Indices, others: Indices, share: float | None) -> int:
    """Return how many images of a batch are of one kind and not of the other."""
    if share is None or not (len(these) and len(others)):
        share = len(these) / max(1, len(these) + len(others))
    return round(batch * share)


def judge_on(
    pool: Pool, held_out: Indices, is_real: NDArray[np.bool_], batch: int
) -> Callable[[nn.Module], Judgement]:
    """Return a function that compares a network with the stored logits of held-out images.

    Args:
        pool: the whole set.
        held_out: places in it.
        is_real: which images are real, shape (len(set),).
        batch: images at a time.
    """
    parts = [held_out[start : start + batch] for start in range(0, len(held_out), batch)]
    real = torch.from_numpy(is_real[held_out])

    @torch.no_grad()
    def judge(network: nn.Module) -> Judgement:
        logits = torch.cat([network(pool.images(part)).float() for part in parts])
        targets = torch.cat([pool.logits(part) for part in parts])
        agree = agreement(logits, targets).item()
        metrics = {
            "holdout_agreement": agree,
            "holdout_kl": kd_kl(logits, targets, temperature=1.0).item(),
        }
        if real.any() and not real.all():
            chosen = real.to(logits.device)
            metrics["holdout_agreement_real"] = agreement(logits[chosen], targets[chosen]).item()
            metrics["holdout_agreement_synthetic"] = agreement(
                logits[~chosen], targets[~chosen]
            ).item()
        return Judgement(agree, metrics, margin=standard_error(agree, len(held_out)))

    return judge


def standard_error(share: float, count: int) -> float:
    """Return the standard error of a share of `count` images, above 0 also where all agree."""
    smoothed = (share * count + 1.0) / (count + 2.0)
    return math.sqrt(smoothed * (1.0 - smoothed) / count)


def is_real(transfer: TransferSet) -> NDArray[np.bool_]:
    """Return which images of a set are real, shape (len(set),)."""
    return np.isin(transfer.origins, REAL_ORIGINS)


def split(transfer: TransferSet, share: float, seed: int) -> tuple[Indices, Indices]:
    """Return the places to train on and those held out, the same share of both origins.

    Args:
        transfer: the whole set.
        share: of the images that are held out, at most `HOLDOUT_LIMIT` of them.
        seed: of the draw.

    Raises:
        MethodError: fewer than two images.
    """
    if len(transfer) < 2:
        raise MethodError(
            f"the transfer set holds {len(transfer)} image; distillation needs at least 2, one of "
            "them held out"
        )
    share = min(share, HOLDOUT_LIMIT / len(transfer))
    real = is_real(transfer)
    rests, parts = [], []
    for chosen in (np.flatnonzero(real), np.flatnonzero(~real)):
        if round(len(chosen) * share) == 0:  # too few of this origin to hold one out
            rests.append(chosen)
            continue
        rest, part = transfer.split(share, seed=seed, indices=chosen)
        rests.append(rest)
        parts.append(part)
    if not parts:
        return transfer.split(1 / len(transfer), seed=seed)
    return np.concatenate(rests), np.concatenate(parts)
