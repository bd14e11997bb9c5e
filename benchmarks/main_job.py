"""What the command line's default job reaches and costs: accuracy, epsilon and seconds for several seeds.

    python benchmarks/main_job.py [--seeds 0 1 2] [--rounds N]

300 non-IID devices, half of them drawn at random each round, 8-bit uplinks and differential privacy: `fedjax-edge run`
without options, less the files it writes. The seconds are those of building the parts and of the run; the first seed's
contain the compilation that the others share as far as they can.
"""

import os
import statistics
import time
from dataclasses import dataclass
from typing import NamedTuple

import jax
import tyro

import fedjax_edge as fe
from fedjax_edge.cli.build import build
from fedjax_edge.cli.config import RunConfig


@dataclass(frozen=True)
class Options:
    """Runs the default job with several seeds."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """One run each."""
    rounds: int = RunConfig.rounds
    """Rounds of training."""


class Outcome(NamedTuple):
    """What one job ended with."""

    accuracy: float
    epsilon: float
    seconds: float


def job(config: RunConfig) -> Outcome:
    started = time.perf_counter()
    parts = build(config)
    result = fe.run(
        parts.algorithm,
        parts.params,
        parts.population,
        sampler=parts.sampler,
        rounds=config.rounds,
        key=jax.random.key(config.seed),
        evaluation=parts.evaluation,
        eval_every=config.eval_every,
        delta=config.delta,
        progress=False,
    )
    seconds = time.perf_counter() - started
    return Outcome(result.history.last("test_accuracy"), result.claim.epsilon, seconds)


def line(name: str, outcome: Outcome) -> str:
    return f"{name:<7} {outcome.accuracy:>9.2%} {outcome.epsilon:>9.3f} {outcome.seconds:>9.1f}"


def main(options: Options) -> None:
    fe.use_cpu_cores()
    print(f"{jax.device_count()} {jax.default_backend()} devices; load {os.getloadavg()[0]:.1f} at the start")
    print("seed     accuracy   epsilon   seconds")
    outcomes = []
    for seed in options.seeds:
        outcomes.append(job(RunConfig(seed=seed, rounds=options.rounds).resolved()))
        print(line(str(seed), outcomes[-1]), flush=True)
    print(line("median", Outcome(*map(statistics.median, zip(*outcomes, strict=True)))))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
