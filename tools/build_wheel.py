"""Build the project's wheel into a folder, offline, from a clean copy of the sources.

    python tools/build_wheel.py OUT

setuptools leaves a `build/` folder in the tree and packs what it finds there the next time, deleted
modules included; hence the copy.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "hydistill_edge", "targets", "calibration")


def build_wheel(out: Path) -> Path:
    """Build the wheel into `out` and return its path.

    Raises:
        subprocess.CalledProcessError: setuptools refused; its own words are on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in SOURCES:
            source, copy = ROOT / name, Path(folder) / name
            if source.is_dir():
                shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy)
        command = [sys.executable, "-m", "pip", "wheel", "-qq", "--disable-pip-version-check"]
        # Without isolation pip asks no registry: setuptools is here already, torch needs it too.
        command += ["--no-deps", "--no-build-isolation", "--wheel-dir", str(out), folder]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return next(out.glob("hydistill_edge-*.whl"))


if __name__ == "__main__":
    print(build_wheel(Path(sys.argv[1])))
