"""The notebooks of `bench/notebooks`, run from the first cell to the last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "bench" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TIMEOUT_S = 600
# ipykernel and jupyter_client of this version.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=TIMEOUT_S, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def said(notebook: nbformat.NotebookNode, kind: str) -> str:
    """All that cells left: what they printed ("stdout"), or shown values of a MIME type."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = [output.text for output in outputs if output.get("name") == kind]
    return "\n".join(printed + [output.data[kind] for output in outputs if kind in output.get("data", ())])


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["onnx_model", "read_pack", "torch_distillation"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_has_no_output(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_an_onnx_model(tmp_path: Path) -> None:
    notebook = executed(FOLDER / "onnx_model.ipynb", tmp_path)
    assert (tmp_path / "dist" / "digits.rpi4" / "model.onnx").is_file()
    tables = said(notebook, "text/html")
    assert tables.count("<table>") >= 3
    assert "256×64" in tables
    assert "warning: no data" not in tables


def test_a_torch_model_with_recovery(tmp_path: Path) -> None:
    notebook = executed(FOLDER / "torch_distillation.ipynb", tmp_path)
    plain, trained = (tmp_path / "dist" / name / "model.onnx" for name in ("plain", "trained"))
    assert plain.is_file()
    assert trained.is_file()
    assert "DistillationEntry(steps=" in said(notebook, "text/plain")


def test_reading_a_pack(tmp_path: Path) -> None:
    notebook = executed(FOLDER / "read_pack.ipynb", tmp_path)
    printed = said(notebook, "stdout")
    assert "baseline/int8.onnx" in printed
    assert "points, at most" in printed
    assert "passed" in printed
    assert "failed" not in printed
    assert "not measured yet" in said(notebook, "text/html")
