"""A browser as a device: a pack is measured in a real headless one; what it sends is held against bounds."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from edgepack.benchmark.pack import bench_pack
from edgepack.benchmark.results_file import load_results
from edgepack.benchmark.schedule import QUICK
from edgepack.benchmark.session import Settings
from edgepack.benchmark.summary import summarize_result
from edgepack.devices import browser as module
from edgepack.devices.browser import BrowserDevice, Hello, opened_browser
from edgepack.devices.browser_server import HELLO_BYTES, REPORT_BYTES
from edgepack.devices.connect import ConnectOptions, places
from edgepack.devices.device import Job
from edgepack.errors import StableDeviceError, TransientDeviceError, UsageError
from edgepack.targets.file import get_target

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = shutil.which("chromium")
SHORT = replace(QUICK, processes=1, warmup_runs=1, warmup_s=0.0, runs=5, seconds=0.0)


@pytest.fixture
def pack(tmp_path: Path, onnx_model: Path, tflite_models: Path) -> Path:
    folder = tmp_path / "mlp.rpi4"
    (folder / "baseline").mkdir(parents=True)
    (folder / "manifest.json").write_text('{"schema_version": 1, "model": {"name": "mlp"}}')
    for name in ("model.onnx", "baseline/fp32.onnx"):
        (folder / name).write_bytes(onnx_model.read_bytes())
    for name, source in (("model.tflite", "int8.tflite"), ("baseline/fp32.tflite", "fp32.tflite")):
        (folder / name).write_bytes((tflite_models / source).read_bytes())
    np.savez(folder / "example_inputs.npz", x=np.linspace(-1, 1, 64, dtype=np.float32)[None])
    return folder


@pytest.fixture
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened() -> Iterator[tuple[BrowserDevice, str]]:
    """A device without a page, and its address."""
    found: list[str] = []
    with opened_browser(lan=False, announce=found.append) as device:
        yield device, found[0]


def ask(address: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port or 80, timeout=30)
    try:
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def hello(address: str, **changed: Any) -> None:
    said = {"user_agent": "Mozilla/5.0 (Linux; Android 14) Chrome/150.0", "cores": 8, "isolated": True, "memory_gib": 4}
    status, _ = ask(address, urlsplit(address).path + "hello", json.dumps(said | changed).encode())
    assert status == 200


@pytest.mark.system
@pytest.mark.parametrize("threads", [1, 2])
def test_a_pack_is_measured_in_a_real_browser(pack: Path, chromium: Browser, threads: int) -> None:
    """Both formats; the page logs no error, and asks nobody else for anything."""
    if threads == 1:
        shutil.rmtree(pack / "baseline")
    from axe_playwright_python.sync_playwright import Axe

    page, asked, complaints, address = chromium.new_page(), list[str](), list[str](), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    settings = Settings(threads, quick=True, schedule=SHORT)
    announced = threading.Event()

    def announce(found: str) -> None:
        address.append(found)
        announced.set()

    def bench() -> Any:
        with opened_browser(lan=False, announce=announce) as device:
            progress = device.showing(lambda *_: None)
            return bench_pack(pack, target=get_target("host"), device=device, settings=settings, progress=progress)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(bench)
        assert announced.wait(30)
        page.goto(address[0])
        while not running.done():
            page.wait_for_timeout(100)
        result = running.result()
    page.get_by_text("Done: the figures are in the pack").wait_for(timeout=5000)
    assert complaints == []
    found = Axe().run(page).response["violations"]
    assert [(one["id"], one["impact"]) for one in found if one["impact"] in ("serious", "critical")] == []
    origin = f"{urlsplit(address[0]).scheme}://{urlsplit(address[0]).netloc}/"
    assert {url.startswith((origin, "data:", "blob:")) for url in asked} == {True}
    assert load_results(pack) == [result]
    assert result.file_name.endswith(f".browser.{threads}t.quick.json")
    names = ["edgepack"] if threads == 1 else ["edgepack", "dense-fp32"]
    assert [(one.name, one.format) for one in result.variants] == [
        (name, fmt) for fmt in ("onnx", "tflite") for name in names
    ]
    assert {fmt: tool.runtime.split()[0] for fmt, tool in result.conditions.tools.items()} == {
        "onnx": "onnxruntime-web", "tflite": "@litertjs/core",
    }  # fmt: skip
    for variant in result.variants:
        least = 30 if variant.file == "model.tflite" else 90
        assert variant.agreement_db is not None
        assert variant.agreement_db > least, variant.file
        for block in variant.warm:
            assert block.runs_per_sample * min(block.latency_s) > 0.0999, "batches are long enough for the clock"
    notes = [row.notes for row in summarize_result(result)]
    assert all("browsers only" in " ".join(row) for row in notes)


def test_a_stranger_gets_nothing(opened: tuple[BrowserDevice, str]) -> None:
    _, address = opened
    path = urlsplit(address).path
    for wrong in ("/", "/x/", "/x/job", path[:-2] + "x/", path + "file/vendor/../page.js", path + "file/x"):
        assert ask(address, wrong) == (404, b"") or ask(address, wrong) == (404, b"Not Found"), wrong
    assert ask(address, "/x/hello", b"{}") == (404, b"")
    assert ask(address, path, Host="evil.example") == (404, b""), "a name of somebody else's that leads here"
    assert ask(address, path + "model/0") == (404, b""), "no model is given before a job is"
    status, page = ask(address, path)
    assert status == 200
    assert b"edgepack bench" in page


def test_what_is_posted_is_bounded(opened: tuple[BrowserDevice, str]) -> None:
    _, address = opened
    path = urlsplit(address).path
    assert ask(address, path + "hello", b"x" * (HELLO_BYTES + 1))[0] == 413
    assert ask(address, path + "report/1", b"{}")[0] == 409, "nobody waits for it"
    assert REPORT_BYTES <= 64 << 20


@pytest.mark.parametrize(
    "changed",
    [
        {"cores": 0},
        {"cores": "8"},
        {"user_agent": "\x1b[31m"},
        {"user_agent": "x" * 1500},
        {"more": 1},
        {"isolated": 1},
    ],
)
def test_what_a_page_says_of_itself_is_held_against_its_types(
    opened: tuple[BrowserDevice, str], changed: dict[str, Any]
) -> None:
    device, address = opened
    hello(address, **changed)
    with pytest.raises(StableDeviceError):
        device.probe()


def report(model: Path, **changed: Any) -> dict[str, Any]:
    """What an honest page would say of it."""
    found = module._expected(str(model), "onnx", None)
    answers = [
        {
            "name": "y",
            "dtype": one.dtype.name,
            "shape": list(one.shape),
            "data": base64.b64encode(one.tobytes()).decode(),
        }
        for one in found.answers
    ]
    times = {"first_inference_s": 0.1, "runtime_s": 0.2, "session_s": 0.3}
    return {"latency_s": [1e-4, 2e-4], "runs_per_sample": 1000, "seconds": 0.3, "answers": answers, **times} | changed


def played(device: BrowserDevice, address: str, job: Job, reply: Any) -> Any:
    """Runs a job while a made-up page takes it and sends this."""
    path = urlsplit(address).path
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(device.run, job)
        status, taken = ask(address, path + "job?page=1")
        assert status == 200
        ask(address, path + f"report/{json.loads(taken)['number']}", json.dumps(reply).encode())
        return running.result(timeout=30)


def test_a_report_that_cannot_be_is_refused(opened: tuple[BrowserDevice, str], onnx_model: Path) -> None:
    device, address = opened
    hello(address)
    job = Job("latency", "onnx", str(onnx_model))
    good = report(onnx_model)
    assert played(device, address, job, good)["agreement_db"] == module.MOST_DB
    wrong = good["answers"][0] | {"data": base64.b64encode(np.ones(10, np.float32).tobytes()).decode()}
    for changed, message in (
        ({"latency_s": []}, "positive times"),
        ({"latency_s": [0.0]}, "positive times"),
        ({"latency_s": ["1"]}, "not as expected"),
        ({"runs_per_sample": 0}, "runs in a sample"),
        ({"extra": 1}, "not as expected"),
        ({"answers": []}, "other shapes"),
        ({"answers": [good["answers"][0] | {"shape": [3, 3]}]}, "no array"),
        ({"answers": [good["answers"][0] | {"dtype": "O"}]}, "no array"),
        ({"answers": [good["answers"][0] | {"dtype": "f4,("}]}, "no array"),
        ({"answers": [good["answers"][0] | {"dtype": "\x1b[2J"}]}, r"no array of \?\[2J"),
        ({"answers": [wrong]}, "not those of this machine"),
    ):
        with pytest.raises(StableDeviceError, match=message):
            played(device, address, job, good | changed)
    with pytest.raises(StableDeviceError, match="no backend for it"):
        played(device, address, job, {"error": "no backend for it"})


def test_a_page_that_sleeps_or_is_older_has_no_job(
    opened: tuple[BrowserDevice, str], onnx_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, address = opened
    hello(address)
    hello(address)
    assert ask(address, urlsplit(address).path + "job?page=1")[0] == 409, "the newer page has taken over"
    monkeypatch.setattr(module, "SILENT_S", 0.5)
    with pytest.raises(TransientDeviceError, match="did not take it"):
        device.run(Job("latency", "onnx", str(onnx_model)))


def test_threads_need_a_page_that_is_isolated(opened: tuple[BrowserDevice, str], onnx_model: Path) -> None:
    device, address = opened
    hello(address, isolated=False)
    with pytest.raises(StableDeviceError, match="not cross-origin isolated"):
        device.run(Job("latency", "onnx", str(onnx_model), threads=2))


def test_the_server_stops_with_the_session() -> None:
    found: list[str] = []
    with opened_browser(lan=False, announce=found.append):
        assert ask(found[0], urlsplit(found[0]).path)[0] == 200
    with pytest.raises(ConnectionRefusedError):
        ask(found[0], urlsplit(found[0]).path)


def test_where_a_browser_is_asked_for() -> None:
    target = get_target("rpi4")
    assert [place.title for place in places([target], ConnectOptions(browser=True))] == ["a browser"]
    with pytest.raises(UsageError, match="--browser excludes"):
        places([target], ConnectOptions(browser=True, local=True))
    with pytest.raises(UsageError, match="--lan is for --browser"):
        places([target], ConnectOptions(lan=True))


@pytest.mark.parametrize(
    ("agent", "title"),
    [
        ("Mozilla/5.0 (Linux; Android 14; K) Chrome/150.0.0.0 Mobile Safari/537.36", "Chrome 150 on Android"),
        ("Mozilla/5.0 (iPhone; CPU iPhone OS 18_0) Version/18.0 Mobile/15E148 Safari/604", "Safari 18 on iPhone"),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox 140 on Linux"),
        ("Mozilla/5.0 (Windows NT 10.0) Chrome/150.0 Safari/537.36 Edg/150.0", "Edge 150 on Windows"),
        ("", "a browser on an unknown system"),
    ],
)  # fmt: skip
def test_names_of_browsers(agent: str, title: str) -> None:
    assert Hello(agent, 1, isolated=True, memory_gib=None).title == title
