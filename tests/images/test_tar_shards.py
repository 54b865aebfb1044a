from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hydistill_edge.errors import ImageSourceError, MissingFileError
from hydistill_edge.images.sources import SourceSpec, load_source


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((5, 4, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Two shards with two samples each; image values 0, 1, 2, 3 and classes 3, 2, 1, 0."""
    for shard in range(2):
        members: dict[str, bytes] = {}
        for place in range(2):
            value = 2 * shard + place
            members[f"{value:06}.png"] = png(value)
            members[f"{value:06}.cls"] = str(3 - value).encode()
        write_tar(tmp_path / "pool" / f"train-{shard}.tar", members)
    return tmp_path / "pool"


@pytest.mark.parametrize("pattern", ["", "*.tar", "train-?.tar"])
def test_shards_are_read_in_order_when_named_by_folder_or_pattern(pool: Path, pattern: str) -> None:
    loaded = load_source(SourceSpec("shards", pool / pattern, use_labels=True))
    assert loaded.ids == [
        "pool:train-0/000000", "pool:train-0/000001", "pool:train-1/000002", "pool:train-1/000003",
    ]  # fmt: skip
    assert loaded.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [3, 2, 1, 0]


def test_shards_can_be_shuffled_when_a_seed_is_given(pool: Path) -> None:
    loaded = load_source(SourceSpec("shards", pool, use_labels=True, shuffle_seed=0))
    assert loaded.labels is not None
    assert sorted(loaded.images[:, 0, 0, 0].tolist()) == [0, 1, 2, 3]
    assert (3 - loaded.images[:, 0, 0, 0] == loaded.labels).all()


def test_shards_read_classes_from_json_when_there_is_no_cls(tmp_path: Path) -> None:
    members = {}
    for key, name in (("a", "dent"), ("b", "ok"), ("c", "dent")):
        members[f"{key}.png"] = png(ord(key))
        members[f"{key}.json"] = json.dumps({"class_name": name}).encode()
    write_tar(tmp_path / "x.tar", members)
    loaded = load_source(SourceSpec("shards", tmp_path / "x.tar", use_labels=True))
    assert loaded.class_names == ("dent", "ok")
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [0, 1, 0]


def test_shards_give_minus_one_when_a_sample_has_no_label(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.png": png(1), "b.png": png(2), "b.cls": b"4"})
    loaded = load_source(SourceSpec("shards", tmp_path / "x.tar", use_labels=True))
    assert loaded.labels is not None
    assert loaded.labels.tolist() == [-1, 4]


def test_shards_ignore_other_members_when_they_stand_in_folders(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"./README": b"?", "./d.1/a.png": png(7), "./d.1/a.txt": b"?"})
    assert load_source(SourceSpec("shards", tmp_path / "x.tar")).ids == ["x:x/d.1/a"]


def test_sample_counts_as_broken_when_it_has_no_image(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.cls": b"1", "b.png": png(2)})
    with pytest.raises(ImageSourceError, match=r"1 of 2 images.*\n.*x/a: the sample has no image"):
        load_source(SourceSpec("shards", tmp_path / "x.tar"))


def test_image_counts_as_broken_when_its_bytes_are(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.png": png(1)[:50], "b.png": png(2)})
    loaded = load_source(SourceSpec("shards", tmp_path / "x.tar", on_corrupt="skip"))
    assert [image.id for image in loaded.skipped] == ["x:x/a"]


def hostile(kind: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("a.png")
    if kind == "symlink":
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    elif kind == "hardlink":
        info.type, info.linkname = tarfile.LNKTYPE, "../b.png"
    elif kind == "device":
        info.type = tarfile.CHRTYPE
    elif kind == "pipe":
        info.type = tarfile.FIFOTYPE
    elif kind == "absolute":
        info.name = "/tmp/a.png"
    else:
        info.name = "x/../../a.png"
    return info


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("symlink", "is a link"),
        ("hardlink", "is a link"),
        ("device", "is neither a file nor a folder"),
        ("pipe", "is neither a file nor a folder"),
        ("absolute", "leads out"),
        ("dots", "leads out"),
    ],
)
def test_shard_is_refused_when_a_member_is_hostile(tmp_path: Path, kind: str, message: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(hostile(kind))
    with pytest.raises(ImageSourceError, match=rf"x\.tar: refused.*a\.png' {message}"):
        load_source(SourceSpec("shards", tmp_path / "x.tar"))


def test_shard_is_refused_when_a_member_claims_to_be_huge(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.png")
    info.size = 2**40
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(ImageSourceError, match="at most 268,435,456 are read"):
        load_source(SourceSpec("shards", tmp_path / "x.tar"))


def test_shard_ends_in_an_error_when_a_size_is_negative(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("a.png").tobuf())
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # base-256 form of -512
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    (tmp_path / "x.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(ImageSourceError, match=r"corrupt header|torn"):
        load_source(SourceSpec("shards", tmp_path / "x.tar"))


@pytest.mark.parametrize("keep", [100, 700, 1024, 1536, 2000])
def test_shard_is_refused_when_it_is_truncated(pool: Path, keep: int) -> None:
    path = pool / "train-0.tar"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ImageSourceError, match=r"train-0\.tar: torn"):
        load_source(SourceSpec("shards", pool))


def test_shard_is_refused_when_a_header_inside_is_noise(pool: Path) -> None:
    path = pool / "train-0.tar"
    content = bytearray(path.read_bytes())
    content[2048:2560] = np.random.default_rng(0).bytes(512)
    path.write_bytes(content)
    with pytest.raises(ImageSourceError, match=r"train-0\.tar: torn"):
        load_source(SourceSpec("shards", pool))


@pytest.mark.parametrize("content", [b"", np.random.default_rng(0).bytes(5000)])
def test_shard_is_refused_when_it_is_no_tar_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ImageSourceError, match="torn, compressed or no tar file"):
        load_source(SourceSpec("shards", tmp_path / "x.tar"))


def test_shards_are_missing_when_the_pattern_finds_nothing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such tar file"):
        load_source(SourceSpec("shards", tmp_path / "*.tar"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": png(1), "b.png": png(2), "a.cls": b"1"}, "the key a stands twice"),
        ({"a.png": png(1), "a.jpg": png(1)}, "the sample a has 2 images"),
        ({"a.png": png(1), "a.cls": b"\xff\xfe"}, r"a\.cls: cannot be read as a label"),
        ({"a.png": png(1), "a.json": b"{"}, r"a\.json: cannot be read as a label"),
        ({"a.png": png(1), "a.cls": b"1", "b.png": png(2), "b.cls": b"x"}, "all of one kind"),
        ({"notes.txt": b"?"}, "1 of 1 images cannot be read"),
        ({"README": b"?"}, "no image in 1 tar files"),
    ],
    ids=["key twice", "two images", "bytes", "json", "mixed", "no image", "no sample"],
)
def test_shard_is_refused_when_samples_make_no_sense(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    write_tar(tmp_path / "x.tar", members)
    with_labels = any(name.endswith((".cls", ".json")) for name in members)
    with pytest.raises(ImageSourceError, match=message):
        load_source(SourceSpec("shards", tmp_path / "x.tar", use_labels=with_labels))


def noted(tmp_path: Path, note: bytes) -> Path:
    members = {"a.png": png(1), "a.json": note, "b.png": png(2)}
    return write_tar(tmp_path / "web.tar", members)


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ({"address": "https://x.org/1", "licence": "CC0"}, ("https://x.org/1", "CC0")),
        ({"url": "https://x.org/1", "license": "CC BY"}, ("https://x.org/1", "CC BY")),
        ({"caption": "a dent", "url": None}, ("", "unknown")),
        ([], ("", "unknown")),
    ],
    ids=["ours", "crawlers", "nothing", "no-object"],
)
def test_address_and_licence_come_from_the_json_beside_an_image(
    tmp_path: Path, note: object, expected: tuple[str, str]
) -> None:
    shard = noted(tmp_path, json.dumps(note).encode())
    loaded = load_source(SourceSpec("shards", shard, origin="web", licence="unknown"))
    assert loaded.addresses is not None
    assert loaded.licences is not None
    assert list(zip(loaded.addresses, loaded.licences, strict=True)) == [
        expected,
        ("", "unknown"),
    ]


def test_provenance_table_stands_above_the_json_beside_an_image(tmp_path: Path) -> None:
    shard = noted(tmp_path, b'{"url": "https://x.org/1", "license": "CC BY"}')
    table = tmp_path / "table.csv"
    table.write_text("id,address,licence\nweb/a,https://y.org/2,\n")
    loaded = load_source(SourceSpec("shards", shard, provenance=table))
    assert loaded.addresses == ["https://y.org/2", ""]
    assert loaded.licences == ["CC BY", ""]


def test_image_is_excluded_by_the_address_beside_it(tmp_path: Path) -> None:
    barred = tmp_path / "barred.txt"
    barred.write_text("https://x.org/1\n")
    shard = noted(tmp_path, b'{"url": "https://x.org/1"}')
    loaded = load_source(SourceSpec("shards", shard, exclude=barred))
    assert (loaded.ids, loaded.excluded) == (["web:web/b"], ["web:web/a"])


def test_image_counts_as_broken_when_its_json_cannot_be_read(tmp_path: Path) -> None:
    shard = noted(tmp_path, b"{")
    with pytest.raises(ImageSourceError, match="1 of 2 images cannot be read"):
        load_source(SourceSpec("shards", shard))
    loaded = load_source(SourceSpec("shards", shard, on_corrupt="skip"))
    assert "where the image was found is not known" in loaded.skipped[0].reason


def test_shards_without_json_have_no_addresses(pool: Path) -> None:
    assert load_source(SourceSpec("shards", pool)).addresses is None
