"""The command line: one file per command. Each parses, calls one library function and prints.

Results go to stdout (`--json` everywhere), progress and errors to stderr. Exit codes: 0 no gate
said no, 1 a gate said no, 2 wrong usage or recipe, 3 something is missing here, 4 a fault of ours.
Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run `hydistill`; return the exit code."""
    from hydistill_edge.cli.app import run

    return run(sys.argv[1:] if arguments is None else arguments)


def entry() -> None:
    """Console script."""
    raise SystemExit(main())
