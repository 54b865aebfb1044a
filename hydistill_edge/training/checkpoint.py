"""One file that holds a training in progress, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hydistill_edge.atomic import replacing
from hydistill_edge.errors import RunDirectoryError

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
    # Tensors that share memory (tied weights) are refused by the format; copies are not.
    tensors = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in checkpoint.tensors.items()
    }
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={_HEADER: json.dumps(values)})


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
