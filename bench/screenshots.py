"""Pictures of pages for README.md and RESULTS.md, from the packs that `make demo` leaves.

    .venv/bin/python bench/screenshots.py

Debian's chromium takes them; they are kept in few colours, since they are small that way.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from edgepack.pack.manifest import read_manifest
from edgepack.report.comparison import compare_packs, comparison_report
from edgepack.report.inspect import pack_report
from edgepack.report.render import html
from edgepack.report.report import Report

RESULTS = Path(__file__).parent / "results"
PACKS = (Path("dist/mnist-mlp.rpi4"), Path("dist/mnist-mlp.host"))
COLORS = 200


@dataclass(frozen=True)
class Shot:
    """A picture: of which page, in which window, from which element on."""

    name: str
    page: Literal["compare", "inspect"]
    width: int
    height: int
    scheme: Literal["light", "dark"] = "light"
    start: str = "h1"


SHOTS = (
    Shot("page-compare", "compare", 1000, 800),
    Shot("page-layers", "inspect", 1000, 530, start=".charts"),
    Shot("page-misses", "inspect", 1000, 850, start="figure:has-text('cache misses')"),
    Shot("page-phone", "compare", 360, 780, "dark"),
)


def pages() -> dict[str, Report]:
    found = compare_packs(PACKS)
    compared = comparison_report(found.rows, found.emulated, found.unmeasured, found.sources)
    command = f"edgepack compare {' '.join(map(str, PACKS))} --html compare.html"
    return {
        "compare": replace(compared, title=("mnist-mlp for rpi4 and for this machine",), command=command),
        "inspect": pack_report(PACKS[0], read_manifest(PACKS[0])),
    }


def take(browser: Browser, shot: Shot, path: Path) -> bytes:
    page = browser.new_page(viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.scheme)
    page.goto(path.as_uri())
    page.locator(shot.start).first.evaluate("element => window.scrollTo(0, element.offsetTop - 12)")
    png = page.screenshot()
    page.close()
    return png


def main() -> None:
    chromium = shutil.which("chromium")
    if chromium is None or not all(pack.is_dir() for pack in PACKS):
        sys.exit("needs chromium (make system) and the packs that `make demo` leaves")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, report in pages().items():
            Path(folder, f"{name}.html").write_text(html.render(report), encoding="utf-8")
        for shot in SHOTS:
            image = Image.open(io.BytesIO(take(browser, shot, Path(folder, f"{shot.page}.html"))))
            file = RESULTS / f"{shot.name}.png"
            few = image.convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            few.save(file, optimize=True)
            print(f"{file.name}: {file.stat().st_size / 1e3:.0f} kB")
        browser.close()


if __name__ == "__main__":
    main()
