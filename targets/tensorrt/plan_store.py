"""Files that this machine made for itself, and that nobody else may slip in.

A TensorRT plan is executable code: deserializing a foreign one runs it. So a file from the store is
only handed out if its seal is right: a keyed hash over its bytes and over the facts under which it
was made. The key is random, was made on this machine, and never leaves it; a bundle cannot carry a
plan with a right seal. Source for the threat:
https://docs.nvidia.com/deeplearning/tensorrt/11.4.0/reference/security.html
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from hydistill_edge.errors import HydistillError

KEY_BYTES = 32
SEAL_SUFFIX = ".seal"
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
LARGEST = 4 << 30  # bytes; no plan comes near, and reading must end


def default_key_file() -> Path:
    """Return where this user's key lies."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "hydistill-edge" / "plan.key"


class PlanStore:
    """Sealed files in one folder.

    Args:
        folder: where the files lie; beside the model by default of the callers.
        key_file: the key that seals; made on first use, readable by this user only.
    """

    def __init__(self, folder: Path, key_file: Path | None = None) -> None:
        self._folder = folder
        self._key_file = key_file or default_key_file()

    def read(self, name: str, facts: Mapping[str, str | int]) -> bytes | None:
        """Return a file's bytes if this machine wrote it under these facts, else None."""
        try:
            data = _read_own(self._folder / name)
            seal = _read_own(self._folder / (name + SEAL_SUFFIX))
            key = _read_own(self._key_file, private=True)
        except (OSError, _NotOursError):
            return None
        return data if hmac.compare_digest(seal, _seal(key, data, facts)) else None

    def write(self, name: str, data: bytes, facts: Mapping[str, str | int]) -> None:
        """Write a file with its seal; a power cut leaves either the old file or none that counts.

        Raises:
            OSError: the folder or the key's folder cannot be written.
            HydistillError: the key is not private to this user.
        """
        seal = _seal(self._key(), data, facts)
        _replace(self._folder / name, data)
        _replace(self._folder / (name + SEAL_SUFFIX), seal)

    def _key(self) -> bytes:
        try:
            return _read_own(self._key_file, private=True)
        except FileNotFoundError:
            self._key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _replace(self._key_file, secrets.token_bytes(KEY_BYTES))
            return _read_own(self._key_file, private=True)
        except _NotOursError as error:
            raise HydistillError(
                f"{self._key_file} {error}; expected a file of this user that no other can read. "
                "Remove it: a new one is made, and engines are built again"
            ) from error


class _NotOursError(Exception):
    """A file that another user could have written."""


def _seal(key: bytes, data: bytes, facts: Mapping[str, str | int]) -> bytes:
    header = json.dumps(dict(facts), sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest().encode()
    return hmac.new(key, header + b"\n" + digest, hashlib.sha256).hexdigest().encode()


def _read_own(path: Path, *, private: bool = False) -> bytes:
    """Read a regular file of this user through one descriptor: what is checked is what is read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            raise _NotOursError("is no plain file")
        if status.st_uid != os.geteuid():
            raise _NotOursError(f"belongs to user {status.st_uid}")
        forbidden = 0o077 if private else WRITABLE_BY_OTHERS
        if status.st_mode & forbidden:
            raise _NotOursError(f"has permissions {stat.S_IMODE(status.st_mode):o}")
        return file.read()


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
