"""A distilled set: natural images, compensators that belong to no class, and labels.

A compensator is a tensor of the size of an image. Added to one natural image of each class, it
makes as many training images as there are classes; only the parts are stored, and images are
derived while they are read. The folder:

    manifest.json          what is in it: counts, bytes, networks, and what was measured of it
    set.safetensors        the tensors of `TENSORS`
    networks/<name>/       the networks that were trained for the set, where there are any

The images stand in this order: the natural ones; then, compensator by compensator, the natural ones
of its slot with the compensator added.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hydistill_edge.errors import (
    MissingFileError,
    NoSpaceError,
    ShapeError,
    TransferSetError,
    is_full,
)
from hydistill_edge.images.safetensors_map import (
    BrokenSafetensorsError,
    SafetensorsMap,
    write_safetensors,
)
from hydistill_edge.images.transfer_format import MANIFEST, manifest_digest

SCHEMA_VERSION = 1
KIND = "hydistill-compensated-set"
TENSORS_FILE = "set.safetensors"
NETWORKS = "networks"

Storage = Literal["int8", "float16"]
STORAGES: tuple[Storage, ...] = get_args(Storage)
VALUE_BYTES: Mapping[Storage, int] = {"int8": 1, "float16": 2}

TENSORS = {
    "base": "uint8",
    "base_classes": "int32",
    "base_slots": "int32",
    "compensators": "int8 or float16",
    "compensator_scales": "float32",
    "compensator_slots": "int32",
    "compensator_networks": "int32",
    "logits": "float16",
}
"""All tensors by name. `base` (B, H, W, C) are pixels; `compensators` (K, H, W, C) are differences
of pixels in [0, 1], as int8 in units of `compensator_scales` (K, C); `logits` (N, classes), absent
where labels are dynamic, are those of all N images."""

PRIVACY_NOTE = (
    "this set contains real images, as they are and with compensators added, in which they can "
    "still be recognized: it is not anonymous; pass it on only where the real images may be"
)

_LEVELS = 127
_ROWS = 512  # images derived at once

Pixels = NDArray[np.uint8]
Places = NDArray[np.int64]


class CompensatedSet:
    """A distilled set, in memory or mapped from its folder.

        distilled = CompensatedSet.open(folder)
        images, logits = distilled.images(places), distilled.logits(places)

    Attributes:
        class_names: in the order of the logits.
        scale: factor on the compensators where images are derived.
        manifest: of the folder; empty for a set that was not saved.
        folder: None for a set that was not saved.
        classes: class that each image stands for, shape (N,) int64.
        bases: place of the natural image that each is, or is derived from, shape (N,).
        compensators: place of the compensator in each, shape (N,); -1 for natural images.
    """

    def __init__(
        self,
        tensors: Mapping[str, NDArray[Any]],
        *,
        class_names: Sequence[str],
        scale: float,
        manifest: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ) -> None:
        _check_tensors(tensors, len(class_names))
        self._tensors = dict(tensors)
        self.class_names = tuple(class_names)
        self.scale = scale
        self.manifest: Mapping[str, Any] = dict(manifest or {})
        self.folder = folder
        slots = tensors["base_slots"]
        own = np.arange(len(slots), dtype=np.int64)
        parts = [own, *(np.flatnonzero(slots == slot) for slot in tensors["compensator_slots"])]
        self.bases: Places = np.concatenate(parts)
        self.compensators: Places = np.repeat(
            np.arange(len(parts), dtype=np.int64) - 1, [len(part) for part in parts]
        )
        self.classes: Places = tensors["base_classes"].astype(np.int64)[self.bases]
        if "logits" in tensors and len(tensors["logits"]) != len(self):
            raise ShapeError(f"{len(tensors['logits'])} labels for {len(self)} images")

    @staticmethod
    def of(
        base: Pixels,
        compensators: NDArray[np.float32],
        *,
        base_classes: ArrayLike,
        base_slots: ArrayLike,
        compensator_slots: ArrayLike,
        compensator_networks: ArrayLike,
        class_names: Sequence[str],
        storage: Storage = "int8",
        scale: float = 1.0,
    ) -> CompensatedSet:
        """Return a set in memory; what is derived from it is what its file would give.

        Args:
            base: natural images, shape (B, H, W, C).
            compensators: differences of pixels in [0, 1], shape (K, H, W, C); K may be 0.
            base_classes: shape (B,).
            base_slots: shape (B,); a compensator is added to the natural images of its slot.
            compensator_slots: shape (K,).
            compensator_networks: which network each was optimized on, shape (K,).
            class_names: in the order of the logits.
            storage: of the compensators.
            scale: factor on them.

        Raises:
            ShapeError: shapes that do not fit each other.
            TransferSetError: a compensator is not finite, or too large for float16.
        """
        tensors: dict[str, NDArray[Any]] = {
            "base": np.ascontiguousarray(base),
            "base_classes": np.asarray(base_classes, np.int32),
            "base_slots": np.asarray(base_slots, np.int32),
            "compensator_slots": np.asarray(compensator_slots, np.int32),
            "compensator_networks": np.asarray(compensator_networks, np.int32),
            **pack_compensators(compensators, storage),
        }
        return CompensatedSet(tensors, class_names=class_names, scale=scale)

    def __len__(self) -> int:
        return len(self.bases)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        _, height, width, _ = self._tensors["base"].shape
        return (height, width)

    @property
    def channels(self) -> int:
        """1 or 3."""
        return int(self._tensors["base"].shape[3])

    @property
    def natural(self) -> int:
        """How many natural images there are, B."""
        return len(self._tensors["base"])

    @property
    def base_slots(self) -> Places:
        """The slot of each natural image, shape (B,)."""
        return self._tensors["base_slots"].astype(np.int64)

    @property
    def compensator_slots(self) -> Places:
        """The slot whose natural images each compensator is added to, shape (K,)."""
        return self._tensors["compensator_slots"].astype(np.int64)

    @property
    def compensator_networks(self) -> Places:
        """Place of the network that each compensator was optimized on, shape (K,)."""
        return self._tensors["compensator_networks"].astype(np.int64)

    @property
    def has_labels(self) -> bool:
        """Whether one soft label per image is stored."""
        return "logits" in self._tensors

    @property
    def storage(self) -> Storage:
        """How the compensators are stored."""
        return "int8" if "compensator_scales" in self._tensors else "float16"

    def images(self, indices: ArrayLike) -> Pixels:
        """Derive images: pixel + scale x compensator, rounded and clamped once.

        Args:
            indices: shape (n,) places from 0.

        Returns:
            Shape (n, H, W, C) uint8, a copy.
        """
        places = np.atleast_1d(np.asarray(indices, np.int64))
        found: Pixels = self._tensors["base"][self.bases[places]]
        for start in range(0, len(places), _ROWS):
            part = places[start : start + _ROWS]
            changed = np.flatnonzero(self.compensators[part] >= 0)
            if len(changed):
                added = self.differences(self.compensators[part[changed]])
                levels = found[start + changed] + 255 * self.scale * added
                found[start + changed] = np.rint(levels).clip(0, 255).astype(np.uint8)
        return found

    def differences(self, indices: ArrayLike) -> NDArray[np.float32]:
        """Return compensators as they are stored, shape (n, H, W, C), without the scale factor."""
        places = np.asarray(indices, np.int64)
        values: NDArray[np.float32] = self._tensors["compensators"][places].astype(np.float32)
        if "compensator_scales" in self._tensors:
            values *= self._tensors["compensator_scales"][places][:, None, None, :]
        return values

    def chunks(self) -> Iterator[tuple[Places, Pixels]]:
        """Yield all images in order, a few hundred at a time, each time with their places."""
        for start in range(0, len(self), _ROWS):
            places = np.arange(start, min(start + _ROWS, len(self)))
            yield places, self.images(places)

    def logits(self, indices: ArrayLike) -> NDArray[np.float32]:
        """Return the stored soft labels as logits, shape (n, classes).

        Raises:
            TransferSetError: the set has none.
        """
        if "logits" not in self._tensors:
            raise TransferSetError(
                f"{self.folder or 'this set'}: has no stored labels, because it was made with "
                "dynamic ones; train with labels dynamic, or make the set with labels static"
            )
        found: NDArray[np.float32] = self._tensors["logits"][np.asarray(indices, np.int64)]
        return found.astype(np.float32)

    def labelled(self, label: Callable[[Pixels], NDArray[np.float32]]) -> CompensatedSet:
        """Return the set with one soft label per image.

        Args:
            label: takes images (n, H, W, C) uint8, returns logits (n, classes).
        """
        logits = np.concatenate([label(images) for _, images in self.chunks()])
        return self._with({"logits": logits.astype(np.float16)})

    def bytes(self) -> dict[str, int]:
        """Return the bytes of natural images, compensators, labels, places, and all of them."""
        of = {name: tensor.nbytes for name, tensor in self._tensors.items()}
        parts = {
            "natural": of["base"],
            "compensators": of["compensators"] + of.get("compensator_scales", 0),
            "labels": of.get("logits", 0),
        }
        parts["places"] = sum(of.values()) - sum(parts.values())
        return {**parts, "total": sum(of.values())}

    def save(
        self,
        folder: Path,
        *,
        details: Mapping[str, Any],
        networks: Mapping[str, Callable[[Path], None]] | None = None,
    ) -> CompensatedSet:
        """Write the set's folder, whole or not at all, and return it as it lies there.

        Args:
            folder: must not exist.
            details: plain values for the manifest.
            networks: by name, what saves each network in a folder.

        Raises:
            TransferSetError: the folder exists, or details are not plain values.
            NoSpaceError: the disk is full; nothing is left behind.
        """
        from hydistill_edge import __version__

        if folder.exists():
            raise TransferSetError(f"{folder}: exists; remove it or choose another folder")
        try:
            plain = json.loads(json.dumps(dict(details)))
        except (TypeError, ValueError) as error:
            raise TransferSetError(f"details must be plain values ({error})") from error
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            written = write_safetensors(partial / TENSORS_FILE, self._tensors)
            for name, save in (networks or {}).items():
                save(partial / NETWORKS / name)
            manifest: dict[str, Any] = {
                "kind": KIND,
                "schema_version": SCHEMA_VERSION,
                "created_by": f"hydistill-edge {__version__}",
                "height": self.size[0],
                "width": self.size[1],
                "channels": self.channels,
                "classes": list(self.class_names),
                "count": len(self),
                "natural": self.natural,
                "compensators": len(self._tensors["compensators"]),
                "storage": self.storage,
                "scale": self.scale,
                "labels": "static" if self.has_labels else "dynamic",
                "bytes": {
                    **self.bytes(),
                    "file": written.size,
                    "networks": _folder_bytes(partial / NETWORKS),
                },
                "file": {"name": TENSORS_FILE, "size": written.size, "sha256": written.sha256},
                "privacy": PRIVACY_NOTE,
                **plain,
            }
            manifest["digest"] = manifest_digest(manifest)
            with (partial / MANIFEST).open("w", encoding="utf-8") as file:
                json.dump(manifest, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and is_full(error):
                raise NoSpaceError(
                    f"{folder}: the disk is full; nothing was kept of this set; free some space "
                    "and run again"
                ) from error
            raise
        return CompensatedSet.open(folder)

    @classmethod
    def open(cls, folder: Path) -> CompensatedSet:
        """Open a set; pixels are read when they are asked for.

        Raises:
            MissingFileError: there is no such folder.
            TransferSetError: it is torn, altered, of another version, or something else.
        """
        where = Path(folder) / MANIFEST
        if not where.is_file():
            raise MissingFileError(f"{where}: no such file; expected a compensated set's folder")
        manifest = _parse(where)
        path = where.with_name(TENSORS_FILE)
        try:
            tensors = SafetensorsMap(path)
        except (BrokenSafetensorsError, OSError) as error:
            raise _altered(path, str(error)) from error
        if path.stat().st_size != manifest["file"]["size"]:
            raise _altered(path, f"{path.stat().st_size:,} bytes, not those that were written")
        try:
            return cls(
                tensors,
                class_names=manifest["classes"],
                scale=manifest["scale"],
                manifest=manifest,
                folder=Path(folder),
            )
        except ShapeError as error:
            raise _altered(path, str(error)) from error

    def verify(self) -> None:
        """Read the file and compare its sha256.

        Raises:
            TransferSetError: it was altered.
        """
        if self.folder is None:
            return
        path = self.folder / TENSORS_FILE
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
        if digest.hexdigest() != self.manifest["file"]["sha256"]:
            raise _altered(path, "its sha256 does not fit the manifest")

    def _with(self, tensors: Mapping[str, NDArray[Any]]) -> CompensatedSet:
        return CompensatedSet(
            {**self._tensors, **tensors}, class_names=self.class_names, scale=self.scale
        )


def pack_compensators(values: NDArray[np.float32], storage: Storage) -> dict[str, NDArray[Any]]:
    """Return the tensors that store compensators.

    Args:
        values: shape (K, H, W, C).
        storage: `int8`, symmetric, with one scale per compensator and channel; or `float16`.

    Raises:
        ShapeError: not four dimensions.
        TransferSetError: a value is not finite, or too large for float16.
    """
    if values.ndim != 4:
        raise ShapeError(f"compensators have shape {values.shape}; expected (K, H, W, C)")
    limit = float(np.finfo(np.float16).max)
    if not bool((np.abs(values) <= limit).all()):
        raise TransferSetError(
            f"compensators have values that are not finite, or beyond {limit:g}; expected "
            "differences of pixels: lower the learning rate, or give a penalty above 0"
        )
    if storage == "float16":
        return {"compensators": values.astype(np.float16)}
    largest = np.abs(values).max(axis=(1, 2), initial=0.0)
    scales = np.where(largest > 0, largest / _LEVELS, 1.0).astype(np.float32)
    levels = np.rint(values / scales[:, None, None, :]).clip(-_LEVELS, _LEVELS)
    return {"compensators": levels.astype(np.int8), "compensator_scales": scales}


def _check_tensors(tensors: Mapping[str, NDArray[Any]], classes: int) -> None:
    optional = {"compensator_scales", "logits"}
    missing = set(TENSORS) - optional - set(tensors)
    strange = set(tensors) - set(TENSORS)
    if missing or strange:
        raise ShapeError(f"tensors missing: {sorted(missing)}; unknown: {sorted(strange)}")
    for name, tensor in tensors.items():
        if tensor.dtype.name not in TENSORS[name].split(" or "):
            raise ShapeError(f"{name} is {tensor.dtype.name}; expected {TENSORS[name]}")
    base, added = tensors["base"], tensors["compensators"]
    shapes: dict[str, tuple[int, ...]] = {
        "base_classes": base.shape[:1],
        "base_slots": base.shape[:1],
        "compensators": (len(added), *base.shape[1:]),
        "compensator_slots": added.shape[:1],
        "compensator_networks": added.shape[:1],
    }
    if added.dtype == np.int8:
        shapes["compensator_scales"] = (len(added), *base.shape[3:])
    elif "compensator_scales" in tensors:
        raise ShapeError("float16 compensators with scales; expected none")
    wrong = [name for name, shape in shapes.items() if tensors[name].shape != shape]
    if base.ndim != 4 or not len(base) or wrong:
        raise ShapeError(
            f"natural images {base.shape} with "
            + ", ".join(f"{name} {tensors[name].shape}" for name in wrong)
            + "; expected (B, H, W, C) with B >= 1, and the others to fit"
        )
    places = tensors["base_classes"]
    if not (places.min() >= 0 and places.max() < classes):
        raise ShapeError(f"classes from {places.min()} to {places.max()}; there are {classes}")
    if "logits" in tensors and tensors["logits"].shape[1:] != (classes,):
        raise ShapeError(f"labels {tensors['logits'].shape}; expected {classes} columns")


def _parse(where: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(where.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _altered(where, f"not JSON ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise TransferSetError(f'{where}: not a compensated set (no "kind": "{KIND}")')
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise TransferSetError(
            f"{where}: schema version {manifest.get('schema_version')}; this program reads version "
            f"{SCHEMA_VERSION}; make the set again"
        )
    if manifest_digest(manifest) != manifest.get("digest"):
        raise _altered(where, "its digest does not fit its contents")
    return manifest


def _altered(path: Path, why: str) -> TransferSetError:
    return TransferSetError(f"{path}: torn or altered: {why}; make the set again")


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
