"""Pack, verify, unpack, read: the way of a bundle that nobody touched."""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hydistill_edge.bundle.manifest import Manifest
from hydistill_edge.bundle.pack import Bundle, inspect, pack, unpack, verify
from hydistill_edge.errors import BundleError, MissingFileError, NoSpaceError, UsageError


def test_bundle_has_the_same_bytes_when_the_inputs_are_the_same(
    tmp_path: Path, contents: dict[str, bytes], manifest: Manifest
) -> None:
    folder = tmp_path / "laid out"
    for path, data in reversed(contents.items()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        os.utime(folder / path, (0, 123456789))

    first = pack(contents, manifest, tmp_path / "a.hydistill")
    second = pack(folder, manifest, tmp_path / "b.hydistill")

    assert first.read_bytes() == second.read_bytes()


def test_bundle_opens_in_any_zip_program_when_packed(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
        assert {item.compress_type for item in archive.infolist()} == {zipfile.ZIP_STORED}
    assert names[0] == "manifest.json"
    assert names[1:] == sorted(names[1:])


def test_verify_returns_the_manifest_when_nothing_is_altered(
    bundle: Path, manifest: Manifest
) -> None:
    found = verify(bundle)

    assert found == inspect(bundle)
    assert found.classes == manifest.classes
    assert [item.path for item in found.with_role("model")] == ["model/model.onnx"]
    assert "labels.txt" in [item.path for item in found.files]


def test_unpack_gives_private_equal_files_when_the_bundle_is_whole(
    bundle: Path, tmp_path: Path, contents: dict[str, bytes]
) -> None:
    out = tmp_path / "out"

    unpack(bundle, out)

    assert {path: (out / path).read_bytes() for path in contents} == contents
    assert (out / "labels.txt").read_text() == "good\nbad\n"
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "widgets.hydistill"]


def test_bundle_reads_a_file_when_it_holds_it(bundle: Path) -> None:
    with Bundle(bundle) as opened:
        assert opened.read("evidence/parity.json") == b"{}\n"
        assert opened.read("manifest.json") == inspect(bundle).to_json()
        with pytest.raises(BundleError, match=r"holds no 'evidence/latency\.json'"):
            opened.read("evidence/latency.json")


def test_unpack_refuses_when_the_folder_exists(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")

    with pytest.raises(UsageError, match="exists already"):
        unpack(bundle, tmp_path / "out")


def test_unpack_names_the_folder_when_its_parent_is_missing(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such folder; create it first"):
        unpack(bundle, tmp_path / "missing" / "out")


def test_verify_names_the_bundle_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        verify(tmp_path / "none.hydistill")
    with pytest.raises(BundleError, match="not a file"):
        verify(tmp_path)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_unpack_leaves_nothing_when_the_disk_is_full(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", no_space)

    with pytest.raises(NoSpaceError, match="the disk is full"):
        unpack(bundle, tmp_path / "out")

    assert [path.name for path in tmp_path.iterdir()] == ["widgets.hydistill"]


def test_unpack_does_not_start_when_too_little_space_is_free(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(1000, 900, 100))

    with pytest.raises(NoSpaceError, match="100 are free"):
        unpack(bundle, tmp_path / "out")


def test_pack_keeps_the_old_bundle_when_the_disk_is_full(
    bundle: Path,
    contents: dict[str, bytes],
    make: Callable[..., Manifest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = bundle.read_bytes()
    monkeypatch.setattr(os, "fsync", no_space)

    with pytest.raises(NoSpaceError):
        pack(contents, make(version="2.0.0"), bundle)

    assert bundle.read_bytes() == before
    assert list(bundle.parent.iterdir()) == [bundle]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"manifest.json": b"{}"}, "are written here"),
        ({"run.sh": b"rm"}, "has no place in a bundle"),
        ({"model/../up": b""}, "has no place in a bundle"),
        ({"model/MODEL.onnx": b""}, "differs from another only in case"),
        ({"model/nul.onnx": b""}, "device name on Windows"),
        ({"model/größe.onnx": b""}, "is refused"),
    ],
)
def test_pack_refuses_when_a_file_has_no_place(
    tmp_path: Path,
    contents: dict[str, bytes],
    manifest: Manifest,
    changes: dict[str, bytes],
    expected: str,
) -> None:
    with pytest.raises(BundleError, match=expected):
        pack(contents | changes, manifest, tmp_path / "a.hydistill")

    assert list(tmp_path.iterdir()) == []


def test_pack_refuses_when_the_folder_holds_a_link(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "in" / "model").mkdir(parents=True)
    (tmp_path / "in" / "model" / "model.onnx").symlink_to("/etc/hostname")

    with pytest.raises(BundleError, match="a link or special file"):
        pack(tmp_path / "in", manifest, tmp_path / "a.hydistill")


def test_pack_refuses_when_the_name_has_another_suffix(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(UsageError, match=r"ends in \.hydistill"):
        pack({}, manifest, tmp_path / "a.zip")


def test_pack_refuses_when_a_file_changes_meanwhile(
    tmp_path: Path,
    contents: dict[str, Any],
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"before")
    original = Manifest.to_json

    def change(self: Manifest) -> bytes:
        model.write_bytes(b"after!")
        return original(self)

    monkeypatch.setattr(Manifest, "to_json", change)

    with pytest.raises(BundleError, match=r"model/model\.onnx: the file changed"):
        pack(contents | {"model/model.onnx": model}, manifest, tmp_path / "a.hydistill")


@pytest.mark.parametrize("kind", ["altered", "missing", "extra", "link"])
def test_check_folder_names_the_file_when_the_folder_is_not_the_bundle(
    bundle: Path, tmp_path: Path, kind: str
) -> None:
    unpack(bundle, tmp_path / "out")
    model = tmp_path / "out" / "model" / "model.onnx"
    damage: dict[str, Callable[[], object]] = {
        "altered": lambda: model.write_bytes(b"other"),
        "missing": model.unlink,
        "extra": lambda: model.with_name("extra.bin").write_bytes(b""),
        "link": lambda: model.with_name("link").symlink_to("/etc/hostname"),
    }
    with Bundle(bundle) as opened:
        opened.check_folder(tmp_path / "out")
        damage[kind]()

        with pytest.raises(BundleError, match="model/"):
            opened.check_folder(tmp_path / "out")
