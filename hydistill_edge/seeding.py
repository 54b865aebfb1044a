"""Weights from a seed, without a trace in torch's own generators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let torch's CPU generator start at `seed` for a while: layers draw their weights from it."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed CUDA's generators as well.
        torch.default_generator.manual_seed(seed)
        yield
