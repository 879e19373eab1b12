"""Fetches the runtimes of the page from npm, in the exact versions of package-lock.json, and keeps what it loads.

`make vendor` runs it. What it writes into `vendor/` is not part of the repository, but of the wheel.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parent
FILES = {
    "onnxruntime-web/dist/ort.wasm.bundle.min.mjs": "ort.mjs",
    "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
    "@litertjs/core/dist/index.js": "litert.mjs",
    "@litertjs/wasm-utils/dist/index.js": "wasm-utils.mjs",
    **{
        f"@litertjs/core/wasm/litert_wasm{kind}_internal.{suffix}": f"litert_wasm{kind}_internal.{suffix}"
        for kind in ("", "_threaded", "_compat")
        for suffix in ("js", "wasm")
    },
}
"""Path in node_modules → name in `vendor/`."""
PACKAGES = ("onnxruntime-web", "@litertjs/core")


def main() -> None:
    """Fetch, copy, note the versions last: the folder is whole when they are there."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm is needed once, to fetch the runtimes of the browser's page: apt-get install npm")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(PAGE / name, folder)
        subprocess.run([npm, "ci", "--ignore-scripts", "--silent"], cwd=folder, check=True)
        modules = Path(folder) / "node_modules"
        fresh = PAGE / "vendor.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        for source, name in FILES.items():
            shutil.copyfile(modules / source, fresh / name)
        # A bare name is no address: the page has no other module of that name.
        litert = fresh / "litert.mjs"
        text = litert.read_text(encoding="utf-8")
        if '"@litertjs/wasm-utils"' not in text:
            sys.exit("@litertjs/core imports other modules than expected: look at vendor.py")
        litert.write_text(text.replace('"@litertjs/wasm-utils"', '"./wasm-utils.mjs"'), encoding="utf-8")
        versions = {name: json.loads((modules / name / "package.json").read_text())["version"] for name in PACKAGES}
        (fresh / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")
    shutil.rmtree(PAGE / "vendor", ignore_errors=True)
    fresh.rename(PAGE / "vendor")


if __name__ == "__main__":
    main()
