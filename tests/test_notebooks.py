"""The notebooks run from the first cell to the last, offline, in a fresh kernel, and are stored as they ran.

After a change, `jupyter execute --inplace notebooks/*.ipynb` stores their outputs again.
"""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

PREAMBLE = """
import socket, warnings
warnings.simplefilter("error")

def refuse(*arguments, **options):
    raise ConnectionError("the notebooks need no network")

socket.getaddrinfo = socket.create_connection = refuse
"""

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebooks_are_found():
    assert [path.stem for path in NOTEBOOKS] == [
        "01_introduction",
        "02_fedavg_by_hand",
        "03_communication",
        "04_privacy",
        "05_prove_your_own_component",
    ]


# What the kernel's manager warns of is not the notebooks' business; within the kernel, warnings are errors.
@pytest.mark.filterwarnings("default")
@each_notebook
def test_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(PREAMBLE))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("default")
def test_a_claim_that_fails_a_warning_and_the_network_end_a_run():
    for cell, error in {
        "assert 1 == 2": "AssertionError",
        "warnings.warn('old')": "UserWarning",
        "socket.create_connection(('example.org', 80))": "ConnectionError",
    }.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PREAMBLE + cell)])
        with pytest.raises(Exception, match=error):
            NotebookClient(notebook, timeout=60, kernel_name="python3").execute()


@each_notebook
def test_stored_outputs_are_those_of_one_clean_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"


@each_notebook
def test_notebook_is_small_and_names_no_machine(path):
    text = path.read_text()
    assert len(text) < 200_000
    assert not re.search(r"/(?:home|tmp|root|work|Users|usr)/", re.sub(r'"image/png": "[^"]*"', "", text))
    assert nbformat.read(path, as_version=4).metadata.kernelspec.name == "python3"


@each_notebook
def test_every_code_cell_that_shows_numbers_asserts_them(path):
    """What is printed as a finding is claimed: most cells that print also assert."""
    printing = [cell.source for cell in code_cells(nbformat.read(path, as_version=4)) if "print(" in cell.source]
    asserting = [source for source in printing if "assert " in source]
    assert len(asserting) >= 0.8 * len(printing)
