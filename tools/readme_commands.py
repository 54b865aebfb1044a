"""Print the commands of a Markdown page, so that a shell can run what a reader would type.

    python tools/readme_commands.py README.md | bash -euxo pipefail

Only blocks fenced as ```bash are printed; anything that should be read and not run is fenced
otherwise (```console, ```yaml, ```python).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^```bash\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


def commands(markdown: str) -> str:
    """Return the bash blocks of a page, in order, one after the other."""
    return "\n".join(BLOCK.findall(markdown))


if __name__ == "__main__":
    print(commands(Path(sys.argv[1]).read_text(encoding="utf-8")), end="")
