"""`run`: many rounds of an algorithm, compiled, with evaluation, privacy accounting, a progress bar and a history."""

import math
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from fedjax_edge.core import checks
from fedjax_edge.core.executor import on_all_devices
from fedjax_edge.core.keys import RunStream, derive
from fedjax_edge.core.plan import Plan, choose_plan
from fedjax_edge.core.protocols import (
    FederatedAlgorithm,
    LossFn,
    Mean,
    Population,
    PrivacyClaim,
    PyTree,
    RoundRecord,
    Sampler,
)
from fedjax_edge.simulation.evaluation import NO_EVALUATION, Evaluation, measure
from fedjax_edge.simulation.history import History
from fedjax_edge.simulation.interrupt import deferred_interrupt

LONGEST_SEGMENT = 64  # rounds whose records one call can hold
SECONDS_PER_SEGMENT = 0.5  # between two looks at the progress bar and at Ctrl-C


class RunResult(NamedTuple):
    """What a run ends with."""

    params: PyTree
    state: PyTree
    history: History
    claim: PrivacyClaim | None  # for the rounds that were really run
    interrupted: bool


class Progress(NamedTuple):
    """What one round leads to, inside a compiled segment."""

    record: RoundRecord
    evaluated: dict[str, Mean]


def run(
    algorithm: FederatedAlgorithm,
    params: PyTree,
    population: Population,
    *,
    sampler: Sampler,
    rounds: int,
    key: jax.Array,
    evaluation: Evaluation = NO_EVALUATION,
    eval_every: int = 1,
    delta: float | None = None,
    accounted_only: bool = False,
    plan: Plan | None = None,
    progress: bool = True,
) -> RunResult:
    """Runs rounds of an algorithm and returns the model and the history.

    Rounds run in compiled segments of about half a second, sampling and evaluation inside; one compilation serves all
    of them, whatever their number. The first Ctrl-C ends the run after the present segment and keeps what was done.
    The same arguments give the same result to the bit.

    The history has the columns `round` (from 1), `train_*` (the mean of each client metric over the clients that
    count, while they train), `test_*` and `epsilon` (spent so far; infinite without a privacy mechanism, NaN
    without `delta`) in the rounds that are evaluated, `bits_up`, `bits_down`, `clients` (present), `rejected` (dropped for a NaN or an
    infinity) and `seconds` (the first with compilation).

    Args:
      algorithm: such as `algorithms.fedavg(...)`.
      params: where to start; a pytree of floats.
      population: the clients' data, a `FederatedDataset`.
      sampler: who takes part in a round, such as `data.poisson(...)`.
      rounds: how many.
      key: the run's key, from which all randomness comes.
      evaluation: what to measure of the model, by `simulation.evaluation(...)`.
      eval_every: after how many rounds to evaluate; the last round always is.
      delta: the delta at which to state epsilon; it should be below 1 / number of clients.
      accounted_only: release nothing about the clients but what epsilon covers: training metrics, bits and counts of
        clients become NaN, and only the model and its evaluation on data of one's own are shown.
      plan: how the executor spreads clients; by default `choose_plan(...)`.
      progress: whether to show a progress bar.

    Raises:
      ValueError: for arguments out of range, or a sampler of another population.
      PrivacyError: if `delta` asks for a guarantee that cannot be given.
      TypeError: for parameters that are not floats, or a loss that is not one number per example.
    """
    checks.integer("rounds", rounds)
    checks.integer("eval_every", eval_every)
    if sampler.num_clients != population.num_clients:
        raise ValueError(f"the sampler draws from {sampler.num_clients} clients; there are {population.num_clients}")
    if delta is not None and algorithm.accountant is not None:
        algorithm.accountant(sampler.sampling, rounds, delta)  # refuse before training rather than after

    plan = plan or choose_plan(params, sampler.width)
    population, columns, key = on_all_devices((population, evaluation.columns, key), plan)
    state = jax.tree.map(jnp.copy, on_all_devices(algorithm.init(params, key, population), plan))  # to be donated
    history, done, segment_length = None, 0, 1
    with deferred_interrupt() as interrupted, tqdm(total=rounds, unit="round", disable=not progress) as bar:
        while done < rounds and not interrupted():
            stop = min(done + segment_length, rounds)
            started = time.perf_counter()
            state, reports = run_segment(
                state, jnp.int32(done), jnp.int32(stop), jnp.int32(rounds), jnp.int32(eval_every),
                population, columns, key,
                algorithm=algorithm, sampler=sampler, plan=plan,
                loss_fn=evaluation.loss_fn, eval_batch_size=evaluation.batch_size,
            )  # fmt: skip
            reports = jax.device_get(reports)
            seconds = (time.perf_counter() - started) / (stop - done)

            epsilons = [
                _epsilon(algorithm, sampler, number, delta) if _is_due(number, rounds, eval_every) else math.nan
                for number in range(done + 1, stop + 1)
            ]
            segment = _to_history(reports, done, stop, epsilons, seconds, accounted_only)
            history = segment if history is None else history.extended(segment)
            bar.update(stop - done)
            bar.set_postfix(_summary(history))
            if done > 0 or stop == rounds:
                segment_length = min(max(int(SECONDS_PER_SEGMENT / seconds), 1), LONGEST_SEGMENT)
            done = stop
    claim = None
    if delta is not None and algorithm.accountant is not None:
        claim = algorithm.accountant(sampler.sampling, done, delta)
    return RunResult(algorithm.params(state), state, history, claim, interrupted=done < rounds)


@partial(
    jax.jit, static_argnames=("algorithm", "sampler", "plan", "loss_fn", "eval_batch_size"), donate_argnames=("state",)
)
def run_segment(
    state: PyTree,
    start: jax.Array,
    stop: jax.Array,
    rounds: jax.Array,
    eval_every: jax.Array,
    population: Population,
    columns: PyTree,
    key: jax.Array,
    *,
    algorithm: FederatedAlgorithm,
    sampler: Sampler,
    plan: Plan,
    loss_fn: LossFn | None,
    eval_batch_size: int,
) -> tuple[PyTree, Progress]:
    """Runs rounds `start` to `stop` (at most `LONGEST_SEGMENT`) and returns their reports, leaves [LONGEST_SEGMENT]."""

    def one_round(number: jax.Array, state: PyTree) -> tuple[PyTree, Progress]:
        cohort = sampler.sample(derive(key, RunStream.COHORT, number), number)
        state, record = algorithm.round(state, cohort, population, plan)

        def evaluate() -> dict[str, Mean]:
            return measure(algorithm.params(state), columns, loss_fn, eval_batch_size, plan)

        def skip() -> dict[str, Mean]:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(evaluate))

        return state, Progress(record, jax.lax.cond(_is_due(number + 1, rounds, eval_every), evaluate, skip))

    def step(number: jax.Array, carry: tuple[PyTree, Progress]) -> tuple[PyTree, Progress]:
        state, reports = carry
        state, report = one_round(number, state)
        return state, jax.tree.map(lambda all_, one: all_.at[number - start].set(one), reports, report)

    report = jax.eval_shape(one_round, start, state)[1]
    reports = jax.tree.map(lambda leaf: jnp.zeros((LONGEST_SEGMENT, *leaf.shape), leaf.dtype), report)
    return jax.lax.fori_loop(start, stop, step, (state, reports))


def _is_due(number: Any, rounds: Any, eval_every: Any) -> Any:
    """Returns whether to evaluate after so many rounds."""
    return (number % eval_every == 0) | (number == rounds)


def _epsilon(algorithm: FederatedAlgorithm, sampler: Sampler, rounds: int, delta: float | None) -> float:
    if algorithm.accountant is None:
        return math.inf
    return math.nan if delta is None else algorithm.accountant(sampler.sampling, rounds, delta).epsilon


def _to_history(
    reports: Progress, start: int, stop: int, epsilons: list[float], seconds: float, accounted_only: bool
) -> History:
    """Returns the reports of rounds `start` to `stop` as columns, those about private clients withheld if asked."""
    count = stop - start
    record, evaluated = jax.tree.map(lambda leaf: leaf[:count], reports)
    private = {
        **{f"train_{name}": _divide(mean) for name, mean in record.metrics.items()},
        "bits_up": record.bits_up.value(),
        "bits_down": record.bits_down.value(),
        "clients": record.clients,
        "rejected": record.rejected,
    }
    if accounted_only:
        private = {name: np.full(count, np.nan) for name in private}
    return History(
        {
            "round": np.arange(start, stop) + 1,
            **private,
            **{f"test_{name}": _divide(mean) for name, mean in evaluated.items()},
            "epsilon": np.array(epsilons),
            "seconds": np.full(count, seconds),
        }
    )


def _divide(mean: Mean) -> np.ndarray:
    """Returns total / count, NaN where nothing was counted."""
    counted = mean.count > 0
    return np.where(counted, mean.total / np.where(counted, mean.count, 1), np.nan).astype(np.float64)


def _summary(history: History) -> dict[str, str]:
    """Returns what the progress bar shows."""
    shown = {
        "train": history.last("train_loss") if "train_loss" in history else math.nan,
        "loss": history.last("test_loss") if "test_loss" in history else math.nan,
        "accuracy": history.last("test_accuracy") if "test_accuracy" in history else math.nan,
        "epsilon": history.last("epsilon"),
        "MB up": np.sum(history["bits_up"], dtype=np.float64) / 8e6,
    }
    return {name: f"{value:.4g}" for name, value in shown.items() if math.isfinite(value)}
