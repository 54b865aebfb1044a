"""The set on the disk: parts go in, images are derived while they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hydistill_edge.errors import MissingFileError, ShapeError, TransferSetError
from hydistill_edge.images.compensated_set import (
    PRIVACY_NOTE,
    TENSORS_FILE,
    CompensatedSet,
    pack_compensators,
)

NAMES = ("a", "b")


def made(storage: Any = "int8", *, scale: float = 1.0, added: float = 0.1) -> CompensatedSet:
    """Two slots of two classes, and a compensator for each."""
    choice = np.random.default_rng(0)
    return CompensatedSet.of(
        choice.integers(0, 256, (4, 3, 5, 3), np.uint8),
        choice.normal(0, added, (2, 3, 5, 3)).astype(np.float32),
        base_classes=[0, 1, 0, 1],
        base_slots=[0, 0, 1, 1],
        compensator_slots=[0, 1],
        compensator_networks=[0, 0],
        class_names=NAMES,
        storage=storage,
        scale=scale,
    )


def test_images_are_the_natural_ones_and_then_each_compensator_on_its_slot() -> None:
    found = made()
    assert (len(found), found.natural) == (8, 4)
    assert found.bases.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert found.compensators.tolist() == [-1, -1, -1, -1, 0, 0, 1, 1]
    assert found.classes.tolist() == [0, 1, 0, 1, 0, 1, 0, 1]
    assert found.base_slots.tolist() == [0, 0, 1, 1]
    assert (found.compensator_slots.tolist(), found.compensator_networks.tolist()) == (
        [0, 1],
        [0, 0],
    )


@pytest.mark.parametrize("storage", ["int8", "float16"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 0.5])
def test_derived_image_is_the_clamped_sum_of_its_parts(storage: str, scale: float) -> None:
    found = made(storage, scale=scale, added=0.5)
    images = found.images(np.arange(8))
    added = found.differences([1])[0].astype(np.float64)
    expected = np.clip(np.rint(images[2] + 255.0 * scale * added), 0, 255)
    assert images[6].tolist() == expected.astype(np.uint8).tolist()
    assert (images[6] == images[2]).all() == (scale == 0.0)


@pytest.mark.parametrize(("storage", "error"), [("int8", 0.5), ("float16", 0.001)])
def test_stored_compensators_differ_by_at_most_half_a_step(storage: Any, error: float) -> None:
    values = np.random.default_rng(1).normal(0, 0.3, (3, 4, 4, 2)).astype(np.float32)
    values[2] = 0.0
    found = CompensatedSet.of(
        np.zeros((1, 4, 4, 2), np.uint8),
        values,
        base_classes=[0],
        base_slots=[0],
        compensator_slots=[0, 0, 0],
        compensator_networks=[0, 1, 2],
        class_names=NAMES,
        storage=storage,
    )
    step = np.abs(values).max(axis=(1, 2), keepdims=True) / 127 if storage == "int8" else 1.0
    assert (np.abs(found.differences([0, 1, 2]) - values) <= error * step * 1.0001).all()


def test_set_comes_back_from_its_folder_as_it_was(tmp_path: Path) -> None:
    before = made().labelled(lambda images: images[:, 0, 0, :2].astype(np.float32))
    after = before.save(tmp_path / "set", details={"seed": 3})
    after.verify()
    everything = np.arange(len(before))
    assert (after.images(everything) == before.images(everything)).all()
    assert (after.logits([7, 1]) == before.images([7, 1])[:, 0, 0, :2]).all()
    assert (after.manifest["seed"], after.manifest["labels"]) == (3, "static")
    assert after.manifest["privacy"] == PRIVACY_NOTE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


@pytest.mark.parametrize(("storage", "compensators"), [("int8", 90 + 24), ("float16", 180)])
def test_bytes_in_the_manifest_are_those_on_the_disk(
    tmp_path: Path, storage: str, compensators: int
) -> None:
    saved = made(storage).labelled(lambda images: np.zeros((len(images), 2), np.float32))
    told = saved.save(
        tmp_path / "set",
        details={},
        networks={
            "one": lambda folder: (folder.mkdir(parents=True), (folder / "w").write_bytes(b"x" * 7))
        },  # type: ignore[func-returns-value]
    ).manifest["bytes"]
    assert (told["natural"], told["compensators"], told["labels"]) == (180, compensators, 32)
    assert told["networks"] == 7
    file = (tmp_path / "set" / TENSORS_FILE).stat().st_size
    assert told["file"] == file
    assert 0 < file - told["total"] < 1500  # the header


def test_labels_are_refused_when_the_set_has_none(tmp_path: Path) -> None:
    found = made().save(tmp_path / "set", details={})
    assert not found.has_labels
    with pytest.raises(TransferSetError, match="train with labels dynamic"):
        found.logits([0])


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("manifest.json", b"{", "not JSON"),
        ("manifest.json", b"{}", "not a compensated set"),
        (TENSORS_FILE, b"", "torn or altered"),
    ],
)
def test_set_is_refused_when_a_file_is_torn(
    tmp_path: Path, file: str, change: bytes, said: str
) -> None:
    made().save(tmp_path / "set", details={})
    (tmp_path / "set" / file).write_bytes(change)
    with pytest.raises(TransferSetError, match=said):
        CompensatedSet.open(tmp_path / "set")


def test_set_is_refused_when_its_manifest_was_edited(tmp_path: Path) -> None:
    made().save(tmp_path / "set", details={})
    path = tmp_path / "set" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "scale": 2.0}))
    with pytest.raises(TransferSetError, match="digest"):
        CompensatedSet.open(tmp_path / "set")


def test_one_altered_byte_is_found_by_verify(tmp_path: Path) -> None:
    found = made().save(tmp_path / "set", details={})
    path = tmp_path / "set" / TENSORS_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(TransferSetError, match="sha256"):
        found.verify()


def test_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="expected a compensated set"):
        CompensatedSet.open(tmp_path / "nowhere")


def test_nothing_is_left_when_saving_fails(tmp_path: Path) -> None:
    def fail(_folder: Path) -> None:
        raise RuntimeError("network")

    with pytest.raises(RuntimeError):
        made().save(tmp_path / "set", details={}, networks={"one": fail})
    with pytest.raises(TransferSetError, match="plain values"):
        made().save(tmp_path / "set", details={"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_parts_are_refused_when_they_do_not_fit() -> None:
    with pytest.raises(ShapeError, match="expected"):
        CompensatedSet.of(
            np.zeros((2, 3, 3, 1), np.uint8),
            np.zeros((1, 4, 4, 1), np.float32),
            base_classes=[0, 1],
            base_slots=[0, 0],
            compensator_slots=[0],
            compensator_networks=[0],
            class_names=NAMES,
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])
def test_compensators_are_refused_when_a_value_exploded(value: float) -> None:
    with pytest.raises(TransferSetError, match="lower the learning rate"):
        pack_compensators(np.full((1, 2, 2, 1), value, np.float32), "float16")
