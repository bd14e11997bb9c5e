"""`run`: many rounds of an algorithm, with evaluation, privacy accounting, a progress bar and a history."""

import math
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from fedjax_edge.core import checks
from fedjax_edge.core.executor import on_all_devices
from fedjax_edge.core.plan import Plan, choose_plan
from fedjax_edge.core.protocols import FederatedAlgorithm, Mean, Population, PrivacyClaim, PyTree, Sampler
from fedjax_edge.simulation.evaluation import NO_EVALUATION, Evaluation
from fedjax_edge.simulation.history import History
from fedjax_edge.simulation.interrupt import deferred_interrupt
from fedjax_edge.simulation.segment import LONGEST_SEGMENT, Report, Schedule, is_evaluated, run_segment

SECONDS_PER_SEGMENT = 0.5  # between two looks at the progress bar and at Ctrl-C


class RunResult(NamedTuple):
    """What a run ends with."""

    params: PyTree
    state: PyTree
    history: History
    claim: PrivacyClaim | None  # for the rounds that were really run
    interrupted: bool


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
      algorithm: such as `algorithms.fedavg(...)`.
      params: where to start; a pytree of floats.
      population: the clients' data, a `FederatedDataset`.
      sampler: who takes part in a round, such as `data.poisson(...)`.
      rounds: how many.
      key: the run's key, from which all randomness comes.
      evaluation: what to measure of the model, by `simulation.evaluation(...)`.
      eval_every: after how many rounds to evaluate; the last round always is.
      delta: the delta at which to state epsilon; it should be below 1 / number of clients.
      accounted_only: release nothing about the clients but what epsilon covers: training metrics, bits, counts
        of clients and seconds become NaN, and only the model and its evaluation on data of one's own are shown.
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
    _claim(algorithm, sampler, rounds, delta)  # what cannot be claimed is refused before training

    plan = plan or choose_plan(params, sampler.width)
    population, columns, key = on_all_devices((population, evaluation.columns, key), plan)
    state = jax.tree.map(jnp.copy, on_all_devices(algorithm.init(params, key, population), plan))  # to be donated
    histories, done, length = [], 0, 1
    with deferred_interrupt() as interrupted, tqdm(total=rounds, unit="round", disable=not progress) as bar:
        while done < rounds and not interrupted():
            stop = min(done + length, rounds)
            started = time.perf_counter()
            state, reports = run_segment(
                state,
                Schedule(*map(jnp.int32, (done, stop, rounds, eval_every))),
                population,
                columns,
                key,
                algorithm=algorithm,
                sampler=sampler,
                plan=plan,
                loss_fn=evaluation.loss_fn,
                eval_batch_size=evaluation.batch_size,
            )
            reports = jax.tree.map(lambda leaf, n=stop - done: leaf[:n], jax.device_get(reports))
            seconds = (time.perf_counter() - started) / (stop - done)

            numbers = np.arange(done, stop) + 1
            epsilons = [
                _epsilon(algorithm, sampler, int(number), delta) if is_due else math.nan
                for number, is_due in zip(numbers, is_evaluated(numbers, rounds, eval_every), strict=True)
            ]
            histories.append(_to_history(numbers, reports, epsilons, seconds, accounted_only))
            bar.update(stop - done)
            bar.set_postfix(_shown(histories))
            done, length = stop, min(max(int(SECONDS_PER_SEGMENT / seconds), 1), LONGEST_SEGMENT)

    return RunResult(
        params=algorithm.params(state),
        state=state,
        history=History.joined(histories),
        claim=_claim(algorithm, sampler, done, delta),
        interrupted=done < rounds,
    )


def _claim(algorithm: FederatedAlgorithm, sampler: Sampler, rounds: int, delta: float | None) -> PrivacyClaim | None:
    if algorithm.accountant is None or delta is None:
        return None
    return algorithm.accountant(sampler.sampling, rounds, delta)


def _epsilon(algorithm: FederatedAlgorithm, sampler: Sampler, rounds: int, delta: float | None) -> float:
    if algorithm.accountant is None:
        return math.inf
    claim = _claim(algorithm, sampler, rounds, delta)
    return math.nan if claim is None else claim.epsilon


def _to_history(
    numbers: np.ndarray, reports: Report, epsilons: list[float], seconds: float, accounted_only: bool
) -> History:
    """Returns the reports of a segment as columns, those about private clients withheld if asked."""
    record = reports.record
    private = {
        **{f"train_{name}": _divide(mean) for name, mean in record.metrics.items()},
        "bits_up": record.bits_up.value(),
        "bits_down": record.bits_down.value(),
        "clients": record.clients,
        "rejected": record.rejected,
        "seconds": np.full(len(numbers), seconds),  # more examples take more time
    }
    if accounted_only:
        private = {name: np.full(len(numbers), np.nan) for name in private}
    return History(
        {
            "round": numbers,
            **private,
            **{f"test_{name}": _divide(mean) for name, mean in reports.evaluated.items()},
            "epsilon": np.array(epsilons),
        }
    )


def _divide(mean: Mean) -> np.ndarray:
    """Returns total / count, NaN where nothing was counted."""
    counted = mean.count > 0
    return np.where(counted, mean.total / np.where(counted, mean.count, 1), np.nan).astype(np.float64)


def _shown(histories: list[History]) -> dict[str, str]:
    """Returns what the progress bar shows: the last values, and the megabytes sent so far."""
    columns = {"train": "train_loss", "loss": "test_loss", "accuracy": "test_accuracy", "epsilon": "epsilon"}
    last = histories[-1]
    shown = {label: last.last(name) for label, name in columns.items() if name in last}
    shown["MB up"] = sum(history["bits_up"].sum(dtype=np.float64) for history in histories) / 8e6
    return {label: f"{value:.4g}" for label, value in shown.items() if math.isfinite(value)}
