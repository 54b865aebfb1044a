"""Images leave a transfer set for good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hydistill_edge.errors import TransferSetError
from hydistill_edge.images.content_hash import content_hashes
from hydistill_edge.images.deletion import delete_images
from hydistill_edge.images.provenance import exclusions_of
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
COLUMNS = ("labels", "origins", "licences", "may_ship", "hashes", "confidences")
LOGITS = np.arange(12, dtype=np.float32).reshape(6, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with TransferSetWriter(
        tmp_path / "set", size=(4, 4), channels=1, classes=("a", "b"), teacher_digest="0" * 64,
        method="real", seeds={"recipe": 3}, details={"note": "kept"}, shard_bytes=100,
    ) as writer:  # fmt: skip
        writer.add(
            IMAGES[:4], LOGITS[:4], origin="web", ids=[f"web:{n}" for n in range(4)],
            labels=[0, 1, -1, 0], licence=["CC0", "", "CC0", ""],
            addresses=["https://a.example/0", "", "", "https://a.example/3"],
        )  # fmt: skip
        writer.add(
            IMAGES[4:], LOGITS[4:], origin="synthetic", ids=["made:4", "made:5"], may_ship=True
        )
    return tmp_path / "set"


def test_set_is_as_before_without_the_deleted_images(folder: Path) -> None:
    digest = content_hashes(IMAGES)[4].tobytes().hex()
    barred = exclusions_of(["web:1", "https://a.example/3", f"sha256:{digest}", "web:none"])
    old = TransferSet.open(folder)
    before = {name: getattr(old, name) for name in COLUMNS}

    deleted = delete_images(folder, barred)

    after = TransferSet.open(folder)
    after.verify()
    assert (deleted.ids, deleted.left) == (["web:1", "web:3", "made:4"], 3)
    assert deleted.hashes[2] == digest
    assert list(after.ids) == ["web:0", "web:2", "made:5"]
    assert after.addresses.take([0, 1, 2]) == ["https://a.example/0", "", ""]
    kept = [0, 2, 5]
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(after, name), before[name][kept])
    np.testing.assert_array_equal(after.logits([0, 1, 2]), LOGITS[kept])
    assert after.manifest["details"] == {"note": "kept", "deleted": 3}
    assert after.manifest["seeds"] == {"recipe": 3}
    assert after.digest != old.digest


def test_nothing_of_the_deleted_images_stays_on_the_disk(folder: Path) -> None:
    gone = IMAGES[1].tobytes()
    delete_images(folder, exclusions_of(["web:1"]))
    assert [path.name for path in folder.parent.iterdir()] == ["set"]
    assert not any(gone in path.read_bytes() for path in folder.iterdir())


def test_set_is_untouched_when_nothing_is_found(folder: Path) -> None:
    before = (folder / "manifest.json").read_bytes()
    assert delete_images(folder, exclusions_of(["web:none"])).ids == []
    assert (folder / "manifest.json").read_bytes() == before


def test_deletion_is_finished_when_it_was_killed_between_two_renames(folder: Path) -> None:
    delete_images(folder, exclusions_of(["web:1"]))
    folder.rename(folder.with_name(".set.kept"))
    (folder.with_name(".set.gone")).mkdir()
    assert delete_images(folder, exclusions_of(["web:0"])).left == 4
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_set_is_not_emptied(folder: Path) -> None:
    everything = exclusions_of([*(f"web:{n}" for n in range(4)), "made:4", "made:5"])
    with pytest.raises(TransferSetError, match="all 6 images would be deleted"):
        delete_images(folder, everything)
    assert len(TransferSet.open(folder)) == 6
