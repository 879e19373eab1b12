"""The command line itself: help, speed of start, and how errors and interrupts come out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from edgepack import errors
from edgepack.cli import app, options
from edgepack.cli.options import door, progress_bar, reporting, show
from edgepack.report.render import COMMENT, JUNIT, RENDERERS, TERMINAL, Renderer
from edgepack.report.report import Report
from edgepack.workspace import silent

HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "litert_torch", "ai_edge_litert", "scipy", "pydantic", "rich")


def commands() -> Iterator[tuple[str, ...]]:
    for command in app.registered_commands:
        assert command.callback is not None
        yield (command.name or command.callback.__name__.replace("_", "-"),)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            assert command.callback is not None
            yield (str(group.typer_instance.info.name), command.name or command.callback.__name__)


COMMANDS = sorted(commands())
FILES: dict[tuple[str, ...], tuple[Renderer, ...]] = {("check",): (COMMENT, JUNIT)}
"""Of commands that have renderers of their own."""
WITHOUT_TABLES = [("targets", "check"), ("init",), ("serve",)]
JSON = next(renderer for renderer in RENDERERS if renderer.name == "json")


def test_every_command_of_the_design_is_there() -> None:
    assert {" ".join(c) for c in COMMANDS} >= {
        *("build", "inspect", "bench", "compare", "doctor"),
        *("targets list", "targets show", "targets check", "emulator install"),
    }


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_an_example_and_the_shared_options(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert f"Example: edgepack {' '.join(command)}" in result.stdout
    assert "--verbose" in result.stdout
    own = FILES.get(command, ())
    for renderer in (*own, *(one for one in RENDERERS if one.name not in {each.name for each in own})):
        offered = renderer.for_machines or command not in WITHOUT_TABLES
        assert (renderer.option in result.stdout) is offered
        assert (renderer.help in " ".join(result.stdout.split())) is offered


def test_help_of_the_whole_lists_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(command[0] in result.stdout for command in COMMANDS)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['edgepack', '--help']\n"
        "from edgepack.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_no_command_shows_help() -> None:
    result = CliRunner().invoke(app, [])
    assert "Usage" in result.stdout + result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["bild"], ["build"], ["build", "m.onnx"], ["targets", "probe"], ["compare"],
     ["emulator", "install", "--arch", "armv7l"], ["bench", "p", "--emulate", "--threads", "0"]],
)  # fmt: skip
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


ARGUMENTS = {
    ("bench",): ["pack"],
    ("check",): ["pack"],
    ("build",): ["m.onnx", "--target", "rpi4"],
    ("build-all",): ["zoo.yaml"],
    ("compare",): ["pack"],
    ("emulator", "costs"): ["--target", "rpi4"],
    ("inspect",): ["m.onnx"],
    ("run",): ["pack"],
    ("targets", "calibrate"): ["rpi4"],
    ("targets", "show"): ["rpi4"],
    ("extract",): ["m.epk"],
    ("join",): ["a=a.tflite", "b=b.tflite", "--out", "m.tflite"],
}


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in WITHOUT_TABLES], ids=" ".join)
def test_one_rendering_at_a_time(command: tuple[str, ...]) -> None:
    to_file = {renderer.name for renderer in FILES.get(command, ())}
    first, *others = every = [one.option for one in RENDERERS if not one.to_file and one.name not in to_file]
    for two in combinations(every, 2):
        result = CliRunner().invoke(app, [*command, *ARGUMENTS.get(command, []), *two])
        assert result.exit_code == 2
        says = result.stdout + result.stderr
        assert f"{', '.join(others)} and {first} exclude each other" in says


def test_a_table_in_every_rendering() -> None:
    shown = {option: CliRunner().invoke(app, ["targets", "show", "rpi4", *option]).stdout for option in RENDERINGS}
    assert " description                " in shown[()]
    assert "| description | " in shown["--markdown",]
    assert shown["--csv",].startswith("cluster,core,cores,frequency_hz,")
    assert json.loads(shown["--json",])["clusters"][0]["name"] == "a72"


def test_a_page_is_written_beside_what_is_printed(tmp_path: Path) -> None:
    page = tmp_path / "new" / "page.html"
    shown = CliRunner().invoke(app, ["targets", "show", "rpi4", "--json", "--html", str(page)])
    assert json.loads(shown.stdout)["name"] == "rpi4"
    assert "cortex-a72" in page.read_text()
    failed = CliRunner().invoke(app, ["targets", "show", "rpi44", "--html", str(tmp_path / "none.html")])
    assert failed.exit_code == 3
    assert not (tmp_path / "none.html").exists()
    folder = CliRunner().invoke(app, ["targets", "show", "rpi4", "--html", str(tmp_path)])
    assert (folder.exit_code, folder.stdout) == (2, "")
    assert folder.stderr.startswith(f"error: {tmp_path}: found a folder, expected the name of a file\n")


@pytest.mark.parametrize("tables", [True, False])
def test_a_renderer_that_is_registered_has_an_option(tables: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    louder = SimpleNamespace(render=lambda report: f"{report.title[0]}!\n")
    monkeypatch.setitem(sys.modules, "edgepack.report.render.louder", louder)
    monkeypatch.setattr(options, "RENDERERS", (*RENDERERS, Renderer("louder", "Print it loud.")))
    toy = typer.Typer()

    @toy.command()
    @reporting(tables=tables)
    def say(word: str, *, output: Renderer) -> None:
        if word == "nothing":
            raise errors.UsageError("found nothing")
        show(Report((word,), record={"word": word}), output)

    def told(*arguments: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(toy, arguments)
        return result.exit_code, result.stdout, result.stderr

    assert told("hello") == (0, "hello\n", "")
    assert told("hello", "--json") == (0, '{\n  "word": "hello"\n}\n', "")
    assert ("Print it loud." in told("--help")[1]) is tables
    if tables:
        assert told("hello", "--louder") == (0, "hello!\n", "")
        assert told("nothing", "--louder") == (2, "", "error: found nothing\n")
        code, out, _ = told("hello", "--louder", "--json")
        assert (code, json.loads(out)["error"]["kind"]) == (2, "UsageError")


RENDERINGS: tuple[tuple[str, ...], ...] = ((), ("--markdown",), ("--csv",), ("--json",))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--emulate", "--local"], "error: --emulate excludes --local, --host, --adb and --browser\n"),
        (
            ["--emulate", "--quick"],
            "error: --quick and --sustained are for a measurement; --emulate counts, and has none\n"
            "  hint: leave them out\n",
        ),
    ],
)
def test_emulate_refuses_what_only_a_measurement_has(options: list[str], says: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", str(tmp_path), *options])
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", says)


def test_emulator_without_its_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("edgepack.emulator.programs._EVERY_USER", ())
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(app, ["emulator", "install", "--arch", "x86_64"])
    assert result.exit_code == 4
    assert result.stderr.startswith("error: qemu-x86_64, cc not installed, and only root can install")
    assert "hint: sudo apt-get install qemu-user gcc libc6-dev" in result.stderr


def run_door(
    err: BaseException, capsys: pytest.CaptureFixture[str], output: Renderer = TERMINAL, *, verbose: bool = False
) -> tuple[int, str, str]:
    with pytest.raises(typer.Exit) as caught, door(output, verbose=verbose):
        raise err
    shown = capsys.readouterr()
    return caught.value.exit_code, shown.out, shown.err


ERRORS = [
    (errors.UsageError, 2),
    (errors.OutputError, 2),
    (errors.ModelError, 3),
    (errors.DataError, 3),
    (errors.TargetsError, 3),
    (errors.PackError, 3),
    (errors.TransientDeviceError, 4),
    (errors.StableDeviceError, 4),
    (errors.BudgetError, 5),
    (errors.ProofError, 1),
]


@pytest.mark.parametrize(("kind", "code"), ERRORS)
def test_exit_codes(kind: type[errors.EdgepackError], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_door(kind("found this", hint="do that"), capsys) == (code, "", "error: found this\n  hint: do that\n")


def test_hint_is_left_out_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_door(errors.DataError("found this"), capsys) == (3, "", "error: found this\n")


def test_defects_are_short_and_say_how_to_see_more(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_door(ZeroDivisionError("oops"), capsys)
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == "error: internal error: ZeroDivisionError: oops"
    assert "-v" in err
    assert "Traceback" not in err


def test_traceback_with_v(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_door(ZeroDivisionError("oops"), capsys, verbose=True)
    assert code == 1
    assert "Traceback" in err
    assert "error: internal error: ZeroDivisionError: oops" in err


def test_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_door(KeyboardInterrupt(), capsys)
    assert code == 130
    assert err.startswith("error: interrupted\n  hint: run the same command again")


def test_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_door(errors.DataError("found this", hint="do that"), capsys, JSON)
    assert (code, err) == (3, "")
    assert json.loads(out) == {
        "error": {"kind": "DataError", "message": "found this", "hint": "do that", "exit_code": 3}
    }


def test_own_exits_pass() -> None:
    with pytest.raises(typer.Exit) as caught, door(TERMINAL, verbose=False):
        raise typer.Exit(7)
    assert caught.value.exit_code == 7


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(TERMINAL) as progress:
        assert progress is silent
        progress("search", 1, 3)
    assert capsys.readouterr() == ("", "")


def test_json_is_sorted_and_shows_paths(capsys: pytest.CaptureFixture[str]) -> None:
    show(Report(record={"b": Path("x/y"), "a": 1}), JSON)
    assert capsys.readouterr().out == '{\n  "a": 1,\n  "b": "x/y"\n}\n'


def test_closed_pipe_is_no_crash() -> None:
    """`edgepack targets list | head -1`"""
    command = f"{sys.executable} -m edgepack targets list | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
