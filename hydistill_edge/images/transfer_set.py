"""TransferSet: images with their teacher's logits and their provenance, read memory-mapped.

Made once by a `TransferSetWriter`, it trains every student and calibrates every target. The format
is described in `transfer_format.py`. Opening reads the manifest and compares file sizes; pixels
and logits are read when they are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydistill_edge.errors import MissingFileError, TransferSetError
from hydistill_edge.images.content_hash import Hashes
from hydistill_edge.images.packed_strings import PackedStrings
from hydistill_edge.images.safetensors_map import BrokenSafetensorsError, SafetensorsMap
from hydistill_edge.images.subsets import stratified_split
from hydistill_edge.images.transfer_format import (
    MANIFEST,
    ORIGINS,
    Origin,
    parse_manifest,
    shard_layout,
)
from hydistill_edge.images.transfer_writer import TransferSetWriter

__all__ = ["ORIGINS", "Indices", "Origin", "TransferSet", "TransferSetWriter"]

Indices = NDArray[np.int64]
"""Places of images in the set, shape (n,) int64."""

_ROWS_AT_ONCE = 64
"""Images that are read before their pages are given back: Linux may map 2 MiB around each."""


class TransferSet:
    """A transfer set on the disk.

        transfer = TransferSet.open(folder)
        train, holdout = transfer.split(0.1, seed=0)
        pixels, logits = transfer.images(train[:250]), transfer.logits(train[:250])

    Attributes:
        folder: where it stands.
        manifest: the manifest's contents (`transfer_format.py`).
        size: (height, width) of every image, in pixels.
        channels: 1 or 3.
        classes: the teacher's class names.
        digest: sha256 of the whole set.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.size: tuple[int, int] = (manifest["height"], manifest["width"])
        self.channels: int = manifest["channels"]
        self.classes: tuple[str, ...] = tuple(manifest["classes"])
        self.digest: str = manifest["digest"]
        self._shards: list[Mapping[str, Any]] = manifest["shards"]
        self._maps: list[SafetensorsMap | None] = [None] * len(self._shards)
        self._starts = np.cumsum([0] + [shard["count"] for shard in self._shards])

    @classmethod
    def open(cls, folder: Path) -> TransferSet:
        """Open a transfer set; every shard must be there in its full size.

        Raises:
            MissingFileError: there is no such folder.
            TransferSetError: it is torn, altered, of another version, or something else.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise MissingFileError(f"{folder}: no such folder; expected a transfer set")
        where = folder / MANIFEST
        try:
            text = where.read_bytes()
        except FileNotFoundError as error:
            raise TransferSetError(
                f"{folder}: incomplete or not a transfer set: it has no {MANIFEST}"
            ) from error
        transfer = cls(folder, parse_manifest(text, where=str(where)))
        for shard in transfer._shards:
            transfer._check_size(shard)
        return transfer

    def __reduce__(self) -> tuple[Callable[[Path], TransferSet], tuple[Path]]:
        return TransferSet.open, (self.folder,)  # a worker maps the files itself

    def __len__(self) -> int:
        return int(self._starts[-1])

    def images(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Return the pixels of some images.

        Args:
            indices: shape (n,) places from 0, in any order, repeats allowed.

        Returns:
            Shape (n, H, W, C) uint8, a copy.

        Raises:
            IndexError: a place is outside the set.
            TransferSetError: a shard is torn; it is named.
        """
        return self._gather("images", indices, np.dtype(np.uint8), (*self.size, self.channels))

    def logits(self, indices: ArrayLike) -> NDArray[np.float32]:
        """Return the teacher's logits of some images, shape (n, classes) float32; as `images`."""
        return self._gather("logits", indices, np.dtype(np.float32), (len(self.classes),))

    @cached_property
    def pseudo_labels(self) -> NDArray[np.int64]:
        """The teacher's top class of every image, shape (N,)."""
        return self._column("pseudo_labels").astype(np.int64)

    @cached_property
    def confidences(self) -> NDArray[np.float32]:
        """The teacher's probability of its top class, shape (N,), in [0, 1]."""
        return self._column("confidences")

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """The true class of every image, shape (N,); -1 where unknown."""
        return self._column("labels").astype(np.int64)

    @cached_property
    def origins(self) -> NDArray[np.str_]:
        """Where each image comes from, shape (N,): one of `ORIGINS`."""
        origins: NDArray[np.str_] = np.array(ORIGINS)[self._places("origins", len(ORIGINS))]
        return origins

    @cached_property
    def licences(self) -> NDArray[np.object_]:
        """The licence note of every image, shape (N,) strings."""
        table = np.array(self.manifest["licences"], dtype=object)
        notes: NDArray[np.object_] = table[self._places("licences", len(table))]
        return notes

    @cached_property
    def may_ship(self) -> NDArray[np.bool_]:
        """Whether each image may leave the run directory, shape (N,)."""
        return self._column("may_ship").astype(np.bool_)

    @cached_property
    def hashes(self) -> Hashes:
        """The content hash of every image, shape (N, 32) uint8: sha256 of its pixels."""
        return self._column("hashes")

    @cached_property
    def ids(self) -> PackedStrings:
        """The source id of every image: a sequence of N strings with `take(indices)`."""
        parts = []
        for index, shard in enumerate(self._shards):
            tensors = self._shard(index)
            try:
                parts.append(PackedStrings(tensors["id_offsets"], tensors["id_bytes"]))
            except ValueError as error:
                raise self._altered(shard, str(error)) from error
        return PackedStrings.join(parts)

    @cached_property
    def addresses(self) -> PackedStrings:
        """Where every image was found, N strings with `take(indices)`; empty where unknown."""
        parts = []
        for index, shard in enumerate(self._shards):
            tensors = self._shard(index)
            if "address_offsets" not in tensors:
                parts.append(PackedStrings.pack([""] * shard["count"]))
                continue
            try:
                parts.append(PackedStrings(tensors["address_offsets"], tensors["address_bytes"]))
            except ValueError as error:
                raise self._altered(shard, str(error)) from error
        return PackedStrings.join(parts)

    def verify(self) -> None:
        """Read everything and compare each shard's sha256.

        Raises:
            TransferSetError: a shard is torn or altered; the first one is named.
        """
        for index, shard in enumerate(self._shards):
            self._check_size(shard)
            digest = hashlib.sha256()
            with (self.folder / shard["file"]).open("rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
            if digest.hexdigest() != shard["sha256"]:
                raise self._altered(shard, "its sha256 does not fit the manifest")
            self._shard(index)

    def split(
        self, fraction: float, *, seed: int, indices: ArrayLike | None = None
    ) -> tuple[Indices, Indices]:
        """Split in two, with the pseudo-labels in proportion on both sides.

        Which side an image falls on depends on its content and the seed, not on its place.

        Args:
            fraction: share of the second part, between 0 and 1.
            seed: another seed, another split.
            indices: split these places only; default all.

        Returns:
            The larger rest and the part, rising places, disjoint by content hash.

        Raises:
            TransferSetError: a fraction outside (0, 1), or one that leaves a side empty.
        """
        chosen = self._chosen(indices)
        rest, part = stratified_split(
            self.hashes[chosen], self.pseudo_labels[chosen], fraction, seed=seed
        )
        return chosen[rest], chosen[part]

    def _chosen(self, indices: ArrayLike | None) -> Indices:
        if indices is None:
            return np.arange(len(self), dtype=np.int64)
        return np.unique(self._checked(indices))

    def _checked(self, indices: ArrayLike) -> Indices:
        places = np.atleast_1d(np.asarray(indices))
        if places.ndim != 1 or (len(places) and places.dtype.kind not in "iu"):
            raise IndexError(f"expected a list of places, got {places.dtype} {places.shape}")
        places = places.astype(np.int64)
        if len(places) and not (places.min() >= 0 and places.max() < len(self)):
            raise IndexError(
                f"places reach from {places.min()} to {places.max()}; there are {len(self)} images"
            )
        return places

    def _gather(
        self, name: str, indices: ArrayLike, dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> NDArray[Any]:
        places = self._checked(indices)
        out = np.empty((len(places), *shape), dtype)
        shards = np.searchsorted(self._starts, places, side="right") - 1
        for shard in np.unique(shards):
            tensors = self._shard(int(shard))
            for some in _in_parts(np.flatnonzero(shards == shard)):
                out[some] = tensors[name][places[some] - self._starts[shard]]
                tensors.release()
        return out

    def _column(self, name: str) -> NDArray[Any]:
        return np.concatenate([self._shard(index)[name] for index in range(len(self._shards))])

    def _places(self, name: str, limit: int) -> NDArray[Any]:
        column = self._column(name)
        if int(column.max()) >= limit:
            raise TransferSetError(
                f"{self.folder}: {name} names entry {int(column.max())} of {limit}; the set was "
                "altered, build it again"
            )
        return column

    def _shard(self, index: int) -> SafetensorsMap:
        known = self._maps[index]
        if known is None:
            known = self._maps[index] = self._map(self._shards[index])
        return known

    def _map(self, shard: Mapping[str, Any]) -> SafetensorsMap:
        try:
            tensors = SafetensorsMap(self.folder / shard["file"])
        except BrokenSafetensorsError as error:
            raise self._altered(shard, str(error)) from error
        except OSError as error:
            raise self._altered(shard, f"it cannot be read ({error.strerror})") from error
        found = {name: (tensor.dtype.name, tensor.shape) for name, tensor in tensors.items()}
        ids = found.pop("id_bytes", None)
        addresses = (found.pop("address_offsets", None), found.pop("address_bytes", None))
        expected = shard_layout(
            shard["count"],
            size=self.size,
            channels=self.channels,
            classes=len(self.classes),
            logits_dtype=self.manifest["logits_dtype"],
        )
        strange = addresses != (None, None) and (
            addresses[0] != ("int64", (shard["count"] + 1,))
            or addresses[1] is None
            or addresses[1][0] != "uint8"
        )
        if found != expected or ids is None or ids[0] != "uint8" or strange:
            raise self._altered(shard, "its tensors are not the ones that the manifest describes")
        return tensors

    def _check_size(self, shard: Mapping[str, Any]) -> None:
        path = self.folder / shard["file"]
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            raise self._altered(shard, "the file is missing")
        if size != shard["size"]:
            raise self._altered(shard, f"it has {size:,} bytes instead of {shard['size']:,}")

    def _altered(self, shard: Mapping[str, Any], why: str) -> TransferSetError:
        return TransferSetError(
            f"{self.folder / shard['file']}: torn or altered: {why}; restore the file or build the "
            "transfer set again"
        )


def _in_parts(rows: Indices) -> list[Indices]:
    """Cut rows into parts of `_ROWS_AT_ONCE` at most."""
    return np.split(rows, range(_ROWS_AT_ONCE, len(rows), _ROWS_AT_ONCE))
