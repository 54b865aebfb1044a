"""What many tests share: the command line in this process, and one build so tiny that it takes
seconds: 8x8 grey images of four classes, a teacher of a few thousand weights, six steps of kd.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

CLASSES = ("bolt", "nut", "washer", "nothing")
ARTIFACT = "onnxruntime-x86-avx2-int8"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of shared data sets and teachers; tests that need it skip where it is missing."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("HYDISTILL_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared folder here ({folder}); set HYDISTILL_SHARED to one")
    return folder


@dataclass(frozen=True)
class Answer:
    """What one command line answered."""

    code: int
    out: str
    err: str

    @property
    def value(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.out)


Command = Callable[..., Answer]


@pytest.fixture
def hydistill(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run one command line of `hydistill` in this process."""
    from hydistill_edge.cli import main

    def run(*arguments: object) -> Answer:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(hydistill: Command) -> Callable[..., str]:
    """Run a command line that must end in one clear error; return its message.

    The error is an object on stdout (--json) and the same one message on stderr, nothing else.
    """

    def run(*arguments: object, code: int, says: tuple[str, ...] = ()) -> str:
        answer = hydistill(*arguments, "--json")
        error = answer.value["error"]
        assert answer.err == f"error: {error['message']}\n"
        assert (answer.code, error["exit_code"]) == (code, code), error
        assert "Traceback" not in answer.err
        for words in says:
            assert words in error["message"]
        return str(error["message"])

    return run


def draw_images(count: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return gradients in four directions with noise, shape (count, 8, 8, 1), and their labels."""
    labels = np.arange(count) % len(CLASSES)
    row, column = np.mgrid[0:8, 0:8]
    shapes = np.stack([column * 32, row * 32, (row + column) * 16, 255 - (row + column) * 16])
    noise = np.random.default_rng(seed).normal(30, 25, (count, 8, 8))
    return (0.7 * shapes[labels] + noise).clip(0, 255).astype(np.uint8)[..., None], labels


@dataclass(frozen=True)
class TinyInputs:
    """What a customer hands over, in a folder that tests only read."""

    folder: Path
    classes: tuple[str, ...] = CLASSES

    @property
    def teacher(self) -> Path:
        """Weights of a zoo resnet8, width 0.25: random, its batch norms set by real images."""
        return self.folder / "teacher.safetensors"

    def recipe(self, path: Path, **changes: Any) -> Path:
        """Write the tiny recipe with changed sections (merged; None removes a key)."""
        path.write_text(yaml.safe_dump(_merged(self._recipe(), changes), sort_keys=False))
        return path

    def _recipe(self) -> dict[str, Any]:
        shape = {"height": 8, "width": 8, "channels": 1, "mean": [0.5], "std": [0.25]}
        holdout = {"kind": "npz", "path": str(self.folder / "holdout.npz"), "use_labels": True}
        return {
            "name": "tiny",
            "teacher": {
                "weights": str(self.teacher),
                "architecture": "zoo:resnet8",
                "options": {"width": 0.25},
                "classes": list(self.classes),
                "input": shape,
            },
            "images": {
                "real": [{"kind": "npz", "path": str(self.folder / "pilot.npz")}],
                # So few iterations bring nothing together that started apart, and random weights
                # know no class to ask for. With fewer still, int8 is judged on noise.
                "synthetic": {
                    "count": 64,
                    "inversion": {"iterations": 30, "batch": 64, "spread": 0.0, "class_prior": 1.0},
                },
            },
            "student": {"architecture": "resnet8", "width": 0.25},
            "training": {"steps": 6, "batch": 16, "evaluations": 2, "checkpoint_seconds": 0},
            "targets": [{"target": "onnxruntime", "device": "x86-avx2", "precisions": ["int8"]}],
            "calibration": {"count": 16, "quality": 0.05, "control_db": 1},
            "parity": {"images": 64, "golden": 4},
            "latency": {"mode": "demo"},
            # Six steps make no classifier: what is judged here is the way, not the result. Nor do
            # its batch norms remember anything that sixteen images could be held against.
            "gates": {"int8_agreement_synthetic": 0, "int8_agreement_real": 0},
            "evaluation": holdout,
        }


def _merged(base: Any, change: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(change, Mapping):
        return change
    both = {key: _merged(base.get(key), value) for key, value in change.items()}
    return {key: value for key, value in {**base, **both}.items() if value is not None}


@pytest.fixture(scope="session")
def tiny_inputs(tmp_path_factory: pytest.TempPathFactory) -> TinyInputs:
    """A teacher, 32 unlabelled real images and 40 labelled ones."""
    import torch
    from safetensors.torch import save_file

    from hydistill_edge.models.zoo import create_network

    folder = tmp_path_factory.mktemp("inputs")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = create_network("resnet8", classes=4, channels=1, size=(8, 8), width=0.25)
    images, _ = draw_images(256, seed=1)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        for _ in range(40):
            network.train()(pixels)
    save_file(network.state_dict(), folder / "teacher.safetensors")
    np.savez(folder / "pilot.npz", images=draw_images(32, seed=2)[0])
    images, labels = draw_images(40, seed=3)
    np.savez(folder / "holdout.npz", images=images, labels=labels)
    return TinyInputs(folder)


@pytest.fixture(scope="session")
def finished_build(tiny_inputs: TinyInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of one finished tiny build; tests only read it, or copy it."""
    from hydistill_edge import Recipe, build

    folder = tmp_path_factory.mktemp("finished")
    build(Recipe.load(tiny_inputs.recipe(folder / "recipe.yaml")), out=folder / "run")
    return folder / "run"


@pytest.fixture
def run_copy(finished_build: Path, tmp_path: Path) -> Path:
    """A finished run directory of the test's own; nothing in it is stale."""
    return Path(shutil.copytree(finished_build, tmp_path / "run"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut what takes long and is tested elsewhere: the report's figures, the time of a latency."""
    from dataclasses import replace

    from hydistill_edge.report import figures
    from hydistill_edge.targets import latency

    demo = replace(
        latency.MODES["demo"], seconds=0.05, at_most=64, cap_s=0.05, warm_up_s=(0.01, 0.02)
    )
    monkeypatch.setattr(latency, "MODES", {**latency.MODES, "demo": demo})
    monkeypatch.setattr(figures, "draw", lambda *_: "")


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, str]]:
    """Return the sha256 of every file of a folder, by its path: to see that nothing was lost."""

    def digests(folder: Path) -> dict[str, str]:
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return digests
