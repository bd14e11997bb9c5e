"""The command line: `fedjax-edge run` and `fedjax-edge sweep`, also as `python -m fedjax_edge ...`."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import tyro

from fedjax_edge.cli.build import build, build_data, build_setup
from fedjax_edge.cli.compiled import use_compilation_cache
from fedjax_edge.cli.config import RunConfig
from fedjax_edge.cli.grid import STATIC, parse_grid, parse_seeds
from fedjax_edge.cli.output import (
    open_folder,
    options_of,
    read_config,
    read_record,
    recorded,
    save,
    save_sweep,
    summary,
    sweep_summary,
    versions,
)
from fedjax_edge.core import RunStream, choose_plan, derive, use_cpu_cores
from fedjax_edge.simulation import Setup, checkpoints
from fedjax_edge.simulation import run as run_rounds
from fedjax_edge.simulation import sweep as run_sweep

USAGE = """usage: fedjax-edge run [--config FILE | --resume DIR] [OPTIONS]
       fedjax-edge sweep --grid OPTION=VALUE,VALUE [OPTION=...] [--seeds SEED,SEED] [--resume DIR] [OPTIONS]

Simulates federated learning on edge devices.

  fedjax-edge run                  300 devices, non-IID MNIST, 8-bit uplinks, differential privacy
  fedjax-edge run --help           the options
  fedjax-edge run --config FILE    repeats a run from its config.json; further options change it
  fedjax-edge run --resume DIR     goes on with a run that was stopped, or for more --rounds
  fedjax-edge sweep --grid client-learning-rate=0.05,0.1 bits=4,8 --seeds 0,1,2
                                   every combination with every seed; the other options are those of run
"""

SWEEP_HELP = """Train with every combination of options and with every seed.

--grid OPTION=VALUE,VALUE [OPTION=...] names the options to vary and their values, --seeds 0,1,2 the seeds of the runs;
the split of the data is that of --seed. --resume DIR goes on with a sweep that was stopped, with its grid and seeds
unless others are given. The other options are those of all runs."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; what is wrong with the options ends it with a message and a status that is not zero."""
    arguments = sys.argv[1:] if arguments is None else arguments
    commands = {"run": run, "sweep": sweep}
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
    elif not arguments or arguments[0] not in commands:
        raise SystemExit(f"{USAGE}\nfedjax-edge: expected the command run or sweep, got {arguments[:1]}")
    else:
        try:
            commands[arguments[0]](arguments[1:])
        except (ValueError, OSError) as error:
            raise SystemExit(f"fedjax-edge {arguments[0]}: {error}") from error


def parse(arguments: list[str], command: str = "run") -> tuple[RunConfig, argparse.Namespace]:
    """Returns the options, on top of those of `--config FILE` or of the run in `--resume DIR`, and what is not one."""
    others = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    others.add_argument("--config", type=Path)
    others.add_argument("--resume", type=Path)
    if command == "sweep":
        others.add_argument("--grid", nargs="+", action="extend")
        others.add_argument("--seeds")
    given, options = others.parse_known_args(arguments)
    if given.config is not None and given.resume is not None:
        raise ValueError(f"config={given.config}: what is resumed has options of its own, in {given.resume}")
    file = given.config if given.resume is None else given.resume / "config.json"
    default = RunConfig() if file is None else read_config(file)
    if given.resume is not None and (kind := "sweep" if "grid" in read_record(file) else "run") != command:
        raise ValueError(f"resume={given.resume} holds a {kind}: go on with it by fedjax-edge {kind} --resume")
    description = SWEEP_HELP if command == "sweep" else None
    config = tyro.cli(RunConfig, args=options, default=default, prog=f"fedjax-edge {command}", description=description)
    if given.resume is None:
        return config, given
    if config.out is not None:
        raise ValueError(f"out={config.out}: the results of what is resumed go to {given.resume}")
    begun = default.identity()
    for name, value in config.identity().items():
        if value != begun[name]:
            raise ValueError(f"{name}={value!r}: what {given.resume} holds was begun with {begun[name]!r}; start anew")
    return replace(config, out=given.resume), given


def run(arguments: list[str]) -> None:
    """Runs what the options say, shows its progress, and leaves its results in a folder."""
    config, given = parse(arguments)
    resolved = config.resolved()
    use_cpu_cores(resolved.devices)
    use_compilation_cache()
    parts = build(resolved)
    plan = choose_plan(parts.params, parts.sampler.width, resolved.devices)
    folder = open_folder(resolved.out, resume=given.resume is not None)
    print(f"{plan.explain(parts.sampler.width)}; results go to {folder}", flush=True)

    started = time.perf_counter()
    with recorded(folder, {"options": options_of(config), "versions": versions()}):
        result = run_rounds(
            parts.algorithm,
            parts.params,
            parts.population,
            sampler=parts.sampler,
            rounds=resolved.rounds,
            key=jax.random.key(resolved.seed),
            evaluation=parts.evaluation,
            eval_every=resolved.eval_every,
            delta=resolved.delta,
            accounted_only=resolved.accounted_only,
            plan=plan,
            checkpoints=checkpoints(
                folder / "checkpoints",
                every=resolved.checkpoint_every,
                resume=given.resume is not None,
                config=resolved.identity(),
            ),
        )
    seconds = time.perf_counter() - started
    save(folder, config, parts, plan, result)
    print(summary(result, parts, resolved.rounds, seconds))


def sweep(arguments: list[str]) -> None:
    """Runs every combination of a grid with every seed, and leaves a table and a picture in a folder."""
    config, given = parse(arguments, "sweep")
    before = {} if given.resume is None else read_record(given.resume / "config.json")
    grid = before.get("grid") if given.grid is None else parse_grid(given.grid)
    seeds = before.get("seeds", [0]) if given.seeds is None else parse_seeds(given.seeds)
    if not grid:
        raise ValueError("give a grid, such as --grid client-learning-rate=0.05,0.1")
    if "noise_multiplier" in grid and (config.target_epsilon is not None or "target_epsilon" in grid):
        raise ValueError("grid: a noise_multiplier means nothing beside a target_epsilon, which decides it")
    resolved = config.resolved()
    use_cpu_cores(resolved.devices)
    if resolved.devices is not None and (backend := jax.default_backend()) != "cpu":
        raise ValueError(f"devices={resolved.devices}: a sweep takes each {backend} it sees; hide some from it instead")
    use_compilation_cache()
    population, test = build_data(resolved, derive(jax.random.key(resolved.seed), RunStream.SPLIT))

    def make(**hyperparameters: Any) -> Setup:
        return build_setup(replace(config, **hyperparameters).resolved(), population.num_clients, test)

    default = build_setup(resolved, population.num_clients, test)
    folder = open_folder(resolved.out, resume=given.resume is not None)
    print(f"results go to {folder}", flush=True)
    started = time.perf_counter()
    with recorded(folder, {"options": options_of(config), "grid": grid, "seeds": seeds, "versions": versions()}):
        result = run_sweep(
            make,
            grid,
            default.params,
            population,
            sampler=default.sampler,
            rounds=resolved.rounds,
            seeds=seeds,
            evaluation=default.evaluation,
            eval_every=resolved.eval_every,
            delta=resolved.delta,
            accounted_only=resolved.accounted_only,
            static=STATIC,
            directory=folder / "trials",
            config={name: value for name, value in resolved.identity().items() if name not in grid},
        )
    save_sweep(folder, grid, result)
    print(sweep_summary(result, time.perf_counter() - started))
