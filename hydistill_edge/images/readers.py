"""Readers: one small class per kind of image source, all with the same verbs.

A reader knows how many images there are, names each one, and reads one at a time; only the index
is kept in memory. One broken image is an `ImageSourceError` of `read`; a broken source is one of
the constructor.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ImageSourceError, MissingFileError, MissingPackageError
from hydistill_edge.images.packed_strings import PackedStrings
from hydistill_edge.images.resize import Pixels, decode
from hydistill_edge.images.rows import Rows
from hydistill_edge.images.safetensors_map import BrokenSafetensorsError, SafetensorsMap

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif",
)  # fmt: skip

UNKNOWN_LABEL = -1


class Reader(Protocol):
    """Random access to the images of one source."""

    has_labels: bool
    class_names: tuple[str, ...] | None
    """What the labels mean, where the source says so."""

    def __len__(self) -> int: ...

    def key(self, row: int) -> str:
        """Name an image within its source; stable from run to run."""
        ...

    def read(self, row: int) -> tuple[Pixels, int]:
        """Return pixels (H, W, C) uint8 and the label, -1 where unknown or not asked for."""
        ...

    def close(self) -> None:
        """Give back what is open."""
        ...


class FolderReader:
    """Image files in a folder and the folders in it, in the order of their relative paths.

    Args:
        path: the folder. With labels, its first-level folders are the classes.
        use_labels: whether labels are wanted.

    Raises:
        MissingFileError: no such folder.
        ImageSourceError: no image in it, or labels are wanted and images lie outside class folders.
    """

    def __init__(self, path: Path, *, use_labels: bool) -> None:
        if not path.is_dir():
            raise MissingFileError(f"{path}: no such folder of images")
        self.path = path
        self.has_labels = use_labels
        self.class_names: tuple[str, ...] | None = None
        keys = sorted(_image_files(path))
        if not keys:
            raise ImageSourceError(f"{path}: no image in it; expected {', '.join(IMAGE_SUFFIXES)}")
        self._keys = PackedStrings.pack(keys)
        self._places: dict[str, int] = {}
        if use_labels:
            self.class_names = _class_folders(path, keys)
            self._places = {name: place for place, name in enumerate(self.class_names)}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, row: int) -> str:
        """Name an image; see `Reader`."""
        return self._keys[row]

    def read(self, row: int) -> tuple[Pixels, int]:
        """Return pixels and label; see `Reader`."""
        key = self._keys[row]
        try:
            pixels = decode(self.path / key)
        except MissingFileError as error:  # a dangling link, or removed since it was listed
            raise ImageSourceError(str(error)) from error
        return pixels, self._place(key)

    def labels_of(self, rows: Rows) -> NDArray[np.int64]:
        """Return the labels of rows, shape (n,), without reading an image."""
        return np.array([self._place(self._keys[int(row)]) for row in rows], np.int64)

    def _place(self, key: str) -> int:
        return self._places.get(key.split("/")[0], UNKNOWN_LABEL)

    def close(self) -> None:
        """Give back what is open."""


def _image_files(path: Path) -> list[str]:
    found = []
    for folder, subfolders, files in os.walk(path):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        prefix = Path(folder).relative_to(path).as_posix()
        prefix = "" if prefix == "." else prefix + "/"
        found += [
            prefix + name
            for name in files
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    return found


def _class_folders(path: Path, keys: Sequence[str]) -> tuple[str, ...]:
    outside = [key for key in keys if "/" not in key]
    if outside:
        raise ImageSourceError(
            f"{path}: {len(outside)} images lie outside class folders (such as {outside[0]}), so "
            "they have no label; expected one folder per class, or labels not to be used"
        )
    folders = (entry for entry in path.iterdir() if entry.is_dir())
    return tuple(sorted(entry.name for entry in folders if not entry.name.startswith(".")))


class ArrayReader:
    """Images in one array, in memory or memory-mapped.

    Args:
        images: shape (N, H, W, C) or (N, H, W) uint8.
        labels: shape (N,) integers, -1 where unknown.
        class_names: what the labels mean.
        where: what errors call the file.

    Raises:
        ImageSourceError: the arrays are not images, or do not fit each other.
    """

    def __init__(
        self,
        images: NDArray[Any],
        labels: NDArray[Any] | None,
        class_names: tuple[str, ...] | None,
        *,
        where: str,
    ) -> None:
        _check_images(images, where)
        if labels is not None:
            _check_labels(labels, len(images), class_names, where)
        self.images = images if images.ndim == 4 else images[..., None]
        self.labels = labels
        self.has_labels = labels is not None
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.images)

    def key(self, row: int) -> str:
        """Name an image; see `Reader`."""
        return str(row)

    def read(self, row: int) -> tuple[Pixels, int]:
        """Return pixels and label; see `Reader`."""
        return self.images[row], UNKNOWN_LABEL if self.labels is None else int(self.labels[row])

    def labels_of(self, rows: Rows) -> NDArray[np.int64]:
        """Return the labels of rows, shape (n,), -1 where unknown."""
        if self.labels is None:
            return np.full(len(rows), UNKNOWN_LABEL, np.int64)
        return self.labels[rows].astype(np.int64)

    def close(self) -> None:
        """Give back what is open."""


def _check_images(images: NDArray[Any], where: str) -> None:
    fits = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if images.dtype != np.uint8 or not fits or images.size == 0:
        hint = ""
        if images.ndim == 4 and images.shape[1] in (1, 3):
            hint = "; channels seem to come second: put them last"
        raise ImageSourceError(
            f"{where}: images have shape {images.shape} and dtype {images.dtype}; expected "
            f"(N, height, width) or (N, height, width, 1 or 3) uint8{hint}"
        )


def _check_labels(
    labels: NDArray[Any], count: int, class_names: tuple[str, ...] | None, where: str
) -> None:
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise ImageSourceError(
            f"{where}: labels have shape {labels.shape} and dtype {labels.dtype}; expected "
            f"({count},) integers, one per image"
        )
    limit = len(class_names) if class_names is not None else None
    if labels.min() < UNKNOWN_LABEL or (limit is not None and labels.max() >= limit):
        raise ImageSourceError(
            f"{where}: labels reach from {labels.min()} to {labels.max()}; expected 0 to "
            f"{'the number of classes' if limit is None else limit - 1}, or -1 for unknown"
        )


def open_npz(path: Path, *, use_labels: bool) -> ArrayReader:
    """Open a NumPy archive: `images` or `images_delta`, and on request `labels`, `class_names`.

    Args:
        path: the archive.
        use_labels: whether labels are wanted; otherwise they are not even read.

    Raises:
        MissingFileError: no such file.
        ImageSourceError: truncated, no archive, pickles in it, or arrays that are no images.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ImageSourceError(
            f"{path}: truncated, corrupt or no .npz archive; write one with "
            "numpy.savez(path, images=...)"
        )
    labels = class_names = None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images = _archived_images(archive, path)
            if use_labels and "labels" in archive:
                labels = archive["labels"]
                if "class_names" in archive:
                    class_names = tuple(str(name) for name in archive["class_names"].ravel())
    except ImageSourceError:
        raise
    except (
        OSError, ValueError, EOFError, KeyError, NotImplementedError, MemoryError, RuntimeError,
        AttributeError, TypeError, zipfile.BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise ImageSourceError(
            f"{path}: truncated, corrupt or no .npz archive of plain arrays ({error})"
        ) from error
    return ArrayReader(images, labels, class_names, where=str(path))


def _archived_images(archive: Any, path: Path) -> NDArray[Any]:
    names = list(archive)
    if "images" in names:
        images: NDArray[Any] = archive["images"]
        return images
    if "images_delta" in names:
        delta = archive["images_delta"]
        if delta.dtype != np.uint8 or delta.ndim != 4 or delta.shape[0] not in (1, 3):
            raise ImageSourceError(
                f"{path}: images_delta has shape {delta.shape} and dtype {delta.dtype}; expected "
                "(1 or 3, N, height, width) uint8"
            )
        return undo_delta(delta)
    raise ImageSourceError(
        f'{path}: has no array "images" (N, height, width[, channels]) nor "images_delta"; '
        f"found {', '.join(names) or 'nothing'}"
    )


def undo_delta(delta: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the images of which `delta` holds the differences modulo 256.

    Args:
        delta: shape (C, N, H, W) uint8; differences along W, then along H, and of red and blue to
            green where C is 3. It compresses better than pixels, and is exact.

    Returns:
        Shape (N, H, W, C) uint8.
    """
    planes = np.cumsum(delta, axis=2, dtype=np.uint8)
    np.cumsum(planes, axis=3, dtype=np.uint8, out=planes)
    if len(planes) == 3:
        planes[0] += planes[1]
        planes[2] += planes[1]
    return np.ascontiguousarray(planes.transpose(1, 2, 3, 0))


def open_safetensors(path: Path, *, use_labels: bool) -> ArrayReader:
    """Open a safetensors file with the tensor `images`; pixels stay on the disk until read.

    Args:
        path: the file.
        use_labels: whether the tensor `labels` is wanted, and the JSON list `class_names` of the
            metadata where there is one.

    Raises:
        MissingFileError: no such file.
        ImageSourceError: torn, no safetensors file, or tensors that are no images.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file")
    try:
        tensors = SafetensorsMap(path)
    except (BrokenSafetensorsError, OSError) as error:
        raise ImageSourceError(f"{path}: torn, altered or no safetensors file ({error})") from error
    if "images" not in tensors:
        raise ImageSourceError(
            f'{path}: has no tensor "images"; found {", ".join(tensors) or "nothing"}'
        )
    labels = tensors.get("labels") if use_labels else None
    names = _names_in_metadata(tensors.metadata, path) if use_labels else None
    return ArrayReader(tensors["images"], labels, names, where=str(path))


def _names_in_metadata(metadata: Mapping[str, str], path: Path) -> tuple[str, ...] | None:
    if "class_names" not in metadata:
        return None
    try:
        names = json.loads(metadata["class_names"])
    except (ValueError, TypeError) as error:
        raise ImageSourceError(f"{path}: class_names in the metadata is not JSON") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ImageSourceError(f"{path}: class_names in the metadata is not a list of names")
    return tuple(names)


class TorchvisionReader:
    """A data set of torchvision that is on this machine already; nothing is ever downloaded.

    Args:
        dataset: the class's name, such as "CIFAR10".
        root: its `root` folder, where it takes one.
        options: its further arguments, such as `{"train": False}`.
        use_labels: whether labels are wanted.

    Raises:
        MissingPackageError: torchvision is not installed.
        MissingFileError: the data set's files are not there.
        ImageSourceError: no such data set, or it does not take these options.
    """

    def __init__(
        self, dataset: str, root: Path, *, options: Mapping[str, Any], use_labels: bool
    ) -> None:
        kind = _find_dataset(dataset)
        arguments = dict(options)
        accepted = inspect.signature(kind).parameters
        if "root" in accepted and str(root) not in ("", "."):
            arguments["root"] = str(root)
        if "download" in accepted:
            arguments["download"] = False
        try:
            self._data = kind(**arguments)
        except TypeError as error:
            raise ImageSourceError(
                f"torchvision data set {dataset} does not take these options: {error}"
            ) from error
        except (OSError, RuntimeError, ValueError) as error:
            raise MissingFileError(
                f"torchvision data set {dataset} is not usable in {root}: {error} (it is never "
                "downloaded from here: put its files there first)"
            ) from error
        self._name = dataset
        self._use_labels = use_labels
        names = getattr(self._data, "classes", None) if use_labels else None
        self.class_names = tuple(str(name) for name in names) if names else None
        self.has_labels = use_labels

    def __len__(self) -> int:
        return len(self._data)

    def key(self, row: int) -> str:
        """Name an image; see `Reader`."""
        return str(row)

    def read(self, row: int) -> tuple[Pixels, int]:
        """Return pixels and label; see `Reader`."""
        name = f"{self._name}[{row}]"
        try:
            image, label = self._data[row][:2]
        except Exception as error:  # the data set's own decoder; see `decode`
            raise ImageSourceError(f"{name}: cannot be read ({error})") from error
        if not self._use_labels:
            return decode(image, name=name), UNKNOWN_LABEL
        try:
            return decode(image, name=name), int(label)
        except TypeError as error:
            raise ImageSourceError(
                f"{name}: its label is {type(label).__name__}, not one class"
            ) from error

    def close(self) -> None:
        """Give back what is open."""


def _find_dataset(name: str) -> Any:
    try:
        from torchvision import datasets
    except ImportError as error:
        raise MissingPackageError(
            'torchvision is not installed; run pip install "hydistill-edge[build]"'
        ) from error
    known = {
        key: value
        for key, value in vars(datasets).items()
        if isinstance(value, type)
        and issubclass(value, datasets.VisionDataset)
        and value is not datasets.VisionDataset
    }
    if name not in known:
        plain = {"".join(filter(str.isalnum, key)).lower(): key for key in known}
        asked = "".join(filter(str.isalnum, name)).lower()
        close = [plain[key] for key in difflib.get_close_matches(asked, plain, n=2)]
        raise ImageSourceError(
            f'torchvision has no data set "{name}"; did you mean {" or ".join(close) or "another"}?'
        )
    return known[name]
