"""Files that are whole or absent: written beside their place, forced to the disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydistill_edge.errors import NoSpaceError, is_full

PARTIAL_SUFFIX = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to; what stands there becomes `path` in one step when the block ends.

    A reader sees the old file or the whole new one, also after a kill or a power cut. If the block
    fails, the old file is untouched and nothing else is left.

    Args:
        path: the file; its folder is made if it does not exist.

    Raises:
        NoSpaceError: the disk is full.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with space_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            with partial.open("rb") as stream:
                os.fsync(stream.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all; see `replacing`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextmanager
def space_errors(path: Path) -> Iterator[None]:
    """Translate "disk full" into `NoSpaceError`; other errors pass through."""
    try:
        yield
    except Exception as error:
        if is_full(error):
            raise NoSpaceError(
                f"no space left while writing {path}; what was finished before is kept: "
                "free some space and run the same command again"
            ) from error
        raise
