"""`run`: many rounds of an algorithm, with evaluation, privacy accounting, checkpoints, progress and a history."""

import math
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from fedjax_edge.core import checks
from fedjax_edge.core.cohort import check_sampler
from fedjax_edge.core.hosts import agreed
from fedjax_edge.core.plan import Plan, check_plan, choose_plan
from fedjax_edge.core.protocols import FederatedAlgorithm, Population, PrivacyClaim, PyTree, Sampler
from fedjax_edge.data import HostedDataset
from fedjax_edge.simulation.checkpoint import Checkpoints, opened
from fedjax_edge.simulation.evaluation import NO_EVALUATION, Evaluation
from fedjax_edge.simulation.history import History
from fedjax_edge.simulation.hosted import start_hosted
from fedjax_edge.simulation.identity import describe_run
from fedjax_edge.simulation.interrupt import deferred_interrupt
from fedjax_edge.simulation.recipe import MakeAlgorithm, Setup, split_hyperparameters
from fedjax_edge.simulation.report import check_memories, claim_of, epsilons_of, to_history
from fedjax_edge.simulation.segment import Pace, Program, Variant, next_length, start_resident


class RunResult(NamedTuple):
    """What a run ends with."""

    params: PyTree
    state: PyTree
    history: History
    claim: PrivacyClaim | None  # for the rounds that were really run
    interrupted: bool  # whether Ctrl-C came, if only in the last segment


def run(
    algorithm: FederatedAlgorithm | MakeAlgorithm,
    params: PyTree | Callable[[jax.Array], PyTree],
    population: Population | HostedDataset,
    *,
    sampler: Sampler,
    rounds: int,
    key: jax.Array,
    hyperparameters: Mapping[str, Any] | None = None,
    static: Collection[str] = (),
    evaluation: Evaluation = NO_EVALUATION,
    eval_every: int = 1,
    delta: float | None = None,
    accounted_only: bool = False,
    plan: Plan | None = None,
    checkpoints: Checkpoints | None = None,
    progress: bool = True,
) -> RunResult:
    """Runs rounds of an algorithm and returns the model and the history.

    Rounds run in compiled segments of about half a second, sampling and evaluation inside; one compilation serves all
    of them, whatever their number. The first Ctrl-C ends the run after the present segment and keeps what was done.
    The same arguments give the same result to the bit.

    The columns of the history:

    ==================================  ===============================================================================
    `round`                             from 1
    `train_*`                           each client metric while training, over all examples of the clients that count
    `bits_up`, `bits_down`              sent by and to all clients that were present
    `clients`, `rejected`               how many were present, and of these dropped for a NaN or an infinity
    `test_*`                            in the rounds that are evaluated
    `epsilon`                           spent so far, likewise; infinite without a mechanism, NaN without `delta`
    `seconds`                           of a round, on average over its segment; the first with compilation
    ==================================  ===============================================================================

    Args:
      algorithm: such as `algorithms.fedavg(...)`; or, with `hyperparameters`, a function of these that returns one, or
        a `Setup` of one, and parameters, a sampler or an evaluation in the place of those below.
      params: where to start; a pytree of floats, or a function such as `model.init`, which is given a key of the run's.
      population: the clients' data, a `FederatedDataset`; or `data.on_host(...)` of one that is too large for that.
      sampler: who takes part in a round, such as `data.poisson(...)`.
      rounds: how many.
      key: the run's key, from which all randomness comes.
      hyperparameters: by name. Those that are floats are traced, so that what is compiled serves all their values.
      static: names of hyperparameters that are floats and cannot be traced, such as a dropout rate.
      evaluation: what to measure of the model, by `simulation.evaluation(...)`.
      eval_every: after how many rounds to evaluate; the last round always is.
      delta: the delta at which to state epsilon; it should be below 1 / number of clients.
      accounted_only: release nothing about the clients but what epsilon covers: training metrics, bits, counts
        of clients and seconds become NaN, and only the model and its evaluation on data of one's own are shown.
      plan: how the executor spreads clients; by default `choose_plan(...)`.
      checkpoints: where to save the run, and whether to resume it, by `simulation.checkpoints(...)`.
      progress: whether to show a progress bar.

    Raises:
      ValueError: for arguments out of range, a sampler of another population, or a checkpoint of another run.
      PrivacyError: if `delta` asks for a guarantee that cannot be given.
      TypeError: for a key that is none, parameters that are not floats, or a loss that is not one number per example.
    """
    check_plan(plan)
    checks.prng_key("key", key)
    hyperparameters, pace = dict(hyperparameters or {}), Pace.of(rounds, eval_every)
    recipe, traced = split_hyperparameters(algorithm, hyperparameters, static)
    default = Setup(None, params, sampler, evaluation)
    setup = recipe.concrete(hyperparameters, default, key)
    algorithm, params, sampler, evaluation = setup
    check_sampler(sampler, population.num_clients)
    claim = claim_of(algorithm, sampler, pace.rounds, delta)  # what cannot be claimed is refused before training
    check_memories(claim, algorithm, params, population)

    program = Program.of(recipe, setup, default, plan or choose_plan(params, sampler.width))
    start = start_hosted if isinstance(population, HostedDataset) else start_resident
    histories, done, length = [], 0, 1
    describe = partial(describe_run, setup, key, hyperparameters, pace.eval_every, delta, claim, accounted_only)
    with (
        start(params, population, evaluation.columns, Variant(key, traced), program, pace) as (state, advance),
        opened(checkpoints, state, population, describe) as store,
        deferred_interrupt() as interrupted,
    ):
        if (saved := store.latest(state)) is not None:
            state, histories, done = saved.state, [saved.history], saved.history.rounds
            if done > pace.rounds:
                raise ValueError(f"rounds must be at least the {done} that {checkpoints.directory} holds, got {rounds}")
        sent = sum(history["bits_up"].sum(dtype=np.float64) for history in histories)
        hidden = not progress or jax.process_index() > 0
        with tqdm(total=pace.rounds, initial=done, unit="round", disable=hidden) as bar:
            while done < pace.rounds and length:
                started = time.perf_counter()
                stop = min(done + length, pace.rounds, store.next_due(done))
                state, reports = advance(state, done, stop)
                seconds = (time.perf_counter() - started) / (stop - done)

                numbers = np.arange(done, stop) + 1
                epsilons = epsilons_of(algorithm, sampler, numbers, pace, delta)
                histories.append(to_history(numbers, reports, epsilons, seconds, accounted_only))
                accounted = (time.perf_counter() - started) / (stop - done)
                done, length = stop, agreed(0 if interrupted() else next_length(accounted))
                if not length or done in (pace.rounds, store.next_due(done - 1)):
                    store.save(state, History.joined(histories))
                bar.update(stop - bar.n)
                sent += histories[-1]["bits_up"].sum(dtype=np.float64)
                bar.set_postfix(_shown(histories[-1], sent))

    return RunResult(
        params=algorithm.params(state),
        state=state,
        history=History.joined(histories),
        claim=claim_of(algorithm, sampler, done, delta),
        interrupted=interrupted() or done < pace.rounds,
    )


def _shown(last: History, bits_sent: float) -> dict[str, str]:
    """Returns what the progress bar shows: the last values, and the megabytes sent so far."""
    columns = {"train": "train_loss", "loss": "test_loss", "accuracy": "test_accuracy", "epsilon": "epsilon"}
    shown = {label: last.last(name) for label, name in columns.items() if name in last}
    shown["MB up"] = bits_sent / 8e6
    return {label: f"{value:.4g}" for label, value in shown.items() if math.isfinite(value)}
