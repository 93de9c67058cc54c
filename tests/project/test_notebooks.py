"""The notebooks run and reproduce their committed outputs from the records and the code."""

import sys

import nbformat
import pytest

from lora.files import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))

from execute import execute

pytestmark = pytest.mark.alone

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def shown(notebook: nbformat.NotebookNode) -> list[str]:
    """The texts of all outputs. Pictures are compared by kind, since another matplotlib draws other bytes."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            found.append(data.get("text/markdown") or data.get("text/plain") or output.get("text", ""))
    return ["picture" if "IPython.core.display.Image" in text else text for text in found]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_committed(path):
    committed = nbformat.read(path, as_version=4)
    assert shown(committed)
    assert shown(execute(path)) == shown(committed)
