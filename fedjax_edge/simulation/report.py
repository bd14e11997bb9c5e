"""From what compiled rounds report to a history, with the privacy spent so far."""

import math

import jax
import numpy as np

from fedjax_edge.core.protocols import (
    FederatedAlgorithm,
    FixedSampling,
    Mean,
    Population,
    PrivacyClaim,
    PrivacyError,
    PyTree,
    Sampler,
)
from fedjax_edge.core.round import RoundState
from fedjax_edge.data import HostedDataset
from fedjax_edge.simulation.history import History
from fedjax_edge.simulation.segment import Pace, Report, is_evaluated


def claim_of(algorithm: FederatedAlgorithm, sampler: Sampler, rounds: int, delta: float | None) -> PrivacyClaim | None:
    """Returns what so many rounds guarantee; None without a mechanism, or without `delta`."""
    if algorithm.accountant is None or delta is None:
        return None
    return algorithm.accountant(sampler.sampling, rounds, delta)


def check_memories(
    claim: PrivacyClaim | None, algorithm: FederatedAlgorithm, params: PyTree, population: Population | HostedDataset
) -> None:
    """Raises PrivacyError for a claim that does not hold where clients keep something from one round to the next.

    What chance adds to the privacy of cohorts of fixed size is proved for rounds that depend on earlier ones by what
    was released alone. A memory says who took part, which says something of who did not.
    """
    sampling = None if claim is None or claim.release is None else claim.release.sampling
    is_by_chance = isinstance(sampling, FixedSampling) and sampling.cohort_size < sampling.num_clients
    if not is_by_chance or claim.rounds <= 1:
        return
    seen = population.view_of_nobody() if isinstance(population, HostedDataset) else population
    state = jax.eval_shape(algorithm.init, params, jax.random.key(0), seen)
    if isinstance(state, RoundState) and jax.tree.leaves((state.clients, state.uplink)):
        raise PrivacyError(
            f"for {claim.sampling} nothing can be claimed where clients keep something from one round to the next, "
            "such as the memory of error_feedback: draw cohorts by data.poisson, or ask for no claim by delta=None"
        )


def epsilons_of(
    algorithm: FederatedAlgorithm, sampler: Sampler, numbers: np.ndarray, pace: Pace, delta: float | None
) -> list[float]:
    """Returns what was spent after each round, NaN for one that is not evaluated."""

    def epsilon(number: int) -> float:
        if algorithm.accountant is None:
            return math.inf
        claim = claim_of(algorithm, sampler, number, delta)
        return math.nan if claim is None else claim.epsilon

    due = is_evaluated(numbers, *pace)
    return [epsilon(int(number)) if is_due else math.nan for number, is_due in zip(numbers, due, strict=True)]


def to_history(
    numbers: np.ndarray, reports: Report, epsilons: list[float], seconds: float, accounted_only: bool = False
) -> History:
    """Returns the reports of a segment as columns, those about private clients withheld if asked.

    Args:
      numbers: of the rounds, from 1, [rounds].
      reports: on the host, leaves [at least that many rounds].
      epsilons: [rounds].
      seconds: of a round, on average.
      accounted_only: withhold what epsilon does not cover.
    """
    count = len(numbers)
    record = reports.record
    private = {
        **{f"train_{name}": _divide(mean)[:count] for name, mean in record.metrics.items()},
        "bits_up": record.bits_up.value()[:count],
        "bits_down": record.bits_down.value()[:count],
        "clients": record.clients[:count],
        "rejected": record.rejected[:count],
        "seconds": np.full(count, seconds),  # more examples take more time
    }
    if accounted_only:
        private = {name: np.full(count, np.nan) for name in private}
    return History(
        {
            "round": numbers,
            **private,
            **{f"test_{name}": _divide(mean)[:count] for name, mean in reports.evaluated.items()},
            "epsilon": np.array(epsilons),
        }
    )


def _divide(mean: Mean) -> np.ndarray:
    """Returns total / count, NaN where nothing was counted."""
    counted = mean.count > 0
    return np.where(counted, mean.total / np.where(counted, mean.count, 1), np.nan).astype(np.float64)
