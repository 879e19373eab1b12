from __future__ import annotations

from dataclasses import asdict

from typer.testing import CliRunner

from edgepack.backends.schemes import CONVOLVED
from edgepack.cli import app
from edgepack.cost.emulated import table_for
from edgepack.report.targets import costs_report
from edgepack.targets.file import get_target
from tests.report.shown import text


def _text(target: str) -> str:
    table = table_for(get_target(target))
    assert table is not None
    return text(costs_report(target, asdict(table)), 150)


def test_every_scheme_has_a_row_and_states_its_error() -> None:
    shown = _text("rpi4")
    lines = [line for line in shown.splitlines() if line.strip().startswith(("onnx ", "tflite "))]
    rows = {tuple(line.split()[:2]): line for line in reversed(lines)}  # those of convolutions stand below
    table = table_for(get_target("rpi4"))
    assert table is not None
    assert set(rows) == {(fmt, scheme) for fmt, schemes in table.costs.items() for scheme in schemes}
    assert all(line.count(" to ") == 4 for line in rows.values())  # instructions, between batches, L1d, L2
    assert "counted for rpi4: cortex-a72" in shown
    assert "grid: sides 16, 128, 512, 2048, ranks 8, 32, 128, 512 and dense, batches 1, 4, 16" in shown
    assert "convolutions: channels 8, 16, 64, 256, kernels 1, 3, 5, sides of images 7, 14" in shown
    convolved = lines[len(rows) :]
    assert {tuple(line.split()[:2]) for line in convolved} == {
        (fmt, scheme.name) for fmt, schemes in CONVOLVED.items() for scheme in schemes
    }
    assert all(line.count(" to ") >= 3 for line in convolved)


def test_a_cpu_that_qemu_lacks_is_said_to_be_another() -> None:
    assert "QEMU has no cortex-a55: its instructions are run as cortex-a76's" in _text("rk3566")


def test_boards_with_the_same_cpu_share_a_table() -> None:
    assert table_for(get_target("rpi3b+")) == table_for(get_target("rpi-zero2w"))


def test_a_cpu_without_counts_is_told_how_to_count_it() -> None:
    done = CliRunner().invoke(app, ["emulator", "costs", "--target", "jetson-nano"])
    assert done.exit_code == 2
    assert "edgepack emulator costs --target jetson-nano --fill" in done.output
