"""One file that holds a training in progress, written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hydistill_edge.errors import NoSpaceError, RunDirectoryError

SCHEMA_VERSION = 1
_HEADER = "training"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the rest as plain JSON values."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors under `prefix.`, without it."""
        start = prefix + "."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write beside the file and rename: a kill at any moment leaves the old file or the new one.

    Raises:
        NoSpaceError: the disk is full; the old file is untouched.
    """
    values = {"schema_version": SCHEMA_VERSION, **checkpoint.values}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # Tensors that share memory (tied weights) are refused by the format; copies are not.
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in checkpoint.tensors.items()
    }
    try:
        save_file(tensors, partial, metadata={_HEADER: json.dumps(values)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        if _is_full(error):
            raise NoSpaceError(
                f"the disk is full: the checkpoint {path} could not be written; free some space "
                "and run the same command again, it goes on from the last checkpoint"
            ) from error
        raise


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Return what was written, or None where there is no file.

    Raises:
        RunDirectoryError: the file is not a whole checkpoint of this version.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunDirectoryError(
            f"{path} is not a whole training checkpoint ({error}); delete it to start this "
            "training from the beginning"
        ) from error
    if values.get("schema_version") != SCHEMA_VERSION:
        raise RunDirectoryError(
            f"{path} is a checkpoint of schema version {values.get('schema_version')}; expected "
            f"{SCHEMA_VERSION}: delete it to start this training from the beginning"
        )
    return Checkpoint(tensors, values)


def _is_full(error: BaseException) -> bool:
    number = getattr(error, "errno", None)
    return number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
