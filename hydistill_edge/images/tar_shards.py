"""Tar shards in the webdataset layout: files of one name with several endings are one sample.

    000017.png  000017.cls          image and class (a number or a name)
    000018.jpg  000018.json         or {"label": 3}, or {"class_name": "dent"}

The .json may also say where the image was found (`address` or `url`) and under which licence
(`licence` or `license`); what a crawler writes beside that is passed over.

Nothing is ever unpacked: headers are read once for the index, images where they stand. A shard
with links, devices or paths that lead elsewhere is refused all the same: an honest one has none.
"""

from __future__ import annotations

import json
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from hydistill_edge.errors import ImageSourceError, MissingFileError
from hydistill_edge.images.packed_strings import PackedStrings
from hydistill_edge.images.readers import IMAGE_SUFFIXES, UNKNOWN_LABEL
from hydistill_edge.images.resize import Pixels, decode

MAX_MEMBER_BYTES = 256 * 2**20
"""Larger members are refused; an encoded image on a line has a few MiB at most."""

MAX_LABEL_BYTES = 2**20

_BLOCK = 512

_COLUMNS = ("shard", "offset", "size", "label", "note_offset", "note_size")


class ShardReader:
    """Images in uncompressed tar files.

    Args:
        pattern: one file, a folder of `*.tar`, or a pattern such as `pool/train-*.tar`.
        use_labels: whether labels are wanted.

    Raises:
        MissingFileError: no such file.
        ImageSourceError: torn, compressed or hostile; a key stands twice; or no image anywhere.
    """

    def __init__(self, pattern: Path, *, use_labels: bool) -> None:
        self._files = find_shards(pattern)
        self.has_labels = False
        self.class_names: tuple[str, ...] | None = None
        columns = {name: array("q") for name in _COLUMNS}
        keys = []
        names: dict[str, int] = {}
        kinds: set[type] = set()
        for number, path in enumerate(self._files):
            shard_keys = []
            for sample in _samples(path, use_labels):
                label = sample.label
                self.has_labels |= label is not None
                kinds.add(type(label))
                if {int, str} <= kinds:
                    raise ImageSourceError(
                        f"{path}: some labels are numbers and some are names ({label!r} of "
                        f"{sample.key}); expected all of one kind"
                    )
                if isinstance(label, str):
                    label = names.setdefault(label, len(names))
                row = (
                    number,
                    sample.offset,
                    sample.size,
                    UNKNOWN_LABEL if label is None else label,
                    sample.note_offset,
                    sample.note_size,
                )
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
                shard_keys.append(f"{path.stem}/{sample.key}")
            keys.append(PackedStrings.pack(shard_keys))
        self._keys = PackedStrings.join(keys)
        if not len(self._keys):
            raise ImageSourceError(
                f"{pattern}: no image in {len(self._files)} tar files; expected members such as "
                "000017.png"
            )
        self._columns = {name: np.array(values, np.int64) for name, values in columns.items()}
        if names:
            self._sort_names(names)
        self.has_notes = bool((self._columns["note_size"] >= 0).any())
        self._open: tuple[int, IO[bytes]] | None = None

    def _sort_names(self, names: dict[str, int]) -> None:
        """Number class names in their own order, not in the order of appearance."""
        self.class_names = tuple(sorted(names))
        places = np.empty(len(names) + 1, np.int64)
        places[-1] = UNKNOWN_LABEL
        for place, name in enumerate(self.class_names):
            places[names[name]] = place
        self._columns["label"] = places[self._columns["label"]]

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, row: int) -> str:
        """Name an image; see `Reader`."""
        return self._keys[row]

    def read(self, row: int) -> tuple[Pixels, int]:
        """Return pixels and label; see `Reader`."""
        shard, offset, size, label = (int(self._columns[name][row]) for name in _COLUMNS[:4])
        name = f"{self._files[shard]}:{self.key(row)}"
        if size < 0:
            raise ImageSourceError(f"{name}: the sample has no image")
        file = self._file(shard)
        file.seek(offset)
        data = file.read(size)
        return decode(data, name=name), label

    def note(self, row: int) -> tuple[str, str]:
        """Return address and licence from the .json beside an image; empty where it says nothing.

        Raises:
            ImageSourceError: the .json cannot be read.
        """
        shard, offset, size = (
            int(self._columns[name][row]) for name in ("shard", "note_offset", "note_size")
        )
        if size < 0:
            return "", ""
        name = f"{self._files[shard]}:{self.key(row)}.json"
        if size > MAX_LABEL_BYTES:
            raise ImageSourceError(f"{name}: {size:,} bytes are too many for a note")
        file = self._file(shard)
        file.seek(offset)
        try:
            value = json.loads(file.read(size))
        except (ValueError, RecursionError) as error:
            raise ImageSourceError(
                f"{name}: cannot be read ({error}), so where the image was found is not known"
            ) from error
        return _text(value, "address", "url"), _text(value, "licence", "license")

    def close(self) -> None:
        """Give back what is open."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _file(self, shard: int) -> IO[bytes]:
        if self._open is None or self._open[0] != shard:
            self.close()
            self._open = (shard, self._files[shard].open("rb"))
        return self._open[1]


def find_shards(pattern: Path) -> list[Path]:
    """Return the tar files that a path means, sorted.

    Raises:
        MissingFileError: there is none.
    """
    if pattern.is_file():
        return [pattern]
    if pattern.is_dir():
        pattern = pattern / "*.tar"
    root = Path(pattern.anchor or ".")
    parts = pattern.parts[1:] if pattern.anchor else pattern.parts
    files = sorted(path for path in root.glob("/".join(parts)) if path.is_file()) if parts else []
    if not files:
        raise MissingFileError(f"{pattern}: no such tar file; expected a file, folder or pattern")
    return files


class _Sample(NamedTuple):
    key: str
    offset: int
    size: int  # -1: no image
    label: int | str | None
    note_offset: int
    note_size: int  # -1: no .json


def _samples(path: Path, use_labels: bool) -> Iterator[_Sample]:
    """Yield the samples of one shard; members of a sample stand together."""
    seen: set[str] = set()
    key = ""
    parts: dict[str, tuple[int, int]] = {}
    for name, offset, size in _members(path):
        stem, dot, ending = PurePosixPath(name).name.partition(".")
        if not dot or not stem:
            continue  # no ending: not part of a sample
        this = str(PurePosixPath(name).with_name(stem))
        if this != key:
            if parts:
                yield _sample(path, key, parts, use_labels)
            if this in seen:
                raise ImageSourceError(f"{path}: the key {this} stands twice, apart; repack it")
            seen.add(this)
            key, parts = this, {}
        if ending.lower() in parts:
            raise ImageSourceError(f"{path}: the member {name} stands twice; repack it")
        parts[ending.lower()] = (offset, size)
    if parts:
        yield _sample(path, key, parts, use_labels)


def _sample(path: Path, key: str, parts: dict[str, tuple[int, int]], use_labels: bool) -> _Sample:
    images = [place for ending, place in parts.items() if f".{ending}" in IMAGE_SUFFIXES]
    if len(images) > 1:
        raise ImageSourceError(f"{path}: the sample {key} has {len(images)} images; expected one")
    offset, size = images[0] if images else (0, -1)
    label = _label(path, key, parts) if use_labels else None
    return _Sample(key, offset, size, label, *parts.get("json", (0, -1)))


def _label(path: Path, key: str, parts: dict[str, tuple[int, int]]) -> int | str | None:
    ending = next((ending for ending in ("cls", "json") if ending in parts), None)
    if ending is None:
        return None
    offset, size = parts[ending]
    name = f"{path}:{key}.{ending}"
    if size > MAX_LABEL_BYTES:
        raise ImageSourceError(f"{name}: {size:,} bytes are too many for a label")
    with path.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    try:
        label = data.decode().strip() if ending == "cls" else _json_label(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise ImageSourceError(f"{name}: cannot be read as a label ({error})") from error
    if isinstance(label, str) and label.isascii() and label.isdigit():
        label = int(label)
    if isinstance(label, int) and not 0 <= label < 2**31:
        raise ImageSourceError(f"{name}: the label {label} is no class number")
    return label


def _json_label(value: Any) -> int | str | None:
    if not isinstance(value, dict):
        return None
    for key, kind in (("label", int), ("class_name", str)):
        found = value.get(key)
        if isinstance(found, kind) and not isinstance(found, bool):
            return found
    return None


def _text(value: Any, *keys: str) -> str:
    """Return the text under the first key of an object that has one."""
    found = [value.get(key) for key in keys] if isinstance(value, dict) else []
    return next((text for text in found if isinstance(text, str) and text), "")


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of every file in a shard, refusing hostile and torn ones."""
    try:
        with tarfile.open(path, "r:") as tar:
            last = -1
            for member in tar:
                _refuse_hostile(path, member)
                if member.size < 0 or member.offset <= last:  # would run in circles
                    raise ImageSourceError(f"{path}: corrupt header of {member.name!r}")
                last = member.offset
                if member.isreg():
                    yield member.name, member.offset_data, member.size
            end = tar.offset
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise ImageSourceError(
            f"{path}: torn, compressed or no tar file ({error}); expected an uncompressed .tar"
        ) from error
    with path.open("rb") as file:  # tarfile also stops, without a word, where a header is noise
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise ImageSourceError(f"{path}: torn or corrupt after byte {end:,}; copy it again")


def _refuse_hostile(path: Path, member: tarfile.TarInfo) -> None:
    parts = PurePosixPath(member.name).parts
    why = ""
    if member.issym() or member.islnk():
        why = "is a link"
    elif not member.isdir() and (member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE)):
        why = "is neither a file nor a folder"
    elif member.sparse is not None:
        why = "is sparse"
    elif member.name.startswith("/") or ".." in parts or "\0" in member.name:
        why = "leads out of the shard"
    elif member.size > MAX_MEMBER_BYTES:
        why = f"has {member.size:,} bytes; at most {MAX_MEMBER_BYTES:,} are read"
    if why:
        raise ImageSourceError(
            f"{path}: refused, because the member {member.name!r} {why}; pack plain files only"
        )
