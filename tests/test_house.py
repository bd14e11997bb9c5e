"""The house: which parts may import which, read from the imports themselves; every public name is explained."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedjax_edge"
SOURCES = sorted(PACKAGE.rglob("*.py"))

BESIDE_ONE_ANOTHER = {"data", "models", "clients", "compression", "privacy", "aggregation", "attacks", "edge"}
MAY_IMPORT = {
    "core": set(),
    **{part: {"core"} for part in BESIDE_ONE_ANOTHER},
    "algorithms": {"core"} | BESIDE_ONE_ANOTHER,
    "simulation": {"core", "algorithms"} | BESIDE_ONE_ANOTHER,
    "plotting": {"core", "algorithms", "simulation"} | BESIDE_ONE_ANOTHER,
    "testing": {"core", "algorithms", "simulation"} | BESIDE_ONE_ANOTHER,
    "cli": {"core", "algorithms", "simulation", "plotting"} | BESIDE_ONE_ANOTHER,
}


def imported_parts(source):
    """The parts of the package that a source imports, also from within functions."""
    parts = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        parts |= {name.split(".")[1] for name in names if name.startswith("fedjax_edge.")}
    return parts


@pytest.mark.parametrize("path", [p for p in SOURCES if p.parent != PACKAGE], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    part = path.relative_to(PACKAGE).parts[0]
    allowed = MAY_IMPORT[part] | {part}
    assert imported_parts(path.read_text()) <= allowed


def test_the_imports_are_really_read():
    source = "def f():\n    from fedjax_edge import models\n    import fedjax_edge.data.mnist\n    from jax import core"
    assert imported_parts(source) == {"models", "data"}


def test_parts_that_are_not_named_here_do_not_exist():
    assert {p.relative_to(PACKAGE).parts[0] for p in SOURCES if p.parent != PACKAGE} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_public_names_are_explained_and_short(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert len(path.read_text().splitlines()) <= 450
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno <= 110, f"{node.name} is too long"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_the_code_is_linted_and_formatted():
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run([sys.executable, "-m", "ruff", *command, ROOT], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


def test_what_takes_long_to_import_waits_until_it_is_used():
    slow = ["dp_accounting", "jax_privacy", "matplotlib", "orbax.checkpoint", "pooch", "scipy.stats", "tyro"]
    code = f"import fedjax_edge.testing, sys; assert not set({slow}) & set(sys.modules), set({slow}) & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
