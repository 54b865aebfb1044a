"""Tiny students, exported once per session: building on the spot would cost a second each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydistill_edge.targets.profiles import load_profile, saturates_int8


@dataclass(frozen=True)
class TinyStudent:
    """What the export needs of a student."""

    network: Any
    classes: tuple[str, ...] = ("bolt", "nut", "washer")
    channels: int = 3
    size: tuple[int, int] = (16, 16)


def _networks() -> dict[str, Callable[[], Any]]:
    from torch import nn

    def block(inputs: int, outputs: int, act: Any, groups: int = 1, stride: int = 1) -> Any:
        conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), act)

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = block(3, 16, nn.ReLU(), stride=2)
            self.body = block(16, 16, nn.ReLU())
            self.tail = block(16, 16, nn.Identity())
            self.fc = nn.Linear(16, 3)

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            x = (self.tail(self.body(x)) + x).relu()
            return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))

    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = block(3, 16, nn.ReLU6(), stride=2)
            self.depthwise = block(16, 16, nn.ReLU6(), groups=16)
            self.pointwise = nn.Conv2d(16, 24, 1)
            self.fc = nn.Linear(24, 3)

        def forward(self, x: Any) -> Any:
            return self.fc(self.pointwise(self.depthwise(self.stem(x))).mean((2, 3)))

    class Squeeze(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = block(3, 16, nn.Hardswish(), stride=2)
            self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
            self.body = block(16, 16, nn.SiLU())
            self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(16, 3)

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            gate = nn.functional.hardsigmoid(self.up(self.down(self.pool(x)).relu()))
            return self.fc(self.pool(self.body(x * gate)).flatten(1))

    class Explicit(nn.Module):
        """Keeps the statistics it was trained with: z = (pixel - 128) / 64 to (pixel - m) / s."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("gain", _column([1.1, 1.2, 1.3]))
            self.register_buffer("shift", _column([0.1, -0.1, 0.2]))
            self.network = Residual()

        def forward(self, z: Any) -> Any:
            return self.network(z * self.gain + self.shift)

    class Dead(nn.Module):
        """Has a ReLU that nothing passes and a tensor that is 5 everywhere."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = block(3, 16, nn.ReLU(), stride=2)
            self.side, self.mix = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
            self.fc = nn.Linear(16, 3)

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            dead = (self.side(x) - 100).relu()
            x = x + self.mix(dead + 5) + dead
            return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))

    class Joined(nn.Module):
        """Joins a strong and a weak branch."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = block(3, 16, nn.ReLU(), stride=2)
            self.strong, self.weak = block(16, 8, nn.ReLU()), block(16, 8, nn.ReLU())
            self.tail, self.fc = block(16, 16, nn.ReLU()), nn.Linear(16, 3)

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            x = nn.functional.max_pool2d(_torch().cat([self.strong(x), self.weak(x * 0.1)], 1), 2)
            return self.fc(self.tail(x).mean((2, 3)))

    networks = (Residual, Depthwise, Squeeze, Explicit, Dead, Joined)
    return {network.__name__.lower(): network for network in networks}


def _torch() -> Any:
    import torch

    return torch


def _column(values: list[float]) -> Any:
    import torch

    return torch.tensor(values)[:, None, None]


@pytest.fixture(scope="session")
def tiny_student() -> Callable[[str], TinyStudent]:
    """Return a function from a network's name to a student with fixed weights."""

    def make(kind: str) -> TinyStudent:
        import torch

        generator = torch.Generator().manual_seed(5)
        network = _networks()[kind]().eval()
        for name, value in network.state_dict().items():
            if not value.is_floating_point() or name in ("gain", "shift"):
                continue
            noise = torch.randn(value.shape, generator=generator)
            fan_in = max(value[0].numel(), 1) if value.ndim > 1 else 100
            value.copy_(noise / fan_in**0.5)
            if name.endswith("running_var") or (value.ndim == 1 and name.endswith(".1.weight")):
                value.copy_(noise.abs() + 0.5)
        return TinyStudent(network)

    return make


@pytest.fixture(scope="session")
def tiny_graph(
    tiny_student: Callable[[str], TinyStudent], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Any]:
    """Return a function from a network's name (and batch) to its exported Graph."""
    folder = tmp_path_factory.mktemp("graphs")
    made: dict[tuple[str, int | None], Any] = {}

    def export(kind: str, batch: int | None = 1) -> Any:
        from hydistill_edge.targets.graph import export_student

        if (kind, batch) not in made:
            out = folder / f"{kind}-{batch}.onnx"
            made[kind, batch] = export_student(tiny_student(kind), out, batch=batch, resize="none")
        return made[kind, batch]

    return export


@pytest.fixture(scope="session")
def pixels() -> Callable[[int], Any]:
    """Return a function from n to smooth, colourful images, shape (n, 16, 16, 3)."""

    def draw(count: int) -> Any:
        rng = np.random.default_rng(11)
        coarse = rng.integers(0, 256, (count, 4, 4, 3)).repeat(4, axis=1).repeat(4, axis=2)
        noisy = coarse + rng.integers(-16, 17, coarse.shape)
        return np.clip(noisy, 0, 255).astype(np.uint8)

    return draw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return an empty folder for an artifact."""
    out = tmp_path / "artifact"
    out.mkdir()
    return out


@pytest.fixture(scope="session")
def exact_profile() -> str:
    """Name an x86 profile whose int8 artifacts this machine computes as they are meant."""
    return "x86-avx2" if saturates_int8(load_profile("x86-vnni")) else "x86-vnni"


@pytest.fixture
def needs_exact_int8(request: pytest.FixtureRequest) -> None:
    """Skip what is made for VNNI on a machine without it."""
    if saturates_int8(load_profile(request.getfixturevalue("profile"))):
        pytest.skip("without VNNI the sums of such an artifact saturate on this machine")


@pytest.fixture(scope="session")
def calibration(pixels: Callable[[int], Any]) -> Callable[..., Any]:
    """Return a function from a target and a profile's name to a calibration of 24 images."""

    def make(target: str, profile: str = "x86-vnni", **changes: Any) -> Any:
        from hydistill_edge.calibration.ranges import make_estimator
        from hydistill_edge.calibration.scheme import choose_scheme
        from hydistill_edge.targets.base import Calibration
        from hydistill_edge.targets.onnxruntime.activations import make_activation_reader
        from hydistill_edge.targets.profiles import load_profile

        images = pixels(24)
        scheme = replace(choose_scheme(target, load_profile(profile)), **changes)
        ids = tuple(f"image-{index}" for index in range(len(images)))
        estimate = make_estimator(make_activation_reader(), images, scheme)
        return Calibration(images, ids, digest="0" * 64, scheme=scheme, estimate=estimate)

    return make
