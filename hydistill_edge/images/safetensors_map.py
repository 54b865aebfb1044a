"""Safetensors with numpy alone: written in one pass with its digest, read memory-mapped.

The format is a length, a JSON header and the tensors' bytes without holes
(https://github.com/huggingface/safetensors, section "Format"). The package of the same name reads
what is written here; we map files ourselves because it gives slices, and we index by arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_DTYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "F16": np.float16,
    "U32": np.uint32,
    "I32": np.int32,
    "F32": np.float32,
    "U64": np.uint64,
    "I64": np.int64,
    "F64": np.float64,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}

MAX_HEADER_BYTES = 100_000_000
"""The reference implementation refuses longer headers too."""


class BrokenSafetensorsError(ValueError):
    """A file that is no whole safetensors file; callers translate it and name the file."""


class Written(NamedTuple):
    """What `write_safetensors` left on the disk."""

    size: int
    sha256: str


def write_safetensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> Written:
    """Write the tensors and force them to the disk.

    Args:
        path: the file; its folder exists. Equal tensors give equal bytes.
        tensors: by name; any dtype of the format.
        metadata: short strings for the header.

    Raises:
        OSError: the disk refuses; the caller knows what to undo.
    """
    # Wide elements first, so that each tensor starts at a multiple of its element size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    chunks: list[bytes | memoryview] = [len(text).to_bytes(8, "little"), text]
    chunks += [np.ascontiguousarray(tensors[name]).data for name in order]
    with path.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return Written(8 + len(text) + offset, digest.hexdigest())


class SafetensorsMap(Mapping[str, NDArray[Any]]):
    """The tensors of one file, by name, as read-only views of the mapped file.

    Attributes:
        metadata: the header's strings.

    Raises:
        BrokenSafetensorsError: the file is torn, altered in its header, or something else.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        if size < 8:
            raise BrokenSafetensorsError(f"{size} bytes are too few for a safetensors header")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise BrokenSafetensorsError(f"header of {length} bytes in a file of {size}")
            text = file.read(length)
        header = _parse_header(text)
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        _check_layout(header, size - 8 - length)
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        body = np.frombuffer(self._map, np.uint8, offset=8 + length)
        self._tensors = {name: _view(body, entry) for name, entry in header.items()}

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._tensors[name]

    def release(self) -> None:
        """Give pages back that were read: they are read again where they are asked for again."""
        self._map.madvise(mmap.MADV_DONTNEED)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _parse_header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise BrokenSafetensorsError("the header is not JSON") from error
    except RecursionError as error:
        raise BrokenSafetensorsError("the header is nested too deep") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise BrokenSafetensorsError("the header is not a table of tensors")
    return header


def _check_layout(header: dict[str, Any], body_bytes: int) -> None:
    end = 0
    try:
        entries = sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
        for name, entry in entries:
            start, stop = entry["data_offsets"]
            shape = entry["shape"]
            if any(not isinstance(n, int) or n < 0 for n in (start, stop, *shape)):
                raise BrokenSafetensorsError(f"tensor {name!r} has a strange shape or place")
            itemsize = np.dtype(_DTYPES[entry["dtype"]]).itemsize
            if start != end or stop - start != math.prod(shape) * itemsize:
                raise BrokenSafetensorsError(f"tensor {name!r} does not fill its place")
            end = stop
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BrokenSafetensorsError):
            raise
        raise BrokenSafetensorsError(
            "the header does not describe tensors of known types"
        ) from error
    if end != body_bytes:
        raise BrokenSafetensorsError(f"{end} bytes of tensors are declared, {body_bytes} are there")


def _view(body: NDArray[np.uint8], entry: dict[str, Any]) -> NDArray[Any]:
    start, stop = entry["data_offsets"]
    view: NDArray[Any] = body[start:stop].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return view
