"""W6: 32 learning rates x 50 rounds of W3, in one sweep of ours, and the ways of doing it one after another.

`recompiled`: 32 runs of ours, each compiled anew; `warm`: 32 times one run of ours that is compiled already. The
hand-written loop takes the learning rate as an argument and so compiles once. Peers run a few of the rates, each from
its own beginning, and are charged for all 32. All but `warm` count compilation.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import task as tasks
from environments import PEERS, start
from measure import Row, as_json, check_losses, loss, reported, warm_rounds
from workloads import WORKLOADS

ABOUT = "32 learning rates x 50 rounds of W3; seconds of the whole"
RATES = [float(rate) for rate in np.geomspace(0.01, 0.3, 32)]
ROUNDS = 50
SHOWN = 2  # rates that a peer runs


def measured(rivals: list[str], data_dir: Path, venvs: Path, repeats: int) -> tuple[dict[str, Any], dict[str, Row]]:
    """Returns what there is to say of the sweep, and a row for each side, in seconds of all 32 runs."""
    names = ["ours", "warm", "recompiled", *(name for name in rivals if name != "matmul")]
    rows = {name: Row() for name in names}
    task = WORKLOADS["W3"].make(data_dir)
    with tempfile.TemporaryDirectory() as folder:
        tasks.save(task, Path(folder))
        for repeat in range(repeats):
            for name, row in rows.items():
                if row.problem is None and (repeat == 0 or name in ("ours", "warm")):
                    with reported(row), ExitStack() as stack:
                        _once(name, row, task, Path(folder), venvs, stack)
    check_losses(rows)
    return {
        "about": ABOUT,
        "rates_a_peer_runs": SHOWN,
        "sides": {name: as_json(row) for name, row in rows.items()},
    }, rows


def _once(name: str, row: Row, task: tasks.Task, folder: Path, venvs: Path, stack: ExitStack) -> None:
    """Measures one side in new processes, the first of its modes only."""
    side, *others = start("ours" if name == "warm" else name, venvs)
    for one in (side, *others):
        stack.callback(one.close)
    for one in others:
        one.close()
    params = folder / "params_of_one.npz"
    row.versions = side.ask(do="prepare", task=str(folder), mode=side.mode)["versions"]
    if name == "warm":
        warm_rounds(ROUNDS)(side, params)
        seconds = len(RATES) * ROUNDS * warm_rounds(ROUNDS)(side, params)
    else:
        rates = RATES[-SHOWN:] if name in PEERS else RATES  # all end with the same one
        answer = side.ask(do="sweep", rounds=ROUNDS, rates=rates, params=str(params))
        seconds = answer["seconds"] * len(RATES) / len(rates)
        trained = tasks.load_params(params)
        row.loss = float(trained["loss"]) if "loss" in trained else loss(task, trained)
    row.measured.append(seconds)
    row.seconds = float(np.median(row.measured))
    row.peak_bytes = side.peak_bytes()
