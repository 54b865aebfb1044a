"""What attackers put into archives, and that none of it gets past the reader."""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydistill_edge.bundle import archive, pack
from hydistill_edge.bundle.archive import write_archive
from hydistill_edge.bundle.manifest import Manifest
from hydistill_edge.errors import BundleError

MODEL = b"model/model.onnx"
CENTRAL = b"PK\x01\x02"
FLAGS, METHOD, EXTERNAL = 8, 10, 38  # offsets in a central header


def refusal(data: bytes, folder: Path) -> str:
    """Return the one error of a hostile bundle, after checking that it left nothing behind."""
    box = folder / "box"
    box.mkdir()
    (box / "hostile.hydistill").write_bytes(data)
    messages = []
    with pytest.raises(BundleError) as caught:
        pack.verify(box / "hostile.hydistill")
    messages.append(str(caught.value))
    with pytest.raises(BundleError) as caught:
        pack.unpack(box / "hostile.hydistill", box / "out")
    messages.append(str(caught.value))
    assert [path.name for path in box.iterdir()] == ["hostile.hydistill"]
    assert [path.name for path in folder.iterdir()] == ["box"]
    assert messages[0] == messages[1]
    assert "hostile.hydistill" in messages[0]
    return messages[0]


def renamed(data: bytes, name: bytes) -> bytes:
    """Give the model another name of equal length, in both headers."""
    assert len(name) == len(MODEL)
    at = data.index(CENTRAL)
    return data[:at].replace(b"\0\0" + MODEL, b"\0\0" + name) + data[at:].replace(MODEL, name)


def patched(data: bytes, name: bytes, offset: int, value: bytes) -> bytes:
    """Overwrite bytes of one entry's central header."""
    at = data.index(name, data.index(CENTRAL)) - 46 + offset
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"../../../etc/pwd", "leaves its folder"),
        (b"model/../../x.on", "leaves its folder"),
        (b"/etc/passwd.onnx", "absolute"),
        (b"C:/windows/x.dll", "absolute"),
        (b"model\\..\\..\\xyab", "hold letters"),
        (b"model/model\0onnx", "hold letters"),
        (b"model/mode\nlonnx", "hold letters"),
        (b"model/mod\xcc\x81.onnx", "hold letters"),
        (b"model//mode.onnx", "hold letters"),
        (b"model/model.onn/", "hold letters"),
        (b"model/model.onn.", "hold letters"),
        (b"model/-odel.onnx", "hold letters"),
        (b"model/.odel.onnx", "hold letters"),
        (b"model/com1.x.onx", "device name"),
        (b"Golden/0000.png/"[:15] + b"x", "both a file and a folder|different files"),
    ],
    ids=str,
)
def test_archive_is_refused_when_a_name_is_dangerous(
    bundle_bytes: bytes, tmp_path: Path, name: bytes, expected: str
) -> None:
    message = refusal(renamed(bundle_bytes, name), tmp_path)

    assert any(part in message for part in expected.split("|"))


@pytest.mark.parametrize(
    "names",
    [
        ("model/a", "model/a"),
        ("model/A", "model/a"),
        ("MODEL/a", "model/A"),
        ("model", "model/a"),
        ("model/a", "model"),
    ],
    ids=str,
)
def test_archive_is_refused_when_two_names_meet(names: tuple[str, str]) -> None:
    assert archive.clash(names) == names[1]


@pytest.mark.parametrize(
    ("offset", "value", "expected"),
    [
        (FLAGS, b"\x01", "encrypted"),
        (FLAGS, b"\x08", "its header is not one that `pack` writes"),
        (METHOD, b"\x08", "compressed"),
        (METHOD, b"\x0e", "compressed"),
        (EXTERNAL, struct.pack("<I", 0o120777 << 16), "symbolic link"),
        (EXTERNAL, struct.pack("<I", 0o040755 << 16), "not a plain file"),
        (EXTERNAL, struct.pack("<I", 0o010644 << 16), "not a plain file"),
        (EXTERNAL, struct.pack("<I", 0o104755 << 16), "its header is not one that `pack` writes"),
        (42, struct.pack("<I", 0), "entries overlap"),
        (24, struct.pack("<I", 7), "compressed"),
        (20, struct.pack("<2I", 2**30 + 1, 2**30 + 1), "at most"),
        (20, struct.pack("<2I", 2**29, 2**29), "reaches past the end"),
        (20, struct.pack("<2I", 3, 3), "two headers disagree"),
        (16, b"\0\0\0\0", "two headers disagree"),
        (30, b"\x01", "torn|wrong size|not one that `pack` writes"),
    ],
    ids=str,
)
def test_archive_is_refused_when_a_header_lies(
    bundle_bytes: bytes, tmp_path: Path, offset: int, value: bytes, expected: str
) -> None:
    message = refusal(patched(bundle_bytes, MODEL, offset, value), tmp_path)

    assert any(part in message for part in expected.split("|"))


def test_archive_is_refused_when_bytes_stand_around_it(bundle_bytes: bytes, tmp_path: Path) -> None:
    for index, data in enumerate(
        (b"MZ" + bundle_bytes, bundle_bytes + b"\0", bundle_bytes + bundle_bytes)
    ):
        folder = tmp_path / str(index)
        folder.mkdir()
        assert "bytes" in refusal(data, folder)


def test_archive_is_refused_when_it_is_a_zip_bomb(tmp_path: Path) -> None:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("manifest.json", bytes(10_000_000))

    assert "compressed" in refusal(memory.getvalue(), tmp_path)


def test_archive_is_refused_when_it_has_too_many_entries(tmp_path: Path) -> None:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as many:
        for index in range(archive.MAX_ENTRIES + 1):
            many.writestr(f"model/{index}", b"")

    assert "1025 entries; expected 1 to 1024" in refusal(memory.getvalue(), tmp_path)


@pytest.mark.parametrize("data", [b"", b"PK", bytes(100), b"PK\x05\x06" + bytes(18)], ids=str)
def test_archive_is_refused_when_it_is_none(data: bytes, tmp_path: Path) -> None:
    assert "hostile.hydistill" in refusal(data, tmp_path)


def written(entries: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    write_archive(
        memory,
        [(name, len(data), zlib.crc32(data), iter([data])) for name, data in entries.items()],
    )
    return memory.getvalue()


def opened(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        return {name: whole.read(name) for name in whole.namelist()}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda e: e | {"model/model.onnx": b"W" * 140}, "model/model.onnx: altered (SHA-256"),
        (lambda e: e | {"model/model.onnx": b"short"}, "model/model.onnx: 5 bytes; the manifest"),
        (lambda e: e | {"model/more.onnx": b""}, "list different files: model/more.onnx"),
        (lambda e: {k: v for k, v in e.items() if k != "labels.txt"}, "different files: labels"),
        (lambda e: dict(reversed(e.items())), "not in order"),
        (lambda e: {k: v for k, v in e.items() if k != "manifest.json"}, "no 'manifest.json'"),
        (lambda e: e | {"manifest.json": b"{}"}, "manifest.json"),
    ],
    ids=["altered", "shorter", "unlisted", "left out", "order", "no manifest", "empty manifest"],
)
def test_bundle_is_refused_when_files_and_manifest_disagree(
    bundle_bytes: bytes,
    tmp_path: Path,
    change: Callable[[dict[str, bytes]], dict[str, bytes]],
    expected: str,
) -> None:
    assert expected in refusal(written(change(opened(bundle_bytes))), tmp_path)


def test_bundle_is_refused_when_the_labels_are_not_the_classes(
    contents: dict[str, bytes],
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pack, "_labels", lambda _: b"bad\ngood\n")
        path = pack.pack(contents, manifest, tmp_path / "a.hydistill")
    data = path.read_bytes()
    path.unlink()

    assert "labels.txt: not the classes" in refusal(data, tmp_path)


def test_every_byte_is_protected_when_any_single_one_is_altered(
    bundle_bytes: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "a.hydistill"
    for position in range(len(bundle_bytes)):
        altered = bytearray(bundle_bytes)
        altered[position] ^= 0x20
        path.write_bytes(altered)
        with pytest.raises(BundleError, match=r"a\.hydistill"):
            pack.verify(path)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_only_bundle_errors_are_raised_when_bytes_are_flipped_cut_or_repeated(
    bundle_bytes: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    damaged = bytearray(bundle_bytes)
    places = st.integers(0, len(damaged) - 1)
    for place in data.draw(st.lists(places, max_size=8)):
        damaged[place] = data.draw(st.integers(0, 255))
    start, end = sorted((data.draw(places), data.draw(places)))
    cut = data.draw(st.sampled_from([b"", bytes(damaged[start:end]) * 2]))
    damaged[start:end] = cut
    (folder / "a.hydistill").write_bytes(damaged)

    with contextlib.suppress(BundleError):
        pack.unpack(folder / "a.hydistill", folder / "out")
        assert bytes(damaged) == bundle_bytes

    assert {path.name for path in folder.iterdir()} <= {"a.hydistill", "out"}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_only_bundle_errors_are_raised_when_the_bytes_are_random(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.hydistill"
    path.write_bytes(data)

    with pytest.raises(BundleError):
        pack.verify(path)


@pytest.mark.parametrize(
    "sizes", [[2**30 + 1], [2**30, 2**30]], ids=["one large file", "many files"]
)
def test_archive_is_not_written_when_it_would_be_too_large(sizes: list[int]) -> None:
    entries = [(f"model/{i}", size, 0, iter([b""])) for i, size in enumerate(sizes)]

    with pytest.raises(BundleError, match="Use a smaller model"):
        write_archive(io.BytesIO(), entries)
