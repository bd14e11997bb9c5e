"""What an audit may conclude from canaries' scores: a lower bound of epsilon with confidence, and an estimate."""

import math
from typing import NamedTuple

import jax
import numpy as np
import scipy

from fedjax_edge.core import checks

_LARGEST = 40.0  # e^40 : 1 is certainty in float64


class LowerBound(NamedTuple):
    """An epsilon that the mechanism exceeds, with confidence, and the guesses that show it."""

    epsilon: float
    guesses: int
    correct: int


def audit_guesses(correct: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95) -> float:
    """The epsilon that so many correct guesses refute: a lower bound with confidence.

    Theorem 5.2 of Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run" (arXiv:2305.08846).
    Each of `canaries` examples (here: clients) was included by a fair coin of its own. An auditor who sees only what
    was released guesses some of the coins. If the mechanism is (epsilon, delta)-DP for adding or removing one of them,
    the number of correct guesses W is dominated by `Binomial(guesses, e^epsilon / (1 + e^epsilon))` up to delta:
    P(correct >= v) <= P(W >= v) + 2 canaries delta max_i P(v > W >= v - i) / i. The result is the largest epsilon for
    which that is at most `1 - confidence`.

    | case                                    | result                                                             |
    |-----------------------------------------|--------------------------------------------------------------------|
    | no guess, or half of them correct       | 0                                                                  |
    | all r correct, delta 0, 95 % confidence | `log(p / (1 - p))`, `p = 0.05^(1/r)`: 3.5 for 100, 5.8 for 1,000   |
    | `canaries * delta` of the order of 1    | little or nothing: choose delta well below 1 / canaries            |

    Args:
      correct: how many guesses were right.
      guesses: how many were made, a number fixed beforehand (at delta 0 it may depend on what was released); which
        coins are guessed may depend on what was released, but not on the coins.
      canaries: how many coins were tossed, those that were not guessed included.
      delta: that of the claim, in [0, 1).
      confidence: that the mechanism's epsilon at `delta` is not below the result, from 0.5 to 1 exclusive.

    Returns:
      The bound, at least 0. It says nothing in favour of a mechanism: 0 means that nothing was found.

    Raises:
      ValueError: for counts that are not `0 <= correct <= guesses <= canaries`, or a probability out of range.

    >>> print(round(audit_guesses(correct=100, guesses=100, canaries=100, delta=0.0), 2))
    3.49
    """
    checks.integer("canaries", canaries)
    checks.integer("guesses", guesses, at_least=0, at_most=canaries)
    checks.integer("correct", correct, at_least=0, at_most=guesses)
    check_probabilities(delta, confidence)

    def excess(epsilon: float) -> float:
        right = scipy.special.expit(epsilon)
        tail = scipy.stats.binom.sf(correct - 1, guesses, right)
        steps = np.arange(1, correct + 1)
        alpha = np.max((scipy.stats.binom.sf(correct - steps - 1, guesses, right) - tail) / steps, initial=0.0)
        return tail + 2 * canaries * delta * alpha - (1 - confidence)

    return 0.0 if excess(0.0) > 0 else float(scipy.optimize.brentq(excess, 0.0, _LARGEST))


def audit_scores(scores: jax.Array, included: jax.Array, delta: float, confidence: float = 0.95) -> LowerBound:
    """The best lower bound from scores: guess that the highest were included and the lowest were not.

    Algorithm 1 of Steinke, Nasr and Jagielski 2023 (arXiv:2305.08846), with as many guesses on either side. How many is
    best is not known beforehand: a half, an eighth, a 32nd and a 128th of the canaries on each side are tried, where
    that is at least 8, and each bound is taken at a confidence that allows for the number of tries (Bonferroni).

    Args:
      scores: float [canaries], higher where inclusion is likelier; they may depend on all that was released, and not
        on the coins. Of several independent runs, those of all runs together. Equal ones count as guessed wrong.
      included: bool [canaries], the coins.
      delta: that of the claim, in [0, 1).
      confidence: of the bound, from 0.5 to 1 exclusive.

    Returns:
      `LowerBound(epsilon, guesses, correct)`.

    Raises:
      ValueError: shapes differ, there are no two canaries, a score is not finite, or a probability is out of range.

    >>> import jax.numpy as jnp
    >>> included = jnp.arange(200) % 2 == 0
    >>> audit_scores(included.astype(jnp.float32), included, delta=0.0).correct
    200
    """
    scores, included = _canaries(scores, included)
    check_probabilities(delta, confidence)
    order = np.lexsort((~included, scores))  # ties go against the auditor, on either side
    sides = [len(scores) // 2] + [side for side in (len(scores) // part for part in (8, 32, 128)) if side >= 8]
    bounds = []
    for side in sides:
        correct = int((~included[order[:side]]).sum() + included[order[len(order) - side :]].sum())
        epsilon = audit_guesses(correct, 2 * side, len(scores), delta, 1 - (1 - confidence) / len(sides))
        bounds.append(LowerBound(epsilon, 2 * side, correct))
    return max(bounds)


def audit_estimate(scores: jax.Array, included: jax.Array, delta: float) -> float:
    """What epsilon the scores look like: an estimate, without confidence, that may err on either side.

    Andrew et al. 2023, "One-shot Empirical Privacy Estimation for Federated Learning" (arXiv:2302.03098): a normal is
    fitted to the scores of the canaries that were included and one to those of the others, and the epsilon is that of
    telling the two normals apart at `delta`, in the worse direction. For the Gaussian mechanism it is right in high
    dimension and with many canaries. With few it errs upward, as the worse direction of two fitted spreads is taken:
    where 2.02 is true, 20,000 canaries give 2.18 on average (standard deviation 0.13), 1,000 give 2.8 (0.6). It looks
    at these canaries only; a mechanism that treats worse what it did not see goes unnoticed.

    | case                                       | result                                       |
    |--------------------------------------------|----------------------------------------------|
    | the same scores with and without           | 0                                            |
    | no spread, and different means             | infinity                                     |

    Args:
      scores: float [canaries].
      included: bool [canaries]; at least two of each kind.
      delta: in (0, 1).

    Returns:
      The estimate, at least 0.

    Raises:
      ValueError: as `audit_scores`, for a delta of 0, or fewer than two canaries of a kind.

    >>> scores = np.concatenate([scipy.stats.norm.ppf((np.arange(5000) + 0.5) / 5000) + shift for shift in (0, 1)])
    >>> print(round(audit_estimate(scores, np.arange(10_000) >= 5000, delta=1e-5), 1))  # 4.38 for sigma = 1
    4.4
    """
    scores, included = _canaries(scores, included)
    check_probabilities(delta, 0.95)
    if delta == 0 or min(included.sum(), (~included).sum()) < 2:
        raise ValueError("an estimate needs a delta above 0 and at least two canaries that were included and two not")
    (mean_in, std_in), (mean_out, std_out) = (
        (group.mean(), group.std(ddof=1)) for group in (scores[included], scores[~included])
    )
    if min(std_in, std_out) == 0:
        return 0.0 if (mean_in, std_in) == (mean_out, std_out) else math.inf
    shift = mean_in - mean_out
    return max(
        _epsilon_between_normals(shift / std_out, std_in / std_out, delta),
        _epsilon_between_normals(-shift / std_in, std_out / std_in, delta),
    )


def _epsilon_between_normals(mean: float, std: float, delta: float) -> float:
    """The epsilon at which `P(S) - e^epsilon Q(S)` is at most delta for all S; P = N(mean, std^2), Q = N(0, 1)."""

    def excess(epsilon: float) -> float:
        # The log-likelihood ratio is quadratic in x; S is where it exceeds epsilon.
        square, linear = 0.5 - 0.5 / std**2, mean / std**2
        constant = -0.5 * (mean / std) ** 2 - math.log(std) - epsilon
        if abs(square) < 1e-9:
            if linear == 0:
                return -delta
            edge = -constant / linear
            pieces = [(edge, math.inf)] if linear > 0 else [(-math.inf, edge)]
        else:
            roots = np.roots([square, linear, constant])
            if np.iscomplexobj(roots):
                pieces = [(-math.inf, math.inf)] if square > 0 else []
            else:
                low, high = sorted(roots)
                pieces = [(-math.inf, low), (high, math.inf)] if square > 0 else [(low, high)]
        return sum(_mass(a, b, mean, std) - math.exp(epsilon) * _mass(a, b, 0.0, 1.0) for a, b in pieces) - delta

    if excess(0.0) <= 0:
        return 0.0
    return float(scipy.optimize.brentq(excess, 0.0, 600.0)) if excess(600.0) < 0 else math.inf


def _mass(low: float, high: float, mean: float, std: float) -> float:
    """The probability between, from the tail where it is small."""
    if low > mean:
        low, high, mean = -high, -low, -mean
    return scipy.stats.norm.cdf(high, mean, std) - scipy.stats.norm.cdf(low, mean, std)


def check_probabilities(delta: float, confidence: float) -> None:
    """Raises ValueError unless delta lies within [0, 1) and confidence within [0.5, 1)."""
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be a number of at least 0 and below 1, got {delta!r}")
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must be a number of at least 0.5 and below 1, got {confidence!r}")


def _canaries(scores: jax.Array, included: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    scores, included = np.asarray(scores, np.float64), np.asarray(included)
    if scores.ndim != 1 or scores.shape != included.shape or len(scores) < 2 or included.dtype != bool:
        raise ValueError(
            f"scores and included must be float and bool [canaries], at least two, got {scores.shape} and "
            f"{included.dtype} {included.shape}"
        )
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    return scores, included
