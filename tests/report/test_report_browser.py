"""The report in a real browser: it opens, says nothing on the console, and loads nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from hydistill_edge.report.html import write_report

RunMaker = Callable[..., Path]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0"),
    "--virtual-time-budget=2000",
)

needs_browser = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser here (looked for {', '.join(NAMES)})"
)


def browse(page: Path, profile: Path) -> tuple[str, list[str]]:
    """Open a page; return the document after loading, and the lines of the console."""
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
def test_report_opens_without_a_word_on_the_console(make_run: RunMaker, tmp_path: Path) -> None:
    page = write_report(make_run(classes=["<script>alert(1)</script>", *"123456789"]))

    document, console = browse(page, tmp_path / "profile")

    assert console == []
    assert document.rstrip().endswith("</html>")
    assert document.count("<svg") >= 8
    assert "<script" not in document


@needs_browser
def test_browser_says_so_when_a_page_asks_for_something(shared_run: Path, tmp_path: Path) -> None:
    page = write_report(shared_run, tmp_path / "report.html")
    html = page.read_text(encoding="utf-8")
    page.write_text(html.replace("<main>", '<main><img src="http://example.invalid/x.png">'))

    _, console = browse(page, tmp_path / "profile")

    assert any("Content Security Policy" in line for line in console)
