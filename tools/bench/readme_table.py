"""Write the table "Measured" of README.md from the results of the benchmarks.

    python tools/bench/readme_table.py           write the table
    python tools/bench/readme_table.py --check   say whether it is stale (exit code 1)

One row per file in results/; everything outside the two marker comments stays as it is.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "README.md"
RESULTS = ROOT / "tools" / "bench" / "results"
BEGIN = "<!-- Measured: written by tools/bench/readme_table.py from tools/bench/results. -->"
END = "<!-- End of what was measured. -->"


def table() -> str:
    """Return the table, one row per result."""
    head = ["| question | answer | within its limits | on |", "| --- | --- | --- | --- |"]
    files = sorted(RESULTS.glob("*.json"))
    return "\n".join([*head, *(row(f, json.loads(f.read_text(encoding="utf-8"))) for f in files)])


def row(file: Path, result: dict[str, Any]) -> str:
    """Return one result's row, with a link to all of its numbers."""
    conditions = result["conditions"]
    passed = {True: "yes", False: "no", None: "no limit set"}[result["passed"]]
    link = f"[{_answer(result).rstrip('.')}]({file.relative_to(ROOT).as_posix()})"
    cells = [result["question"], link, passed, f"{conditions['cpu']}, {conditions['cpus']} CPUs"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _answer(result: dict[str, Any]) -> str:
    """Return the answer; one that lists claims of direction, in points, by what became of them."""
    said = str(result["answer"])
    if not result.get("paired") or result["paired"][0]["claim"] not in said:
        return said
    told = []
    for verdict in ("shown", "reversed", "not resolved"):
        claims = [entry for entry in result["paired"] if entry["verdict"] == verdict]
        parts = [
            f"{entry['claim']} {entry['mean']:+.2f} ± {entry.get('standard_error', math.nan):.2f}"
            for entry in claims
        ]
        if parts:
            told.append(f"**{verdict}**: {', '.join(parts)}")
    return "; ".join(told)


def page(written: str) -> str:
    """Return the page with its table made anew."""
    before, begin, rest = written.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name}: the two marker comments are missing:\n{BEGIN}\n{END}")
    return "".join([before, begin, "\n\n", table(), "\n\n", end, after])


def main() -> int:
    """Write or check the page; return the exit code."""
    written = PAGE.read_text(encoding="utf-8")
    wanted = page(written)
    if "--check" in sys.argv[1:]:
        if written != wanted:
            print("README.md is stale; run python tools/bench/readme_table.py and commit it")
        return int(written != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
