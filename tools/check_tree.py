"""Check what no linter sees: the version's three places, the size of files, their endings.

Prints one line per problem and exits with 1 if there is one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 300_000  # enough for a golden file; weights, runs and data sets stay out of the tree
NEVER = {".pt", ".pth", ".onnx", ".safetensors", ".npz", ".engine", ".plan", ".whl", ".hydistill"}
ALLOWED = ("tests/reference/",)  # golden files, written by the scripts that stand there


def tracked_files() -> list[str]:
    """Return the paths that git tracks, relative to the root, without those deleted just now."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    names = listing.stdout.decode().split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def version_problems() -> Iterator[str]:
    """Compare the versions of pyproject.toml, the package and the changelog's newest release."""
    found = {
        "pyproject.toml": r'^version = "(.+?)"',
        "hydistill_edge/__init__.py": r'^__version__ = "(.+?)"',
        "CHANGELOG.md": r"^## \[(\d[^\]]*)\]",
    }
    versions = {}
    for name, pattern in found.items():
        match = re.search(pattern, (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
        versions[name] = match.group(1) if match else "none"
    if len(set(versions.values())) > 1:
        told = ", ".join(f"{name}: {version}" for name, version in versions.items())
        yield f"versions differ ({told}); make them equal"


def stray_problems(names: list[str]) -> Iterator[str]:
    """Find files that are too large for the tree, or that belong into a run directory."""
    for name in names:
        size = (ROOT / name).stat().st_size
        if size > MAX_BYTES:
            yield f"{name}: {size:,} bytes, at most {MAX_BYTES:,}; keep data out of the tree"
        if Path(name).suffix in NEVER and not name.startswith(ALLOWED):
            yield f"{name}: a {Path(name).suffix} file; make it where it is needed instead"


def text_problems(names: list[str]) -> Iterator[str]:
    """Find text files with a byte order mark, CRLF, or no newline at the end."""
    for name in names:
        data = (ROOT / name).read_bytes()
        if not data or b"\0" in data:
            continue
        if data.startswith(b"\xef\xbb\xbf") or b"\r\n" in data:
            yield f"{name}: byte order mark or CRLF; write plain UTF-8 with LF"
        if not data.endswith(b"\n"):
            yield f"{name}: no newline at the end"


def main() -> int:
    """Print the problems; return the exit code."""
    names = tracked_files()
    problems = [*version_problems(), *stray_problems(names), *text_problems(names)]
    print("\n".join(problems) if problems else f"{len(names)} files in order")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
