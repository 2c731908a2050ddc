"""The notebook of the documentation runs as it is, and shows what it promises."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from workplace import PROJECT, Workplace

NOTEBOOKS = sorted((PROJECT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_to_its_end(file: Path, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in workplace.environment().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(file, as_version=4)  # type: ignore[no-untyped-call]  # it has no types
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not kept: they would be of another day"
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(workplace.root)}}).execute()
    shown = [
        output.get("data", {}).get("text/html", "") for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    assert any("accuracy</td>" in html for html in shown), "the scores, as a table"
    assert any(html.count("data:image/svg+xml") >= 3 for html in shown), "the figures, inline"
