"""The command line as a user runs it, in a process of its own."""

import csv
import json
import signal
import subprocess
import sys

import pytest

from fedjax_edge.cli.main import main
from fedjax_edge.cli.output import open_folder, recorded, write_record

SHORT = ["--rounds", "2", "--clients", "60", "--cohort", "10", "--local-epochs", "1", "--model", "logistic"]
COLUMNS = {
    "round",
    "train_loss",
    "test_loss",
    "test_accuracy",
    "epsilon",
    "bits_up",
    "bits_down",
    "clients",
    "rejected",
}


def fedjax_edge(*arguments, cwd=None):
    command = [sys.executable, "-W", "error", "-m", "fedjax_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=cwd)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "first"
    return folder, fedjax_edge("run", *SHORT, "--out", folder)


def rows(folder, name="history.csv"):
    table = list(csv.DictReader((folder / name).read_text().splitlines()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in table]


def test_a_run_leaves_its_history_configuration_and_picture(first_run):
    folder, result = first_run
    assert result.returncode == 0, result.stderr
    assert {path.name for path in folder.iterdir()} == {"history.csv", "config.json", "curves.png", "checkpoints"}
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    table = rows(folder)
    assert set(table[0]) >= COLUMNS
    assert [row["round"] for row in table] == ["1", "2"]
    assert json.loads((folder / "config.json").read_text())["options"]["clients"] == 60


def test_it_ends_by_saying_what_matters(first_run):
    _, result = first_run
    for part in ("test accuracy", "epsilon", "at delta 0.001", "probability 0.166667", "sent up", "uncompressed", " s"):
        assert part in result.stdout
    assert "accuracy=" in result.stderr


def test_a_configuration_repeats_its_run_to_the_bit(first_run, tmp_path):
    folder, _ = first_run
    result = fedjax_edge("run", "--config", folder / "config.json", "--out", tmp_path / "again")
    assert result.returncode == 0, result.stderr
    assert rows(tmp_path / "again") == rows(folder)


def test_results_are_never_overwritten(first_run):
    folder, _ = first_run
    before = (folder / "history.csv").read_bytes()
    result = fedjax_edge("run", *SHORT, "--out", folder)
    assert result.returncode != 0
    assert "is not empty; choose a new folder" in result.stderr
    assert (folder / "history.csv").read_bytes() == before


def test_a_run_can_release_only_what_is_accounted(tmp_path):
    result = fedjax_edge("run", *SHORT, "--model", "small-cnn", "--accounted-only", "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "withheld" in result.stdout
    row = rows(tmp_path / "run")[-1]
    assert row["train_loss"] == row["clients"] == row["rejected"] == row["bits_up"] == ""
    assert float(row["test_accuracy"]) >= 0


def test_ctrl_c_keeps_what_was_done(tmp_path):
    command = [sys.executable, "-m", "fedjax_edge", "run", *SHORT, "--rounds", "20000", "--eval-every", "20000"]
    with subprocess.Popen(
        [*command, "--out", tmp_path / "run"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for shown in process.stderr:
            if "train=" in shown:
                break
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert "interrupted after" in printed
    assert "not evaluated yet" in printed
    assert f"interrupted after {len(rows(tmp_path / 'run'))} rounds" in printed


def test_a_run_that_was_stopped_resumes_to_the_result_of_one_that_was_not(first_run, tmp_path):
    whole, _ = first_run
    shorter = fedjax_edge("run", *SHORT, "--rounds", "1", "--out", tmp_path / "run")
    assert shorter.returncode == 0, shorter.stderr
    options = (tmp_path / "run" / "config.json").read_bytes()
    elsewhere = fedjax_edge("run", "--resume", tmp_path / "run", "--out", tmp_path / "elsewhere")
    assert "the results of what is resumed go to" in elsewhere.stderr and not (tmp_path / "elsewhere").exists()
    other = fedjax_edge("run", "--resume", tmp_path / "run", "--rounds", "2", "--client-learning-rate", "0.2")
    assert "client_learning_rate=0.2: what" in other.stderr and "was begun with 0.1; start anew" in other.stderr
    assert (tmp_path / "run" / "config.json").read_bytes() == options
    resumed = fedjax_edge("run", "--resume", tmp_path / "run", "--rounds", "2")
    assert resumed.returncode == 0, resumed.stderr
    assert rows(tmp_path / "run")[-1] == rows(whole)[-1]
    assert len(rows(tmp_path / "run")) == 2


def test_a_sweep_leaves_a_table_and_a_picture_and_is_not_run_twice(tmp_path):
    grid = ["--grid", "client-learning-rate=0.05,0.1", "bits=4,8", "--seeds", "0,1"]
    first = fedjax_edge("sweep", *SHORT, *grid, "--out", tmp_path / "sweep")
    assert first.returncode == 0, first.stderr
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {
        "sweep.csv", "heat_map.png", "config.json", "trials"
    }  # fmt: skip
    table = rows(tmp_path / "sweep", "sweep.csv")
    assert [(row["client_learning_rate"], row["bits"], row["seed"], row["round"]) for row in table] == [
        (rate, bits, seed, number) for rate in ("0.05", "0.1") for bits in "48" for seed in "01" for number in "12"
    ]
    assert "best: client_learning_rate" in first.stdout and "over 2 seeds" in first.stdout
    again = fedjax_edge("sweep", *grid, "--resume", tmp_path / "sweep")
    assert again.returncode == 0, again.stderr
    assert rows(tmp_path / "sweep", "sweep.csv") == table
    assert first.stdout.splitlines()[1:-1] == again.stdout.splitlines()[1:-1]
    assert float(again.stdout.split()[-2]) < float(first.stdout.split()[-2])
    resumed = fedjax_edge("sweep", "--resume", tmp_path / "sweep")
    assert resumed.returncode == 0, resumed.stderr
    assert rows(tmp_path / "sweep", "sweep.csv") == table and "over 2 seeds" in resumed.stdout
    refused = fedjax_edge("sweep", "--batch-size", "50", "--resume", tmp_path / "sweep")
    assert refused.returncode and "batch_size=50: what" in refused.stderr and "start anew" in refused.stderr
    assert rows(tmp_path / "sweep", "sweep.csv") == table
    one = ["--grid", "client-learning-rate=0.05,0.1", "--grid", "bits=8", "--seeds", "0"]
    fewer = fedjax_edge("sweep", *one, "--resume", tmp_path / "sweep")
    assert fewer.returncode == 0, fewer.stderr
    assert not (tmp_path / "sweep" / "heat_map.png").exists()  # there is none of one side
    assert rows(tmp_path / "sweep", "sweep.csv") == [row for row in table if row["bits"] == "8" and row["seed"] == "0"]
    other = fedjax_edge("sweep", *SHORT, *one[:2], "--accounted-only", "--out", tmp_path / "other")
    assert other.returncode == 0, other.stderr
    assert {row["train_loss"] for row in rows(tmp_path / "other", "sweep.csv")} == {""}


def test_without_privacy_it_says_so_and_the_default_folder_is_new(tmp_path):
    plain = ["--noise-multiplier", "None", "--clip-norm", "None", "--bits", "None"]
    result = fedjax_edge("run", *SHORT, *plain, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "no differential privacy: epsilon is infinite" in result.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert {row["epsilon"] for row in rows(folder)} == {"inf"}


def test_help_reads_well():
    result = fedjax_edge("run", "--help")
    assert result.returncode == 0
    for option in (
        "--dataset",
        "--partition",
        "--cohort",
        "--bits",
        "--clip-norm",
        "--target-epsilon",
        "--seed",
        "--config",
    ):
        assert option in result.stdout
    assert "fedjax-edge run --config FILE" in fedjax_edge("--help").stdout


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda format: "now")
    assert [open_folder(None).name for _ in range(3)] == ["now", "now_2", "now_3"]


@pytest.mark.parametrize(("command", "record"), [("run", {"grid": {"bits": [4]}}), ("sweep", {})])
def test_each_command_resumes_its_own(command, record, tmp_path):
    write_record(tmp_path, {"options": {"rounds": 1}, **record})
    kind = "sweep" if record else "run"
    with pytest.raises(SystemExit, match=f"holds a {kind}: go on with it by fedjax-edge {kind} --resume"):
        main([command, "--resume", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_sweep_does_not_choose_among_accelerators(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    with pytest.raises(SystemExit, match="devices=8: a sweep takes each gpu it sees; hide some from it instead"):
        main(["sweep", "--devices", "8", "--grid", "bits=4,8", "--out", str(tmp_path / "out")])
    assert not list(tmp_path.iterdir())


def test_what_is_refused_leaves_the_record_as_it_was(tmp_path):
    def record(folder=tmp_path):
        return json.loads((folder / "config.json").read_text())

    write_record(tmp_path, {"options": {"rounds": 1}, "claim": None})
    with recorded(tmp_path, {"options": {"rounds": 2}}):
        assert record() == {"options": {"rounds": 2}, "claim": None}  # a run that is killed here resumes to two rounds
    with pytest.raises(ValueError, match="another run"), recorded(tmp_path, {"options": {"rounds": 3}}):
        raise ValueError("the checkpoint is of another run")
    assert record()["options"] == {"rounds": 2}
    new = open_folder(tmp_path / "new")
    with pytest.raises(ValueError, match="delta"), recorded(new, {"options": {}}):
        raise ValueError("delta")
    assert not new.exists()


MISTAKES = [
    (["run", "--round", "3"], "--round"),
    (["run", "--rounds", "many"], "rounds"),
    (["run", "--devices", "0"], "count must be an integer of at least 1, got 0"),
    (["run", "--bits", "0"], "bits must be an integer from 1 to 16, got 0"),
    (["run", "--clip-norm", "-1"], "clip_norm must be a finite number above 0, got -1.0"),
    (["run", "--config", "nowhere.json"], "nowhere.json is not the config.json of a run"),
    (["run", "--resume", "here", "--config", "x"], "config=x: what is resumed has options of its own, in here"),
    (["run", "--out", "/proc/here"], "/proc/here"),
    (["sweep", "--resume", "nowhere"], "config.json is not the config.json of a run"),
    (
        ["sweep", "--target-epsilon", "3", "--grid", "noise-multiplier=1,2"],
        "noise_multiplier means nothing",
    ),
    (["run", "--resume", "nowhere"], "config.json is not the config.json of a run"),
    (["run", "--checkpoint-every", "0"], "checkpoint_every must be an integer of at least 1, got 0"),
    (["run", "--rounds", "0"], "rounds must be an integer of at least 1, got 0"),
    (["run", "--delta", "2", "--out", "out"], "delta must be a number above 0 and below 1, got 2.0"),
    (["sweep"], "give a grid, such as --grid client-learning-rate=0.05,0.1"),
    (["sweep", "--grid", "clients=3,4"], "must be OPTION=VALUE,VALUE with an option of"),
    (["sweep", "--grid", "bits=4,few"], "bits must be of type int, got 'few'"),
    (["sweep", "--grid", "bits=4", "bits=8"], "bits comes twice"),
    (["sweep", "--grid", "bits=4,4", "--out", "out"], "a configuration comes twice"),
    (["sweep", "--grid", "model=cnn,transformer"], "model must be one of"),
    (["sweep", "--grid", "bits=4", "--seeds", "x"], "seeds must be integers with commas between, got 'x'"),
    (["train"], "expected the command run"),
    ([], "expected the command run"),
]

MAKE_THEM = """
import contextlib, io, json, os, sys, tempfile
from fedjax_edge.cli.main import main

found = {}
for arguments in json.load(sys.stdin):
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        os.chdir(folder)
        try:
            main(arguments)
        except SystemExit as end:
            assert end.code
            said.write(str(end.code))
        found[json.dumps(arguments)] = said.getvalue(), os.listdir()
        os.chdir("/")
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def of_each_mistake():
    """What the command line says to each, and what it leaves in the folder; from one process, as it starts slowly."""
    command = [sys.executable, "-W", "error", "-c", MAKE_THEM]
    mistakes = json.dumps([arguments for arguments, _ in MISTAKES])
    return json.loads(subprocess.run(command, input=mistakes, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_named_and_leave_nothing_behind(arguments, message, of_each_mistake):
    said, left = of_each_mistake[json.dumps(arguments)]
    assert message in said
    assert not left


def test_a_mistake_ends_the_process_with_a_message(tmp_path):
    result = fedjax_edge("run", "--delta", "2", "--out", "out", cwd=tmp_path)
    assert result.returncode != 0
    assert "fedjax-edge run: delta must be a number above 0 and below 1, got 2.0" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())
