"""Pages in a real browser: drawn, sorted, filtered, copied, light and dark, for keyboards and screen readers, alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from edgepack.errors import OutputError
from edgepack.pack.manifest import parse_manifest
from edgepack.report.comparison import Compared, comparison_report
from edgepack.report.inspect import pack_report
from edgepack.report.render import PNG, html, png, write_report
from edgepack.report.report import Report
from edgepack.report.serve import Served
from edgepack.report.targets import target_report
from edgepack.targets.file import get_target
from tests.report.pages import benched_pack, compared, large_report, manifest
from tests.report.served import served_at

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.system
CHROMIUM = shutil.which("chromium")
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
Open = Callable[[Report], "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens a report, and holds that its page logs nothing, asks nothing, and fetches nothing."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page, path, complaints = context.new_page(), tmp_path / "report.html", list[str]()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: complaints.append(request.url) if request.url != path.as_uri() else None)

    def show(report: Report) -> Page:
        path.write_text(html.render(report), encoding="utf-8")
        page.goto(path.as_uri())
        return page

    yield show
    assert complaints == []
    context.close()


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    return compared(tmp_path_factory.mktemp("compared"))


@pytest.fixture
def report(comparison: Compared) -> Report:
    shown = comparison_report(comparison.rows, (), (), comparison.sources)
    return replace(shown, warnings=("it is hot",), command="edgepack compare mnist")


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"main > .table tbody tr:visible > :nth-child({number})").all_inner_texts()


def test_what_is_drawn(opened: Open, report: Report) -> None:
    page = opened(report)
    titles = page.locator("figcaption").all_inner_texts()
    assert [title.split(": ")[1].split(" on ")[0] for title in titles[:2]] == [
        "accuracy against latency",
        "accuracy against size",
    ]
    assert "raw latencies" in titles[2]
    latency, size, raw = page.locator("svg.chart").all()
    assert latency.locator(".point, .fixed").count() == 3
    assert latency.locator(".range").count() == 6, "an interval of latency and one of the score for each"
    assert size.locator(".small").count() == 6
    assert latency.locator("path.steps").count() == size.locator("path.steps").count() == 1
    assert raw.locator("path.line").count() == 3
    for chart in (latency, size, raw):
        box = chart.bounding_box()
        assert box is not None
        assert box["width"] > 200
        assert box["height"] > 150
    assert "mnist-mlp for rpi4, onnx, packed, 5." in (latency.locator(".point title").text_content() or "")
    assert page.locator("main > *").nth(1).inner_text().startswith("Warnings"), "the warnings come first"
    assert "edgepack compare mnist" in page.locator("footer").inner_text()
    assert "onnxruntime 1." in page.locator("footer").inner_text()


def test_a_pack_has_charts_of_its_layers_and_of_the_plans(opened: Open) -> None:
    page = opened(pack_report(Path("p"), parse_manifest(manifest("mnist-mlp"), Path("p"))))
    titles = page.locator("figcaption").all_inner_texts()
    for wanted in ("bytes of each layer", "predicted latency", "output energy that is lost", "ranks", "cache misses",
                   "plans tried for model.onnx: accuracy against size", "accuracy against latency"):  # fmt: skip
        assert any(wanted in title for title in titles), wanted
    misses = page.locator("figure", has_text="cache misses of fc1")
    assert misses.locator("path.rule").count() >= 3, "the chosen rank, the break-even rank, a cache"
    assert page.locator("rect.bar").count() > 10


def test_sorting_by_mouse_and_by_keys(opened: Open, report: Report) -> None:
    page = opened(report)
    size = page.get_by_role("columnheader", name="size")
    button = size.get_by_role("button")
    button.click()
    assert column(page, 4) == ["edgepack", "dense-int8", "dense-fp32"]
    assert size.get_attribute("aria-sort") == "ascending"
    button.focus()
    page.keyboard.press("Enter")
    assert column(page, 4) == ["dense-fp32", "dense-int8", "edgepack"]
    assert size.get_attribute("aria-sort") == "descending"
    assert page.get_by_role("status").inner_text() == "sorted by size, descending"


def test_filtering_and_copying(opened: Open, report: Report) -> None:
    from playwright.sync_api import expect

    page = opened(report)
    page.get_by_role("searchbox").fill("dense INT8")
    assert column(page, 4) == ["dense-int8"]
    assert page.get_by_role("status").inner_text() == "1 of 3 rows"
    page.get_by_role("button", name="copy CSV").click()
    expect(page.get_by_role("status")).to_have_text("copied as CSV")
    header, row = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert header.startswith("model,place,format,variant,size_bytes,latency_p50_s,")
    assert row.startswith("mnist-mlp,rpi4,onnx,dense-int8,412000,2.0")
    page.get_by_role("button", name="copy markdown").click()
    expect(page.get_by_role("status")).to_have_text("copied as markdown")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert lines[0].startswith("| model | target | format | variant | size |")
    assert lines[1].startswith("| --- | --- | --- | --- | ---: |")
    assert lines[2].startswith("| mnist-mlp | rpi4 | onnx | dense-int8 | 412 kB |")


def test_light_and_dark_are_accessible(opened: Open, report: Report) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page, papers = opened(report), []
    page.locator("summary").first.click()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        found = Axe().run(page).response["violations"]
        assert [(one["id"], one["impact"]) for one in found if one["impact"] in ("serious", "critical")] == []
    assert papers == ["rgb(255, 255, 255)", "rgb(21, 24, 28)"]


def test_on_a_phone_the_page_does_not_scroll_sideways(opened: Open, report: Report) -> None:
    page = opened(report)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.locator("main > .table .scroll").evaluate("box => box.scrollWidth > box.clientWidth"), (
        "only its table does"
    )
    sizes = page.locator("svg.chart text").evaluate_all("all => all.map(one => one.getBoundingClientRect().height)")
    assert min(sizes) > 9, "letters that can be read"


def test_keys_reach_the_report_first(opened: Open, report: Report) -> None:
    page = opened(report)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the report"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "report"


def test_names_of_strangers_are_text(opened: Open, comparison: Compared) -> None:
    rows = [replace(row, model=HOSTILE, notes=(HOSTILE,)) for row in comparison.rows]
    shown = replace(comparison_report(rows), title=(HOSTILE,), warnings=(HOSTILE,), command=HOSTILE)
    page = opened(shown)
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 0
    assert page.locator("h1").inner_text() == HOSTILE


def test_a_served_page_follows_its_folder(browser: Browser, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    benched_pack(tmp_path / "first")
    with served_at(Served(tmp_path)) as address:
        page, asked, complaints = browser.new_page(), list[str](), list[str]()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(address)
        expect(page.locator("h1")).to_contain_text(": 1 pack")
        benched_pack(tmp_path / "second", "another")
        expect(page.locator("h1")).to_contain_text("2 packs")
        page.get_by_role("searchbox").fill("another")
        assert column(page, 1) == ["another"] * 3
        page.close()
    assert complaints == []
    assert {url.removeprefix(address) for url in asked} == {"", "state"}


def test_a_hundred_packs(opened: Open, comparison: Compared) -> None:
    large = large_report(comparison, 100)
    assert len(html.render(large).encode()) < 15e6
    page = opened(large)
    assert page.locator("main > .table tbody tr").count() == 300
    assert page.locator("svg.chart").count() == 102


def test_a_picture_is_the_top_of_the_page(tmp_path: Path) -> None:
    """Sixteen to nine, with more on it than white."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    target = get_target("rpi4")
    write_report(target_report(target), PNG, tmp_path / "rpi4.png")
    with Image.open(tmp_path / "rpi4.png") as picture:
        assert (picture.format, picture.size) == ("PNG", (png.SCALE * png.WIDTH, png.SCALE * png.HEIGHT))
        colors = picture.convert("L").histogram()
    assert 0 < sum(colors[:128]) < sum(colors[200:])


@pytest.mark.parametrize("browser", ["none", "one that fails"])
def test_without_a_picture_there_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: str) -> None:
    if browser != "none":
        (tmp_path / "chromium").write_text("#!/bin/sh\necho 'no display' >&2\nexit 1\n")
        (tmp_path / "chromium").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}")
    said = "--png needs a Chromium" if browser == "none" else "made no picture"
    with pytest.raises(OutputError, match=said):
        write_report(target_report(get_target("rpi4")), PNG, tmp_path / "rpi4.png")
    assert not (tmp_path / "rpi4.png").exists()
