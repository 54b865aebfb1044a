"""The cache: where bundles stand unpacked, in a folder that only their user can enter.

A bundle's folder is named by the SHA-256 of the whole bundle, so another bundle is another folder.
A folder is never trusted: every file in it is hashed again at each load, and what does not fit is
unpacked anew.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from hydistill_edge.bundle.pack import Bundle
from hydistill_edge.errors import BundleError, MissingFileError, UsageError

CACHE_VARIABLE = "HYDISTILL_CACHE"
LEFTOVER_AGE_S = 3600.0  # unpacking takes seconds; nobody works on a folder that old

# What a runtime built for this machine and keeps beside the model. TensorRT's plans and timings
# carry a seal that only this machine can make (targets/tensorrt/plan_store.py); others read no such
# files.
MADE_HERE = (".plan", ".cache", ".seal")


def default_cache(environment: Mapping[str, str] | None = None) -> Path:
    """Return $HYDISTILL_CACHE, else hydistill/bundles in the user's cache folder."""
    found = os.environ if environment is None else environment
    if found.get(CACHE_VARIABLE):
        return Path(found[CACHE_VARIABLE])
    # A relative XDG_CACHE_HOME is to be ignored, by its specification.
    base = found.get("XDG_CACHE_HOME", "")
    home = Path(base) if Path(base).is_absolute() else Path(found.get("HOME") or "~").expanduser()
    return (home if Path(base).is_absolute() else home / ".cache") / "hydistill" / "bundles"


@contextmanager
def unpacked(bundle: Bundle, cache: Path | None = None) -> Iterator[Path]:
    """Give the folder of a bundle's checked files.

    Args:
        bundle: an open bundle; it may be closed once the folder is there.
        cache: where unpacked bundles are kept. Default: `default_cache()`, or, where that cannot
            be written (a read-only system), a folder that is removed at the end.

    Raises:
        BundleError: the bundle is altered.
        NoSpaceError: the disk is full.
        UsageError: the cache that was named cannot be used.
    """
    root = cache or default_cache()
    try:
        private_folder(root)
    except UsageError:
        if cache is not None:
            raise
        with _temporary() as folder:
            bundle.unpack(folder / "bundle")
            yield folder / "bundle"
        return
    yield _cached(bundle, root)


def private_folder(path: Path) -> None:
    """Make sure that a folder exists and that only this user can enter it.

    Raises:
        UsageError: it belongs to someone else, is no folder, or cannot be made.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise UsageError(
                f"{path}: a link, or another user's folder; name a cache of your own with "
                f"{CACHE_VARIABLE}"
            )
        if stat.S_IMODE(status.st_mode) & 0o077:
            path.chmod(0o700)
        if not os.access(path, os.W_OK | os.X_OK):
            raise UsageError(f"{path}: cannot be written; name another cache: {CACHE_VARIABLE}")
    except OSError as error:
        raise UsageError(
            f"{path}: cannot be used as cache: {error.strerror}; name another with {CACHE_VARIABLE}"
        ) from error


def _cached(bundle: Bundle, root: Path) -> Path:
    folder = root / bundle.digest()
    try:
        bundle.check_folder(folder, beside=MADE_HERE)
        return folder
    except MissingFileError:
        pass
    except BundleError:
        _discard(folder, root)
    _sweep(root)
    try:
        bundle.unpack(folder)
    except UsageError:
        bundle.check_folder(folder, beside=MADE_HERE)  # another process was quicker
    return folder


def _sweep(root: Path) -> None:
    """Remove what a power cut left behind, so that repeated ones cannot fill the disk."""
    for pattern in (".unpack-*", ".damaged-*"):
        for leftover in root.glob(pattern):
            with suppress(FileNotFoundError):  # another process sweeps too
                if time.time() - leftover.lstat().st_mtime > LEFTOVER_AGE_S:
                    shutil.rmtree(leftover, ignore_errors=True)


def _discard(folder: Path, root: Path) -> None:
    """Take a damaged folder out of the way in one step, then remove it."""
    aside = Path(tempfile.mkdtemp(prefix=".damaged-", dir=root))
    try:
        folder.rename(aside / "bundle")
    except FileNotFoundError:
        pass  # another process was quicker
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _temporary() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="hydistill-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
