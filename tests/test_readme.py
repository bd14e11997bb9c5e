"""The README keeps its word: its Python runs, its commands exist, its names resolve, its numbers are those computed."""

import ast
import inspect
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

import fedjax_edge as fe
from fedjax_edge import plotting, testing
from fedjax_edge.cli.grid import parse_grid, parse_seeds
from fedjax_edge.cli.main import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

PARTS = {
    "fe.aggregation": fe.aggregation,
    "fe.algorithms": fe.algorithms,
    "fe.attacks": fe.attacks,
    "fe.clients": fe.clients,
    "fe.compression": fe.compression,
    "fe.data": fe.data,
    "fe.data.partition": fe.data.partition,
    "fe.models": fe.models,
    "fe.privacy": fe.privacy,
    "fedjax_edge.plotting": plotting,
    "fedjax_edge.testing": testing,
}
NOT_PARTITIONERS = {"deal", "apportion"}
CHECKS = """
assert result.history.last("test_accuracy") > 0.75
assert result.history["bits_up"].sum() < 0.26 * 32 * 7850 * result.history["clients"].sum()
assert 0 < result.claim.epsilon < 3.95
assert [[int(data.size(i)) for i in range(data.num_clients)] for data in (by_owner, by_client, by_rows)] == [
    [3, 2, 1], [1, 6], [2, 3]
]
assert len(swept.trials) == 8 and best.mean > 0.5 and len(best.values) == 2
assert resumed.history.rounds == 8
assert own_result.history["bits_up"].tolist() == [3 * 2 * 16] * 10
assert own_result.history["test_loss"][9] < own_result.history["test_loss"][4] < 1
print("all of README.md ran")
"""


def blocks(language):
    return [match for match in FENCE.finditer(README) if match[1] == language]


def section(title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE)[1]


def commands():
    """Every command of the README: the lines of its bash blocks, and what stands in its text."""
    lines = [line for match in blocks("bash") for line in match[2].splitlines()]
    inline = re.findall(r"`((?:fedjax-edge|python|pip) [^`]*)`", FENCE.sub("", README))
    return [part.strip() for line in lines + inline for part in line.split("&&")]


def resolve(name):
    first, *rest = name.split(".")
    value = {"fe": fe, "fedjax_edge": fe}[first]
    for attribute in rest:
        value = getattr(value, attribute)
    return value


def test_every_python_block_runs(tmp_path):
    lines = [""] * (README.count("\n") + 1)
    for match in blocks("python"):
        first = README[: match.start(2)].count("\n")
        code = match[2].splitlines()
        lines[first : first + len(code)] = code
    script = tmp_path / "README.py"  # with the README's own line numbers
    script.write_text("\n".join(lines) + CHECKS)
    result = subprocess.run(
        [sys.executable, "-W", "error", script], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("all of README.md ran\n")
    assert os.listdir(tmp_path) == ["README.py"]


def test_the_example_by_hand_is_short():
    example = blocks("python")[0][2]
    assert example in section("By hand")
    assert len([line for line in example.splitlines() if line]) <= 25


def test_the_two_commands_are_one_line_each_and_what_they_install_exists():
    install_and_run, install_and_test = (match[2] for match in blocks("bash")[:2])
    assert install_and_run == ("python -m venv .venv && .venv/bin/pip install . && .venv/bin/fedjax-edge run\n")
    assert install_and_test == (
        "python -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest\n"
    )
    (entry_point,) = metadata.entry_points(group="console_scripts", name="fedjax-edge")
    assert callable(entry_point.load())
    assert "test" in metadata.metadata("fedjax-edge").get_all("Provides-Extra")
    ci = (ROOT / ".ci" / "run").read_text()
    assert 'pip" install' in ci and "-e '.[test]'" in ci and "-m pytest" in ci


def test_the_entry_point_explains_itself():
    help_text = subprocess.run(
        [sys.executable, "-m", "fedjax_edge", "run", "--help"], capture_output=True, text=True, check=True
    ).stdout
    mentioned = set(re.findall(r"--[a-z][a-z-]+", README)) - {
        "--help",
        "--config",
        "--resume",
        "--grid",
        "--seeds",
        "--launch",
    }
    assert mentioned
    missing = {option for option in mentioned if not re.search(rf"{option}\b(?!-)", help_text)}
    assert not missing


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands_are_well_formed(command):
    program, *arguments = shlex.split(command)
    if program.endswith("fedjax-edge"):
        assert arguments[0] in ("run", "sweep")
        if "--help" not in arguments:
            config, given = parse(arguments[1:], arguments[0])
            config.resolved()
            assert arguments[0] == "run" or (parse_grid(given.grid) and parse_seeds(given.seeds))
    elif program.endswith("python") and arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file()
    else:
        assert program in ("python", ".venv/bin/python", ".venv/bin/pip")


def test_a_misspelt_option_would_be_noticed(capsys):
    with pytest.raises(SystemExit):
        parse(["--acounted-only"])


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:fe|fedjax_edge)(?:\.\w+)+)[`(]", README))))
def test_names_exist(name):
    assert callable(resolve(name)) or inspect.ismodule(resolve(name))


@pytest.mark.parametrize("prefix", PARTS)
def test_the_table_names_every_public_function(prefix):
    part = PARTS[prefix]
    functions = {
        f"{prefix}.{name}"
        for name in getattr(part, "__all__", vars(part))
        if not name.startswith("_")
        and name not in NOT_PARTITIONERS
        and name.islower()
        and callable(getattr(part, name))
        and inspect.unwrap(getattr(part, name)).__module__.startswith("fedjax_edge")
    }
    assert functions
    missing = {function for function in functions if f"`{function}`" not in section("Functions and their papers")}
    assert not missing


def test_files_that_are_named_exist():
    paths = re.findall(r"\]\(([^):]+)\)", README)
    paths += re.findall(r"`((?:fedjax_edge|notebooks|benchmarks|docs)/[\w./]+)`", README)
    paths += re.findall(r"^(\w+/) ", README, re.MULTILINE)
    assert {"docs/curves.png", "LICENSE", "fedjax_edge/core/round.py", "notebooks/", "benchmarks/"} <= set(paths)
    assert not [path for path in paths if not (ROOT / path).exists()]
    assert (ROOT / "docs" / "curves.png").stat().st_size < 150_000


def test_the_map_shows_every_part():
    shown = re.findall(r"^    (\w+)/", section("Where things are"), re.MULTILINE)
    parts = {path.parent.name for path in (ROOT / "fedjax_edge").glob("*/__init__.py")}
    assert set(shown) == parts
    for part, file in re.findall(r"^    (\w+)/ .*?(\w+\.py)", section("Where things are"), re.MULTILINE):
        assert (ROOT / "fedjax_edge" / part / file).is_file()


def test_where_a_round_happens():
    tree = ast.parse((ROOT / "fedjax_edge" / "core" / "round.py").read_text())
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert {"round_", "one_client", "federated"} <= names
    assert "algorithm.round(" in (ROOT / "fedjax_edge" / "simulation" / "segment.py").read_text()


@pytest.mark.parametrize(
    ("sampler", "delta", "relation"),
    [
        (fe.data.poisson(300, 0.5), 1e-3, "add-or-remove one client"),
        (fe.data.uniform(300, 150), 1e-3, "replace one client"),
        (fe.data.poisson(3000, 0.05), 1e-4, "add-or-remove one client"),
    ],
    ids=["main job", "fixed size", "crowd"],
)
def test_epsilons(sampler, delta, relation):
    claim = fe.privacy.gaussian_accountant(2.75)(sampler.sampling, rounds=40, delta=delta)
    assert claim.relation == relation
    text = f"{claim.epsilon:.1f}" if claim.epsilon > 10 else f"{claim.epsilon:.2f}"
    assert re.search(rf"\b{re.escape(text)}\b", section("Privacy"))


def test_epsilon_that_is_not_claimed():
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.5, dp_accounting.GaussianDpEvent(2.75)), 40)
    assert f"it would be {accountant.get_epsilon(1e-3):.2f};" in section("Privacy")


def test_the_main_job_is_as_described():
    config = parse([])[0].resolved()
    assert (config.clients, config.rounds, config.local_epochs, config.bits) == (300, 40, 2, 8)
    assert (config.partition, config.skew, config.cohort, config.sampling) == ("dirichlet", None, None, "poisson")
    assert (config.noise_multiplier, config.delta, config.model) == (2.75, 1e-3, "small-cnn")


def test_citation_names_this_version_and_licence():
    assert f"version = {{{fe.__version__}}}" in section("Citation and licence")
    assert metadata.metadata("fedjax-edge")["License-Expression"] == "Apache-2.0"
    assert "Apache License, version 2.0" in section("Citation and licence")
