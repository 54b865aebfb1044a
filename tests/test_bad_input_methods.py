"""Bad input of methods hidfd and kd3 from the command line: one clear error, or one clear note."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hydistill_edge.synthesis import gan_health

Refused = Callable[..., str]

GAN = {
    "maker": "gan", "count": 40, "inversion": None,
    "gan": {"iterations": 2, "batch": 8, "width": 8, "records": 1},
}  # fmt: skip
KD3 = {"epochs": 1, "batch": 8, "embedding": 4, "evaluations": 1, "steps": None}


def recipe(inputs: Any, folder: Path, **changes: Any) -> Path:
    made: Path = inputs.recipe(folder / "recipe.yaml", evaluation=None, **changes)
    return made


def write_pool(folder: Path, images: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Write grey PNG files; return them as the sources of a recipe."""
    folder.mkdir()
    for place, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(folder / f"{place:03d}.png")
    return [{"kind": "folder", "path": str(folder), "origin": "web", "on_corrupt": "skip"}]


def pixels(inputs: Any) -> np.ndarray[Any, Any]:
    with np.load(inputs.folder / "pilot.npz") as file:
        images: np.ndarray[Any, Any] = file["images"]
    return images


def test_pilot_set_is_refused_by_the_recipe_when_smaller_than_the_class_count(
    tiny_inputs: Any, tmp_path: Path, refused: Refused
) -> None:
    path = recipe(tiny_inputs, tmp_path, images={"pilot": {"count": 3}})
    says = ("images.pilot.count: 3 images cannot cover 4 classes",)
    refused("build", path, "--out", tmp_path / "run", code=2, says=says)


@pytest.mark.parametrize(
    ("count", "pilot", "said"),
    [
        (3, {"count": 4}, "3 candidates for 4 classes; expected at least one per class"),
        (20, {"count": 8, "threshold": 1.0}, "no candidate of 20 passes the threshold 1.0"),
    ],
    ids=["fewer-candidates-than-classes", "none-passes"],
)
def test_pool_is_refused_when_no_pilot_set_can_be_chosen(
    tiny_inputs: Any,
    tmp_path: Path,
    refused: Refused,
    count: int,
    pilot: dict[str, Any],
    said: str,
) -> None:
    real = write_pool(tmp_path / "pool", pixels(tiny_inputs)[:count])
    path = recipe(tiny_inputs, tmp_path, images={"real": real, "pilot": pilot})
    refused("build", path, "--out", tmp_path / "run", code=2, says=(said,))
    assert not (tmp_path / "run" / "transfer").exists()


def test_too_few_collected_images_are_refused_before_the_gan_is_trained(
    tiny_inputs: Any, tmp_path: Path, refused: Refused
) -> None:
    real = write_pool(tmp_path / "pool", pixels(tiny_inputs)[:3])
    images = {"real": real, "synthetic": GAN}
    path = recipe(tiny_inputs, tmp_path, images=images, method="hidfd", training={"steps": 2})
    says = ("3 collected images for 4 classes; expected at least one per class",)
    refused("build", path, "--out", tmp_path / "run", code=2, says=says)


@pytest.fixture
def tiny_teacher(tiny_inputs: Any) -> Any:
    from safetensors.torch import load_file

    from hydistill_edge.models.pixels import InputSpec
    from hydistill_edge.models.teacher import Teacher
    from hydistill_edge.models.zoo import create_network

    network = create_network("resnet8", classes=4, channels=1, size=(8, 8), width=0.25)
    network.load_state_dict(load_file(tiny_inputs.teacher))
    spec = InputSpec(8, 8, 1, (0.5,), (0.25,))
    return Teacher.wrap(network, classes=tiny_inputs.classes, spec=spec)


def test_class_that_the_pool_lacks_is_named_by_pilot_gan_and_report(
    tiny_inputs: Any, tiny_teacher: Any, tmp_path: Path, hydistill: Any
) -> None:
    import torch

    images = pixels(tiny_inputs)
    logits = tiny_teacher(torch.from_numpy(images).permute(0, 3, 1, 2))
    classes = logits.argmax(dim=1).numpy()
    lacking = int(np.bincount(classes, minlength=4).argmin())
    real = write_pool(tmp_path / "pool", images[classes != lacking])
    path = recipe(
        tiny_inputs, tmp_path, method="hidfd", training={"steps": 2},
        images={"real": real, "synthetic": GAN, "pilot": {"count": 12, "threshold": 0.0}},
    )  # fmt: skip
    for stage in ("teacher", "images"):
        assert hydistill("build", path, "--out", tmp_path / "run", "--only", stage).code == 0
    told = json.loads((tmp_path / "run" / "transfer" / "pilot.json").read_text())
    made = json.loads((tmp_path / "run" / "transfer" / "manifest.json").read_text())
    name = tiny_inputs.classes[lacking]
    (note,) = [note for note in told["notes"] if note.startswith("no candidate is of class")]
    assert name in note
    assert name in made["details"]["gan"]["coverage"]["missing"]


def test_selection_names_the_class_that_the_pool_lacks(
    tiny_inputs: Any, tmp_path: Path, hydistill: Any
) -> None:
    level = np.arange(24, dtype=np.uint8)[:, None, None, None]
    alike = np.broadcast_to(pixels(tiny_inputs)[:1] // 2, (24, 8, 8, 1)) + level
    real = write_pool(tmp_path / "pool", alike.astype(np.uint8))
    images = {"real": real, "synthetic": {"count": 0}}
    path = recipe(tiny_inputs, tmp_path, method="kd3", training=KD3, images=images)
    for stage in ("teacher", "images", "student"):
        answer = hydistill("build", path, "--out", tmp_path / "run", "--only", stage)
        assert answer.code == 0, answer.err
    told = json.loads((tmp_path / "run" / "student" / "selection.json").read_text())
    assert any("no image of the pool is taken for" in note for note in told["epochs"][0]["notes"])


def test_corrupt_images_of_a_pool_are_skipped_counted_and_listed(
    tiny_inputs: Any, tmp_path: Path, hydistill: Any, quick: None
) -> None:
    real = write_pool(tmp_path / "pool", pixels(tiny_inputs))
    (tmp_path / "pool" / "torn.png").write_bytes(b"\x89PNG torn")
    path = recipe(tiny_inputs, tmp_path, images={"real": real})
    answer = hydistill("build", path, "--out", tmp_path / "run", "--json")
    assert answer.code in (0, 1), answer.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    manifest = json.loads((tmp_path / "run" / "transfer" / "manifest.json").read_text())
    assert summary["transfer"]["skipped"] == 1
    assert [entry["id"] for entry in manifest["details"]["skipped"]] == ["pool:torn.png"]
    note = "1 images could not be read and were left out"
    assert note in (tmp_path / "run" / "report.html").read_text()


def test_training_is_refused_when_no_image_of_the_pool_passes_and_nothing_stands_in(
    tiny_inputs: Any, tmp_path: Path, refused: Refused
) -> None:
    never = {"threshold": 0.999999, "fallback_share": 0.0, "takeover": 1e9, "curve": 1e9}
    real = write_pool(tmp_path / "pool", pixels(tiny_inputs))
    images = {"real": real, "synthetic": {"count": 0}}
    path = recipe(tiny_inputs, tmp_path, method="kd3", training=KD3 | never, images=images)
    says = ("no image of", "lower the threshold, allow a fallback, or give images nearer")
    refused("build", path, "--out", tmp_path / "run", code=2, says=says)


@pytest.mark.parametrize("method", ["hidfd", "kd3"])
def test_teacher_without_a_linear_classifier_is_refused_before_images_are_made(
    tiny_inputs: Any, tmp_path: Path, refused: Refused, method: str
) -> None:
    from safetensors.torch import save_file

    from hydistill_edge.models.zoo import create_network

    network = create_network("convnet3", classes=4, channels=1, size=(8, 8), width=0.125)
    save_file(network.state_dict(), tmp_path / "flat.safetensors")
    teacher = {
        "weights": str(tmp_path / "flat.safetensors"), "architecture": "zoo:convnet3",
        "options": {"width": 0.125},
    }  # fmt: skip
    training = {"steps": 2} if method == "hidfd" else KD3
    path = recipe(tiny_inputs, tmp_path, method=method, training=training, teacher=teacher)
    says = ("this teacher's classifier cannot be shared", "use method kd")
    refused("build", path, "--out", tmp_path / "run", code=2, says=says)
    assert not list((tmp_path / "run").glob("*transfer*"))


def test_collapsed_gan_ends_the_build_with_what_to_do(
    tiny_inputs: Any, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gan_health, "ALIKE", 1e9)  # whatever it makes counts as one image
    path = recipe(
        tiny_inputs, tmp_path, method="hidfd", training={"steps": 2}, images={"synthetic": GAN}
    )
    says = ("the GAN collapsed", "more collected images or fewer iterations")
    refused("build", path, "--out", tmp_path / "run", code=2, says=says)
    assert not (tmp_path / "run" / "student").exists()
