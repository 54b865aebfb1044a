"""What a device does with a bundle: load, decide, check itself."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hydistill_edge.bundle.manifest import InputFormat
from hydistill_edge.device import load
from hydistill_edge.errors import (
    BundleError,
    ImageSourceError,
    MissingFileError,
    ShapeError,
    UsageError,
)
from hydistill_edge.images.resize import resize

Runners = list[Any]
PHOTO = np.random.default_rng(0).integers(100, 256, (20, 30, 3), dtype=np.uint8)


def png(image: np.ndarray = PHOTO) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def test_model_decides_when_it_is_given_a_picture(bundle: Path, runners: Runners) -> None:
    with load(bundle) as model:
        result = model(PHOTO)

    assert (result.label, result.index, result.accepted) == ("bright", 1, True)
    assert result.probability == pytest.approx(
        1 / (1 + np.exp(result.logits[0] - result.logits[1]))
    )
    assert result.probabilities.sum() == pytest.approx(1)
    assert result.logits.shape == (2,)
    assert runners[0].closed


def test_model_runs_with_the_profiles_threads_when_none_are_asked_for(
    bundle: Path, runners: Runners
) -> None:
    with load(bundle), load(bundle, threads=3):
        pass

    assert [runner.threads for runner in runners] == [2, 3]
    assert runners[0].precision == "fp32"
    assert runners[0].file.name == "model.onnx"
    with pytest.raises(UsageError, match="threads is 0"):
        load(bundle, threads=0)


@pytest.mark.parametrize("kind", ["path", "text", "bytes", "memory", "pillow", "reversed"])
def test_decision_is_the_same_however_the_picture_arrives(
    bundle: Path, runners: Runners, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "photo.png").write_bytes(png())
    ways: dict[str, Any] = {
        "path": tmp_path / "photo.png",
        "text": str(tmp_path / "photo.png"),
        "bytes": png(),
        "memory": memoryview(png()),
        "pillow": Image.fromarray(PHOTO),
        "reversed": PHOTO[::-1][::-1],
    }
    with load(bundle) as model:
        assert np.array_equal(model(ways[kind]).logits, model(PHOTO).logits)
        assert np.array_equal(model.pixels(ways[kind]), resize(PHOTO, (8, 8)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(9, 9), (9, 9, 1), (9, 9, 3)], ids=str)
def test_picture_gets_the_models_channels_when_it_has_others(
    make: Callable[..., Path], runners: Runners, channels: int, shape: tuple[int, ...]
) -> None:
    with load(make(channels=channels)) as model:
        assert model.pixels(np.full(shape, 200, np.uint8)).shape == (8, 8, channels)
        assert model(np.full(shape, 200, np.uint8)).label == "bright"


def test_answer_is_not_accepted_when_it_is_unsure(bundle: Path, runners: Runners) -> None:
    with load(bundle) as model:
        unsure, sure = model.batch([np.full((8, 8), 132, np.uint8), np.zeros((8, 8), np.uint8)])

    assert (unsure.label, unsure.accepted) == ("bright", False)
    assert (sure.label, sure.accepted) == ("dark", True)


def test_answer_is_not_judged_when_the_bundle_has_no_rule(
    make: Callable[..., Path], runners: Runners
) -> None:
    with load(make(reject=None, reject_note="no real images")) as model:
        assert model(PHOTO).accepted is None
        assert model.manifest.reject_note == "no real images"


@pytest.mark.parametrize(
    ("batch", "shapes"),
    [(1, [1, 1, 1, 1, 1]), (2, [2, 2, 2]), (None, [5])],
    ids=["one", "two", "any"],
)
def test_batch_gives_what_single_calls_give(
    make: Callable[..., Path], runners: Runners, batch: int | None, shapes: list[int]
) -> None:
    pictures = [np.full((8, 8, 3), 50 * i, np.uint8) for i in range(5)]

    with load(make(batch=batch)) as model:
        together = model.batch(pictures)
        assert [shape[0] for shape in runners[0].shapes] == shapes
        alone = [model(picture) for picture in pictures]
        assert model.batch([]) == []

    assert [r.probability for r in together] == [r.probability for r in alone]


@pytest.mark.parametrize(
    ("image", "error", "expected"),
    [
        (np.zeros((8, 8, 3), np.float32), ShapeError, "image is float32"),
        (np.zeros((8, 8, 4), np.uint8), ShapeError, "1 or 3"),
        (np.zeros((1, 8, 8, 3), np.uint8), ShapeError, "expected uint8"),
        (np.zeros((0, 8), np.uint8), ShapeError, "no pixels"),
        (b"no image", ImageSourceError, "not an image"),
        (png()[:200], ImageSourceError, "truncated or corrupt"),
        (Path("none.png"), MissingFileError, "no such image file"),
        (7, UsageError, "image is a int"),
    ],
    ids=["float", "alpha", "batch", "empty", "text", "torn", "missing", "number"],
)
def test_picture_is_refused_when_it_cannot_be_used(
    bundle: Path, runners: Runners, image: Any, error: type[Exception], expected: str
) -> None:
    with load(bundle) as model, pytest.raises(error, match=expected):
        model(image)


def test_bundle_is_refused_when_a_byte_is_altered(bundle: Path, runners: Runners) -> None:
    bundle.write_bytes(bundle.read_bytes().replace(b"weights", b"weighty"))

    with pytest.raises(BundleError, match=r"model/model\.onnx: altered"):
        load(bundle)
    assert runners == []


def test_bundle_is_refused_when_its_resize_rule_is_unknown(
    make: Callable[..., Path], runners: Runners
) -> None:
    path = make(input=InputFormat(8, 8, 3, "opencv-area"))

    with pytest.raises(BundleError, match="resize rule 'opencv-area'; this program knows pillow"):
        load(path)


def test_model_is_refused_when_it_gives_other_logits_than_classes(
    bundle: Path, runners: Runners
) -> None:
    with load(bundle) as model:
        runners[0].answer = lambda images: np.zeros((len(images), 3), np.float32)
        with pytest.raises(BundleError, match="3 logits for 2 classes"):
            model(PHOTO)
        runners[0].answer = lambda images: np.full((len(images), 2), np.nan, np.float32)
        with pytest.raises(BundleError, match="NaN or infinity"):
            model(PHOTO)


def test_model_cannot_be_used_when_it_is_closed(bundle: Path, runners: Runners) -> None:
    model = load(bundle)
    model.close()
    model.close()

    with pytest.raises(UsageError, match="the model is closed"):
        model(PHOTO)
    with load(bundle) as fresh, pytest.raises(ShapeError, match="expected uint8"):
        fresh.logits(PHOTO[None])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_check_passes_when_the_device_computes_what_was_proven(
    make: Callable[..., Path], runners: Runners, precision: str
) -> None:
    with load(make(precision=precision)) as model:
        gates = model.check()

    assert {gate.passed for gate in gates} == {True}
    assert gates[-1].why == "6 of 6 are the student's"


def test_check_fails_and_names_the_image_when_a_decision_differs(
    make: Callable[..., Path], runners: Runners
) -> None:
    with load(make(precision="int8")) as model:
        runners[0].answer = lambda images: -logits(images)
        gates = model.check()

    failed = {gate.name for gate in gates if gate.passed is False}
    assert failed >= {"SNR", "mean cosine", "golden decisions that differ"}
    assert gates[-1].value == 6
    assert str(gates[-1].worst).startswith("made-")


def test_check_compares_decisions_with_the_artifacts_own_when_they_are_known(
    make: Callable[..., Path], runners: Runners
) -> None:
    student = np.tile(np.array([[5.0, 0.0]], np.float32), (6, 1))
    path = make(precision="int8", artifact_logits=student)

    with load(path) as model:
        gates = model.check()

    assert gates[0].passed
    assert gates[-1].passed is False
    assert "of 6 are those of the same artifact on the build machine" in gates[-1].why


def test_check_is_not_judged_when_there_are_no_golden_images(
    make: Callable[..., Path], runners: Runners
) -> None:
    with load(make(without_golden=True)) as model:
        (gate,) = model.check()

    assert gate.passed is None
    assert "no golden images" in gate.why


def logits(images: np.ndarray) -> np.ndarray:
    mean = images.reshape(len(images), -1).mean(axis=1) / 128 - 1
    return np.stack([-4 * mean, 4 * mean], axis=1).astype(np.float32)


def test_device_imports_nothing_heavy() -> None:
    heavy = "torch onnx onnxruntime openvino tensorrt nncf pydantic yaml PIL rich typer scipy"
    code = (
        "import sys, hydistill_edge.device\n"
        f"print(*sorted({{name.split('.')[0] for name in sys.modules}} & set({heavy.split()!r})))"
    )

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.split() == []


def test_device_exports_these_names() -> None:
    import hydistill_edge.device as device

    assert device.__all__ == ["ImageLike", "Model", "Result", "load"]
