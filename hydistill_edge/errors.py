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
└── MissingError                    exit code 3: something is missing here
    ├── MissingFileError            a file or folder that does not exist
    ├── MissingPackageError         an extra that is not installed
    ├── TargetUnavailableError      a runtime that cannot build or run here
    └── NoSpaceError                the disk is full

An expected "no" (a failed gate) is never an exception: it is a value, and exit code 1.
Every message says what happened, with which value, what was expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence


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
