"""Sources: images from wherever they lie, in the size and channels that were asked for.

    spec = SourceSpec("folder", "photos", licence="customer", rows="::5")
    loaded = load_source(spec, size=(32, 32), channels=3, adapt=True)

`load_source` returns everything at once; `iterate_source` gives batches in constant memory (the
index aside) for pools of a million. Labels are not read unless the spec says so.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from hydistill_edge.errors import ImageSourceError, MissingFileError
from hydistill_edge.images.content_hash import Hashes, content_hashes
from hydistill_edge.images.provenance import (
    Exclusions,
    ProvenanceTable,
    read_exclusions,
    read_provenance,
)
from hydistill_edge.images.readers import (
    UNKNOWN_LABEL,
    FolderReader,
    Reader,
    TorchvisionReader,
    open_npz,
    open_safetensors,
)
from hydistill_edge.images.resize import Pixels, resize, to_channels
from hydistill_edge.images.rows import Rows, parse_rows, select_rows
from hydistill_edge.images.tar_shards import ShardReader
from hydistill_edge.images.transfer_format import ORIGINS, Origin

Kind = Literal["folder", "npz", "torchvision", "safetensors", "shards"]

FILE_KINDS: Mapping[str, Kind] = {".npz": "npz", ".safetensors": "safetensors", ".tar": "shards"}
"""What a file's ending says about the kind of source; a folder is a folder of images."""

_LISTED = 5
"""How many broken files an error names."""


def kind_of(path: Path) -> Kind:
    """Return the kind of source that a path on the command line means.

    Raises:
        MissingFileError: there is nothing there.
        ImageSourceError: a file of an unknown kind.
    """
    if not path.exists():
        raise MissingFileError(f"there are no images at {path}")
    if path.is_dir():
        return "folder"
    if path.suffix not in FILE_KINDS:
        raise ImageSourceError(
            f"{path} holds no images that are read; expected a folder of images, or a file that "
            f"ends in {', '.join(FILE_KINDS)}"
        )
    return FILE_KINDS[path.suffix]


@dataclass(frozen=True)
class SourceSpec:
    """Where images lie, which of them are taken, and what may be done with them.

    Attributes:
        kind: folder (image files, in class folders or not), npz, torchvision, safetensors, or
            shards (tar files in the webdataset layout).
        path: the folder or file; for shards also a pattern; for torchvision the root folder.
        name: what the source is called in ids; default from the path.
        dataset: torchvision's name of the data set, such as "CIFAR10".
        options: further arguments of the torchvision data set, such as `{"train": False}`.
        rows: a slice such as "0:5000" or "::5"; empty takes all.
        shuffle_seed: shuffles the rows; None keeps their order.
        limit: at most so many, counted last.
        use_labels: read true labels; False leaves them untouched.
        origin: what the images are: real, web, synthetic, derived or procedural.
        licence: a note that stays with every image.
        may_ship: whether the images may leave the run directory; needs a licence note.
        on_corrupt: refuse the source for a broken image, or skip the image and say so.
        provenance: table with address and licence of each image (`read_provenance`).
        exclude: list of ids, content hashes and addresses that are never taken
            (`read_exclusions`).

    Raises:
        ImageSourceError: fields that make no sense; all of them are listed.
    """

    kind: Kind
    path: str | Path = ""
    name: str = ""
    dataset: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    rows: str = ""
    shuffle_seed: int | None = None
    limit: int | None = None
    use_labels: bool = False
    origin: Origin = "real"
    licence: str = ""
    may_ship: bool = False
    on_corrupt: Literal["refuse", "skip"] = "refuse"
    provenance: str | Path = ""
    exclude: str | Path = ""

    def __post_init__(self) -> None:
        problems = _spec_problems(self)
        if problems:
            raise ImageSourceError(f"image source {self.title}: " + "; ".join(problems))

    @property
    def title(self) -> str:
        """What the source is called in ids and errors."""
        path = Path(self.path)
        if self.name:
            return self.name
        if self.kind == "torchvision":
            return self.dataset.lower() or "torchvision"
        if any(sign in path.name for sign in "*?["):
            return path.parent.name or "shards"
        return path.resolve().name if self.kind == "folder" else path.stem


def _spec_problems(spec: SourceSpec) -> list[str]:
    problems = []
    if spec.kind not in get_args(Kind):
        close = difflib.get_close_matches(str(spec.kind), get_args(Kind), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        problems.append(f"kind {spec.kind!r}; expected {', '.join(get_args(Kind))}{hint}")
    if spec.kind != "torchvision" and not str(spec.path):
        problems.append("path is empty")
    if spec.kind == "torchvision" and not spec.dataset:
        problems.append('dataset is empty; expected a name such as "CIFAR10"')
    if spec.kind != "torchvision" and (spec.dataset or spec.options):
        problems.append("dataset and options belong to kind torchvision")
    if spec.options.get("download"):
        problems.append("download: nothing is ever downloaded; put the files there first")
    if spec.limit is not None and spec.limit < 1:
        problems.append(f"limit {spec.limit}; expected at least 1")
    if spec.shuffle_seed is not None and spec.shuffle_seed < 0:
        problems.append(f"shuffle_seed {spec.shuffle_seed}; expected at least 0")
    if spec.origin not in ORIGINS:
        problems.append(f"origin {spec.origin!r}; expected {', '.join(ORIGINS)}")
    if spec.on_corrupt not in ("refuse", "skip"):
        problems.append(f"on_corrupt {spec.on_corrupt!r}; expected refuse or skip")
    if spec.may_ship and not spec.licence:
        problems.append("may_ship without a licence note; state the licence that allows it")
    try:
        parse_rows(spec.rows)
    except ImageSourceError as error:
        problems.append(str(error))
    return problems


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read and was left out."""

    id: str
    reason: str


@dataclass(frozen=True)
class LoadedImages:
    """Images of one source, all of them or one batch.

    Attributes:
        images: shape (N, H, W, C) uint8.
        labels: shape (N,) int64, -1 where unknown; None where labels were not asked for.
        ids: one per image, `<source>:<key>`, the same from run to run.
        class_names: what the labels mean; None where nothing says it.
        hashes: sha256 of each image's pixels as they stand here, shape (N, 32) uint8.
        skipped: images that were left out because they are broken.
        spec: the source.
        addresses: where each image was found, as the provenance table says, or else the .json
            beside it in a tar shard; None without either.
        licences: a note per image, from there or else the source's; None without either.
        excluded: ids of images that the exclusion list kept out.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    ids: list[str]
    class_names: tuple[str, ...] | None
    hashes: Hashes
    skipped: list[Skipped]
    spec: SourceSpec
    addresses: list[str] | None = None
    licences: list[str] | None = None
    excluded: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


def load_source(
    spec: SourceSpec,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    adapt: bool = False,
    classes: Sequence[str] | None = None,
    all_classes: bool = True,
) -> LoadedImages:
    """Read the images of a source.

    Args:
        spec: the source.
        size: (height, width) wanted, in pixels; None takes the first image's.
        channels: 1 or 3 wanted; None takes the first image's.
        adapt: convert channels and resize where they differ; False refuses such images.
        classes: the teacher's class names. Labels are translated to places in it, by name where
            the source has class names.
        all_classes: with labels and classes, refuse a class that has no image.

    Raises:
        MissingFileError: the source is not there.
        ImageSourceError: it is broken or hostile, images in it are broken (and on_corrupt is
            refuse), of another size or channel count (and adapt is off), or labels do not fit.
    """
    with closing(_open(spec)) as reader:
        rows = _rows(spec, reader)
        intake = _Intake(spec, reader, size, channels, adapt, classes)
        loaded = intake.take(rows)
        if all_classes:
            intake.check_all_classes()
        intake.check_any()
    return loaded


def iterate_source(
    spec: SourceSpec,
    *,
    batch: int = 1024,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    adapt: bool = False,
    classes: Sequence[str] | None = None,
    all_classes: bool = True,
) -> Iterator[LoadedImages]:
    """Read the images of a source batch by batch, as `load_source` does.

    Memory holds one batch and the index (about 60 bytes an image); an npz archive is held whole.
    Errors come at the end of the batch that they are found in, a missing class after the last.

    Args:
        spec: the source.
        batch: images per batch; fewer where broken ones were skipped.
        size: as in `load_source`.
        channels: as in `load_source`.
        adapt: as in `load_source`.
        classes: as in `load_source`.
        all_classes: as in `load_source`.
    """
    if batch < 1:
        raise ImageSourceError(f"batch {batch}; expected at least 1")
    with closing(_open(spec)) as reader:
        rows = _rows(spec, reader)
        intake = _Intake(spec, reader, size, channels, adapt, classes)
        for start in range(0, len(rows), batch):
            yield intake.take(rows[start : start + batch])
        if all_classes:
            intake.check_all_classes()
        intake.check_any()


_OPENERS: dict[str, Callable[[SourceSpec], Reader]] = {
    "folder": lambda spec: FolderReader(Path(spec.path), use_labels=spec.use_labels),
    "npz": lambda spec: open_npz(Path(spec.path), use_labels=spec.use_labels),
    "safetensors": lambda spec: open_safetensors(Path(spec.path), use_labels=spec.use_labels),
    "shards": lambda spec: ShardReader(Path(spec.path), use_labels=spec.use_labels),
    "torchvision": lambda spec: TorchvisionReader(
        spec.dataset, Path(spec.path), options=spec.options, use_labels=spec.use_labels
    ),
}


def _open(spec: SourceSpec) -> Reader:
    reader = _OPENERS[spec.kind](spec)
    if spec.use_labels and not reader.has_labels:
        reader.close()
        raise ImageSourceError(
            f"image source {spec.title} has no labels; expected class folders, an array "
            '"labels", or .cls members; or set use_labels to false'
        )
    return reader


def _rows(spec: SourceSpec, reader: Reader) -> Rows:
    rows = select_rows(
        len(reader), rows=spec.rows, shuffle_seed=spec.shuffle_seed, limit=spec.limit
    )
    if not len(rows):
        raise ImageSourceError(
            f'image source {spec.title}: rows "{spec.rows}" leave none of its {len(reader)} images'
        )
    return rows


class _Intake:
    """Takes images from a reader, adapts them, and keeps book of what does not fit."""

    def __init__(
        self,
        spec: SourceSpec,
        reader: Reader,
        size: tuple[int, int] | None,
        channels: int | None,
        adapt: bool,
        classes: Sequence[str] | None,
    ) -> None:
        if adapt and (size is None or channels is None):
            raise ImageSourceError("adapt needs the size and the channels to adapt to")
        self._spec = spec
        self._reader = reader
        self._size = size
        self._channels = channels
        self._adapt = adapt
        self._classes = tuple(classes) if classes is not None else reader.class_names
        self._required = classes is not None and spec.use_labels
        self._translation = self._translate_classes(classes)
        self._seen: set[int] = set()
        self._taken = 0
        self._first_broken = ""
        self._broken = 0
        self._barred = 0
        self._table: ProvenanceTable | None = None
        self._excluded: Exclusions | None = None
        # What stands beside an image in its shard, where no table says more.
        self._beside = reader if isinstance(reader, ShardReader) and reader.has_notes else None
        if spec.provenance:
            self._table = read_provenance(Path(spec.provenance))
        if spec.exclude:
            self._excluded = read_exclusions(Path(spec.exclude))

    def take(self, rows: Rows) -> LoadedImages:
        """Read the rows into one array."""
        images: NDArray[np.uint8] | None = None
        labels = np.full(len(rows), UNKNOWN_LABEL, np.int64)
        ids: list[str] = []
        broken: list[Skipped] = []
        misfits: Counter[tuple[int, ...]] = Counter()
        excluded: list[str] = []
        told: list[tuple[str, str]] = []
        for row in rows:
            key = self._reader.key(int(row))
            identity = f"{self._spec.title}:{key}"
            try:
                address, licence = self._told(key, int(row))
            except ImageSourceError as error:
                broken.append(Skipped(identity, str(error)))
                continue
            if self._excluded is not None and self._excluded.has(identity, address):
                excluded.append(identity)
                continue
            try:
                pixels, label = self._reader.read(int(row))
            except ImageSourceError as error:
                broken.append(Skipped(identity, str(error)))
                continue
            pixels = self._adapted(pixels)
            if not self._fits(pixels):
                misfits[pixels.shape] += 1
                continue
            if self._excluded is not None and self._excluded.has_pixels(pixels):
                excluded.append(identity)
                continue
            if images is None:
                images = np.empty((len(rows), *pixels.shape), np.uint8)
            images[len(ids)] = pixels
            labels[len(ids)] = label
            ids.append(identity)
            told.append((address, licence))
        self._refuse(broken, misfits, len(ids))
        self._taken += len(ids)
        if broken and not self._broken:
            self._first_broken = broken[0].reason
        self._broken += len(broken)
        self._barred += len(excluded)
        known = self._table is not None or self._beside is not None
        height, width = self._size or (0, 0)
        if images is None:
            images = np.empty((0, height, width, self._channels or 1), np.uint8)
        images = images[: len(ids)]
        return LoadedImages(
            images=images,
            labels=self._translated(labels[: len(ids)]) if self._spec.use_labels else None,
            ids=ids,
            class_names=self._classes if self._spec.use_labels else None,
            hashes=content_hashes(images),
            skipped=broken,
            spec=self._spec,
            addresses=[address for address, _ in told] if known else None,
            licences=[licence for _, licence in told] if known else None,
            excluded=excluded,
        )

    def _told(self, key: str, row: int) -> tuple[str, str]:
        """Return address and licence of an image; a table stands above what lies beside it."""
        address, licence = "", ""
        if self._beside is not None:
            address, licence = self._beside.note(row)
        if self._table is not None:
            from_table = self._table.of(key)
            address, licence = from_table[0] or address, from_table[1] or licence
        return address, licence or self._spec.licence

    def check_any(self) -> None:
        """Refuse a source of which nothing is left."""
        if self._taken:
            return
        if self._broken:
            raise ImageSourceError(
                f"image source {self._spec.title}: all {self._broken} images are broken; the "
                f"first: {self._first_broken}"
            )
        raise ImageSourceError(
            f"image source {self._spec.title}: all {self._barred} images are on the exclusion "
            f"list {self._spec.exclude}; give other images, or leave the source out"
        )

    def check_all_classes(self) -> None:
        """Refuse a class of the list that no image had."""
        if not self._required or self._classes is None:
            return
        missing = [name for place, name in enumerate(self._classes) if place not in self._seen]
        if missing:
            noun = "class" if len(missing) == 1 else "classes"
            raise ImageSourceError(
                f"image source {self._spec.title} has no image of the {noun} {_listed(missing)}; "
                "add some, or take more rows"
            )

    def _adapted(self, pixels: Pixels) -> Pixels:
        if self._adapt and self._size is not None and self._channels is not None:
            return resize(to_channels(pixels, self._channels), self._size)
        return pixels

    def _fits(self, pixels: Pixels) -> bool:
        """Whether the image has the set's shape; the first image decides what was left open."""
        self._size = self._size or (pixels.shape[0], pixels.shape[1])
        self._channels = self._channels or pixels.shape[2]
        return pixels.shape == (*self._size, self._channels)

    def _refuse(
        self, broken: list[Skipped], misfits: Counter[tuple[int, ...]], fitting: int
    ) -> None:
        total = len(broken) + misfits.total() + fitting
        if misfits:
            height, width = self._size or (0, 0)
            found = ", ".join(f"{_shape(shape)} ({n})" for shape, n in misfits.most_common(_LISTED))
            raise ImageSourceError(
                f"image source {self._spec.title}: {misfits.total()} of {total} images are not "
                f"{_shape((height, width, self._channels or 0))}: found {found}; set adapt to true "
                "to convert and resize them"
            )
        if broken and self._spec.on_corrupt == "refuse":
            lines = "".join(f"\n  {image.reason}" for image in broken[:_LISTED])
            more = f"\n  and {len(broken) - _LISTED} more" if len(broken) > _LISTED else ""
            raise ImageSourceError(
                f"image source {self._spec.title}: {len(broken)} of {total} images cannot be read; "
                f"replace them, or set on_corrupt to skip:{lines}{more}"
            )

    def _translate_classes(self, classes: Sequence[str] | None) -> NDArray[np.int64] | None:
        """Return the place in `classes` of each of the source's classes, where it names them."""
        names = self._reader.class_names
        if classes is None or names is None or not self._spec.use_labels:
            return None
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise ImageSourceError(
                f"image source {self._spec.title} has classes that the teacher does not know: "
                f"{_listed(unknown)}; expected {_listed(classes)}"
            )
        return np.array([*(list(classes).index(name) for name in names), UNKNOWN_LABEL], np.int64)

    def _translated(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._translation is not None:
            labels = self._translation[labels]  # -1 stays -1: the last entry
        highest = int(labels.max(initial=UNKNOWN_LABEL))
        if self._classes is not None and highest >= len(self._classes):
            raise ImageSourceError(
                f"image source {self._spec.title} has the label {highest}; expected 0 to "
                f"{len(self._classes) - 1}, for {len(self._classes)} classes"
            )
        self._seen.update(np.unique(labels).tolist())
        return labels


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(f'"{name}"' for name in names[:10]) + more
