"""Speed and memory beside a hand-written JAX loop and other simulators, all in one run and in turns.

    python benchmarks/run.py [--workloads W1 W3] [--against handwritten fedjax] [--out FILE.json] [--picture FILE.png]
    python benchmarks/run.py --install torch fedjax pfl-research flower blazefl fedlab

All sides start from the same parameters and data, each in a process of its own and the peers in virtual environments of
their own, which `--install` makes; one that is not there is reported as absent. The ratios are ours divided by theirs
(below 1: ours is faster), medians over the repeats. `matmul` is no simulator but the machine's own rate in large matrix
products: how long the round's arithmetic would take. Ends with status 1 if a side does not reach the others' loss.
"""

import os
import signal
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import environments
import growing
import measure
import report
import sweeping
import tyro
from plain_models import flops
from workloads import WORKLOADS

MNIST = Path(__file__).parents[2] / "shared" / "data" / "mnist"
RIVALS = ("handwritten", "matmul", *environments.PEERS)
ALL = ("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8")


@dataclass(frozen=True)
class Options:
    """Compares the package with hand-written JAX and with other simulators."""

    workloads: tuple[Literal[ALL], ...] = ALL
    """What to run."""
    against: tuple[Literal[RIVALS], ...] = RIVALS
    """Beside ours."""
    out: Path | None = None
    """A JSON file of the results; rewritten, whole, after each workload."""
    picture: Path | None = None
    """A PNG file of a bar chart."""
    rounds: int | None = None
    """Rounds of one measurement; by default a few seconds' worth."""
    repeats: int = 5
    """Measurements of each side."""
    patience: float = 120.0
    """Seconds after which a slow side takes no part in further repeats."""
    width: int | None = None
    """Clients that ours vmaps at once, in the place of the package's own choice."""
    data_dir: Path = MNIST
    """The folder of the four files of MNIST."""
    venvs: Path = environments.VENVS
    """Where the peers' virtual environments are, a folder each."""
    install: tuple[Literal[tuple(environments.PEERS)], ...] = ()
    """Makes the environments of these peers, and measures nothing."""


def main(options: Options) -> int:
    for name in options.install:
        environments.install(name, options.venvs)
    if options.install:
        return 0
    rivals = [name for name in options.against if environments.is_present(name, options.venvs)]
    absent = [name for name in options.against if name not in rivals]
    if absent:
        print(f"absent (no environment in the folder of --venvs): {', '.join(absent)}")
    results = {"machine": report.machine(), "versions": {}, "workloads": {}, "ratios": {}, "absent": absent}
    failed = False
    for name in options.workloads:
        entry, rows = measured(name, rivals, options)
        results["workloads"][name] = entry
        results["ratios"][name] = measure.ratios(rows) if rows else {}
        print(f"\n{name}: {entry['about']}")
        if rows:
            print(report.table(rows, results["ratios"][name]))
        for key in sorted(entry.keys() - {"about", "sides"}):
            print(f"  {key}: {entry[key]}")
        for side, row in rows.items():
            results["versions"].setdefault(side, row.versions)
            failed |= row.trains_differently or (side == "ours" and row.problem is not None)
        results["machine"]["load_at_the_end"] = os.getloadavg()
        if options.out is not None:
            report.write(results, options.out)
    if options.picture is not None:
        report.draw(results, options.picture)
    return int(failed)


def measured(name: str, rivals: list[str], options: Options) -> tuple[dict[str, Any], dict[str, measure.Row]]:
    """Runs a workload and returns what there is to say of it, with its rows."""
    if name == "W6":
        return sweeping.measured(rivals, options.data_dir, options.venvs, options.repeats)
    if name == "W8":
        return growing.measured(rivals, options.data_dir, options.venvs, options.repeats), {}
    workload = WORKLOADS[name]
    if name == "W7":  # 10,000 models of 0.8 MB each
        held = {peer for peer, about in environments.PEERS.items() if not about.sums_as_it_goes}
        rivals = [rival for rival in rivals if rival not in held]
    task = workload.make(options.data_dir)
    width = ("",) if options.width is None else (str(options.width),)
    sides = {"ours": partial(environments.start, "ours", options.venvs, width)}
    sides |= {rival: partial(environments.start, rival, options.venvs) for rival in rivals}
    if name == "W5":
        sides["padded"] = partial(environments.start, "handwritten", options.venvs, ("padded",))
    settings = measure.Settings(options.rounds or workload.rounds, options.repeats, options.patience, once=("padded",))
    rows = measure.compare(task, sides, settings)
    entry = {
        "about": workload.about,
        "rounds": settings.rounds,
        "steps_a_round": task.steps,
        "gflop_a_round": flops(task.model) * float(task.sizes.mean()) * task.cohort / 1e9,
        "sides": {side: measure.as_json(row) for side, row in rows.items()},
    }
    if (rate := rows.get("matmul")) is not None and rate.seconds:
        entry["machine_gflop_a_second"] = entry["gflop_a_round"] / rate.seconds
    if name == "W5":
        padded_steps = task.num_clients * -(-int(task.sizes.max()) // task.batch_size)
        entry["padded_steps_over_steps"] = padded_steps / task.steps
    if name == "W7":
        entry["peak_over_that_of_W1"] = growing.peak_over_that_of_w1(rows["ours"], options.data_dir, options.venvs)
    return entry, rows


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the workers on the way out
    raise SystemExit(main(tyro.cli(Options, description=__doc__)))
