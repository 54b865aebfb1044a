"""The archive: a zip file that can be written in one way only, and is read in one way only.

Entries are stored (never compressed), in a fixed order, with a fixed timestamp and fixed permission
bits; there are no comments, extra fields, folders, links or gaps. The reader recomputes every
header byte from name, size and checksum, and refuses a file with any other byte. What hostile
archives are made of (overlapping entries, headers that disagree, data before or after, links,
encryption, zip bombs) has no room in it. Any zip program can still open it.

The zip format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT (sections 4.3 and 4.4).
"""

from __future__ import annotations

import io
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from hydistill_edge.errors import BundleError, MissingFileError

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_ENTRIES = 1024
MAX_ENTRY_BYTES = 1024**3
MAX_ARCHIVE_BYTES = 2 * 1024**3 - 1  # below every 32-bit limit of the format, so no Zip64
MAX_NAME_LENGTH = 120
CHUNK_BYTES = 1024**2

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_MAX_HEADERS = _LOCAL.size + _CENTRAL.size + 2 * MAX_NAME_LENGTH
_VERSION_NEEDED = 20
_MADE_BY = (3 << 8) | 20  # Unix, so that the permission bits count
_MODE = stat.S_IFREG | 0o644
_TIME, _DATE = 0, (1 << 5) | 1  # 1980-01-01 00:00:00, the first moment that zip knows
_FLAG_ENCRYPTED = 1

# Portable names only: no case or Unicode trick can make two of them meet on any file system.
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """One file of an archive.

    Attributes:
        offset: where its data begins, from the start of the archive.
    """

    name: str
    size: int
    crc32: int
    offset: int


def name_problem(name: str) -> str | None:
    """Return why a name may not stand in an archive, or None."""
    if not 1 <= len(name) <= MAX_NAME_LENGTH:
        return f"a name has 1 to {MAX_NAME_LENGTH} characters"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "an absolute path"
    segments = name.split("/")
    if ".." in segments or "." in segments:
        return "a path that leaves its folder"
    for segment in segments:
        if not _SEGMENT.fullmatch(segment) or segment.endswith("."):
            return (
                "parts of a path hold letters, digits, dots, underscores and hyphens, do not start "
                "with a dot or hyphen and do not end with a dot"
            )
        if _RESERVED.fullmatch(segment):
            return f"{segment!r} is a device name on Windows"
    return None


def clash(names: Sequence[str]) -> str | None:
    """Return the first name that another one meets on some file system, or None.

    Two names meet when they are equal without regard to case, or when one is a folder of the other.
    """
    files: set[str] = set()
    folders: set[str] = set()
    for name in names:
        folded = name.casefold()
        parents = {folded[:index] for index, letter in enumerate(folded) if letter == "/"}
        if folded in files or folded in folders or parents & files:
            return name
        files.add(folded)
        folders |= parents
    return None


def write_archive(out: BinaryIO, entries: Sequence[tuple[str, int, int, Iterator[bytes]]]) -> None:
    """Write an archive.

    Args:
        out: an empty file, open for writing.
        entries: name, size in bytes, CRC-32 and the data in chunks, in the order of the archive.

    Raises:
        BundleError: a name or a size that an archive may not have, or data that does not have
            the announced size and checksum (a file that changed while it was packed).
    """
    _check_names([name for name, _, _, _ in entries], "the archive to write")
    _check_sizes([(name, size) for name, size, _, _ in entries])
    offset = 0
    directory = b""
    for name, size, crc32, chunks in entries:
        header = _local_header(name, size, crc32)
        directory += _central_header(name, size, crc32, offset)
        offset += len(header) + size
        out.write(header)
        _write_data(out, name, size, crc32, chunks)
    out.write(directory + _end_record(len(entries), len(directory), offset))


def _check_sizes(sizes: Sequence[tuple[str, int]]) -> None:
    if not 1 <= len(sizes) <= MAX_ENTRIES:
        raise BundleError(f"{len(sizes)} files; a bundle has 1 to {MAX_ENTRIES}")
    for name, size in sizes:
        if size > MAX_ENTRY_BYTES:
            raise BundleError(
                f"{name}: {size} bytes; a file has at most {MAX_ENTRY_BYTES}. Use a smaller model"
            )
    whole = sum(size for _, size in sizes) + len(sizes) * _MAX_HEADERS + _END.size
    if whole > MAX_ARCHIVE_BYTES:
        raise BundleError(
            f"{whole} bytes; a bundle has at most {MAX_ARCHIVE_BYTES}. Use a smaller model"
        )


def _write_data(out: BinaryIO, name: str, size: int, crc32: int, chunks: Iterator[bytes]) -> None:
    written, running = 0, 0
    for chunk in chunks:
        out.write(chunk)
        written += len(chunk)
        running = zlib.crc32(chunk, running)
    if (written, running) != (size, crc32):
        raise BundleError(f"{name}: the file changed while it was packed; pack again")


class Archive:
    """An open archive whose every header has been checked; a context manager.

        with Archive(path) as archive:
            data = archive.read("manifest.json", limit=4096)

    Raises:
        MissingFileError: there is no such file.
        BundleError: not an archive that `write_archive` could have written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_regular(path)
        try:
            self.size = self._file.seek(0, io.SEEK_END)
            self.entries = {entry.name: entry for entry in self._read_entries()}
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the data of one entry; the last step checks its CRC-32.

        Raises:
            BundleError: there is no such entry, or its data is altered.
        """
        entry = self._entry(name)
        running, position, left = 0, entry.offset, entry.size
        while left:
            chunk = self._read_at(position, min(left, CHUNK_BYTES))
            running = zlib.crc32(chunk, running)
            position, left = position + len(chunk), left - len(chunk)
            yield chunk
        if running != entry.crc32:
            raise BundleError(f"{self.path}: {name}: altered (its CRC-32 does not fit its data)")

    def read(self, name: str, *, limit: int) -> bytes:
        """Return the data of one entry of at most `limit` bytes, after the CRC-32 check.

        Raises:
            BundleError: there is no such entry, it is larger, or its data is altered.
        """
        if self._entry(name).size > limit:
            raise BundleError(
                f"{self.path}: {name}: {self.entries[name].size} bytes; at most {limit} are allowed"
            )
        return b"".join(self.chunks(name))

    def whole(self) -> Iterator[bytes]:
        """Yield all bytes of the archive, from the open file."""
        for position in range(0, self.size, CHUNK_BYTES):
            yield self._read_at(position, min(CHUNK_BYTES, self.size - position))

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise BundleError(f"{self.path}: holds no {name!r}; it holds {', '.join(self.entries)}")
        return self.entries[name]

    def _read_at(self, position: int, size: int) -> bytes:
        try:
            self._file.seek(position)
            data = self._file.read(size)
        except OSError as error:
            raise BundleError(f"{self.path}: cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise BundleError(f"{self.path}: ends early; it is truncated. Copy the bundle again")
        return data

    def _read_entries(self) -> list[Entry]:
        directory, count, start = self._read_directory()
        rows = []
        position = 0
        for _ in range(count):
            header, name, rest = self._split(directory, position)
            rows.append((name, header, rest))
            position += len(header) + len(rest)
        if position != len(directory):
            raise BundleError(f"{self.path}: its directory of entries has a wrong size")
        _check_names([name for name, _, _ in rows], str(self.path))
        return self._place(rows, start)

    def _read_directory(self) -> tuple[bytes, int, int]:
        """Return the central directory, its number of entries and its offset."""
        if not _END.size <= self.size <= MAX_ARCHIVE_BYTES:
            raise BundleError(
                f"{self.path}: {self.size} bytes; a bundle has {_END.size} to {MAX_ARCHIVE_BYTES}"
            )
        end = self._read_at(self.size - _END.size, _END.size)
        count, length, start = _END.unpack(end)[4:7]
        if not end.startswith(b"PK\x05\x06"):
            raise BundleError(
                f"{self.path}: not a bundle, truncated, or with bytes behind its end "
                f"(the last {_END.size} bytes are not the end of a zip file)"
            )
        if not 1 <= count <= MAX_ENTRIES:
            raise BundleError(f"{self.path}: {count} entries; expected 1 to {MAX_ENTRIES}")
        longest = count * (_CENTRAL.size + MAX_NAME_LENGTH)
        if end != _end_record(count, length, start) or length > longest:
            raise BundleError(f"{self.path}: its end record is not one that `pack` writes")
        if start + length + _END.size != self.size:
            raise BundleError(
                f"{self.path}: bytes before, between or behind the parts of the archive, or missing"
            )
        return self._read_at(start, length), count, start

    def _split(self, directory: bytes, position: int) -> tuple[bytes, str, bytes]:
        """Return one header of the central directory, its name, and its name as raw bytes."""
        header = directory[position : position + _CENTRAL.size]
        if len(header) < _CENTRAL.size or not header.startswith(b"PK\x01\x02"):
            raise BundleError(f"{self.path}: its directory of entries is torn")
        length = _CENTRAL.unpack(header)[10]
        raw = directory[position + _CENTRAL.size : position + _CENTRAL.size + length]
        if len(raw) != length:
            raise BundleError(f"{self.path}: its directory of entries is torn")
        # Latin-1 maps every byte to one character, so that a bad name can be shown.
        return header, raw.decode("latin-1"), raw

    def _place(self, rows: list[tuple[str, bytes, bytes]], end: int) -> list[Entry]:
        """Check every header against the one that `write_archive` would have written."""
        entries = []
        position = 0
        for name, header, raw in rows:
            problem = _header_problem(header)
            if problem:
                raise BundleError(f"{self.path}: {name}: {problem}")
            crc32, _, size = _CENTRAL.unpack(header)[7:10]
            if size > MAX_ENTRY_BYTES:
                raise BundleError(
                    f"{self.path}: {name}: {size} bytes; at most {MAX_ENTRY_BYTES} are allowed"
                )
            if header + raw != _central_header(name, size, crc32, position):
                raise BundleError(
                    f"{self.path}: {name}: its header is not one that `pack` writes (entries "
                    "overlap, leave gaps, or carry other times, permissions or extra fields)"
                )
            local = _local_header(name, size, crc32)
            offset = position + len(local)
            if offset + size > end:
                raise BundleError(f"{self.path}: {name}: reaches past the end of the data")
            if self._read_at(position, len(local)) != local:
                raise BundleError(f"{self.path}: {name}: its two headers disagree")
            entries.append(Entry(name, size, crc32, offset))
            position = offset + size
        if position != end:
            raise BundleError(f"{self.path}: bytes between the last entry and the directory")
        return entries


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; a pipe or device could block or never end."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BundleError(f"{path}: not a file; expected a .hydistill bundle")
        return path.open("rb")
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such file; expected a .hydistill bundle") from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error


def _check_names(names: list[str], where: str) -> None:
    for name in names:
        problem = name_problem(name)
        if problem:
            raise BundleError(f"{where}: file name {name!a} is refused: {problem}")
    meeting = clash(names)
    if meeting is not None:
        raise BundleError(
            f"{where}: file name {meeting!r} stands there twice, differs from another only in "
            "case, or is both a file and a folder"
        )


def _header_problem(header: bytes) -> str | None:
    """Name the kinds of entries that people and attackers really make; the rest is compared."""
    fields = _CENTRAL.unpack(header)
    flags, method, packed, size = fields[3], fields[4], fields[8], fields[9]
    kind = stat.S_IFMT(fields[15] >> 16)
    if flags & _FLAG_ENCRYPTED:
        return "encrypted; a bundle is never encrypted"
    if method != 0 or packed != size:
        return "compressed; the entries of a bundle are stored as they are"
    if kind == stat.S_IFLNK:
        return "a symbolic link; a bundle holds plain files only"
    if kind != stat.S_IFREG:
        return "not a plain file"
    return None


def _local_header(name: str, size: int, crc32: int) -> bytes:
    raw = name.encode("ascii")
    head = (b"PK\x03\x04", _VERSION_NEEDED, 0, 0, _TIME, _DATE)
    return _LOCAL.pack(*head, crc32, size, size, len(raw), 0) + raw


def _central_header(name: str, size: int, crc32: int, offset: int) -> bytes:
    raw = name.encode("ascii")
    head = (b"PK\x01\x02", _MADE_BY, _VERSION_NEEDED, 0, 0, _TIME, _DATE)
    return _CENTRAL.pack(*head, crc32, size, size, len(raw), 0, 0, 0, 0, _MODE << 16, offset) + raw


def _end_record(count: int, length: int, start: int) -> bytes:
    return _END.pack(b"PK\x05\x06", 0, 0, count, count, length, start, 0)
