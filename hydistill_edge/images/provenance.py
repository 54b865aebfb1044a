"""Provenance of collected images: where each was found, under which licence, and which are barred.

Two files that a person or a crawler writes, both plain text:

- a provenance table, CSV or JSON lines, with the columns `id`, `address` and `licence`;
- an exclusion list, one entry a line: an id, an address, or a content hash.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ImageSourceError, MissingFileError
from hydistill_edge.images.content_hash import content_hashes

COLUMNS = ("id", "address", "licence")
HASH_PREFIX = "sha256:"

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ProvenanceTable:
    """Address and licence by the image's key in its source."""

    entries: Mapping[str, tuple[str, str]]

    def of(self, key: str) -> tuple[str, str]:
        """Return address and licence of an image; empty where the table does not know it."""
        return self.entries.get(key, ("", ""))


@dataclass(frozen=True)
class Exclusions:
    """Images that are never taken.

    Attributes:
        names: ids (`<source>:<key>`) and addresses.
        hashes: sha256 (hex) of pixels, as an image stands in the transfer set.
    """

    names: frozenset[str]
    hashes: frozenset[str]

    def __len__(self) -> int:
        return len(self.names) + len(self.hashes)

    def has(self, identity: str, address: str = "") -> bool:
        """Say whether an image is barred by its id or its address."""
        return identity in self.names or (bool(address) and address in self.names)

    def has_pixels(self, image: NDArray[np.uint8]) -> bool:
        """Say whether an image, shape (H, W, C) uint8, is barred by its content."""
        return bool(self.hashes) and self.has_hash(content_hashes(image[None])[0])

    def has_hash(self, digest: NDArray[np.uint8]) -> bool:
        """Say whether a content hash, shape (32,) uint8, is barred."""
        return digest.tobytes().hex() in self.hashes


def read_provenance(path: Path) -> ProvenanceTable:
    """Read a provenance table.

    Args:
        path: `.csv` with a header line, or `.jsonl` with one object a line. `id` is the image's
            key in its source: the path in a folder, `<shard>/<key>` in tar shards, the row in an
            array. `address` and `licence` may be missing or empty.

    Raises:
        MissingFileError: no such file.
        ImageSourceError: no such table, or an id that stands twice.
    """
    entries: dict[str, tuple[str, str]] = {}
    licences: dict[str, str] = {}
    for number, row in _rows(path):
        key = "" if row.get("id") is None else str(row["id"])
        if not key or key in entries:
            why = "stands twice" if key else "is missing"
            raise ImageSourceError(
                f"{path}, line {number}: the id {key!r} {why}; expected one line per image with "
                f"the columns {', '.join(COLUMNS)}"
            )
        note = str(row.get("licence") or "")
        # A million images share a few licences: keep each text once.
        entries[key] = (str(row.get("address") or ""), licences.setdefault(note, note))
    return ProvenanceTable(entries)


def read_exclusions(path: Path) -> Exclusions:
    """Read an exclusion list.

    Args:
        path: text, one entry a line: an id such as `web:cats/17.png`, an address, or
            `sha256:<64 hex digits>` of the pixels as they stand in the transfer set. Empty lines
            and lines that start with `#` say nothing.

    Raises:
        MissingFileError: no such file.
        ImageSourceError: it cannot be read, or a hash is none.
    """
    entries = [line.strip() for line in _text(path).splitlines()]
    try:
        return exclusions_of(line for line in entries if line and not line.startswith("#"))
    except ImageSourceError as error:
        raise ImageSourceError(f"{path}: {error}") from error


def exclusions_of(entries: Iterable[str]) -> Exclusions:
    """Sort entries into names and hashes; see `read_exclusions`."""
    names, hashes = set(), set()
    for entry in entries:
        if not entry.startswith(HASH_PREFIX):
            names.add(entry)
            continue
        digest = entry.removeprefix(HASH_PREFIX).lower()
        if not _HASH.fullmatch(digest):
            raise ImageSourceError(f"{entry!r} is no sha256; expected 64 hexadecimal digits")
        hashes.add(digest)
    return Exclusions(frozenset(names), frozenset(hashes))


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = _text(path)
    if path.suffix.lower() == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            if "id" not in (reader.fieldnames or ()):
                raise ImageSourceError(
                    f"{path}: its first line is {', '.join(reader.fieldnames or ['empty'])}; "
                    f"expected the columns {', '.join(COLUMNS)}"
                )
            yield from enumerate(reader, start=2)
        except csv.Error as error:  # such as a quote that is never closed
            raise ImageSourceError(f"{path}: no CSV table ({error}); save it again") from error
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ImageSourceError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ImageSourceError(f"{path}, line {number}: expected an object with an id")
        yield number, row


def _text(path: Path) -> str:
    try:
        # Spreadsheets and editors put a mark in front, which would become part of the first entry.
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file") from error
    except OSError as error:
        raise ImageSourceError(f"{path}: cannot be read as text ({error})") from error
