"""W8: what a local step costs as the cohort and the population grow; it should stay the same.

Rounds of 10 to 10,000 of 10,000 clients of W7's perceptron, 1, 2, 4 and 8 times 100 among them, with three steps a
client (six examples), with six (60 examples in batches of ten) and with the sixty of W1 (60 examples, one by one); the
first by hand as well. And rounds of 100 clients from populations of 1,000 to 1,000,000 clients of one example.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import task as tasks
from environments import start
from measure import Row, Settings, in_turns, reported, warm_rounds
from workloads import WORKLOADS, mnist_task

COHORTS = (10, 100, 200, 400, 800, 1_000, 10_000)
FEWER_COHORTS = (10, 100, 1_000, 10_000)
POPULATIONS = (1_000, 10_000, 100_000, 1_000_000)
STEPS = 30_000  # of one measurement


def measured(rivals: list[str], data_dir: Path, venvs: Path, repeats: int) -> dict[str, Any]:
    """Returns what a local step costs at each size of each series, and that as a ratio to the largest of them."""
    series = {
        "cohort": ("ours", {cohort: ([6] * 10_000, 2, cohort) for cohort in COHORTS}),
        "cohort, six steps": ("ours", {cohort: ([60] * 10_000, 10, cohort) for cohort in FEWER_COHORTS}),
        "cohort, sixty steps": ("ours", {cohort: ([60] * 10_000, 1, cohort) for cohort in FEWER_COHORTS}),
        "population": ("ours", {clients: ([1] * clients, 1, 100) for clients in POPULATIONS}),
    }
    if "handwritten" in rivals:
        by_hand = {cohort: ([6] * 10_000, 2, cohort) for cohort in FEWER_COHORTS}
        series["cohort, by hand"] = ("handwritten", by_hand)
    measured = {name: _series(*one, data_dir, venvs, repeats) for name, one in series.items()}
    return {"about": "seconds a local step as the cohort and the population grow", **measured}


def peak_over_that_of_w1(row: Row, data_dir: Path, venvs: Path) -> float | None:
    """Returns the peak memory of ours over what it takes for W1."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        tasks.save(WORKLOADS["W1"].make(data_dir), Path(folder))
        (side,) = start("ours", venvs)
        stack.callback(side.close)
        side.ask(do="prepare", task=folder, mode="")
        warm_rounds(2)(side, Path(folder) / "unused.npz")
        peak = side.peak_bytes()
    return row.peak_bytes / peak if row.peak_bytes and peak else None


def _series(who: str, sizes: dict[int, tuple], data_dir: Path, venvs: Path, repeats: int) -> dict[str, Any]:
    rows, sides, steps = {str(size): Row() for size in sizes}, {}, {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name, (client_sizes, batch_size, cohort) in zip(rows, sizes.values(), strict=True):
            with reported(rows[name]):
                task = mnist_task(data_dir, "perceptron", client_sizes, batch_size, cohort)
                tasks.save(task, Path(folder) / name)
                steps[name] = round(task.steps)
                side = start(who, venvs)[0]
                stack.callback(side.close)
                side.ask(do="prepare", task=str(Path(folder) / name), mode="")
                rows[name].first = warm_rounds(1)(side, Path(folder) / "unused.npz")
                sides[name] = side
        for repeat in range(repeats):
            for name in list(sides)[:: (-1) ** repeat]:
                measured = warm_rounds(max(1, STEPS // steps[name]))
                in_turns({name: sides[name]}, rows, Settings(1, 1, float("inf")), Path(folder), measured)
        for name, side in sides.items():
            rows[name].peak_bytes = side.peak_bytes()
    per_step = {name: np.divide(row.measured, steps[name]) for name, row in rows.items() if not row.problem}
    largest = per_step.get(list(rows)[-1], np.nan)
    return {
        "microseconds_a_step": {name: round(1e6 * float(np.median(turns)), 2) for name, turns in per_step.items()},
        "ratio_to_the_largest": {  # turn by turn: machines change their pace
            name: round(float(np.median(turns / largest)), 3) for name, turns in per_step.items()
        },
        "peak_bytes": {name: row.peak_bytes for name, row in rows.items()},
        "problems": {name: row.problem for name, row in rows.items() if row.problem},
    }
