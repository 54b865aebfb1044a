"""OpenVINO and NNCF, loaded so that they report to nobody and print nothing."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
from collections.abc import Iterator
from typing import Any

from hydistill_edge.errors import TargetUnavailableError

TELEMETRY = "openvino_telemetry"


def load_openvino() -> Any:
    """Return the module `openvino`.

    Raises:
        TargetUnavailableError: it is not installed.
    """
    switch_telemetry_off()
    return _load("openvino", extra="openvino")


def load_nncf() -> Any:
    """Return the module `nncf`, told to log errors only.

    Raises:
        TargetUnavailableError: it is not installed.
    """
    switch_telemetry_off()
    with silence():
        nncf = _load("nncf", extra="build")
    nncf.set_log_level(logging.ERROR)
    return nncf


def switch_telemetry_off() -> None:
    """Make both libraries report to nobody in this process.

    Both send their telemetry through the package `openvino_telemetry`, already when they are
    imported, and do without where it is not installed. Where the host program has loaded it before
    us, its sender is emptied instead. No file in the user's home is read or written.
    """
    if sys.modules.setdefault(TELEMETRY, None) is not None:  # type: ignore[arg-type]
        sender = importlib.import_module(f"{TELEMETRY}.utils.sender")
        sender.TelemetrySender.send = _send_nothing


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Swallow NNCF's progress bars, which no setting of its own turns off.

    It also loads parts of torch on the way that ask where CUDA is, and warn where it is not.
    """
    torch_log = logging.getLogger("torch.utils.cpp_extension")
    level = torch_log.level
    torch_log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        torch_log.setLevel(level)


def _load(name: str, *, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise TargetUnavailableError(
            f'{name} is not installed; run pip install "hydistill-edge[{extra}]"'
        ) from error


def _send_nothing(*_: object, **__: object) -> None:
    """Stand in for the sender of a telemetry package that somebody else has loaded."""
