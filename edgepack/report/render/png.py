"""A report as a picture for a slide: the top of its page, as a Chromium without a window draws it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgepack.errors import OutputError
from edgepack.report.render import html
from edgepack.report.report import Report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
WIDTH, HEIGHT, SCALE = 1280, 720, 2
"""Of the page in CSS pixels, 16:9, and pixels of the picture for each."""
TIMEOUT_S = 60.0


def render(report: Report) -> bytes:
    """The picture, as PNG.

    Raises:
        OutputError: there is no browser here, or it made no picture.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name)) is not None), None)
    if browser is None:
        raise OutputError(
            f"--png needs a Chromium, and none of {', '.join(BROWSERS)} is here",
            hint="install one, on Debian: apt-get install chromium; or write the page with --html",
        )
    with tempfile.TemporaryDirectory(prefix="edgepack-png-") as folder:
        page, picture = Path(folder, "page.html"), Path(folder, "page.png")
        page.write_text(html.render(report), encoding="utf-8", errors="backslashreplace")
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
            f"--force-device-scale-factor={SCALE}",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={picture}",
            *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),  # Chromium's own demand
            page.as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as err:
            raise OutputError(f"--png: {browser} made no picture: {err}", hint="write the page with --html") from err
        if done.returncode or not picture.is_file():
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:200]
            raise OutputError(f"--png: {browser} made no picture: {said}", hint="write the page with --html")
        return picture.read_bytes()
