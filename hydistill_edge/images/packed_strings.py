"""Packed strings: a million ids in one array of bytes, opened without being read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class PackedStrings(Sequence[str]):
    """A sequence of strings, kept as UTF-8 bytes and the offsets between them.

    Args:
        offsets: shape (N + 1,) int64; string i is `data[offsets[i]:offsets[i + 1]]`.
        data: shape (bytes,) uint8; may be memory-mapped.

    Raises:
        ValueError: the offsets do not rise from 0 to the number of bytes.
    """

    def __init__(self, offsets: NDArray[np.int64], data: NDArray[np.uint8]) -> None:
        rising = len(offsets) > 0 and offsets[0] == 0 and bool((np.diff(offsets) >= 0).all())
        if not rising or offsets[-1] != len(data):
            raise ValueError(f"string offsets do not rise from 0 to {len(data)} bytes")
        self.offsets = offsets
        self.data = data

    @classmethod
    def pack(cls, strings: Iterable[str]) -> PackedStrings:
        """Pack any strings; unpaired surrogates (odd file names) survive."""
        blob = bytearray()
        ends = [0]
        for string in strings:
            blob += string.encode("utf-8", "surrogateescape")
            ends.append(len(blob))
        return cls(np.array(ends, np.int64), np.frombuffer(bytes(blob), np.uint8))

    @classmethod
    def join(cls, parts: Sequence[PackedStrings]) -> PackedStrings:
        """Return the parts one after the other."""
        starts = np.cumsum([0] + [len(part.data) for part in parts])
        ends = [part.offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
        first = np.zeros(1, np.int64)
        empty = np.zeros(0, np.uint8)
        return cls(
            np.concatenate([first, *ends]), np.concatenate([empty, *(part.data for part in parts)])
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        index = int(index) % len(self)
        start, stop = int(self.offsets[index]), int(self.offsets[index + 1])
        return self.data[start:stop].tobytes().decode("utf-8", "surrogateescape")

    def take(self, indices: NDArray[np.integer] | Sequence[int]) -> list[str]:
        """Return the strings at the given places."""
        return [self[int(index)] for index in indices]
