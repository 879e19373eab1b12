#!/usr/bin/env python3
"""Makes a virtual environment with the runtimes on the device it runs on. One JSON object goes to stdout.

    python3 install.py --venv DIR [--pip PIP.whl --wheels FILE...] REQUIREMENT...

The standard library only; Python 3.9 or newer. Without wheels, pip fetches them over the network. The environment is
made beside DIR and takes its place when it is whole. Only its interpreter is meant to be used: the scripts of a moved
environment are not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys

SCHEMA_VERSION = 1


class InstallError(Exception):
    """A failure with a kind: `no-pip`, `pip`, `venv`."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def run(command, kind):
    """Runs a program, its output to stderr; its last lines are the message where it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = done.stdout.decode(errors="replace")
    sys.stderr.write(text)
    if done.returncode:
        raise InstallError(kind, " | ".join(text.strip().splitlines()[-3:]) or f"exit code {done.returncode}")


def install(args):
    """The environment at `args.venv`; what is in it by name and version."""
    import venv

    fresh = args.venv + ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        venv.create(fresh, with_pip=False, symlinks=True)
    except OSError as err:
        raise InstallError("venv", f"cannot make a virtual environment: {err}") from err
    python = os.path.join(fresh, "bin", "python")
    if args.pip is None:
        try:
            run([python, "-m", "ensurepip"], "no-pip")
        except InstallError:
            raise InstallError("no-pip", "this Python has no ensurepip") from None
        pip = [python, "-m", "pip"]
    else:  # a wheel of pip can be run as it is
        pip = [python, os.path.join(args.pip, "pip")]
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--only-binary=:all:"]
    if args.wheels:
        options += ["--no-index"] + ["--find-links=" + folder for folder in sorted(map(os.path.dirname, args.wheels))]
    else:
        options += ["--retries=1", "--timeout=15"]
    run([*pip, "install", *options, *args.requirements], "pip")
    shutil.rmtree(args.venv, ignore_errors=True)
    os.rename(fresh, args.venv)
    listing = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    found = subprocess.run(
        [os.path.join(args.venv, "bin", "python"), "-c", listing], stdout=subprocess.PIPE, check=True
    )
    return json.loads(found.stdout)


def main(argv):
    """Returns the exit code: 0 installed, 1 failed with an `error` in the report."""
    parser = argparse.ArgumentParser(description="Makes a virtual environment with the runtimes.")
    parser.add_argument("--venv", required=True)
    parser.add_argument("--pip", metavar="WHEEL")
    parser.add_argument("--wheels", nargs="+", default=[], metavar="FILE")
    parser.add_argument("requirements", nargs="*", metavar="REQUIREMENT")
    args = parser.parse_args(argv)
    report = {"schema_version": SCHEMA_VERSION, "mode": "install", "venv": args.venv}
    code = 0
    try:
        report["installed"] = install(args)
    except InstallError as err:
        report["error"], code = {"kind": err.kind, "message": str(err)[:4000]}, 1
    except OSError as err:
        report["error"], code = {"kind": "failed", "message": str(err)[:4000]}, 1
    finally:
        shutil.rmtree(args.venv + ".new", ignore_errors=True)
    print(json.dumps(report))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
