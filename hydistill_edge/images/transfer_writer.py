"""TransferSetWriter: images and teacher logits go in, a whole folder comes out or nothing does."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydistill_edge.errors import (
    HydistillError,
    NoSpaceError,
    ShapeError,
    TransferSetError,
    is_full,
)
from hydistill_edge.images.content_hash import content_hashes
from hydistill_edge.images.packed_strings import PackedStrings
from hydistill_edge.images.safetensors_map import write_safetensors
from hydistill_edge.images.transfer_format import (
    KIND,
    MANIFEST,
    ORIGINS,
    SCHEMA_VERSION,
    SHARD_BYTES,
    UNKNOWN_LABEL,
    LogitsDtype,
    Origin,
    manifest_digest,
    shard_layout,
    shard_name,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class TransferSetWriter:
    """Write a transfer set; the folder appears, whole, when the writer is closed.

        with TransferSetWriter(folder, size=(32, 32), channels=3, classes=names,
                               teacher_digest=teacher.digest, method="inversion") as writer:
            writer.add(images, logits, origin="synthetic", ids=ids)

    Until then everything stands in a hidden folder beside it, which is removed when the block ends
    by an exception, and by the next writer where a killed process left one behind.

    Args:
        folder: must not exist, or be empty.
        size: (height, width) of every image, in pixels.
        channels: 1 or 3.
        classes: the teacher's class names, in the order of its logits.
        teacher_digest: sha256 of the teacher's weights.
        method: how the images were made, in a word.
        seeds: every seed that was used, by what it was used for.
        details: further plain values for the manifest, such as settings.
        logits_dtype: how logits are stored; float16 halves them (11 bits of precision).
        shard_bytes: about how large a shard becomes.

    Raises:
        TransferSetError: the folder is not empty, another process is writing it, or an argument
            makes no sense.
        NoSpaceError: the disk is full.
    """

    def __init__(
        self,
        folder: Path,
        *,
        size: tuple[int, int],
        channels: int,
        classes: Sequence[str],
        teacher_digest: str,
        method: str = "",
        seeds: Mapping[str, int] | None = None,
        details: Mapping[str, Any] | None = None,
        logits_dtype: LogitsDtype = "float32",
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        _check_arguments(size, channels, classes, logits_dtype)
        self.folder = Path(folder)
        self.size = size
        self.channels = channels
        self.classes = tuple(classes)
        self.duplicates = 0
        self._dtype = logits_dtype
        self._described: dict[str, Any] = {
            "method": "",
            "seeds": _plain(dict(seeds or {})),
            "teacher": {"digest": teacher_digest},
            "details": {},
        }
        self.describe(method=method, details=details or {})
        layout = self._layout(1)
        row_bytes = sum(np.dtype(kind).itemsize * int(np.prod(n)) for kind, n in layout.values())
        self._rows_per_shard = max(1, shard_bytes // row_bytes)
        self._pending: list[dict[str, Any]] = []
        self._pending_rows = 0
        self._seen: set[bytes] = set()
        self._licences: dict[str, int] = {}
        self._shards: list[dict[str, Any]] = []
        self._tallies = {
            "per_class": np.zeros(len(classes), np.int64),
            "per_label": np.zeros(len(classes), np.int64),
            "per_origin": np.zeros(len(ORIGINS), np.int64),
        }
        self._may_ship = 0
        self._closed = False
        self._partial, self._lock = self._claim()

    def __len__(self) -> int:
        """Images kept so far."""
        return len(self._seen)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def describe(self, *, method: str, details: Mapping[str, Any]) -> None:
        """Say how the images were made, where that is known only when they have been added.

        Args:
            method: in a word.
            details: further plain values for the manifest, such as settings.

        Raises:
            TransferSetError: a value that JSON does not know.
        """
        self._described |= {"method": method, "details": _plain(dict(details))}

    def add(
        self,
        images: NDArray[np.uint8],
        logits: ArrayLike,
        *,
        origin: Origin,
        ids: Sequence[str],
        labels: ArrayLike | None = None,
        licence: str | Sequence[str] = "",
        may_ship: bool | Sequence[bool] = False,
        addresses: Sequence[str] | None = None,
    ) -> int:
        """Take images in; an image whose pixels are here already is dropped and counted.

        Args:
            images: shape (N, H, W, C) uint8, of the set's size and channels.
            logits: shape (N, classes), the teacher's, on the CPU.
            origin: where all of them come from.
            ids: one source id per image.
            labels: shape (N,) true class places, -1 where unknown; None means all unknown.
            licence: a note for all, or one per image.
            may_ship: whether they may leave the run directory, for all or one per image.
            addresses: where each image was found, such as a web address; None where unknown.

        Returns:
            How many were kept.

        Raises:
            ShapeError: arrays do not fit the set or each other.
            TransferSetError: the writer is closed, a logit is not finite (float16 ends at 65,504),
                or an origin or label is unknown.
            NoSpaceError: the disk is full; the writer has cleaned up and is closed.
        """
        if self._closed:
            raise TransferSetError(f"{self.folder}: the writer is closed; nothing can be added")
        columns = self._columns(images, logits, origin, ids, labels, licence, may_ship)
        columns["addresses"] = _addresses(addresses, len(ids))
        kept = self._unseen(columns["hashes"])
        self.duplicates += len(ids) - len(kept)
        if len(kept) < len(ids):
            columns = {name: _take(column, kept) for name, column in columns.items()}
        if len(kept):
            self._pending.append(columns)
            self._pending_rows += len(kept)
        while self._pending_rows >= self._rows_per_shard:
            self._flush(self._rows_per_shard)
        if len(kept) and self._pending:  # what stays must not change with the caller's array
            self._pending[-1]["images"] = np.array(self._pending[-1]["images"])
        return len(kept)

    def close(self) -> Path:
        """Write what is left and the manifest, and move the folder to its place.

        Returns:
            The folder.

        Raises:
            TransferSetError: nothing was added, or the folder is not empty any more.
            NoSpaceError: the disk is full; nothing is left behind.
        """
        if self._closed:
            return self.folder
        if not self._seen:
            self.abort()
            raise TransferSetError(f"{self.folder}: no image was added; a transfer set needs some")
        if self._pending_rows:
            self._flush(self._pending_rows)
        manifest = self._manifest()
        with self._cleaning_up():
            self._write_manifest(manifest)
            _sync_folder(self._partial)
            self._partial.rename(self.folder)
            _sync_folder(self.folder.parent)
            (self.folder / ".lock").unlink()
        self._finish()
        return self.folder

    def abort(self) -> None:
        """Remove everything that was written; the folder stays as it was."""
        if not self._closed:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._finish()

    def _finish(self) -> None:
        self._closed = True
        self._lock.close()

    def _claim(self) -> tuple[Path, Any]:
        """Take the hidden folder and clear what a killed process left; a live one has the lock."""
        if self.folder.exists() and any(self.folder.iterdir()):
            raise TransferSetError(
                f"{self.folder}: exists and is not empty; remove it or choose another folder"
            )
        partial = self.folder.with_name(f".{self.folder.name}.partial")
        try:
            partial.mkdir(parents=True, exist_ok=True)
            lock = (partial / ".lock").open("w")
        except OSError as error:
            raise self._translated(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise TransferSetError(
                f"{self.folder}: another process is writing this transfer set; wait for it"
            ) from error
        for leftover in partial.iterdir():
            if leftover.name != ".lock":
                leftover.unlink()
        return partial, lock

    def _columns(
        self,
        images: NDArray[np.uint8],
        logits: ArrayLike,
        origin: Origin,
        ids: Sequence[str],
        labels: ArrayLike | None,
        licence: str | Sequence[str],
        may_ship: bool | Sequence[bool],
    ) -> dict[str, Any]:
        count = len(ids)
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape != (count, *self.size, self.channels):
            raise ShapeError(
                f"images have shape {images.shape} and dtype {images.dtype}; expected "
                f"{(count, *self.size, self.channels)} uint8 for {count} ids"
            )
        scores = self._check_logits(logits, count)
        pseudo_labels = scores.argmax(1)
        exponents = np.exp(scores - scores.max(1, keepdims=True))
        return {
            "images": images,
            "logits": scores.astype(self._dtype),
            "pseudo_labels": pseudo_labels.astype(np.int32),
            # the largest exponent is exp(0) = 1
            "confidences": (1 / exponents.sum(1)).astype(np.float32),
            "labels": self._check_labels(labels, count),
            "origins": np.full(count, self._check_origin(origin), np.uint8),
            "licences": self._licence_places(licence, count),
            "may_ship": np.broadcast_to(np.asarray(may_ship, np.uint8), count),
            "hashes": content_hashes(images),
            "ids": list(ids),
        }

    def _check_logits(self, logits: ArrayLike, count: int) -> NDArray[np.float64]:
        scores = np.asarray(logits, np.float64)
        if scores.shape != (count, len(self.classes)):
            raise ShapeError(
                f"logits have shape {scores.shape}; expected {(count, len(self.classes))}: one row "
                "per image, one column per class"
            )
        limit = float(np.finfo(self._dtype).max)
        broken = int((~(np.abs(scores) <= limit).all(1)).sum())
        if broken:
            raise TransferSetError(
                f"{broken} of {count} images have teacher logits that are not finite in "
                f"{self._dtype}; check the teacher's weights, or store them as float32"
            )
        return scores

    def _check_labels(self, labels: ArrayLike | None, count: int) -> NDArray[np.int32]:
        if labels is None:
            return np.full(count, UNKNOWN_LABEL, np.int32)
        places = np.asarray(labels, np.int64)
        if places.shape != (count,):
            raise ShapeError(f"labels have shape {places.shape}; expected {(count,)}")
        if count and not (places.min() >= UNKNOWN_LABEL and places.max() < len(self.classes)):
            raise TransferSetError(
                f"labels reach from {places.min()} to {places.max()}; expected 0 to "
                f"{len(self.classes) - 1}, or -1 for unknown"
            )
        return places.astype(np.int32)

    def _check_origin(self, origin: Origin) -> int:
        if origin not in ORIGINS:
            raise TransferSetError(f"origin {origin!r} is unknown; expected {', '.join(ORIGINS)}")
        return ORIGINS.index(origin)

    def _licence_places(self, licence: str | Sequence[str], count: int) -> NDArray[np.uint16]:
        notes = [licence] * count if isinstance(licence, str) else list(licence)
        if len(notes) != count:
            raise ShapeError(f"{len(notes)} licence notes for {count} images")
        places = [self._licences.setdefault(note, len(self._licences)) for note in notes]
        if len(self._licences) > 2**16:
            raise TransferSetError("more than 65,536 different licence notes; shorten them")
        return np.array(places, np.uint16)

    def _unseen(self, hashes: NDArray[np.uint8]) -> NDArray[np.int64]:
        kept = []
        for place, row in enumerate(hashes):
            key = row.tobytes()
            if key not in self._seen:
                self._seen.add(key)
                kept.append(place)
        return np.array(kept, np.int64)

    def _flush(self, rows: int) -> None:
        """Write the first `rows` pending images as one shard."""
        taken = self._pop_pending(rows)
        ids = PackedStrings.pack(taken.pop("ids"))
        addresses = PackedStrings.pack(taken.pop("addresses"))
        tensors = {**taken, "id_offsets": ids.offsets, "id_bytes": ids.data}
        if len(addresses.data):
            tensors |= {"address_offsets": addresses.offsets, "address_bytes": addresses.data}
        name = shard_name(len(self._shards))
        with self._cleaning_up():
            written = write_safetensors(self._partial / name, tensors)
        self._shards.append(
            {"file": name, "count": rows, "size": written.size, "sha256": written.sha256}
        )
        known = taken["labels"][taken["labels"] >= 0]
        for key, places in (
            ("per_class", taken["pseudo_labels"]),
            ("per_label", known),
            ("per_origin", taken["origins"]),
        ):
            self._tallies[key] += np.bincount(places, minlength=len(self._tallies[key]))
        self._may_ship += int(taken["may_ship"].sum())

    def _pop_pending(self, rows: int) -> dict[str, Any]:
        blocks: list[dict[str, Any]] = []
        missing = rows
        while missing:
            block = self._pending.pop(0)
            size = len(block["ids"])
            if size > missing:
                rest = {name: column[missing:] for name, column in block.items()}
                self._pending.insert(0, rest)
                block = {name: column[:missing] for name, column in block.items()}
            blocks.append(block)
            missing -= len(block["ids"])
        self._pending_rows -= rows
        return {name: _join([block[name] for block in blocks]) for name in blocks[0]}

    def _layout(self, count: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        return shard_layout(
            count,
            size=self.size,
            channels=self.channels,
            classes=len(self.classes),
            logits_dtype=self._dtype,
        )

    def _manifest(self) -> dict[str, Any]:
        from hydistill_edge import __version__

        count = len(self._seen)
        image_bytes = count * self.size[0] * self.size[1] * self.channels
        names = {"per_class": self.classes, "per_label": self.classes, "per_origin": ORIGINS}
        manifest: dict[str, Any] = {
            "kind": KIND,
            "schema_version": SCHEMA_VERSION,
            "created_by": f"hydistill-edge {__version__}",
            "height": self.size[0],
            "width": self.size[1],
            "channels": self.channels,
            "classes": list(self.classes),
            "logits_dtype": self._dtype,
            "count": count,
            "duplicates_dropped": self.duplicates,
            **{
                key: dict(zip(names[key], tally.tolist(), strict=True))
                for key, tally in self._tallies.items()
            },
            "may_ship": self._may_ship,
            "bytes": {"images": image_bytes, "total": sum(s["size"] for s in self._shards)},
            "licences": list(self._licences) or [""],
            **self._described,
            "shards": self._shards,
        }
        return {**manifest, "digest": manifest_digest(manifest)}

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        with (self._partial / MANIFEST).open("w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _cleaning_up(self) -> Iterator[None]:
        """Leave nothing half-written: a failed write removes all of it."""
        try:
            yield
        except OSError as error:
            self.abort()
            raise self._translated(error) from error

    def _translated(self, error: OSError) -> HydistillError:
        if is_full(error):
            return NoSpaceError(
                f"{self.folder}: the disk is full; nothing was kept of this transfer set; free "
                "some space and run again"
            )
        return TransferSetError(f"{self.folder}: cannot be written ({error})")


def _check_arguments(
    size: tuple[int, int], channels: int, classes: Sequence[str], logits_dtype: str
) -> None:
    problems = []
    if min(size) < 1:
        problems.append(f"size {size[0]}x{size[1]} has no pixels")
    if channels not in (1, 3):
        problems.append(f"{channels} channels; expected 1 or 3")
    if not classes or len(set(classes)) < len(classes):
        problems.append(f"classes {list(classes)[:8]} are empty or not all different")
    if logits_dtype not in get_args(LogitsDtype):
        problems.append(f"logits_dtype {logits_dtype!r}; expected float32 or float16")
    if problems:
        raise TransferSetError("cannot make a transfer set: " + "; ".join(problems))


def _addresses(addresses: Sequence[str] | None, count: int) -> list[str]:
    if addresses is not None and len(addresses) != count:
        raise ShapeError(f"{len(addresses)} source addresses for {count} images")
    return [""] * count if addresses is None else list(addresses)


def _plain(described: dict[str, Any]) -> dict[str, Any]:
    """Return the values as JSON will give them back, so that the digest stays the same."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(described))
    except (TypeError, ValueError) as error:
        raise TransferSetError(f"details and seeds must be plain values ({error})") from error
    return plain


def _take(column: Any, rows: NDArray[np.int64]) -> Any:
    return [column[row] for row in rows] if isinstance(column, list) else column[rows]


def _join(parts: list[Any]) -> Any:
    if isinstance(parts[0], list):
        return [item for part in parts for item in part]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
