"""The command line: `fedjax-edge run`, also as `python -m fedjax_edge run`."""

import argparse
import sys
import time

import jax
import tyro

from fedjax_edge.cli.build import build
from fedjax_edge.cli.config import RunConfig
from fedjax_edge.cli.output import new_folder, read_config, save, summary
from fedjax_edge.core import choose_plan, use_cpu_cores
from fedjax_edge.simulation import run as run_rounds

USAGE = """usage: fedjax-edge run [--config FILE] [OPTIONS]

Simulates federated learning on edge devices.

  fedjax-edge run                  300 devices, non-IID MNIST, 8-bit uplinks, differential privacy
  fedjax-edge run --help           the options
  fedjax-edge run --config FILE    repeats a run from its config.json; further options change it
"""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; what is wrong with the options ends it with a message and a status that is not zero."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
    elif arguments[:1] != ["run"]:
        raise SystemExit(f"{USAGE}\nfedjax-edge: expected the command run, got {arguments[:1]}")
    else:
        try:
            run(parse(arguments[1:]))
        except (ValueError, ConnectionError) as error:
            raise SystemExit(f"fedjax-edge run: {error}") from error


def parse(arguments: list[str]) -> RunConfig:
    """Returns the options given on the command line, on top of those of `--config FILE`."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config")
    known, options = files.parse_known_args(arguments)
    default = RunConfig() if known.config is None else read_config(known.config)
    return tyro.cli(RunConfig, args=options, default=default, prog="fedjax-edge run")


def run(config: RunConfig) -> None:
    """Runs what the options say, shows its progress, and leaves its results in a new folder."""
    resolved = config.resolved()
    use_cpu_cores(resolved.devices)
    parts = build(resolved)
    folder = new_folder(resolved.out)
    plan = choose_plan(parts.params, parts.sampler.width, resolved.devices)
    print(f"{plan.explain(parts.sampler.width)}; results go to {folder}", flush=True)

    started = time.perf_counter()
    result = run_rounds(
        parts.algorithm,
        parts.params,
        parts.population,
        sampler=parts.sampler,
        rounds=resolved.rounds,
        key=jax.random.key(resolved.seed),
        evaluation=parts.evaluation,
        eval_every=resolved.eval_every,
        delta=resolved.delta if parts.algorithm.accountant else None,
        accounted_only=resolved.accounted_only,
        plan=plan,
    )
    seconds = time.perf_counter() - started
    save(folder, config, parts, plan, result)
    print(summary(result, parts, seconds))
