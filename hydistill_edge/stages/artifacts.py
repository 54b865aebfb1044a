"""Reading a built artifact back: its files, its scheme, and a runner for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydistill_edge.run_directory import digest_of_file, read_json
from hydistill_edge.stages.work import Planned, Work
from hydistill_edge.targets.adapters import builder, open_runner
from hydistill_edge.targets.base import Artifact, Runner

SIMULATOR = "onnxruntime"
"""TensorRT's artifact is an ONNX file with explicit QDQ: where TensorRT cannot run, ONNX Runtime
executes the same graph, and everything found that way is labelled as simulated."""


@dataclass(frozen=True)
class Built:
    """An artifact of a run directory."""

    planned: Planned
    folder: Path
    facts: Mapping[str, Any]

    @property
    def file(self) -> Path:
        """The file that a runner opens."""
        return self.folder / str(self.facts["files"][0]["path"])

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(int(entry["size"]) for entry in self.facts["files"])

    @property
    def simulated_by(self) -> str | None:
        """The runtime that stands in for the target here, or None where it runs itself."""
        return simulator(self.planned)

    def open(self, *, threads: int | None = None) -> AbstractContextManager[Runner]:
        """Open a runner: the target's own, or the one that stands in for it."""
        return open_file(self.planned, self.file, threads=threads)


def simulator(planned: Planned) -> str | None:
    """Return the runtime that stands in for the target here, or None where it runs itself."""
    if planned.target != "tensorrt" or builder("tensorrt").check().can_run:
        return None
    return SIMULATOR


def open_file(
    planned: Planned, file: Path, *, threads: int | None = None
) -> AbstractContextManager[Runner]:
    """Open an artifact's file by the target's own runner, or by the one that stands in for it."""
    return open_runner(
        simulator(planned) or planned.target,
        file,
        threads=threads or planned.profile.threads,
        precision=planned.precision,
    )


def describe(artifact: Artifact, folder: Path) -> dict[str, Any]:
    """Return artifact.json."""
    return {
        "schema_version": 1,
        "target": artifact.target,
        "device": artifact.device,
        "precision": artifact.precision,
        "files": [
            {
                "path": str(file.relative_to(folder)),
                "size": file.stat().st_size,
                "sha256": digest_of_file(file),
            }
            for file in artifact.files
        ],
        "scheme": artifact.scheme.to_dict() if artifact.scheme else None,
        "note": artifact.note,
    }


def read(work: Work, planned: Planned) -> Built:
    """Return the artifact that stage targets made.

    Raises:
        MissingFileError: it has not run.
    """
    folder = work.path("targets", planned.key)
    return Built(planned, folder, read_json(folder / "artifact.json"))
