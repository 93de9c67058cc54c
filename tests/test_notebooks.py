"""The notebooks run and reproduce their committed outputs from the records and the code."""

import base64
import sys

import nbformat
import pytest

from lora.files import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))

from execute import execute

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def shown(notebook: nbformat.NotebookNode) -> list[str]:
    """The texts of all outputs. Pictures are compared by kind, since another matplotlib draws other bytes."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            found.append(data.get("text/markdown") or data.get("text/plain") or output.get("text", ""))
    return ["picture" if "IPython.core.display.Image" in text else text for text in found]


def test_there_are_three():
    assert [path.name for path in NOTEBOOKS] == ["01_results.ipynb", "02_lora_by_hand.ipynb", "03_subspaces.ipynb"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_committed(path):
    committed = nbformat.read(path, as_version=4)
    assert shown(committed)
    assert shown(execute(path)) == shown(committed)


def pictures(notebook: nbformat.NotebookNode) -> list[bytes]:
    found = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    return [base64.b64decode(data["image/png"]) for data in found if "image/png" in data]


@pytest.mark.parametrize(
    ("name", "profile", "tables", "figures"),
    [
        ("03_subspaces", "long", ["Table 7: amplification by the update"], ["figure3", "figure4"]),
        (
            "01_results",
            "long",
            ["Table 2: methods by tasks", "Table 5: which projections to adapt", "Table 6: how large the rank must be"],
            ["parameters", "forest", "curves", "gaps", "targets", "ranks"],
        ),
    ],
)
def test_the_committed_outputs_show_the_reference_on_glue(name, profile, tables, figures):
    """A notebook of another profile would reproduce its outputs too."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    texts = shown(notebook)
    titles = [text.splitlines()[0] for text in texts if text.startswith("# ")]
    of_runs = [title for title in titles if not title.startswith("# Efficiency, ")]
    assert of_runs and all(title.endswith(f" (reference/{profile})") for title in of_runs)
    assert all(any(title.startswith(f"# {table}") for title in of_runs) for table in tables)
    assert not any("reference/mini" in text or "No adapters of" in text for text in texts)
    folder = ROOT / "results" / "reference" / profile / "figures"
    assert pictures(notebook) == [(folder / f"{figure}.png").read_bytes() for figure in figures]


def test_the_results_are_of_every_committed_run_on_glue():
    texts = shown(nbformat.read(ROOT / "notebooks" / "01_results.ipynb", as_version=4))
    runs = list((ROOT / "results" / "reference" / "long" / "runs").glob("*.json"))
    assert texts[0] == f"Profile `reference/long`: {len(runs)} runs."
    (table,) = [text for text in texts if text.startswith("# Table 2: methods by tasks")]
    (head,) = [line for line in table.splitlines() if line.startswith("| Method |")]
    assert head.endswith("| MRPC (acc.) | CoLA (Matthews) | STS-B (Pearson) | Avg. |")


def test_swapping_by_hand_holds_what_the_text_says():
    outputs = shown(nbformat.read(ROOT / "notebooks" / "02_lora_by_hand.ipynb", as_version=4))
    assert any("'the module is the sum': True" in text and "'with B = 0 it is W0 x': True" in text for text in outputs)
    assert any("W0 is the same': False" in text and "a kept copy it is': True" in text for text in outputs)
    assert any("'trainable_method': 73728" in text and "'2 L_LoRA d r': 73728" in text for text in outputs)


def test_notebooks_hold_no_functions():
    """Notebooks hold no logic: the code that they call has its own tests."""
    cells = [cell for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert len(cells) >= 14 and not any(line in cell.source for cell in cells for line in ("def ", "class ", "lambda"))
