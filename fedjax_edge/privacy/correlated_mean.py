"""The differentially private mean with noise that is correlated over rounds."""

import math
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import solve_triangular

from fedjax_edge.core import checks
from fedjax_edge.core.protocols import (
    Accountant,
    Aggregator,
    CyclicSampling,
    FullParticipation,
    PrivacyClaim,
    PrivacyError,
    PyTree,
    Release,
    Sampling,
)
from fedjax_edge.core.trees import at_least_float32
from fedjax_edge.privacy.accounting import ZERO_OUT, check_question, gaussian_epsilon, in_words, most_participations
from fedjax_edge.privacy.clipping import check_clip_norm, clip_by_norm, total_norm
from fedjax_edge.privacy.correlated_noise import Strategy
from fedjax_edge.privacy.gaussian_mean import check_denominator


def correlated_mean(
    strategy: Strategy, clip_norm: PyTree, noise_multiplier: float | jax.Array, denominator: float | jax.Array
) -> Aggregator:
    """The mean of clipped updates with correlated Gaussian noise: DP-FTRL, and matrix factorization mechanisms.

    Round t releases `(sum_k clip(update_k, S) + z S noise_t) / denominator`, the slices `noise_t` being those of the
    strategy: `tree_noise`, `banded_toeplitz_noise`, `blt_noise`. What matters for training is the noise of sums over
    many rounds, and that is far less than of as many independent draws; no sampling need be random. The server's
    learning rate and momentum come after the noise and change no claim.

    The claim is that of one Gaussian mechanism. A client that takes part in the rounds P moves what is released, in
    units of its noise, by at most `sqrt(sum over s, t in P of |X[s, t]|) / z`, with X the inverse of the slices'
    covariance: `C^T C` for noise `C^-1 z`. That holds whatever later rounds make of earlier ones (Denisov et al. 2022,
    arXiv:2202.08312, Theorem 2.1), and X is computed from the slices really drawn.

    | sampling                                     | rounds P of a client                                          |
    |----------------------------------------------|---------------------------------------------------------------|
    | `CyclicSampling`, cohort divides clients     | each p-th, p = clients / cohort; the worst of the p starts    |
    | `CyclicSampling` else                        | any that are `clients // cohort` or more apart; a bound       |
    | `FullParticipation`                          | all                                                           |
    | `PoissonSampling`, `FixedSampling`           | all: no gain from chance is claimed                           |
    | `None`                                       | refused                                                       |

    The neighbours differ by one client whose contributions become zero; the cohorts are the same. More rounds than the
    strategy was made for are refused, fewer are accounted for as they are: the claim is that of what was released.

    - Noise is on the scale of the sum and is divided with it. (Noise scaled for the sum but added to the mean would be
      `denominator` times too much, as in an example of jax-privacy, its issue 383; the other way round, too little.)
    - The claim covers the rounds of one run. What `gaussian_mean` says of denominators and of the run's key holds here.

    Args:
      strategy: how the noise is correlated, and for how many rounds.
      clip_norm: S, as in `gaussian_mean`.
      noise_multiplier: z, the standard deviation, over S, of what the strategy mixes; 0 for none, and then no claim.
        `calibrate_noise_multiplier(..., accountant_of=...)` finds one.
      denominator: the expected number of clients of a round, above 0 and fixed before any data is seen.

    Returns:
      An `Aggregator` whose state is the strategy's.

    Raises:
      ValueError: an argument is out of range, or `denominator` is something computed from the cohort.
      TypeError: `strategy` is none.

    Source: Kairouz et al. 2021 (arXiv:2103.00039), Algorithm 1; Choquette-Choo et al., "Multi-Epoch Matrix
    Factorization Mechanisms" (ICML 2023, arXiv:2211.06530), Section 2, and arXiv:2306.08153, Equation 5, Algorithm 4.

    Example:
      >>> from fedjax_edge.core.protocols import CyclicSampling
      >>> from fedjax_edge.privacy.correlated_noise import tree_noise
      >>> aggregator = correlated_mean(tree_noise(8), clip_norm=1.0, noise_multiplier=4.0, denominator=25)
      >>> claim = aggregator.accountant(CyclicSampling(100, 25), rounds=8, delta=1e-5)
      >>> print(round(claim.epsilon, 2), claim.sampling)
      3.23 25 of 100 clients in turn, a client's rounds 4 or more apart
    """
    if not isinstance(strategy, Strategy):
        raise TypeError(f"strategy must be a Strategy, such as privacy.tree_noise(100), got {strategy!r}")
    check_clip_norm(clip_norm)
    checks.non_negative("noise_multiplier", noise_multiplier)
    check_denominator(denominator)

    def init(update):
        return strategy.init(at_least_float32(update))

    def contribution(update, weight, state):
        return clip_by_norm(at_least_float32(update), clip_norm)

    def finish(total, state, key):
        noise, state = strategy.next(total, state, key)

        def noisy(leaf, slice_):
            multiplier, norm, divisor = (
                jnp.asarray(value, leaf.dtype) for value in (noise_multiplier, total_norm(clip_norm), denominator)
            )
            return (leaf + multiplier * norm * slice_) / divisor

        return jax.tree.map(noisy, total, noise), state

    return Aggregator(init, contribution, finish, accountant=_accountant(strategy, noise_multiplier))


def _accountant(strategy: Strategy, noise_multiplier: float | jax.Array) -> Accountant:
    @lru_cache(maxsize=1)
    def encoder() -> np.ndarray:
        return solve_triangular(strategy.mixing(), np.eye(strategy.rounds), lower=True)

    @lru_cache(maxsize=None, typed=True)  # samplings of two kinds may be equal as tuples
    def sensitivity(sampling: Sampling, rounds: int) -> float:
        first = encoder()[:rounds, :rounds]
        return math.sqrt(_largest_sum(np.abs(first.T @ first), sampling))

    def accountant(sampling: Sampling, rounds: int, delta: float) -> PrivacyClaim:
        check_question(noise_multiplier, rounds, delta)
        if rounds > strategy.rounds:
            raise PrivacyError(
                f"the noise was made for {strategy.rounds} rounds, and nothing is claimed for {rounds}: make it for as "
                "many as there will be"
            )
        most = most_participations(sampling, rounds)
        epsilon, multiplier = 0.0, float(noise_multiplier)
        if rounds:
            multiplier /= sensitivity(sampling, int(rounds))
            epsilon = gaussian_epsilon(multiplier, delta)
        if not math.isfinite(epsilon):
            raise PrivacyError(f"no finite epsilon for {noise_multiplier=}, {rounds} rounds, delta={delta}")
        everything = sensitivity(FullParticipation(1), strategy.rounds)  # tells one strategy from another
        by = (
            f"analytic Gaussian, noise of sensitivity {everything:.4g} to all rounds, correlated over "
            f"{strategy.rounds} rounds, at most {most} of them a client's"
        )
        release = Release(multiplier, 1 if rounds else 0)
        words = _pattern(sampling)
        return PrivacyClaim(epsilon, float(delta), ZERO_OUT, words, by, int(rounds), float(noise_multiplier), release)

    return accountant


def _pattern(sampling: Sampling) -> str:
    if isinstance(sampling, CyclicSampling):
        return f"{in_words(sampling)}, a client's rounds {sampling.num_clients // sampling.cohort_size} or more apart"
    return f"{in_words(sampling)}; no gain from chance is claimed"


def _largest_sum(gram: np.ndarray, sampling: Sampling) -> float:
    """Returns the largest sum of `gram[s, t]` over a client's rounds s and t, or a bound of it; all entries >= 0."""
    if not isinstance(sampling, CyclicSampling):
        return float(gram.sum())
    period, rest = divmod(sampling.num_clients, sampling.cohort_size)
    if rest == 0:
        return max(float(gram[start::period, start::period].sum()) for start in range(min(period, len(gram))))
    return float(_heaviest_subset(_heaviest_subset(gram, period), period))


def _heaviest_subset(values: np.ndarray, separation: int) -> np.ndarray:
    """Returns the largest sum of entries, along the last axis, whose indices are `separation` or more apart."""
    count = values.shape[-1]
    best = np.zeros((*values.shape[:-1], count + separation))  # from each index on
    for i in reversed(range(count)):
        best[..., i] = np.maximum(values[..., i] + best[..., i + separation], best[..., i + 1])
    return best[..., 0]
