"""The bundle: one `.hydistill` file with a model, its manifest and its evidence.

    pack({"model/model.onnx": path, ...}, manifest, Path("widgets.hydistill"))
    verify(Path("widgets.hydistill"))            # every byte; returns the manifest
    unpack(Path("widgets.hydistill"), Path("here"))

The same inputs give the same bytes. A bundle that is altered, hostile or incomplete is a
`BundleError` that names the file; nothing of it reaches the disk under its final name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO

from hydistill_edge.bundle.archive import (
    CHUNK_BYTES,
    MAX_ENTRY_BYTES,
    Archive,
    open_regular,
    write_archive,
)
from hydistill_edge.bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    BundledFile,
    Manifest,
    role_of,
)
from hydistill_edge.bundle.provenance import PROVENANCE_NAME, statement_problems
from hydistill_edge.bundle.strict_json import load_json, refuse
from hydistill_edge.errors import BundleError, MissingFileError, NoSpaceError, UsageError, is_full

if TYPE_CHECKING:
    from typing_extensions import Self

SUFFIX = ".hydistill"
LABELS_NAME = "labels.txt"
_MAX_TEXT_BYTES = 64 * 1024 * 1024


def pack(contents: Mapping[str, bytes | Path] | Path, manifest: Manifest, out: Path) -> Path:
    """Write a bundle: manifest first, then every file by name.

    Args:
        contents: path inside the bundle (see `role_of`) to bytes or to a file; or a folder that
            is laid out so already. `labels.txt` is written from the manifest's classes.
        manifest: without its file table, which is filled in here.
        out: the bundle to write; ends in `.hydistill`; replaced in one step where it exists.

    Returns:
        `out`.

    Raises:
        BundleError: a file with no place in a bundle, a manifest that does not fit the files, or
            a file that changes meanwhile. All problems of the manifest are listed.
        MissingFileError: a file, or the folder of `out`, does not exist.
        NoSpaceError: the disk is full. Nothing is left behind.
    """
    if out.suffix != SUFFIX:
        raise UsageError(f"{out}: a bundle's name ends in {SUFFIX}")
    files = dict(contents) if isinstance(contents, Mapping) else _files_in(contents)
    if files.keys() & {MANIFEST_NAME, LABELS_NAME}:
        raise BundleError(f"{MANIFEST_NAME} and {LABELS_NAME} are written here; leave them out")
    files[LABELS_NAME] = _labels(manifest)
    facts = {path: _facts(path, files[path]) for path in sorted(files)}
    table = tuple(BundledFile(path, *fact[:2], role_of(path)) for path, fact in facts.items())
    head = replace(manifest, files=table).to_json()
    entries = [(MANIFEST_NAME, len(head), zlib.crc32(head), iter([head]))]
    entries += [
        (path, size, crc32, _chunks(files[path])) for path, (_, size, crc32) in facts.items()
    ]
    with _new_file(out) as (file, temporary):
        write_archive(file, entries)
        file.flush()
        verify(temporary)  # never hand over what nobody would accept
    return out


def inspect(path: Path) -> Manifest:
    """Return the manifest; headers and sizes are checked, the data of other files is not read.

    Raises:
        MissingFileError, BundleError: as for `verify`.
    """
    with Bundle(path) as bundle:
        return bundle.manifest


def verify(path: Path) -> Manifest:
    """Check every byte of a bundle and return its manifest.

    Raises:
        MissingFileError: there is no such file.
        BundleError: hostile, altered or incomplete; the message names the file.
    """
    with Bundle(path) as bundle:
        bundle.verify()
        return bundle.manifest


def unpack(path: Path, out: Path) -> Manifest:
    """Extract a bundle into a new folder that only its owner can enter.

    Every file is checked after it was written; the folder gets its name last, in one step.

    Args:
        path: the bundle.
        out: a folder that does not exist yet, in one that does.

    Raises:
        MissingFileError: no such bundle, or the parent of `out` does not exist.
        BundleError: hostile, altered or incomplete; nothing is left behind.
        UsageError: `out` exists, or cannot be written.
        NoSpaceError: the disk is full; nothing is left behind.
    """
    with Bundle(path) as bundle:
        bundle.unpack(out)
        return bundle.manifest


class Bundle:
    """An open bundle: its manifest is read, its headers are checked; a context manager.

    Everything is read through one file handle, so what is checked is what is used.
    """

    manifest: Manifest

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = Archive(path)
        try:
            self._head = self._archive.read(MANIFEST_NAME, limit=MAX_MANIFEST_BYTES)
            self.manifest = Manifest.from_json(self._head, where=f"{path}: {MANIFEST_NAME}")
            self._check_table()
        except BaseException:
            self._archive.__exit__(None, None, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._archive.__exit__(kind, error, trace)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the whole bundle."""
        digest = hashlib.sha256()
        for chunk in self._archive.whole():
            digest.update(chunk)
        return digest.hexdigest()

    def read(self, name: str) -> bytes:
        """Return one file, after its hash was checked."""
        if name == MANIFEST_NAME:
            return self._head
        return b"".join(self._checked(self.manifest.file(name)))

    def verify(self) -> None:
        """Check every file against its hash, and what the files say against the manifest."""
        for listed in self.manifest.files:
            for _ in self._checked(listed):
                pass
        self._check_meaning()

    def unpack(self, out: Path) -> None:
        """Extract into the new folder `out`; see the function `unpack`."""
        if os.path.lexists(out):
            raise UsageError(f"{out}: exists already; name a new folder")
        needed = self._archive.size
        with _writing(out):
            free = shutil.disk_usage(out.parent).free
            if free < needed:
                raise NoSpaceError(
                    f"{out}: needs {needed} bytes, {free} are free; free some space and try again"
                )
            temporary = Path(tempfile.mkdtemp(prefix=".unpack-", dir=out.parent))
            try:
                self._extract(temporary)
                self._check_meaning()
                temporary.rename(out)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise

    def check_folder(self, folder: Path, *, beside: tuple[str, ...] = ()) -> None:
        """Check that a folder is exactly this bundle, unpacked.

        Args:
            folder: of an earlier `unpack`.
            beside: suffixes of files that may stand there too, and are not looked at.

        Raises:
            MissingFileError: there is no such folder.
            BundleError: a file is missing, altered, a link, or not one of the bundle's.
        """
        if folder.is_symlink():
            raise BundleError(f"{folder}: a link; expected the folder of an unpacked bundle")
        wanted = {MANIFEST_NAME, *(listed.path for listed in self.manifest.files)}
        found = {path for path in _files_in(folder) if path in wanted or not path.endswith(beside)}
        if found != wanted:
            raise BundleError(
                f"{folder}: not the unpacked bundle: {', '.join(sorted(found ^ wanted))} "
                "missing or unknown"
            )
        table = {listed.path: listed.sha256 for listed in self.manifest.files}
        table[MANIFEST_NAME] = hashlib.sha256(self._head).hexdigest()
        for path, sha256 in table.items():
            if _facts(path, folder / path)[0] != sha256:
                raise BundleError(f"{folder / path}: altered after unpacking")

    def _check_table(self) -> None:
        """Compare the archive's entries with the manifest's file table."""
        entries = list(self._archive.entries)
        wanted = [MANIFEST_NAME, *(listed.path for listed in self.manifest.files)]
        if sorted(entries) != sorted(wanted):
            odd = ", ".join(sorted(set(entries) ^ set(wanted)))
            raise BundleError(f"{self.path}: archive and manifest list different files: {odd}")
        if entries != wanted:
            raise BundleError(
                f"{self.path}: its files are not in order ({MANIFEST_NAME} first, then by name)"
            )
        for listed in self.manifest.files:
            size = self._archive.entries[listed.path].size
            if size != listed.size:
                raise BundleError(
                    f"{self.path}: {listed.path}: {size} bytes; the manifest says {listed.size}"
                )

    def _checked(self, listed: BundledFile) -> Iterator[bytes]:
        """Yield a file's data; the last step checks CRC-32, then SHA-256."""
        digest = hashlib.sha256()
        for chunk in self._archive.chunks(listed.path):
            digest.update(chunk)
            yield chunk
        if digest.hexdigest() != listed.sha256:
            raise BundleError(
                f"{self.path}: {listed.path}: altered (SHA-256 {digest.hexdigest()}; the manifest "
                f"says {listed.sha256})"
            )

    def _check_meaning(self) -> None:
        """Check the files that repeat what the manifest says."""
        if self.manifest.file(LABELS_NAME).size > _MAX_TEXT_BYTES or (
            self.read(LABELS_NAME) != _labels(self.manifest)
        ):
            raise BundleError(f"{self.path}: {LABELS_NAME}: not the classes of the manifest")
        if any(listed.path == PROVENANCE_NAME for listed in self.manifest.files):
            where = f"{self.path}: {PROVENANCE_NAME}"
            statement = load_json(self.read(PROVENANCE_NAME), where, limit=_MAX_TEXT_BYTES)
            refuse(statement_problems(statement, self.manifest), where)

    def _extract(self, folder: Path) -> None:
        self._write(folder / MANIFEST_NAME, iter([self._head]))
        for listed in self.manifest.files:
            target = folder / listed.path
            target.parent.mkdir(exist_ok=True)
            self._write(target, self._checked(listed))

    def _write(self, target: Path, chunks: Iterator[bytes]) -> None:
        with target.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())


def _labels(manifest: Manifest) -> bytes:
    return "".join(f"{name}\n" for name in manifest.classes).encode("utf-8")


def _files_in(folder: Path) -> dict[str, bytes | Path]:
    """Return the plain files of a folder by relative path, with forward slashes."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder")
    found: dict[str, bytes | Path] = {}
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise BundleError(f"{path}: a link or special file; a bundle holds plain files")
        found |= {
            Path(parent, name).relative_to(folder).as_posix(): Path(parent, name) for name in names
        }
    return found


def _chunks(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with open_regular(content) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _facts(name: str, content: bytes | Path) -> tuple[str, int, int]:
    """Return SHA-256 (hex), size in bytes and CRC-32."""
    digest, size, crc32 = hashlib.sha256(), 0, 0
    for chunk in _chunks(content):
        digest.update(chunk)
        size += len(chunk)
        crc32 = zlib.crc32(chunk, crc32)
    if size > MAX_ENTRY_BYTES:
        raise BundleError(f"{name}: {size} bytes; at most {MAX_ENTRY_BYTES} are allowed")
    return digest.hexdigest(), size, crc32


@contextmanager
def _new_file(out: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a temporary file beside `out` that becomes `out` when the block ends without error."""
    with _writing(out):
        handle, name = tempfile.mkstemp(prefix=".pack-", suffix=SUFFIX, dir=out.parent)
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                yield file, temporary
                os.fsync(file.fileno())
            temporary.chmod(0o644)  # mkstemp makes it 0600; a bundle is meant to be handed on
            temporary.replace(out)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Translate what the file system says while `out` is written."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise NoSpaceError(
                f"{out}: the disk is full; nothing was kept. Free some space and try again"
            ) from error
        if error.errno == errno.ENOENT:
            raise MissingFileError(f"{out.parent}: no such folder; create it first") from error
        raise UsageError(f"{out}: cannot be written: {error.strerror}") from error
