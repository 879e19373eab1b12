"""README.md and all that it links to, against the tool: commands, options, make targets, and every measured figure."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import click
import pytest
import typer.main
from typer.testing import CliRunner

from edgepack import errors
from edgepack.cli import app, options

TOP = Path(__file__).parent.parent
README = "README.md"
PAGES = (README, "bench/RESULTS.md")
OPTIONS = "edgepack/pipeline/README.md"
COMMANDS = "edgepack/cli/README.md"
SKILL = "SKILL.md"
DOCUMENTS = (
    *PAGES,
    SKILL,
    "CONTRIBUTING.md",
    "runtimes/README.md",
    *sorted(str(path.relative_to(TOP)) for path in TOP.glob("edgepack/*/README.md")),
)
RESULTS = TOP / "bench" / "results"
BLOCKS = (
    "quickstart",
    "demo",
    "mnist",
    "layer",
    "planner",
    "allocation",
    "accuracy",
    "weighting",
    "residual",
    "seeds",
    "emulated",
    "estimate",
    "emulator",
    "tool",
)
# Paths of one machine, not of a checkout: /home/me, /tmp/x, C:\\x. A slash inside a word or an address is none.
MACHINE_PATH = re.compile(r"(?<![\w.~/:*)-])/(?:home|root|tmp|work|mnt|opt|srv|usr|var|Users|private)\b|\b[A-Z]:\\")


@pytest.fixture(params=DOCUMENTS)
def prose(request: pytest.FixtureRequest) -> str:
    """A document without what was measured: printed tables are no documentation of options."""
    return prose_of(request.param)


@cache
def prose_of(name: str) -> str:
    text = (TOP / name).read_text()
    return re.sub(r"<!-- figures:([\w-]+) -->.*?<!-- /figures:\1 -->", "", text, flags=re.DOTALL)


@pytest.fixture
def bench_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that writes the blocks; the folder is no package, so it is importable only while a test runs."""
    monkeypatch.syspath_prepend(str(TOP / "bench"))
    import blocks

    yield blocks
    sys.modules.pop("blocks", None)


@cache
def commands() -> dict[str, frozenset[str]]:
    """Every command of the tool by its full name, with the long options that its `--help` lists."""
    return dict(_listed(typer.main.get_command(app), ()))


def _listed(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, frozenset[str]]]:
    children = getattr(command, "commands", None)
    if children:
        for name, child in children.items():
            yield from _listed(child, (*path, name))
        return
    done = CliRunner().invoke(app, [*path, "--help"])
    assert done.exit_code == 0, done.output
    yield " ".join(path), frozenset(re.findall(r"(?<![\w-])--[a-z][a-z-]*", done.output))


def code(text: str) -> list[str]:
    """Pieces of code in a text: fenced and indented lines, and inline spans outside of them."""
    pieces, fenced = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            pieces.append(line.strip().removeprefix("$ "))
        else:
            pieces += re.findall(r"`([^`]+)`", line)
    return pieces


def command_of(piece: str) -> str | None:
    """The tool's command that a piece of code calls, None where it calls none."""
    if not re.match(r"edgepack( |$)", piece):
        return None
    words = [word for word in piece.split()[1:] if not word.startswith("-")]
    for length in (2, 1):
        if " ".join(words[:length]) in commands():
            return " ".join(words[:length])
    return ""


def test_the_readme_is_short() -> None:
    content = (TOP / README).read_bytes()
    assert len(content) <= 15_000
    assert content.count(b"\n") <= 250


@pytest.mark.parametrize("name", [*DOCUMENTS, "CHANGELOG.md"])
def test_every_link_leads_somewhere(name: str) -> None:
    text = (TOP / name).read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = link.partition("#")
        if path.startswith(("https:", "http:")):
            continue
        aim = ((TOP / name).parent / path) if path else TOP / name
        assert aim.exists(), link
        assert not heading or heading in headings(aim), link


def test_every_file_that_is_named_exists(prose: str) -> None:
    named = [piece for piece in code(prose) if re.match(r"(?:edgepack|bench|runtimes|tests|\.ci)/[\w./*-]*$", piece)]
    assert [piece for piece in named if not any(TOP.glob(piece.rstrip("/")))] == []


def headings(path: Path) -> set[str]:
    """Of a Markdown file, as links name them."""
    found = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_command_is_in_the_table_of_commands() -> None:
    named = {command_of(piece) for piece in code(prose_of(COMMANDS))}
    assert set(commands()) <= named


def test_every_call_is_a_command(prose: str) -> None:
    bare = ("edgepack", "edgepack --help")
    unknown = [piece for piece in code(prose) if command_of(piece) == "" and piece not in bare]
    assert unknown == []


def test_options_of_a_call_are_options_of_its_command(prose: str) -> None:
    wrong = [
        (piece, option)
        for piece in code(prose)
        if (command := command_of(piece))
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", piece)
        if option not in commands()[command]
    ]
    assert wrong == []


@pytest.mark.parametrize("name", [README, COMMANDS, SKILL])
def test_options_in_a_row_of_a_command_table_are_its_own(name: str) -> None:
    rows = [line for line in prose_of(name).splitlines() if line.startswith("| `edgepack ")]
    assert rows
    for row in rows:
        own = {command for piece in code(row) if (command := command_of(piece))}
        known = frozenset().union(*(commands()[name] for name in own))
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", row)) <= known, row


def test_the_option_table_of_build_is_complete() -> None:
    rows = [line.split("|")[1] for line in prose_of(OPTIONS).splitlines() if line.startswith("| `--")]
    listed = {option for row in rows for option in re.findall(r"--[a-z][a-z-]*", row)}
    everywhere = {"--help", "--json", "--markdown", "--csv", "--html", "--png", "--verbose"}
    assert listed - everywhere == commands()["build"] - everywhere


def test_every_option_that_is_named_exists(prose: str) -> None:
    known = frozenset().union(*commands().values())
    foreign = re.compile(r"^(make|pip|pytest|python|git|\.venv/bin/(?!edgepack))")
    pieces = [piece for piece in code(prose) if not foreign.match(piece)]
    named = {option for piece in pieces for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", piece)}
    assert named <= known


def test_exit_codes_are_those_of_the_errors() -> None:
    paragraph = next(part for part in prose_of(README).split("\n\n") if part.startswith("Exit codes"))
    listed = {
        int(number) for number in re.findall(r"(?:(?<=; )|(?<=: )|(?<=with ))\d+\b", paragraph.replace("\n", " "))
    }
    kinds = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.EdgepackError)
    ]
    assert listed == {0, options.INTERRUPTED, options.READER_LEFT, *(kind.exit_code for kind in kinds)}


def test_what_to_do_is_said_for_every_error() -> None:
    rows = [line.split("|")[1:3] for line in prose_of(SKILL).splitlines() if re.match(r"\| \d+ \|", line)]
    listed = {(kind.strip(), int(code)) for code, kinds in rows for kind in kinds.split(",")}
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    raised = {(kind.__name__, kind.exit_code) for kind in kinds - {errors.EdgepackError}}
    assert listed == {
        *raised,
        ("–", 0),
        ("InternalError", 1),
        ("Interrupted", options.INTERRUPTED),
        ("–", options.READER_LEFT),
    }


@pytest.mark.parametrize(
    "call",
    [
        "doctor",
        "targets show rpi4",
        f"targets check {TOP / 'targets.yaml'}",
        "emulator costs --target rpi4",
        "init --model model.onnx --target rpi4 --data samples.npz --max-drop 0.5",
    ],
)
def test_keys_that_are_listed_are_in_the_document(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("model.onnx", "samples.npz"):
        (tmp_path / name).touch()
    command = command_of(f"edgepack {call}")
    rows = [
        line.split("|")[1:3] for line in prose_of(SKILL).splitlines() if line.startswith(f"| `edgepack {command}` |")
    ]
    done = CliRunner().invoke(app, [*call.split(), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    keys = document if isinstance(document, dict) else document[0]
    before_others = rows[-1][1].partition("; with")[0]
    assert set(re.findall(r"`(\w+)`", before_others)) <= set(keys)


def test_the_make_targets_of_the_readme_are_named() -> None:
    assert {"demo", "test"} <= make_targets(prose_of(README))


def test_every_make_target_exists(prose: str) -> None:
    makefile = (TOP / "Makefile").read_text()
    assert make_targets(prose) <= set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))


def make_targets(text: str) -> set[str]:
    return {word for piece in code(text) for word in re.findall(r"^make ([a-z][\w-]*)", piece)}


@pytest.mark.parametrize("name", [*DOCUMENTS, "CHANGELOG.md"])
def test_no_path_of_one_machine(name: str) -> None:
    assert MACHINE_PATH.findall((TOP / name).read_text()) == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_index_is_said_to_have_it(name: str) -> None:
    assert re.findall(r"pip install '?edgepack", (TOP / name).read_text()) == [], "install from a checkout"


@pytest.mark.parametrize("name", BLOCKS)
def test_no_path_of_one_machine_in_stored_figures(name: str) -> None:
    assert MACHINE_PATH.findall((RESULTS / f"{name}.json").read_text()) == []


@pytest.mark.parametrize("sample", ["see /tmp/x", "`/home/me/model.onnx`", "(/usr/bin/python)", "C:\\models"])
def test_a_path_of_one_machine_is_seen(sample: str) -> None:
    assert MACHINE_PATH.search(sample)


@pytest.mark.parametrize("sample", ["and/or", "bench/models/tmp", "https://x.org/home/a", "~/tmp", "dist/usr"])
def test_other_slashes_are_no_paths_of_one_machine(sample: str) -> None:
    assert not MACHINE_PATH.search(sample)


@pytest.mark.parametrize("name", BLOCKS)
def test_block_says_what_was_measured(bench_blocks: ModuleType, name: str) -> None:
    stored = json.loads((RESULTS / f"{name}.json").read_text())
    assert stored["name"] == name
    text = "".join((TOP / page).read_text() for page in PAGES)
    assert bench_blocks.read_block(text, name) == bench_blocks.render(stored), "edit nothing here: make figures"


@pytest.mark.parametrize("name", BLOCKS)
def test_figures_are_from_the_full_protocol(name: str) -> None:
    assert not json.loads((RESULTS / f"{name}.json").read_text())["figures"].get("quick")


def test_every_block_has_its_figures_and_the_other_way_round(bench_blocks: ModuleType) -> None:
    named = [name for page in PAGES for name in bench_blocks.block_names((TOP / page).read_text())]
    assert sorted(named) == sorted(BLOCKS)
    assert sorted(path.stem for path in RESULTS.glob("*.json")) == sorted(BLOCKS)
    assert set(bench_blocks.RENDERERS) == set(BLOCKS)


def test_an_edited_figure_is_noticed(bench_blocks: ModuleType) -> None:
    text = (TOP / "bench" / "RESULTS.md").read_text()
    stored = json.loads((RESULTS / "layer.json").read_text())
    stored["figures"]["rows"][0]["size_bytes"] *= 2
    assert bench_blocks.read_block(text, "layer") != bench_blocks.render(stored)


def test_replacing_a_block_leaves_the_rest_alone(bench_blocks: ModuleType) -> None:
    text = (TOP / README).read_text()
    other = bench_blocks.replace_block(text, "mnist", "new \\1 body\n")
    assert bench_blocks.read_block(other, "mnist") == "new \\1 body\n"
    assert bench_blocks.replace_block(other, "mnist", bench_blocks.read_block(text, "mnist")) == text
    with pytest.raises(ValueError, match="0 blocks"):
        bench_blocks.replace_block(text, "absent", "")


def test_the_demo_of_the_results_is_the_demo_of_make() -> None:
    stored = json.loads((RESULTS / "demo.json").read_text())
    makefile = (TOP / "Makefile").read_text()
    model = re.search(r"^DEMO := (.*)$", makefile, re.MULTILINE)
    assert model
    recipe = makefile.partition("\ndemo:")[2].partition("\n\n")[0].replace("$(DEMO)", model[1]).replace("$(BIN)/", "")
    for shown in stored["figures"]["shown"]:
        assert f"\t{shown['command']}\n" in recipe + "\n"
