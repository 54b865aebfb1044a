"""The run directory: stages that are whole or absent, never half.

A stage writes into a temporary folder (or file) beside its final place and is renamed when it is
complete; then its record `stages/<stage>.json` is written, with the digest of everything the stage
was made from, and size and digest of what it made. A later build skips a stage whose record fits.
Killing a build at any point loses at most the running stage.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydistill_edge.atomic import PARTIAL_SUFFIX, space_errors, write_text
from hydistill_edge.errors import MissingFileError, NoSpaceError, RunDirectoryError, UsageError
from hydistill_edge.memory import begin_peak, gpu_peak_mib, resident_peak_mib

LOCK_NAME = "run.lock"
STAGES_FOLDER = "stages"

HISTORY_NAME = "history.json"
"""How a stage went, with wall times: kept whole like all else, but nothing is made from it."""


def digest_of(value: Any) -> str:
    """Return the sha256 of a JSON-serialisable value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, read in pieces."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            sha.update(piece)
    return sha.hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the whole new one.

    Raises:
        NoSpaceError: the disk is full; the old file is untouched.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run directory.

    Raises:
        MissingFileError: there is no such file.
        RunDirectoryError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(
            f"{path} does not exist; run the stage that makes it first"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunDirectoryError(
            f"{path} is not valid JSON ({error}); delete it and build again"
        ) from error


def clear(folder: Path, *, keep: str = "") -> None:
    """Remove everything in a folder but one entry: what a killed run left in its temporary one."""
    for leftover in folder.iterdir():
        if leftover.name == keep:
            continue
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def _digest_of_outputs(names: Iterable[str], files: Iterable[Path]) -> str:
    return digest_of([list(names), [digest_of_file(file) for file in files]])


@dataclass(frozen=True)
class StageRecord:
    """What `stages/<stage>.json` says of a finished stage."""

    stage: str
    inputs: str
    outputs: Mapping[str, int]  # path relative to the run directory -> bytes
    digest: str  # sha256 of the outputs: a stage whose files differ is not whole
    wall_s: float
    content: str = ""  # sha256 of the outputs but histories; empty where that is `digest`
    peak_mib: float | None = None  # resident memory at most, while the stage ran
    gpu_peak_mib: float | None = None

    @property
    def result(self) -> str:
        """The digest that later stages go by: what was made from another is stale."""
        return self.content or self.digest


class RunDirectory:
    """One build's folder. Use as a context manager: it is locked while open.

    Args:
        path: created when missing. A folder that has files but no stage records is refused, so
            that a mistyped `--out` never mixes a run into somebody's data.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd: int | None = None
        self._anew: set[str] = set()
        self._looking = False

    def __enter__(self) -> RunDirectory:
        import fcntl  # POSIX only, as is the host side

        if self.path.exists() and not self.path.is_dir():
            raise RunDirectoryError(f"{self.path} is a file; the run directory must be a folder")
        if not self._is_ours():
            raise RunDirectoryError(
                f"{self.path} is not empty and is no run directory of ours; "
                "choose another folder with --out"
            )
        try:
            with space_errors(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock_fd = os.open(self.path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
                (self.path / STAGES_FOLDER).mkdir(exist_ok=True)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except NoSpaceError:
            self.__exit__()
            raise
        except BlockingIOError:
            self.__exit__()
            raise RunDirectoryError(
                f"{self.path} is in use by another build; wait for it or choose another --out"
            ) from None
        except OSError as error:
            self.__exit__()
            raise RunDirectoryError(
                f"{self.path} cannot be used as a run directory ({error.strerror}); "
                "choose another folder with --out"
            ) from error
        self._sweep()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    @staticmethod
    def is_run(path: Path) -> bool:
        """Say whether the folder is a run directory."""
        return (path / STAGES_FOLDER).is_dir() and (path / LOCK_NAME).is_file()

    def record(self, stage: str) -> StageRecord | None:
        """Return the record of a finished stage, or None."""
        path = self._record_path(stage)
        if not path.exists():
            return None
        try:
            record = StageRecord(**json.loads(path.read_text(encoding="utf-8")))
            return record if isinstance(record.outputs, dict) else None
        except (TypeError, ValueError):
            return None  # a record that cannot be read is no record: the stage runs again

    def is_current(self, stage: str, inputs: str) -> bool:
        """Say whether the stage is whole, byte for byte, and was made from exactly these inputs."""
        record = self.record(stage)
        if record is None or record.inputs != inputs:
            return False
        if not all(self._has(path, size) for path, size in record.outputs.items()):
            return False
        files = [self.path / path for path in record.outputs]
        return record.digest == _digest_of_outputs(record.outputs, files)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Run no stage and drop nothing meanwhile: a finished stage that is stale is refused.

        A stage without a record passes: the one that reads it tells that it is missing.
        """
        self._looking = True
        try:
            yield
        finally:
            self._looking = False

    def has_run(self, stage: str) -> bool:
        """Say whether the stage, or a part of it, is recorded as finished."""
        return any(
            path.stem.partition(".")[0] == stage
            for path in (self.path / STAGES_FOLDER).glob(f"{stage}*.json")
        )

    def folder_stage(
        self, stage: str, inputs: str, folder: str, make: Callable[[Path], None]
    ) -> bool:
        """Run `make(temporary folder)` unless the stage is current; return True when it ran.

        The temporary folder survives a killed run, so that a stage with checkpoints of its own
        can go on from them; it is thrown away when the inputs have changed.
        """
        if self._is_done(stage, inputs):
            return False
        final = self.path / folder
        partial = final.with_name(f".{final.name}.{inputs[:12]}{PARTIAL_SUFFIX}")
        for stale in final.parent.glob(f".{final.name}.*{PARTIAL_SUFFIX}"):
            if stale != partial or stage.partition(".")[0] in self._anew:
                shutil.rmtree(stale, ignore_errors=True)
        started = time.monotonic()
        begin_peak()
        with space_errors(final):
            partial.mkdir(parents=True, exist_ok=True)
            make(partial)
            # What needs space comes before what replaces the earlier result.
            record = self._described(stage, inputs, partial, folder, time.monotonic() - started)
            waiting = self._record_path(stage).with_suffix(".next")
            write_json(waiting, asdict(record))
            self._forget(stage)
            if final.is_symlink():  # another run's, see `borrow`
                final.unlink()
            elif final.exists():
                shutil.rmtree(final)
            partial.replace(final)
            waiting.replace(self._record_path(stage))
        return True

    def file_stage(self, stage: str, inputs: str, file: str, make: Callable[[], str]) -> bool:
        """Write the text that `make()` returns unless the stage is current; True when it ran."""
        if self._is_done(stage, inputs):
            return False
        started = time.monotonic()
        begin_peak()
        with space_errors(self.path / file):
            text = make()
        self._forget(stage)
        write_text(self.path / file, text)
        record = self._described(stage, inputs, self.path / file, file, time.monotonic() - started)
        write_json(self._record_path(stage), asdict(record))
        return True

    def borrow(self, stage: str, path: str, lender: Path) -> None:
        """Let a finished stage of another run stand for this run's own: a link, and its record.

        Nothing is copied: what leaves the lender's folder has left this one too.

        Args:
            stage: its name.
            path: of the file or folder that it makes, in both run directories.
            lender: the other run directory.

        Raises:
            MissingFileError: it has not run there.
        """
        record = RunDirectory(lender).record(stage)
        if record is None:
            raise MissingFileError(
                f"stage {stage} has not run in {lender}; build that recipe without --only first"
            )
        link, target = self.path / path, os.path.relpath(lender / path, self.path)
        if not (link.is_symlink() and os.readlink(link) == target):  # noqa: PTH115
            self._forget(stage)
            if link.is_dir() and not link.is_symlink():
                shutil.rmtree(link)
            else:
                link.unlink(missing_ok=True)
            link.symlink_to(target)
        write_json(self._record_path(stage), asdict(record))

    def forget(self, stage: str) -> None:
        """Drop the records of a stage and of its parts (`stage.part`), so that it begins anew."""
        self._anew.add(stage)
        for path in (self.path / STAGES_FOLDER).glob(f"{stage}*.json"):
            if path.stem == stage or path.stem.startswith(f"{stage}."):
                path.unlink()

    def drop(self, path: str, *stages: str) -> None:
        """Remove what an earlier recipe made: records of stages, then their file or folder."""
        if self._looking:
            return
        for stage in stages:
            self.forget(stage)
        made = self.path / path
        if made.is_dir():
            shutil.rmtree(made, ignore_errors=True)
        else:
            made.unlink(missing_ok=True)

    def wall_s(self) -> dict[str, float]:
        """Return the seconds each finished stage took when it last ran."""
        names = sorted(path.stem for path in (self.path / STAGES_FOLDER).glob("*.json"))
        records = [record for name in names if (record := self.record(name))]
        return {record.stage: round(record.wall_s, 3) for record in records}

    def peak_mib(self) -> dict[str, dict[str, float | None]]:
        """Return the memory in MiB that each finished stage took at most when it last ran."""
        names = sorted(path.stem for path in (self.path / STAGES_FOLDER).glob("*.json"))
        records = [record for name in names if (record := self.record(name))]
        return {
            record.stage: {"resident": record.peak_mib, "gpu": record.gpu_peak_mib}
            for record in records
        }

    def _is_done(self, stage: str, inputs: str) -> bool:
        """Say whether a stage has nothing to do.

        Raises:
            UsageError: while looking, where it has.
        """
        if self.is_current(stage, inputs):
            return True
        if self._looking and self.record(stage) is not None:
            name = stage.partition(".")[0]
            raise UsageError(
                f"stage {name} of {self.path} is stale: the recipe, a file that it names or what "
                f"the stage had made is not the same any more; build without --only, or run "
                f"--only {name} first"
            )
        return self._looking

    def _is_ours(self) -> bool:
        """Say whether the folder may become, or is, a run directory: nobody else's files in it."""
        if not self.path.is_dir() or self.is_run(self.path):
            return True
        # A build that was killed in its first moment has left the lock alone.
        return all(entry.name == LOCK_NAME for entry in self.path.iterdir())

    def _has(self, path: str, size: int) -> bool:
        file = self.path / path
        return file.is_file() and file.stat().st_size == size

    def _record_path(self, stage: str) -> Path:
        return self.path / STAGES_FOLDER / f"{stage}.json"

    def _forget(self, stage: str) -> None:
        self._record_path(stage).unlink(missing_ok=True)

    def _described(
        self, stage: str, inputs: str, made: Path, place: str, wall_s: float
    ) -> StageRecord:
        """Return the record of a file, or of a folder's files, that will stand at `place`."""
        files = [made] if made.is_file() else sorted(p for p in made.rglob("*") if p.is_file())
        names = [str(Path(place) / file.relative_to(made)) for file in files]
        outputs = {name: file.stat().st_size for name, file in zip(names, files, strict=True)}
        digest = content = _digest_of_outputs(names, files)
        if any(file.name == HISTORY_NAME for file in files):
            read = [row for row, file in enumerate(files) if file.name != HISTORY_NAME]
            content = _digest_of_outputs([names[row] for row in read], [files[row] for row in read])
        peaks = resident_peak_mib(), gpu_peak_mib()
        return StageRecord(stage, inputs, outputs, digest, wall_s, content, *peaks)

    def _sweep(self) -> None:
        """Remove what atomic file writes of a killed run left behind."""
        for path in self.path.rglob(f"*{PARTIAL_SUFFIX}"):
            if path.is_file() and not path.name.startswith("."):
                path.unlink(missing_ok=True)
