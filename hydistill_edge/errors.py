"""The exceptions of hydistill-edge, one tree.

HydistillError                      exit code 4: a fault of ours, unless a subclass says otherwise
├── InputError                      exit code 2: what was handed over cannot be used
│   ├── UsageError                  a wrong option, or options that exclude each other
│   ├── RecipeError                 a recipe with problems; all of them are listed
│   ├── TeacherError                a teacher or student file that cannot be loaded
│   ├── ImageSourceError            an image source that cannot be read or does not fit
│   ├── TransferSetError            a transfer set that is torn, altered or incomplete
│   ├── ShapeError                  arrays or tensors whose shapes do not fit each other
│   ├── MethodError                 a method that cannot work on this teacher or these images
│   ├── GraphError                  an ONNX graph that breaks the export contract
│   ├── ProfileError                a device profile that is unknown or impossible
│   ├── BundleError                 a bundle that is hostile, altered or incomplete
│   ├── SignatureError              a signature that is missing, not trusted or wrong
│   └── RunDirectoryError           a run directory that is busy or not one of ours
├── StudentsFailedError             some of several students; exit code: the largest of theirs
└── MissingError                    exit code 3: something is missing here
    ├── MissingFileError            a file or folder that does not exist
    ├── MissingPackageError         an extra that is not installed
    ├── TargetUnavailableError      a runtime that cannot build or run here
    └── NoSpaceError                the disk is full

An expected "no" (a failed gate) is never an exception: it is a value, and exit code 1.
Every message says what happened, with which value, what was expected, and what to do.
`describe` says the same of errors that are none of these.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class HydistillError(Exception):
    """Base of every error that hydistill-edge raises on purpose."""

    exit_code = 4


class InputError(HydistillError):
    """What was handed over cannot be used."""

    exit_code = 2


class UsageError(InputError):
    """A wrong option, or options that exclude each other."""


class RecipeError(InputError):
    """A recipe with problems.

    Attributes:
        problems: one line each, with the file's line number and the key where they are known.
    """

    def __init__(self, problems: Sequence[str], *, path: str = "recipe") -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__("\n".join([f"{path}: {count}", *(f"  {line}" for line in self.problems)]))


class TeacherError(InputError):
    """A teacher or student file that cannot be loaded."""


class ImageSourceError(InputError):
    """An image source that cannot be read or does not fit."""


class TransferSetError(InputError):
    """A transfer set that is torn, altered or incomplete."""


class ShapeError(InputError):
    """Arrays or tensors whose shapes do not fit each other."""


class MethodError(InputError):
    """A method that cannot work on this teacher or these images."""


class GraphError(InputError):
    """An ONNX graph that breaks the export contract."""


class ProfileError(InputError):
    """A device profile that is unknown or impossible."""


class BundleError(InputError):
    """A bundle that is hostile, altered or incomplete."""


class SignatureError(InputError):
    """A signature that is missing, not trusted or wrong."""


class RunDirectoryError(InputError):
    """A run directory that is busy or not one of ours."""


class MissingError(HydistillError):
    """Something is missing here."""

    exit_code = 3


class MissingFileError(MissingError):
    """A file or folder that does not exist."""


class MissingPackageError(MissingError):
    """An extra that is not installed."""


class TargetUnavailableError(MissingError):
    """A runtime that cannot build or run here."""


class NoSpaceError(MissingError):
    """The disk is full."""


@dataclass(frozen=True)
class Failure:
    """An error as a value.

    Attributes:
        kind: name of its class.
        message: what happened, and what to do.
        exit_code: of a command that ends with it.
    """

    kind: str
    message: str
    exit_code: int


class StudentsFailedError(HydistillError):
    """A stage could not be run for some of several students.

    Attributes:
        failures: name of the student -> what happened.
    """

    def __init__(self, failures: Mapping[str, Failure]) -> None:
        self.failures = dict(failures)
        self.exit_code = max(failure.exit_code for failure in failures.values())
        super().__init__(
            "; ".join(f"student {name}: {failure.message}" for name, failure in failures.items())
        )


def describe(error: Exception) -> Failure:
    """Return an error as a value; one that nobody foresaw is translated into one of ours."""
    known = _translated(error)
    if known is not None:
        return Failure(type(known).__name__, str(known), known.exit_code)
    kind = type(error).__name__
    said = f"{kind}: {error} (a fault of ours; please report it with --debug)"
    return Failure(kind, said, HydistillError.exit_code)


def _translated(error: Exception) -> HydistillError | None:
    if isinstance(error, HydistillError):
        return error
    if isinstance(error, ImportError):
        return _of_import(error)
    return _of_system(error) if isinstance(error, OSError) else None


def is_full(error: Exception) -> bool:
    """Return whether an error, Python's own or of a library that writes, means a full disk."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left" in str(error)


def _of_system(error: OSError) -> HydistillError:
    """Say what the system refused; what a command foresees has a message of its own."""
    if is_full(error):
        return NoSpaceError(
            f"no space left on the disk ({error}); what was finished before is kept: free some "
            "space and run the same command again"
        )
    return UsageError(f"the system refused a file ({error}); check the path and its permissions")


def _of_import(error: ImportError) -> MissingPackageError:
    """Say which extra brings a package that is not installed."""
    package = (error.name or "").partition(".")[0]
    extra = {"openvino": "openvino", "tensorrt": "tensorrt", "onnxruntime": "onnxruntime"}.get(
        package, "build"
    )
    return MissingPackageError(
        f"this command needs the package {package or error}, which is not installed; "
        f'run pip install "hydistill-edge[{extra}]"'
    )
