from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of shared data sets and teachers; tests that need it skip where it is missing."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("HYDISTILL_SHARED", beside))
    if not folder.is_dir():
        pytest.skip(f"no shared folder here ({folder}); set HYDISTILL_SHARED to one")
    return folder
