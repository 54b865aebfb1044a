from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hydistill_edge.errors import MissingFileError, NoSpaceError, ShapeError, TransferSetError
from hydistill_edge.images.content_hash import content_hashes
from hydistill_edge.images.transfer_format import manifest_digest
from hydistill_edge.images.transfer_set import TransferSet, TransferSetWriter

CLASSES = ("scratch", "dent", "fine")


def random_images(count: int, seed: int = 0, size: int = 4) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def random_logits(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def writer(folder: Path, **options: Any) -> TransferSetWriter:
    settings = {"size": (4, 4), "channels": 3, "classes": CLASSES, "teacher_digest": "ab" * 32}
    return TransferSetWriter(folder, **{**settings, **options})


def write(folder: Path, count: int = 20, **options: Any) -> TransferSet:
    with writer(folder, **options) as out:
        ids = [f"inversion:{row}" for row in range(count)]
        out.add(random_images(count), random_logits(count), origin="synthetic", ids=ids)
    return TransferSet.open(folder)


def test_transfer_set_returns_what_was_written_when_read_in_any_order(tmp_path: Path) -> None:
    transfer = write(tmp_path / "set", shard_bytes=500)
    places = np.array([7, 0, 19, 7])
    assert len(transfer) == 20
    assert len(transfer.manifest["shards"]) > 1
    assert (transfer.images(places) == random_images(20)[places]).all()
    assert (transfer.logits(places) == random_logits(20)[places]).all()
    assert transfer.ids.take(places) == [f"inversion:{row}" for row in places]


def test_transfer_set_knows_the_provenance_when_sources_differ(tmp_path: Path) -> None:
    images, logits = random_images(3), random_logits(3)
    with writer(tmp_path / "set") as out:
        out.add(images[:1], logits[:1], origin="synthetic", ids=["made:0"])
        out.add(
            images[1:], logits[1:], origin="real", ids=["line:b", "line:ä"], labels=[2, -1],
            licence=["MIT", "customer"], may_ship=[True, False],
        )  # fmt: skip
    transfer = TransferSet.open(tmp_path / "set")
    assert transfer.origins.tolist() == ["synthetic", "real", "real"]
    assert transfer.labels.tolist() == [-1, 2, -1]
    assert transfer.licences.tolist() == ["", "MIT", "customer"]
    assert transfer.may_ship.tolist() == [False, True, False]
    assert list(transfer.ids) == ["made:0", "line:b", "line:ä"]
    assert (transfer.hashes == content_hashes(images)).all()


def test_pseudo_labels_are_the_top_class_when_logits_are_known(tmp_path: Path) -> None:
    with writer(tmp_path / "set") as out:
        logits = np.log([[1.0, 2.0, 1.0], [8.0, 1.0, 1.0]])
        out.add(random_images(2), logits, origin="web", ids=["a", "b"])
    transfer = TransferSet.open(tmp_path / "set")
    assert transfer.pseudo_labels.tolist() == [1, 0]
    assert transfer.confidences == pytest.approx([0.5, 0.8])


def test_manifest_counts_classes_and_origins_when_closed(tmp_path: Path) -> None:
    with writer(tmp_path / "set", method="inversion", seeds={"images": 7}) as out:
        logits = np.eye(3)[[0, 0, 2]]
        out.add(random_images(3), logits, origin="real", ids=["a", "b", "c"], labels=[1, -1, 2])
    manifest = TransferSet.open(tmp_path / "set").manifest
    assert manifest["per_class"] == {"scratch": 2, "dent": 0, "fine": 1}
    assert manifest["per_label"] == {"scratch": 0, "dent": 1, "fine": 1}
    origins = {"real": 3, "web": 0, "synthetic": 0, "derived": 0, "procedural": 0}
    assert manifest["per_origin"] == origins
    assert manifest["seeds"] == {"images": 7}
    assert manifest["bytes"]["images"] == 3 * 48


def test_writer_drops_and_counts_when_pixels_are_there_already(tmp_path: Path) -> None:
    images = random_images(4)
    images[2] = images[0]
    with writer(tmp_path / "set") as out:
        assert out.add(images, random_logits(4), origin="web", ids=list("abcd")) == 3
        assert out.add(images[3:], random_logits(1), origin="web", ids=["e"]) == 0
    transfer = TransferSet.open(tmp_path / "set")
    assert list(transfer.ids) == ["a", "b", "d"]
    assert transfer.manifest["duplicates_dropped"] == 2


def test_bytes_are_equal_when_the_same_images_come_in_other_batches(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", count=17, shard_bytes=700)
    with writer(tmp_path / "parts", shard_bytes=700) as out:
        for row in range(17):
            rows = slice(row, row + 1)
            out.add(
                random_images(17)[rows], random_logits(17)[rows], origin="synthetic",
                ids=[f"inversion:{row}"],
            )  # fmt: skip
    assert TransferSet.open(tmp_path / "parts").digest == whole.digest


def test_writer_keeps_its_own_copy_when_the_caller_reuses_the_array(tmp_path: Path) -> None:
    images = random_images(2)
    with writer(tmp_path / "set") as out:
        out.add(images, random_logits(2), origin="web", ids=["a", "b"])
        images[:] = 0
    transfer = TransferSet.open(tmp_path / "set")
    assert (transfer.images([0, 1]) == random_images(2)).all()


def test_logits_come_back_as_float32_when_stored_as_float16(tmp_path: Path) -> None:
    logits = write(tmp_path / "set", logits_dtype="float16").logits([3])
    assert logits.dtype == np.float32
    assert logits[0] == pytest.approx(random_logits(20)[3], abs=2e-3)


def test_shards_are_read_by_the_safetensors_package_when_it_is_there(tmp_path: Path) -> None:
    numpy_reader = pytest.importorskip("safetensors.numpy")
    write(tmp_path / "set")
    tensors = numpy_reader.load_file(tmp_path / "set" / "shard-00000.safetensors")
    assert (tensors["images"] == random_images(20)).all()


def test_transfer_set_reopens_when_sent_to_a_worker(tmp_path: Path) -> None:
    transfer = write(tmp_path / "set")
    again = pickle.loads(pickle.dumps(transfer))
    assert (again.images([5]) == transfer.images([5])).all()


# -- what does not fit -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "logits", "message"),
    [
        (np.zeros((1, 5, 4, 3), np.uint8), np.zeros((1, 3)), r"\(1, 5, 4, 3\).*\(1, 4, 4, 3\)"),
        (np.zeros((1, 4, 4, 1), np.uint8), np.zeros((1, 3)), r"\(1, 4, 4, 1\)"),
        (np.zeros((1, 4, 4, 3), np.float32), np.zeros((1, 3)), "float32"),
        (np.zeros((1, 4, 4, 3), np.uint8), np.zeros((1, 4)), r"\(1, 4\).*\(1, 3\)"),
    ],
    ids=["size", "channels", "dtype", "logits"],
)
def test_writer_refuses_when_shapes_do_not_fit(
    tmp_path: Path, images: Any, logits: Any, message: str
) -> None:
    with pytest.raises(ShapeError, match=message), writer(tmp_path / "set") as out:
        out.add(images, logits, origin="real", ids=["a"])


@pytest.mark.parametrize(("dtype", "value"), [("float32", np.nan), ("float16", 1e5)])
def test_writer_refuses_when_logits_are_not_finite(
    tmp_path: Path, dtype: str, value: float
) -> None:
    logits = np.array([[0, 0, 0], [0, value, 0]], np.float32)
    with (
        pytest.raises(TransferSetError, match=r"1 of 2 images.*not finite"),
        writer(tmp_path / "set", logits_dtype=dtype) as out,
    ):
        out.add(random_images(2), logits, origin="real", ids=["a", "b"])


def test_writer_refuses_when_a_label_is_no_class(tmp_path: Path) -> None:
    with (
        pytest.raises(TransferSetError, match=r"3.*expected 0 to 2"),
        writer(tmp_path / "set") as out,
    ):
        out.add(random_images(1), random_logits(1), origin="real", ids=["a"], labels=[3])


def test_writer_refuses_when_the_origin_is_unknown(tmp_path: Path) -> None:
    origin: Any = "found"
    with pytest.raises(TransferSetError, match="'found'"), writer(tmp_path / "set") as out:
        out.add(random_images(1), random_logits(1), origin=origin, ids=["a"])


def test_writer_refuses_when_nothing_was_added(tmp_path: Path) -> None:
    with pytest.raises(TransferSetError, match="no image"):
        writer(tmp_path / "set").close()
    assert list(tmp_path.iterdir()) == []


def test_writer_refuses_when_the_folder_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(TransferSetError, match="not empty"):
        writer(tmp_path)


# -- atomic ----------------------------------------------------------------------------------------


def test_nothing_is_left_when_the_block_ends_by_an_exception(tmp_path: Path) -> None:
    def interrupted() -> None:
        with writer(tmp_path / "set", shard_bytes=1) as out:
            out.add(random_images(3), random_logits(3), origin="web", ids=list("abc"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard_bytes", [1, 2**20], ids=["while adding", "while closing"])
def test_nothing_is_left_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard_bytes: int
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(NoSpaceError, match="disk is full"):
        write(tmp_path / "set", shard_bytes=shard_bytes)
    assert list(tmp_path.iterdir()) == []


def test_writer_starts_over_when_a_killed_process_left_a_part(tmp_path: Path) -> None:
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path\n"
        "from test_transfer_set import *\n"
        "out = writer(Path(sys.argv[1]), shard_bytes=1)\n"
        "out.add(random_images(3), random_logits(3), origin='web', ids=list('abc'))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    here = str(Path(__file__).parent)
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "set"), here], check=False)
    assert run.returncode == -9
    assert len(list((tmp_path / ".set.partial").glob("shard-*"))) == 3
    assert len(write(tmp_path / "set")) == 20
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_writer_refuses_when_another_is_writing_the_same_folder(tmp_path: Path) -> None:
    first = writer(tmp_path / "set")
    with pytest.raises(TransferSetError, match="another process"):
        writer(tmp_path / "set")
    first.abort()


def test_folder_holds_only_shards_and_manifest_when_closed(tmp_path: Path) -> None:
    write(tmp_path / "set")
    names = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert names == ["manifest.json", "shard-00000.safetensors"]


# -- torn and altered ------------------------------------------------------------------------------


def test_open_says_missing_when_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such folder"):
        TransferSet.open(tmp_path / "set")


def test_open_says_incomplete_when_there_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(TransferSetError, match=r"no manifest\.json"):
        TransferSet.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\x80", b"[" * 100_000, b"[]", b'{"a": 1}'])
def test_open_says_what_is_wrong_when_the_manifest_is_something_else(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(TransferSetError, match=r"manifest\.json: not"):
        TransferSet.open(tmp_path)


def edit_manifest(folder: Path, *, sign: bool = True, **changes: Any) -> None:
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changes}
    if sign:
        manifest["digest"] = manifest_digest(manifest)
    path.write_text(json.dumps(manifest))


def test_open_names_both_versions_when_the_schema_is_newer(tmp_path: Path) -> None:
    write(tmp_path / "set")
    edit_manifest(tmp_path / "set", schema_version=9)
    with pytest.raises(TransferSetError, match=r"schema version 9.*reads version 1"):
        TransferSet.open(tmp_path / "set")


def test_open_refuses_when_the_manifest_was_edited(tmp_path: Path) -> None:
    write(tmp_path / "set")
    edit_manifest(tmp_path / "set", sign=False, method="better")
    with pytest.raises(TransferSetError, match="digest does not fit"):
        TransferSet.open(tmp_path / "set")


@pytest.mark.parametrize(
    "changes",
    [{"classes": None}, {"count": 3}, {"shards": [{"file": "../../etc/passwd"}]}, {"shards": [1]}],
    ids=["type", "count", "foreign file", "no entry"],
)
def test_open_refuses_when_the_manifest_makes_no_sense(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    write(tmp_path / "set")
    edit_manifest(tmp_path / "set", **changes)
    with pytest.raises(TransferSetError, match="altered or incomplete"):
        TransferSet.open(tmp_path / "set")


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    write(tmp_path / "set", shard_bytes=700)
    return sorted((tmp_path / "set").glob("shard-*"))


def test_open_names_the_shard_when_it_is_torn(shards: list[Path]) -> None:
    shards[1].write_bytes(shards[1].read_bytes()[:-5])
    with pytest.raises(
        TransferSetError, match=r"shard-00001\.safetensors: torn or altered: it has"
    ):
        TransferSet.open(shards[1].parent)


def test_open_names_the_shard_when_it_is_missing(shards: list[Path]) -> None:
    shards[1].unlink()
    with pytest.raises(TransferSetError, match=r"shard-00001\.safetensors.*missing"):
        TransferSet.open(shards[1].parent)


def test_verify_names_the_shard_when_one_bit_was_changed(shards: list[Path]) -> None:
    content = bytearray(shards[1].read_bytes())
    content[-40] ^= 1
    shards[1].write_bytes(content)
    transfer = TransferSet.open(shards[1].parent)
    with pytest.raises(TransferSetError, match=r"shard-00001.*sha256"):
        transfer.verify()


def test_verify_is_silent_when_all_is_whole(shards: list[Path]) -> None:
    TransferSet.open(shards[0].parent).verify()


def test_reading_names_the_shard_when_its_header_is_noise(shards: list[Path]) -> None:
    size = shards[0].stat().st_size
    shards[0].write_bytes(np.random.default_rng(0).bytes(size))
    transfer = TransferSet.open(shards[0].parent)
    with pytest.raises(TransferSetError, match=r"shard-00000.*header"):
        transfer.images([0])


def test_reading_names_the_shard_when_it_is_another_sets(shards: list[Path]) -> None:
    content = shards[0].read_bytes().replace(b'"hashes"', b'"hushes"')
    shards[0].write_bytes(content)
    with pytest.raises(TransferSetError, match=r"shard-00000.*not the ones"):
        TransferSet.open(shards[0].parent).logits([0])


@pytest.mark.parametrize("places", [[20], [-1], [[1, 2]], [0.5]])
def test_images_refuse_when_a_place_is_outside(tmp_path: Path, places: Any) -> None:
    with pytest.raises(IndexError, match="places"):
        write(tmp_path / "set").images(places)


# -- subsets ---------------------------------------------------------------------------------------


def test_split_is_stratified_when_classes_differ_in_size(tmp_path: Path) -> None:
    transfer = write(tmp_path / "set", count=200)
    rest, part = transfer.split(0.25, seed=3)
    assert len(part) == 50
    assert sorted([*rest, *part]) == list(range(200))
    counts = np.bincount(transfer.pseudo_labels[part])
    assert np.abs(counts - np.bincount(transfer.pseudo_labels) / 4).max() < 1


def test_split_keeps_to_the_content_when_images_come_in_another_order(tmp_path: Path) -> None:
    ids = [f"inversion:{row}" for row in range(20)]
    with writer(tmp_path / "turned") as out:
        images, logits = random_images(20)[::-1], random_logits(20)[::-1]
        out.add(images, logits, origin="synthetic", ids=ids[::-1])
    turned = TransferSet.open(tmp_path / "turned")
    straight = write(tmp_path / "straight")
    first = straight.ids.take(straight.split(0.3, seed=1)[1])
    second = turned.ids.take(turned.split(0.3, seed=1)[1])
    assert set(first) == set(second)


def test_split_is_another_when_the_seed_is_another(tmp_path: Path) -> None:
    transfer = write(tmp_path / "set")
    assert transfer.split(0.5, seed=0)[1].tolist() != transfer.split(0.5, seed=1)[1].tolist()


@pytest.mark.parametrize("fraction", [0.0, 1.0, 0.001, -1.0])
def test_split_refuses_when_a_side_would_be_empty(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(TransferSetError, match="cannot split 20 images"):
        write(tmp_path / "set").split(fraction, seed=0)


# -- large -----------------------------------------------------------------------------------------


FIRST_BATCH = """
import re, sys, time
from pathlib import Path
import numpy as np
from hydistill_edge.images.transfer_set import TransferSet

def own_kib():  # without RssFile: mapped pages are the page cache's, and given back at need
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before, start = own_kib(), time.perf_counter()
transfer = TransferSet.open(Path(sys.argv[1]))
rows = np.random.default_rng(0).permutation(len(transfer))[:256]
transfer.images(rows), transfer.logits(rows)
print(time.perf_counter() - start, (own_kib() - before) / 1024)
"""


@pytest.mark.slow
def test_first_batch_is_quick_and_small_when_there_are_100_000_images(tmp_path: Path) -> None:
    with writer(tmp_path / "set", size=(32, 32)) as out:
        for seed in range(10):
            ids = [f"pool:{seed}-{row}" for row in range(10_000)]
            images, logits = random_images(10_000, seed, 32), random_logits(10_000)
            out.add(images, logits, origin="web", ids=ids)
    command = [sys.executable, "-c", FIRST_BATCH, str(tmp_path / "set")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, own_mib = (float(word) for word in run.stdout.split())
    assert seconds < 1
    assert own_mib < 64
    print(f"first batch after {seconds * 1e3:.0f} ms, {own_mib:.0f} MiB of memory")


def test_addresses_are_kept_and_empty_where_none_was_given(tmp_path: Path) -> None:
    images = np.arange(4 * 16, dtype=np.uint8).reshape(4, 4, 4, 1)
    with TransferSetWriter(
        tmp_path / "set", size=(4, 4), channels=1, classes=("a", "b"), teacher_digest="0" * 64,
        shard_bytes=100,
    ) as writer:  # fmt: skip
        writer.add(images[:2], np.zeros((2, 2)), origin="real", ids=["a", "b"])
        writer.add(
            images[2:], np.zeros((2, 2)), origin="web", ids=["c", "d"], addresses=["", "https://x"]
        )
    transfer = TransferSet.open(tmp_path / "set")
    assert list(transfer.addresses) == ["", "", "", "https://x"]


def test_pages_that_were_read_are_given_back_and_read_again(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (400, 64, 64, 3), np.uint8)
    with TransferSetWriter(
        tmp_path / "set", size=(64, 64), channels=3, classes=("a", "b"), teacher_digest="0" * 64
    ) as writer:
        ids = [str(row) for row in range(len(images))]
        writer.add(images, np.zeros((len(images), 2)), origin="real", ids=ids)
    transfer = TransferSet.open(tmp_path / "set")
    order = np.random.default_rng(1).permutation(len(images))
    transfer.images([0])
    before = mapped_bytes()

    read = transfer.images(order)

    np.testing.assert_array_equal(read, images[order])
    assert mapped_bytes() - before < images.nbytes / 2


def mapped_bytes() -> int:
    """Return how much of mapped files counts as this process's memory."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile"))
